//! The journal before a sharded volume, against a plain vector of bytes, over a store and a disk
//! that fail, and servers and machines that die.

mod away;
mod disk;
mod power;
mod random;
mod shipper;
mod store;

use std::sync::{Arc, Weak};
use std::time::Duration;

use nbd_rs_journal::uuid::Uuid;
use nbd_rs_plugin::ZeroFlags;
use nbd_rs_recorder_disk::{Image, Recorder};

use super::open::{open_at, How, Site};
use super::{Core, FlushTo, Journaled};
use crate::backend::memory::Store;
use crate::error::Result;
use crate::layout::sharded::tests as sharded;
use crate::layout::sharded::{manage, Way};
use crate::layout::Layout;
use crate::runtime;
use sharded::rig::{Rig, LIKE_S3};
use sharded::{read, rng, write, zero, SHARD, SIZE};

/// Some hundred small records.
const RING_BYTES: u64 = 2 << 20;

fn site(disk: &Recorder, boot: u8) -> Site {
    Site {
        disk: disk.disk(),
        host: Uuid([1; 16]),
        boot: Uuid([boot; 16]),
    }
}

fn how(flush_to: FlushTo) -> How {
    How {
        ring_bytes: RING_BYTES,
        flush_to,
        ..How::default()
    }
}

/// A server: a volume behind its journal, and its way to the store.
struct Server {
    volume: Journaled,
    rig: Rig,
}

impl Server {
    async fn try_start(store: &Store, site: &Site, how: &How) -> Result<Self> {
        Self::try_start_with(Rig::new(store), sharded::how(), site, how).await
    }

    async fn try_start_with(
        rig: Rig,
        sharded: manage::How,
        site: &Site,
        how: &How,
    ) -> Result<Self> {
        let volume = manage::open(rig.chain(), sharded).await?;
        let volume: Arc<dyn Layout> = Arc::new(volume);
        let ledger = volume.ledger().expect("whole shards, open to write");
        match open_at(&volume, ledger, how, site).await {
            Ok(volume) => Ok(Self { volume, rig }),
            Err(error) => {
                rig.kill();
                Err(error)
            }
        }
    }

    async fn start(store: &Store, disk: &Recorder, how: &How) -> Self {
        Self::try_start(store, &site(disk, 1), how).await.unwrap()
    }

    /// SIGKILL: nothing of it has an effect any more, and what it had open is closed.
    async fn kill(self) {
        self.rig.kill();
        self.abandon().await;
    }

    /// Drops it without a word; what it has on its way may still arrive.
    async fn abandon(self) {
        let core: Weak<Core> = Arc::downgrade(&self.volume.core);
        drop(self.volume);
        for _ in 0..2000 {
            if core.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("something of a server that is gone goes on");
    }
}

async fn new_volume() -> Store {
    let store = Store::with(LIKE_S3);
    sharded::init(&store, SIZE, Way::Whole).await;
    store
}

fn empty_disk() -> Recorder {
    Recorder::start(Image::default())
}

/// What the volume holds without any journal.
async fn stored(store: &Store, offset: u64, len: u64) -> Vec<u8> {
    let rig = Rig::new(store);
    let how = manage::How {
        writes: false,
        ..sharded::how()
    };
    let volume = manage::open(rig.chain(), how).await.unwrap();
    read(&volume, offset, len).await.unwrap()
}

#[test]
fn c12_an_acknowledged_write_survives_a_kill_and_reads_see_it_at_once() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        // The store takes nothing from now on.
        let _held = server.rig.hold("/shard/");
        write(&server.volume, 5000, 7, 100).await.unwrap();
        zero(&server.volume, 5050, 10, ZeroFlags::NONE)
            .await
            .unwrap();
        let expected = [[7; 50].as_slice(), &[0; 10], &[7; 40]].concat();
        assert_eq!(read(&server.volume, 5000, 100).await.unwrap(), expected);
        server.kill().await;
        assert_eq!(stored(&store, 5000, 100).await, [0; 100]);
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        assert_eq!(read(&server.volume, 5000, 100).await.unwrap(), expected);
        // It was replayed before it was served.
        assert_eq!(stored(&store, 5000, 100).await, expected);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c04_a_remote_flush_waits_for_the_store_and_a_local_one_for_the_disk() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let held = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, 10).await.unwrap();
        let mut flush = server.volume.flush();
        let early = runtime::timeout(Duration::from_millis(100), &mut flush).await;
        assert!(early.is_err(), "the store does not have it");
        drop(held);
        flush.await.unwrap();
        assert_eq!(stored(&store, 0, 10).await, [1; 10]);
        server.volume.close().await.unwrap();

        let server = Server::start(&store, &disk, &how(FlushTo::Local)).await;
        let _held = server.rig.hold("/shard/");
        let syncs = disk.syncs();
        write(&server.volume, 0, 2, 10).await.unwrap();
        server.volume.flush().await.unwrap();
        assert!(disk.syncs() > syncs);
        assert_eq!(stored(&store, 0, 10).await, [1; 10]);
        server.kill().await;
    });
}

