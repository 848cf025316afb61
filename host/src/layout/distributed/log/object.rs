//! The objects of the log: their names and their bytes. Pure; `docs/commit-protocol.md` shows the bytes.
//!
//! Every object has a header of 128 bytes with a checksum of its own, so that a log is walked without
//! reading what its records carry. A copy on another backend has the same payload and another header.

use nbd_rs_commit_log::{Entry, Epoch, Floor, Kind as RecordKind, Position, Record};

use crate::error::{Error, Kind, Result};
use crate::layout::frame::{array_at, corrupt, u32_at, u64_at, MAGIC};
use crate::layout::sharded::Uuid;

/// The version of the format that this program writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 128;
/// The longest payload, in bytes.
pub const MAX_PAYLOAD_BYTES: u64 = 64 << 20;

const CHECKSUM_AT: usize = HEADER_BYTES - 4;
const RESERVED: std::ops::Range<usize> = 112..CHECKSUM_AT;

const RECORD: u8 = b'R';
const FENCE: u8 = b'X';
const FLOOR: u8 = b'G';

/// The name of a slot.
pub fn slot_key(slot: u64) -> String {
    format!("log/{slot:016x}")
}

/// The name of a floor.
pub fn floor_key(number: u64) -> String {
    format!("floor/{number:016x}")
}

/// How long a payload is, and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seal {
    /// Bytes.
    pub len: u64,
    /// CRC32C of them.
    pub crc32c: u32,
}

impl Seal {
    /// The seal of a payload in pieces.
    pub fn of<P: AsRef<[u8]>>(pieces: &[P]) -> Self {
        pieces.iter().fold(Self::default(), |seal, piece| Self {
            len: seal.len + piece.as_ref().len() as u64,
            crc32c: crc32c::crc32c_append(seal.crc32c, piece.as_ref()),
        })
    }
}

/// The header of a slot: what the protocol decides on, and the seal of the payload behind it, which
/// is empty for a fence.
pub fn encode_slot(volume: Uuid, slot: u64, entry: &Entry, seal: Seal) -> Vec<u8> {
    match entry {
        Entry::Fence(epoch) => finish(begin(FENCE, volume, slot, *epoch)),
        Entry::Record { writer, record } => {
            let mut header = begin(RECORD, volume, slot, *writer);
            put_position(&mut header, 48, record.position);
            // Numbers begin at 1, so that 0 says that there is none.
            if let Some(prev) = record.prev {
                put_position(&mut header, 72, prev);
            }
            header[96] = kind_byte(record.kind);
            header[100..104].copy_from_slice(&seal.crc32c.to_le_bytes());
            put_u64(&mut header, 104, seal.len);
            finish(header)
        }
    }
}

/// What a slot of this volume holds, from its first [`HEADER_BYTES`] bytes.
///
/// # Errors
/// [`Kind::Unsupported`] for a newer version; [`Kind::Corrupt`] for anything that is not what
/// [`encode_slot`] writes for this volume and slot.
pub fn decode_slot(volume: Uuid, slot: u64, header: &[u8]) -> Result<(Entry, Seal)> {
    let what = check(volume, slot, header)?;
    let writer = epoch_at(header, 32);
    if what == FENCE && is_zero(&header[48..CHECKSUM_AT]) {
        return Ok((Entry::Fence(writer), Seal::default()));
    }
    let seal = Seal {
        len: u64_at(header, 104),
        crc32c: u32_at(header, 100),
    };
    let record = record_at(header).filter(|_| what == RECORD && seal.len <= MAX_PAYLOAD_BYTES);
    let record = record.filter(|_| is_zero(&header[97..100]) && is_zero(&header[RESERVED]));
    let record = record.ok_or_else(|| corrupt("a log record makes no sense"))?;
    Ok((Entry::Record { writer, record }, seal))
}

/// A floor.
pub fn encode_floor(volume: Uuid, number: u64, floor: &Floor) -> Vec<u8> {
    let mut header = begin(FLOOR, volume, number, floor.fence);
    put_u64(&mut header, 48, floor.slot);
    finish(header)
}

