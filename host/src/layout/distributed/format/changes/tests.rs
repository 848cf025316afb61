use proptest::prelude::*;

use super::super::testing::{named, refuses_damage, tells_a_newer_version, versions};
use super::*;

const VOLUME: Uuid = Uuid([4; 16]);

/// Bytes of a unit that say which it is.
fn fill(extent: &Extent) -> Vec<u8> {
    let units = extent.unit..extent.end();
    let bytes = units.flat_map(|unit| [unit as u8 | 1; UNIT_BYTES as usize]);
    bytes.collect()
}

/// A table, and the bytes of its units.
fn tables() -> impl Strategy<Value = (Table, Vec<u8>)> {
    let unit = prop_oneof![0_u64..100, 0_u64..1 << 50];
    let extents = prop::collection::vec((unit, 1_u32..4), 1..5);
    extents.prop_map(|extents| {
        let (mut table, mut data) = (Table::default(), Vec::new());
        for (unit, units) in extents {
            let bytes = fill(&Extent { unit, units });
            table
                .push(UnitSums::of(VOLUME), unit, &bytes)
                .expect("there is room");
            data.extend(bytes);
        }
        (table, data)
    })
}

fn parts() -> impl Strategy<Value = (Part, Vec<u8>)> {
    let range = || (any::<u64>(), 1_u64..1000).prop_map(|(at, len)| at..at.saturating_add(len));
    let range = || range().prop_filter("not empty", |range| !range.is_empty());
    let image = (any::<u32>(), named(), prop::option::of(1..u64::MAX));
    prop_oneof![
        tables().prop_map(|(table, data)| (Part::Data(table), data)),
        (versions(), tables())
            .prop_map(|(pack, (table, _))| (Part::Pack { pack, table }, Vec::new())),
        image.prop_map(|(shard, image, through)| {
            let part = Part::Image {
                shard,
                image,
                through,
            };
            (part, Vec::new())
        }),
        range().prop_map(|units| (Part::Zero(units), Vec::new())),
        range().prop_map(|units| (Part::Trim(units), Vec::new())),
        named().prop_map(|root| (Part::Root(root), Vec::new())),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(|note| (Part::Ledger(note), Vec::new())),
    ]
}

/// Changes, and the payload that says them.
fn payloads() -> impl Strategy<Value = (Changes, Vec<u8>)> {
    prop::collection::vec(parts(), 0..6).prop_map(|parts| {
        let (parts, data): (Vec<Part>, Vec<Vec<u8>>) = parts.into_iter().unzip();
        let changes = Changes { parts };
        let mut payload = changes.encode(VOLUME).expect("it fits");
        payload.extend(data.concat());
        (changes, payload)
    })
}

fn example() -> (Changes, Vec<u8>) {
    let mut table = Table::default();
    let data = fill(&Extent { unit: 9, units: 2 });
    table.push(UnitSums::of(VOLUME), 9, &data).unwrap();
    let changes = Changes {
        parts: vec![
            Part::Zero(3..5),
            Part::Pack {
                pack: Version::default(),
                table: table.clone(),
            },
            Part::Data(table),
            Part::Image {
                shard: 1,
                image: Named::default(),
                through: Some(7),
            },
            Part::Root(Named::default()),
            Part::Ledger(b"note".to_vec()),
        ],
    };
    let mut payload = changes.encode(VOLUME).unwrap();
    payload.extend(data);
    (changes, payload)
}

