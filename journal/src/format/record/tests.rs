use proptest::prelude::*;

use super::*;
use crate::data::Data;

fn stamp(seq: u64) -> Stamp {
    Stamp {
        volume: Uuid([1; 16]),
        writer: Uuid([2; 16]),
        epoch: 3,
        seq,
        durable_seq: 4,
        previous: [5; 16],
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let data = prop::collection::vec(any::<u8>(), 1..10_000).prop_map(|bytes| {
        let len = bytes.len() as u64;
        (len, What::Data(Data::new(bytes)))
    });
    let zero = (1u64..1 << 50).prop_map(|len| (len, What::Zero));
    let trim = (1u64..1 << 50).prop_map(|len| (len, What::Trim));
    let change = (any::<u32>(), prop_oneof![data, zero, trim]);
    let change = change.prop_map(|(offset, (len, what))| Change {
        offset: u64::from(offset),
        len,
        what,
    });
    prop::collection::vec(change, 0..6)
}

fn record(changes: &[Change]) -> Vec<u8> {
    let header = Header {
        kind: RecordKind::WRITE,
        stamp: stamp(9),
        contents: Contents::of(changes).unwrap(),
    };
    let mut bytes = header.encode();
    for data in changes.iter().filter_map(Change::data) {
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(padding(data.len()));
    }
    assert_eq!(bytes.len() as u64, header.contents.record_bytes());
    bytes
}

fn read(bytes: &[u8]) -> Result<(Header, Vec<Change>), Bad> {
    let header = Header::decode(bytes)?;
    let data = &bytes[header.contents.header_blocks() * BLOCK_BYTES..];
    header.check_data(data)?;
    let changes = header.extents().map(|(extent, at)| Change {
        offset: extent.offset,
        len: extent.len,
        what: match extent.kind {
            ExtentKind::Zero => What::Zero,
            ExtentKind::Trim => What::Trim,
            _ => What::Data(Data::new(data[at].to_vec())),
        },
    });
    let changes = changes.collect();
    Ok((header, changes))
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(changes in changes(), seq in any::<u64>(), kind in any::<u8>()) {
        let (mut header, found) = read(&record(&changes)).unwrap();
        prop_assert_eq!(found, changes);
        header.stamp.seq = seq;
        header.kind = RecordKind(kind);
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn noise_is_no_record(mut noise in prop::collection::vec(any::<u8>(), 4096..8200), start in any::<bool>()) {
        if start {
            noise[..8].copy_from_slice(b"nbd-rsR\x01");
            noise[14..16].copy_from_slice(&[1, 0]);
        }
        prop_assert!(Header::decode(&noise).is_err());
    }
}

#[test]
fn f23_every_changed_bit_and_every_cut_of_a_record_is_noticed() {
    let changes = [
        Change::write(4096, Data::new(vec![7; 700])),
        Change {
            offset: 0,
            len: 1 << 40,
            what: What::Trim,
        },
        Change::write(1 << 20, Data::new(vec![8; 4097])),
    ];
    let bytes = record(&changes);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(read(&damaged).is_err(), "byte {at}");
    }
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_newer_version_is_called_newer() {
    let mut bytes = record(&[]);
    bytes[7] = VERSION_AFTER;
    assert_eq!(Header::decode(&bytes), Err(Bad::Newer(VERSION_AFTER)));
    assert!(Bad::Newer(2).to_string().contains("use a newer nbd-rs"));
}

const VERSION_AFTER: u8 = super::super::VERSION + 1;

#[test]
fn a_header_that_says_more_than_there_is_takes_no_memory() {
    // The checksum is right, so only the limits stand in the way.
    for (extents, blocks) in [
        (u32::MAX, 0),
        (0, u32::MAX),
        (257, 0),
        (0, 8193),
        (1, 0),
        (0, 1),
    ] {
        let mut bytes = record(&[]);
        put(&mut bytes, 88, &extents.to_le_bytes());
        put(&mut bytes, 92, &blocks.to_le_bytes());
        put(&mut bytes, CHECKSUM_AT, &[0; 4]);
        seal(&mut bytes);
        assert_eq!(
            Header::decode(&bytes),
            Err(Bad::Senseless),
            "{extents} {blocks}"
        );
    }
}

use super::super::CHECKSUM_AT;

#[test]
fn what_does_not_fit_is_not_taken_in() {
    let zero = |offset, len| Change {
        offset,
        len,
        what: What::Zero,
    };
    assert!(Contents::of(&[zero(u64::MAX, 1)]).is_none());
    assert!(Contents::of(&[zero(0, 0)]).is_none());
    assert!(Contents::of(&vec![zero(0, 1); MAX_EXTENTS]).is_some());
    assert!(Contents::of(&vec![zero(0, 1); MAX_EXTENTS + 1]).is_none());
    let wrong = Change {
        len: 2,
        ..Change::write(0, Data::new(vec![1]))
    };
    assert!(Contents::of(&[wrong]).is_none());
    let most = vec![3; MAX_DATA_BLOCKS * BLOCK_BYTES];
    let longest = Contents::of(&[Change::write(0, Data::new(most.clone()))]).unwrap();
    assert!(longest.header_blocks() <= MAX_HEADER_BLOCKS);
    let beyond = [
        Change::write(0, Data::new(most)),
        Change::write(0, Data::new(vec![1])),
    ];
    assert!(Contents::of(&beyond).is_none());
}
