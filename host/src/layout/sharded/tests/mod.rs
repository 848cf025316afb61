//! The layout against a plain vector of bytes, over a store that fails and servers that die.

mod crash;
mod damage;
mod faults;
mod owners;
mod races;
pub(crate) mod random;
mod repair;
pub(crate) mod rig;
#[path = "../../../../tests/common/rng.rs"]
pub(crate) mod rng;
mod room;
mod size;

use std::time::Duration;

use nbd_rs_plugin::{Body, Bytes, CapabilityFlags, Data, Kind, Piece, ReadFlags, ZeroFlags};

use super::manage::{self, How, Plan};
use super::names::Names;
use super::owner::OwnerRecord;
use super::{Sharded, Timing, Uuid, Way};
use crate::backend::memory::Store;
use crate::error::Result;
use crate::layout::Layout;
use rig::{Rig, LIKE_S3};

pub(crate) const SHARD: u64 = 64 << 10;
/// A few shards, the last one not whole.
pub(crate) const SIZE: u64 = 20 * SHARD + 5000;

pub(crate) fn store(way: Way) -> Store {
    match way {
        Way::Whole => Store::with(LIKE_S3),
        Way::InPlace => Store::default(),
    }
}

pub(crate) fn plan(size_bytes: u64, way: Way) -> Plan {
    Plan {
        size_bytes,
        shard_bytes: SHARD,
        way: Some(way),
        force: false,
    }
}

/// Opens to write, from whoever had it before.
pub(crate) fn how() -> How {
    How {
        writes: true,
        looks: false,
        takeover: true,
        fencing_is_external: false,
        way: None,
        timing: Timing {
            heartbeat: Duration::from_millis(500),
            lease: Duration::from_secs(20),
            patience: Duration::from_millis(300),
            late: Duration::ZERO,
            shut_out: Duration::ZERO,
        },
    }
}

/// The same, by an owner whose lease runs out after 200 ms without a heartbeat.
pub(crate) fn how_with_short_lease(patience_ms: u64) -> How {
    How {
        timing: Timing {
            heartbeat: Duration::from_millis(20),
            lease: Duration::from_millis(200),
            patience: Duration::from_millis(patience_ms),
            ..how().timing
        },
        ..how()
    }
}

pub(crate) async fn init(store: &Store, size_bytes: u64, way: Way) {
    let chain = Rig::new(store).chain();
    let made = manage::create(chain, plan(size_bytes, way), false, &mut |_| ()).await;
    made.unwrap();
}

pub(crate) async fn open(store: &Store) -> (Sharded, Rig) {
    let rig = Rig::new(store);
    let volume = manage::open(rig.chain(), how()).await.unwrap();
    (volume, rig)
}

async fn fresh(way: Way) -> (Store, Sharded, Rig) {
    let store = store(way);
    init(&store, SIZE, way).await;
    let (volume, rig) = open(&store).await;
    (store, volume, rig)
}

pub(crate) fn bytes_of(data: &Data) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in data.pieces() {
        match piece {
            Piece::Bytes(piece) => bytes.extend_from_slice(piece),
            Piece::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            Piece::Mapped(_) => panic!("not asked for"),
        }
    }
    bytes
}

pub(crate) async fn read(volume: &dyn Layout, offset: u64, len: u64) -> Result<Vec<u8>> {
    let data = volume
        .read(offset, len, ReadFlags::LEND_HOLES)
        .wait()
        .await?;
    assert_eq!(data.len(), len);
    Ok(bytes_of(&data))
}

pub(crate) fn body(bytes: Vec<u8>) -> Body {
    Body::One(Bytes::from(bytes))
}

pub(crate) async fn write(volume: &dyn Layout, offset: u64, byte: u8, len: u64) -> Result<()> {
    let body = body(vec![byte; len as usize]);
    volume.write(offset, body, false).wait().await
}

pub(crate) async fn zero(
    volume: &dyn Layout,
    offset: u64,
    len: u64,
    flags: ZeroFlags,
) -> Result<()> {
    volume.zero(offset, len, flags).wait().await
}

/// Names of a volume's objects with this in them.
pub(crate) fn named(store: &Store, part: &str) -> Vec<String> {
    let keys = store.keys().into_iter();
    keys.filter(|key| key.contains(part)).collect()
}

fn uuid(store: &Store) -> Uuid {
    let key = named(store, "/index").remove(0);
    Uuid::parse(key.split('/').next().unwrap()).unwrap()
}

/// The owner record as it lies on the store.
fn owner(store: &Store) -> OwnerRecord {
    let uuid = uuid(store);
    let record = store.peek(&Names::of(uuid).owner()).unwrap();
    OwnerRecord::decode(uuid, &record).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind
}

fn has(volume: &Sharded, flags: CapabilityFlags) -> bool {
    volume.capabilities().has(flags)
}