proptest! {
    #[test]
    fn what_is_written_is_read_again((changes, payload) in payloads()) {
        prop_assert_eq!(&Changes::decode_whole(VOLUME, &payload).unwrap(), &changes);
        let header = changes.data_at() as usize;
        prop_assert_eq!(payload.len() - header, changes.data_bytes() as usize);
        prop_assert_eq!(Changes::header_bytes(&payload[..64.min(payload.len())]).unwrap(), header as u64);
        // The header is enough.
        prop_assert_eq!(&Changes::decode(VOLUME, &payload[..header]).unwrap(), &changes);
        prop_assert!(Changes::decode(VOLUME, &payload[..header - 1]).is_err());
        prop_assert!(Changes::decode(Uuid([5; 16]), &payload).is_err());
    }

    #[test]
    fn a_pack_is_read_again((table, data) in tables(), version in versions(), other in versions()) {
        let mut pack = encode_pack(VOLUME, version, &table).unwrap();
        prop_assert_eq!(pack.len() as u64, pack_data_at(&table));
        prop_assert_eq!(pack_header_bytes(&pack).unwrap(), pack_data_at(&table));
        pack.extend(data);
        prop_assert_eq!(&decode_whole_pack(VOLUME, version, &pack).unwrap(), &table);
        prop_assert_eq!(decode_pack(VOLUME, other, &pack).is_ok(), version == other);
    }

    #[test]
    fn c25_a_changed_bit_of_any_unit_is_noticed((changes, payload) in payloads(), bit in any::<prop::sample::Index>()) {
        let data_at = changes.data_at() as usize;
        prop_assume!(payload.len() > data_at);
        let bit = bit.index((payload.len() - data_at) * 8);
        let mut damaged = payload;
        damaged[data_at + bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Changes::decode_whole(VOLUME, &damaged).is_err());
    }

    /// With a checksum that holds, noise is what a writer might have written, or nothing at all.
    #[test]
    fn noise_with_a_checksum_is_refused_or_means_itself(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        for counted in [false, true] {
            let mut writer = Writer::new(Version::default());
            if counted {
                writer.count(1);
            }
            writer.bytes(&noise);
            let bytes = writer.seal(What::Changes, VOLUME, 0);
            if let Ok(changes) = Changes::decode(VOLUME, &bytes) {
                prop_assert_eq!(changes.encode(VOLUME).unwrap(), bytes);
            }
        }
    }
}

#[test]
fn every_changed_bit_and_every_cut_of_a_header_is_noticed() {
    let (changes, payload) = example();
    let header = &payload[..changes.data_at() as usize];
    // What is behind a header is no business of its decoder, but of the whole's.
    refuses_damage(header, |bytes| match bytes.len() > header.len() {
        true => Changes::decode_whole(VOLUME, bytes),
        false => Changes::decode(VOLUME, bytes),
    });
    tells_a_newer_version(&payload, |bytes| Changes::decode(VOLUME, bytes));
    for len in header.len()..payload.len() {
        assert!(Changes::decode_whole(VOLUME, &payload[..len]).is_err());
    }
}

#[test]
fn every_changed_bit_of_a_pack_s_header_is_noticed() {
    let mut table = Table::default();
    table.push_summed(5, &[1, 2, 3]).unwrap();
    let pack = encode_pack(VOLUME, Version::default(), &table).unwrap();
    refuses_damage(&pack, |bytes| match bytes.len() > pack.len() {
        true => decode_whole_pack(VOLUME, Version::default(), bytes),
        false => decode_pack(VOLUME, Version::default(), bytes),
    });
    tells_a_newer_version(&pack, |bytes| {
        decode_pack(VOLUME, Version::default(), bytes)
    });
}

#[test]
fn units_are_whole_and_bounded() {
    let sums = UnitSums::of(VOLUME);
    let mut table = Table::default();
    assert_eq!(table.push(sums, 0, &[1; 4095]), None);
    assert_eq!(table.push(sums, 0, &[]), None);
    assert_eq!(table.push(sums, u64::MAX, &[1; 4096]), None);
    assert_eq!(table.push_summed(0, &vec![0; MAX_UNITS - 1]), Some(()));
    assert_eq!(table.push_summed(5000, &[0, 0]), None);
    assert_eq!(table.push_summed(MAX_UNITS as u64 - 1, &[0]), Some(()));
    assert_eq!(table.extents().len(), 1, "neighbours are one extent");
    let twice = Changes {
        parts: vec![Part::Data(table.clone()), Part::Data(table)],
    };
    assert_eq!(twice.encode(VOLUME).unwrap_err().kind, Kind::Invalid);
}

/// What a flush of a gigabyte in single units takes, with its units in packs.
#[test]
fn a_header_has_room_for_the_tables_of_128_packs() {
    let mut table = Table::default();
    for unit in 0..MAX_UNITS as u64 {
        table.push_summed(unit * 2, &[7]).unwrap();
    }
    let pack = Version::default();
    let part = Part::Pack { pack, table };
    let changes = Changes {
        parts: vec![part; 128],
    };
    let header = changes.encode(VOLUME).unwrap();
    assert_eq!(header.len() as u64, changes.data_at());
    assert_eq!(Changes::decode(VOLUME, &header).unwrap(), changes);
}
