//! Backends that outlive the volumes over them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use nbd_rs_plugin::{Body, Bytes, Piece, ReadFlags, ZeroFlags};

use crate::error::Result;
use crate::layout::distributed::log::tests::rig::{Held, Stage, Way, VOLUME};
use crate::layout::distributed::log::LogStore;
use crate::layout::distributed::state::policy::Policy;
use crate::layout::distributed::volume::{open, Setup, Tuning, Volume};
use crate::layout::geometry::Geometry;
use crate::layout::uuid::Uuid;
use crate::layout::Layout;

pub(super) const SHARD_BYTES: u64 = 64 << 10;
/// The last unit is cut by the volume's end.
pub(super) const SIZE_BYTES: u64 = 10 * SHARD_BYTES + 9000;

pub(super) struct Rig {
    pub(super) stage: Stage,
    pub(super) copies: usize,
    pub(super) tuning: Tuning,
    owners: AtomicU64,
}

/// A volume, and its ways to the backends.
pub(super) struct Served {
    pub(super) volume: Volume,
    pub(super) ways: Vec<Arc<Way>>,
}

impl Rig {
    pub(super) fn new(backends: usize, copies: usize, seed: u64) -> Self {
        let policy = Policy {
            budget_bytes: 128 << 10,
            checkpoint_bytes: 128 << 10,
            checkpoint_records: 8,
            ..Policy::default()
        };
        let tuning = Tuning {
            policy,
            batch_bytes: 64 << 10,
            write_through: false,
            ..Tuning::default()
        };
        Self {
            stage: Stage::new(backends, seed),
            copies,
            tuning,
            owners: AtomicU64::new(0),
        }
    }

    pub(super) async fn open_by(&self, ways: Vec<Arc<Way>>) -> Result<Served> {
        let store = |way: &Arc<Way>| -> Arc<dyn LogStore> { Arc::new(Held(way.clone())) };
        let setup = Setup {
            volume: VOLUME,
            geometry: Geometry {
                size_bytes: SIZE_BYTES,
                shard_bytes: SHARD_BYTES,
            },
            backends: (1..=ways.len()).map(|at| Uuid([at as u8; 16])).collect(),
            copies: self.copies,
            quorum: self.stage.quorum,
            owner: self.owners.fetch_add(1, Ordering::Relaxed) + 1,
            counter_seen: 0,
            timing: self.stage.timing,
            tuning: self.tuning,
            environment: self.stage.world.clone(),
            released: Arc::new(|| Box::pin(async { Ok(()) })),
        };
        let volume = open(setup, ways.iter().map(store).collect()).await?;
        Ok(Served { volume, ways })
    }

    pub(super) async fn open(&self) -> Served {
        self.open_by(self.stage.ways()).await.expect("a start")
    }

    /// The names on all backends that begin so, each with its backend.
    pub(super) fn keys(&self, prefix: &str) -> Vec<(usize, String)> {
        let disks = self.stage.disks.iter().enumerate();
        let keys =
            disks.flat_map(|(at, disk)| disk.keys(prefix).into_iter().map(move |key| (at, key)));
        keys.collect()
    }
}

impl Served {
    pub(super) async fn write(&self, offset: u64, bytes: Vec<u8>) -> Result<()> {
        let body = Body::One(Bytes::from(bytes));
        self.volume.write(offset, body, false).wait().await
    }

    pub(super) async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.volume.zero(offset, len, flags).wait().await
    }

    pub(super) async fn flush(&self) -> Result<()> {
        self.volume.flush().await
    }

    pub(super) async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let data = self.volume.read(offset, len, ReadFlags::LEND_HOLES);
        let data = data.wait().await?;
        let bytes = data.pieces().iter().flat_map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.to_vec(),
            Piece::Hole(len) => vec![0; *len as usize],
            _ => panic!("memory or a hole"),
        });
        let bytes: Vec<u8> = bytes.collect();
        assert_eq!(bytes.len() as u64, len);
        Ok(bytes)
    }

    pub(super) async fn all(&self) -> Vec<u8> {
        self.read(0, SIZE_BYTES).await.expect("all is readable")
    }

    /// Waits until something is so.
    pub(super) async fn until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it does not come to that: {:#?}", self.volume.status());
    }
}
