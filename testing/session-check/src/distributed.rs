//! The decoders of a distributed volume's objects, and its state, on any bytes. Frames and their
//! checksums are put around them, or nothing behind would ever be reached.

use nbd_rs::layout::distributed::format::changes::{decode_pack, encode_pack, Changes};
use nbd_rs::layout::distributed::format::identity::Identity;
use nbd_rs::layout::distributed::format::image::Trailer;
use nbd_rs::layout::distributed::format::map::MapPage;
use nbd_rs::layout::distributed::format::names::Names;
use nbd_rs::layout::distributed::format::root::Root;
use nbd_rs::layout::distributed::format::{Hash, Named, Version};
use nbd_rs::layout::distributed::state::State;
use nbd_rs::layout::geometry::Geometry;
use nbd_rs::layout::uuid::Uuid;
use nbd_rs_commit_log::{Epoch, Position};

/// The volume that everything is of.
pub(crate) const VOLUME: Uuid = Uuid([1; 16]);
/// Its size: the smallest shards there are.
pub(crate) const GEOMETRY: Geometry = Geometry {
    size_bytes: 100 << 20,
    shard_bytes: 64 << 10,
};
/// Bytes of a frame before its payload and behind it.
pub(crate) const FRAME_BYTES: (usize, usize) = (56, 4);

/// What an input is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Input {
    Identity = 0,
    Changes = 1,
    Pack = 2,
    Trailer = 3,
    Map = 4,
    Root = 5,
    /// The name of an object.
    Name = 6,
    /// Records of changes, each behind its length in two bytes.
    Log = 7,
}

/// Runs the decoder that the first byte names on the rest. Whether it took all of it.
///
/// # Panics
/// If the decoder does, or what it decoded is not what the bytes said.
pub fn run(bytes: &[u8]) -> bool {
    let Some((first, bytes)) = bytes.split_first() else {
        return false;
    };
    match first % 8 {
        0 => identity(bytes),
        1 => changes(bytes).is_some(),
        2 => pack(bytes),
        3 => trailer(bytes),
        4 => map(bytes),
        5 => root(bytes),
        6 => name(&String::from_utf8_lossy(bytes)),
        _ => log(bytes),
    }
}

/// A frame around a payload, as `docs/volume-format.md` has it.
fn framed(what: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"nbd-rs".to_vec();
    bytes.extend([what, 1]);
    bytes.extend(VOLUME.0);
    // Number, epoch, sequence and flags are 0.
    bytes.resize(52, 0);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

/// Any version that the payload may have: its first bytes are the owner's.
fn named(payload: &[u8], bytes: &[u8]) -> Named {
    let owner = payload.first_chunk().copied().unwrap_or_default();
    let epoch = Epoch {
        counter: 0,
        owner: u64::from_le_bytes(owner),
    };
    Named {
        version: Version { epoch, seq: 0 },
        hash: Hash::of(bytes),
    }
}

fn identity(payload: &[u8]) -> bool {
    let bytes = framed(b'D', payload);
    Identity::decode(&bytes).is_ok_and(|identity| {
        assert_eq!(identity.encode().as_deref(), Ok(&bytes[..]));
        assert!(identity.index().is_some() && identity.copies() > 0);
        true
    })
}

fn changes(payload: &[u8]) -> Option<Changes> {
    let bytes = framed(b'C', payload);
    let changes = Changes::decode(VOLUME, &bytes).ok()?;
    assert_eq!(changes.encode(VOLUME).as_deref(), Ok(&bytes[..]));
    assert_eq!(changes.data_at(), bytes.len() as u64);
    let whole = Changes::decode_whole(VOLUME, &bytes);
    assert_eq!(whole.is_ok(), changes.data_bytes() == 0);
    Some(changes)
}

fn pack(payload: &[u8]) -> bool {
    let bytes = framed(b'B', payload);
    let version = named(payload, &bytes).version;
    decode_pack(VOLUME, version, &bytes).is_ok_and(|table| {
        assert_eq!(
            encode_pack(VOLUME, version, &table).as_deref(),
            Ok(&bytes[..])
        );
        true
    })
}

fn trailer(payload: &[u8]) -> bool {
    let bytes = framed(b'T', payload);
    let image = named(payload, &bytes);
    let trailer = Trailer::decode(VOLUME, 0, GEOMETRY.shard_bytes, &image, &bytes);
    trailer.is_ok_and(|trailer| {
        assert_eq!(trailer.encode(VOLUME), (bytes, image));
        true
    })
}

fn map(payload: &[u8]) -> bool {
    let bytes = framed(b'M', payload);
    let name = named(payload, &bytes);
    let page = MapPage::decode(VOLUME, 0, &name, &bytes);
    page.is_ok_and(|page| {
        let (again, name) = page.encode(VOLUME, 0, name.version);
        assert_eq!(MapPage::decode(VOLUME, 0, &name, &again), Ok(page));
        true
    })
}

fn root(payload: &[u8]) -> bool {
    let bytes = framed(b'K', payload);
    let name = named(payload, &bytes);
    let Ok(root) = Root::decode(VOLUME, &name, &bytes) else {
        return false;
    };
    assert_eq!(root.encode(VOLUME, name.version), (bytes, name));
    let pages = vec![MapPage::default(); root.pages.len()];
    let state = State::restore(GEOMETRY, &root, name, pages);
    state.is_ok_and(|state| {
        reads(&state);
        true
    })
}

fn name(text: &str) -> bool {
    let names = Names::of(VOLUME);
    let object = names.parse(text);
    object.is_some_and(|object| {
        assert_eq!(names.name(&object), text);
        true
    })
}

fn log(bytes: &[u8]) -> bool {
    let mut state = State::new(GEOMETRY);
    let (mut rest, mut all) = (bytes, true);
    while let Some((len, behind)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes(*len)).min(behind.len());
        let (payload, behind) = behind.split_at(len);
        rest = behind;
        let Some(changes) = changes(payload) else {
            all = false;
            continue;
        };
        let before = state.last();
        let position = Position {
            epoch: Epoch::default(),
            seq: before.map_or(0, |last| last.seq) + 1,
        };
        let applied = state.apply(position, &changes).is_ok();
        all &= applied;
        assert_eq!(state.last(), if applied { Some(position) } else { before });
    }
    reads(&state);
    all
}

/// Whatever was said, every unit is somewhere, once.
fn reads(state: &State) {
    let all = 0..GEOMETRY.units();
    let mut at = 0;
    for piece in state.plan(all.clone()) {
        assert_eq!(piece.units.start, at);
        at = piece.units.end;
    }
    assert_eq!(at, all.end);
    assert!(!state.allocation(all, usize::MAX).is_empty());
}