/// A floor of this volume.
///
/// # Errors
/// As for [`decode_slot`].
pub fn decode_floor(volume: Uuid, number: u64, header: &[u8]) -> Result<Floor> {
    let what = check(volume, number, header)?;
    if what != FLOOR || !is_zero(&header[56..CHECKSUM_AT]) {
        return Err(corrupt("this is no floor of a log"));
    }
    Ok(Floor {
        slot: u64_at(header, 48),
        fence: epoch_at(header, 32),
    })
}

fn begin(what: u8, volume: Uuid, number: u64, writer: Epoch) -> Vec<u8> {
    let mut header = vec![0; HEADER_BYTES];
    header[..6].copy_from_slice(MAGIC);
    header[6] = what;
    header[7] = VERSION;
    header[8..24].copy_from_slice(&volume.0);
    put_u64(&mut header, 24, number);
    put_epoch(&mut header, 32, writer);
    header
}

fn finish(mut header: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&header[..CHECKSUM_AT]);
    header[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Checks what all headers have, and says which kind it is.
fn check(volume: Uuid, number: u64, header: &[u8]) -> Result<u8> {
    if header.len() != HEADER_BYTES || !header.starts_with(MAGIC) || header[7] == 0 {
        return Err(corrupt("this is no object of a log"));
    }
    if header[7] > VERSION {
        let newer = header[7];
        let text = format!("the log is of format version {newer} and this program knows {VERSION}: use a newer nbd-rs");
        return Err(Error::new(Kind::Unsupported, text));
    }
    if u32_at(header, CHECKSUM_AT) != crc32c::crc32c(&header[..CHECKSUM_AT]) {
        return Err(corrupt("an object of the log is damaged (checksum)"));
    }
    let (there, place) = (Uuid(array_at(header, 8)), u64_at(header, 24));
    if (there, place) != (volume, number) {
        let text = format!("an object of another log or place ({there}, {place:x})");
        return Err(corrupt(text));
    }
    Ok(header[6])
}

fn record_at(header: &[u8]) -> Option<Record> {
    let position = position_at(header, 48);
    let prev = position_at(header, 72);
    let no_prev = prev.seq == 0 && prev.epoch == Epoch::default();
    let record = Record {
        position,
        prev: (!no_prev).then_some(prev),
        kind: kind_of(header[96])?,
    };
    let is_next = position.seq.checked_sub(1) == Some(prev.seq);
    is_next.then_some(record)
}

fn kind_byte(kind: RecordKind) -> u8 {
    match kind {
        RecordKind::Start => 1,
        RecordKind::Data => 2,
        RecordKind::Checkpoint => 3,
    }
}

fn kind_of(byte: u8) -> Option<RecordKind> {
    let all = [RecordKind::Start, RecordKind::Data, RecordKind::Checkpoint];
    all.into_iter().find(|kind| kind_byte(*kind) == byte)
}

fn put_u64(header: &mut [u8], at: usize, number: u64) {
    header[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

fn put_epoch(header: &mut [u8], at: usize, epoch: Epoch) {
    put_u64(header, at, epoch.counter);
    put_u64(header, at + 8, epoch.owner);
}

fn put_position(header: &mut [u8], at: usize, position: Position) {
    put_epoch(header, at, position.epoch);
    put_u64(header, at + 16, position.seq);
}

fn epoch_at(header: &[u8], at: usize) -> Epoch {
    Epoch {
        counter: u64_at(header, at),
        owner: u64_at(header, at + 8),
    }
}

fn position_at(header: &[u8], at: usize) -> Position {
    Position {
        epoch: epoch_at(header, at),
        seq: u64_at(header, at + 16),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VOLUME: Uuid = Uuid([7; 16]);

    fn epochs() -> impl Strategy<Value = Epoch> {
        let any = (any::<u64>(), any::<u64>());
        any.prop_map(|(counter, owner)| Epoch { counter, owner })
    }

    fn records() -> impl Strategy<Value = Record> {
        let kinds = [RecordKind::Start, RecordKind::Data, RecordKind::Checkpoint];
        let parts = (
            epochs(),
            epochs(),
            1..u64::MAX,
            prop::sample::select(kinds.to_vec()),
        );
        parts.prop_map(|(epoch, before, seq, kind)| Record {
            position: Position { epoch, seq },
            prev: (seq > 1).then(|| Position {
                epoch: before,
                seq: seq - 1,
            }),
            kind,
        })
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let a_record = (epochs(), records());
        prop_oneof![
            1 => epochs().prop_map(Entry::Fence),
            3 => a_record.prop_map(|(writer, record)| Entry::Record { writer, record }),
        ]
    }

    fn example() -> Vec<u8> {
        let epoch = Epoch {
            counter: 3,
            owner: 9,
        };
        let record = Record {
            position: Position { epoch, seq: 1 },
            prev: None,
            kind: RecordKind::Data,
        };
        let entry = Entry::Record {
            writer: epoch,
            record,
        };
        encode_slot(VOLUME, 5, &entry, Seal::of(&[b"payload"]))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(entry in entries(), slot in any::<u64>(), payload in any::<Vec<u8>>()) {
            let is_fence = matches!(entry, Entry::Fence(_));
            let seal = if is_fence { Seal::default() } else { Seal::of(&[payload]) };
            let header = encode_slot(VOLUME, slot, &entry, seal);
            prop_assert_eq!(header.len(), HEADER_BYTES);
            prop_assert_eq!(decode_slot(VOLUME, slot, &header).unwrap(), (entry, seal));
            prop_assert!(decode_floor(VOLUME, slot, &header).is_err());
        }

        #[test]
        fn a_floor_is_read_again(number in any::<u64>(), slot in any::<u64>(), fence in epochs()) {
            let floor = Floor { slot, fence };
            let header = encode_floor(VOLUME, number, &floor);
            prop_assert_eq!(decode_floor(VOLUME, number, &header).unwrap(), floor);
            prop_assert!(decode_slot(VOLUME, number, &header).is_err());
        }

        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode_slot(VOLUME, 0, &bytes).is_err());
            prop_assert!(decode_floor(VOLUME, 0, &bytes).is_err());
        }

        /// With a checksum that holds, noise is what a writer might have written, or nothing at all.
        #[test]
        fn what_makes_no_sense_is_refused(noise in prop::collection::vec(any::<u8>(), 72), what in any::<u8>()) {
            let mut header = example();
            header.truncate(CHECKSUM_AT);
            header[6] = what;
            header[48..CHECKSUM_AT].copy_from_slice(&[noise, vec![0; 4]].concat());
            header.resize(HEADER_BYTES, 0);
            let header = finish(header);
            if let Ok((entry, seal)) = decode_slot(VOLUME, 5, &header) {
                prop_assert_eq!(encode_slot(VOLUME, 5, &entry, seal), header);
            }
        }

        #[test]
        fn pieces_have_the_seal_of_the_whole(bytes in any::<Vec<u8>>(), cut in any::<prop::sample::Index>()) {
            let cut = cut.index(bytes.len() + 1);
            prop_assert_eq!(Seal::of(&[&bytes[..cut], &bytes[cut..]]), Seal::of(&[&bytes]));
        }
    }

    #[test]
    fn f23_every_changed_bit_and_every_cut_is_noticed() {
        let header = example();
        for bit in 0..header.len() * 8 {
            let mut damaged = header.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_slot(VOLUME, 5, &damaged).is_err(), "bit {bit}");
        }
        for len in 0..header.len() {
            assert!(decode_slot(VOLUME, 5, &header[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn c26_f24_f55_another_volume_place_or_version_is_refused() {
        let header = example();
        assert!(decode_slot(VOLUME, 5, &header).is_ok());
        assert!(decode_slot(VOLUME, 6, &header).is_err());
        assert!(decode_slot(Uuid([8; 16]), 5, &header).is_err());
        let mut newer = header;
        newer[7] = VERSION + 1;
        let error = decode_slot(VOLUME, 5, &newer).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("use a newer nbd-rs"), "{error}");
    }

    #[test]
    fn names_sort_like_their_numbers() {
        assert_eq!(slot_key(0x1f), "log/000000000000001f");
        assert_eq!(floor_key(2), "floor/0000000000000002");
        assert!(slot_key(255) < slot_key(256) && slot_key(u64::MAX) > slot_key(1));
    }
}