#[test]
fn c06_a_write_with_fua_is_answered_when_the_store_has_it() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let body = sharded::body(vec![3; 10]);
        server.volume.write(0, body, true).wait().await.unwrap();
        assert_eq!(stored(&store, 0, 10).await, [3; 10]);
        let flags = ZeroFlags::FUA;
        zero(&server.volume, 0, 5, flags).await.unwrap();
        assert_eq!(stored(&store, 0, 10).await, [0, 0, 0, 0, 0, 3, 3, 3, 3, 3]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn overwritten_units_go_to_the_store_once_and_whole_shards_are_not_read() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let changes = server.rig.changes();
        for round in 0..50 {
            write(&server.volume, 4096, round, 4096).await.unwrap();
        }
        server.volume.flush().await.unwrap();
        let small = server.rig.changes() - changes;
        assert!(small <= 6, "{small} changes: the shard once, and records");
        // Sixteen parts that are a whole shard together, over one that is there.
        let calls = server.rig.calls();
        for part in 0..16 {
            let len = SHARD / 16;
            write(&server.volume, part * len, 9, len).await.unwrap();
        }
        server.volume.flush().await.unwrap();
        let calls = server.rig.calls() - calls;
        assert!(calls <= 8, "{calls} calls");
        assert_eq!(stored(&store, 0, SHARD).await, vec![9; SHARD as usize]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c12_the_volume_says_where_writes_wait_until_nothing_does() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let entry = || async {
            let chain = Rig::new(&store).chain();
            manage::facts(&chain).await.unwrap().journal
        };
        assert_eq!(entry().await, None);
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let said = entry().await.expect("before the first write");
        assert!(said.to_string().contains(&said.ticket.journal.to_string()));
        server.kill().await;
        assert_eq!(entry().await, Some(said.clone()));
        // Elsewhere it is refused, with the name of the journal, and so is doing without.
        let (elsewhere, plain) = (site(&empty_disk(), 1), how(FlushTo::Remote));
        let refused = Server::try_start(&store, &elsewhere, &plain).await;
        let refused = refused.err().expect("there is no journal");
        for words in [&said.ticket.journal.to_string(), "--accept-lost-writes"] {
            assert!(refused.message.contains(words), "{refused}");
        }
        let lost = How {
            accept_lost_writes: true,
            ..how(FlushTo::Remote)
        };
        let other = empty_disk();
        let server = Server::try_start(&store, &site(&other, 1), &lost)
            .await
            .unwrap();
        write(&server.volume, 0, 1, 10).await.unwrap();
        server.volume.flush().await.unwrap();
        server.volume.close().await.unwrap();
        assert_eq!(entry().await, None);
        // Back at the first place: what waits there is older than the volume.
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        server.volume.close().await.unwrap();
    });
}

/// Found by the random script: the journal brought back after a kill what zeros that take space
/// had replaced in the store.
#[test]
fn c12_zeros_that_take_space_are_not_undone_by_the_journal() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 8192).await.unwrap();
        server.volume.flush().await.unwrap();
        zero(&server.volume, 0, 4096, ZeroFlags::NO_HOLE)
            .await
            .unwrap();
        assert_eq!(stored(&store, 0, 4096).await, [0; 4096]);
        server.kill().await;
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        assert_eq!(read(&server.volume, 0, 4096).await.unwrap(), [0; 4096]);
        assert_eq!(read(&server.volume, 4096, 4096).await.unwrap(), [1; 4096]);
        server.volume.close().await.unwrap();
    });
}

/// Found by the random script: a trim of one batch and a write of the next went out together, and
/// the trim came last.
#[test]
fn c03_batches_that_touch_the_same_bytes_go_one_after_the_other() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, SHARD).await.unwrap();
        server.volume.flush().await.unwrap();
        // The trim is held up: its record of the shard's state.
        let held = server.rig.hold("/state/");
        zero(&server.volume, 0, SHARD, ZeroFlags::TRIM)
            .await
            .unwrap();
        let first = server.volume.flush();
        let mut first = std::pin::pin!(first);
        assert!(runtime::timeout(Duration::from_millis(100), first.as_mut())
            .await
            .is_err());
        write(&server.volume, 0, 2, 100).await.unwrap();
        let second = server.volume.flush();
        let mut second = std::pin::pin!(second);
        assert!(
            runtime::timeout(Duration::from_millis(100), second.as_mut())
                .await
                .is_err()
        );
        drop(held);
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!(stored(&store, 0, 200).await, [[2; 100], [0; 100]].concat());
        server.volume.close().await.unwrap();
    });
}

/// Found by the random script: what later writes had left of a trim was no whole units, and the
/// volume ignored it.
#[test]
fn c08_a_trim_that_later_writes_cut_is_zeros_all_the_same() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 16384).await.unwrap();
        server.volume.flush().await.unwrap();
        zero(&server.volume, 0, 8192, ZeroFlags::TRIM)
            .await
            .unwrap();
        write(&server.volume, 100, 2, 50).await.unwrap();
        server.volume.flush().await.unwrap();
        let expected = [&[0; 100][..], &[2; 50], &[0; 8192 - 150], &[1; 8192]].concat();
        assert_eq!(stored(&store, 0, 16384).await, expected);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn a_write_larger_than_the_journal_is_taken_in_parts() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let small = How {
            ring_bytes: 1 << 20,
            ..how(FlushTo::Remote)
        };
        let server = Server::start(&store, &disk, &small).await;
        let bytes = rng::Rng::new(3).bytes(SIZE as usize - 100);
        let body = sharded::body(bytes.clone());
        server.volume.write(77, body, true).wait().await.unwrap();
        assert!(stored(&store, 77, SIZE - 100).await == bytes);
        server.volume.close().await.unwrap();
    });
}
