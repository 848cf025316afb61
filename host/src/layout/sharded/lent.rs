//! What the chain lends of a shard, in the pieces that it comes in: checked and passed on without a
//! copy. Pure.

use std::ops::Range;

use nbd_rs_plugin::{Data, Piece};

use super::trailer::{Trailer, UNIT_BYTES};

/// The bytes of `range` of what was lent. `None` if they are not all there, or not in memory.
pub(super) fn cut(data: &Data, range: Range<u64>) -> Option<Data> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for piece in data.pieces() {
        let Piece::Bytes(bytes) = piece else {
            return None;
        };
        let end = at + bytes.len() as u64;
        let part = range.start.max(at)..range.end.min(end);
        if part.start < part.end {
            let inside = (part.start - at) as usize..(part.end - at) as usize;
            pieces.push(Piece::Bytes(bytes.clone().slice(inside)));
        }
        at = end;
    }
    match pieces.pop() {
        Some(only) if pieces.is_empty() && range.end <= at => Some(Data::One(only)),
        last if range.end <= at => {
            pieces.extend(last);
            Some(Data::Many(pieces.into()))
        }
        _ => None,
    }
}

/// Whether these are the units `units`, whole and as they were put.
pub(super) fn are_sound(trailer: &Trailer, units: Range<u64>, data: &Data) -> bool {
    let mut numbers = units.clone();
    let (mut sum, mut have) = (0, 0);
    for piece in data.pieces() {
        let Piece::Bytes(bytes) = piece else {
            return false;
        };
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(UNIT_BYTES as usize - have));
            sum = crc32c::crc32c_append(sum, part);
            have += part.len();
            bytes = rest;
            if have < UNIT_BYTES as usize {
                continue;
            }
            let expected = numbers
                .next()
                .and_then(|unit| trailer.checksums.get(unit as usize));
            if expected != Some(&sum) {
                return false;
            }
            (sum, have) = (0, 0);
        }
    }
    numbers.is_empty() && have == 0
}

#[cfg(test)]
mod tests {
    use super::super::frame::Stamp;
    use super::super::trailer::checksum;
    use super::super::uuid::Uuid;
    use super::*;
    use nbd_rs_plugin::Bytes;
    use proptest::prelude::*;

    const UNITS: u64 = 8;

    fn bytes() -> Vec<u8> {
        (0..UNITS * UNIT_BYTES).map(|at| (at % 251) as u8).collect()
    }

    fn trailer(bytes: &[u8]) -> Trailer {
        Trailer {
            uuid: Uuid([9; 16]),
            shard: 7,
            stamp: Stamp::default(),
            checksums: bytes.chunks(UNIT_BYTES as usize).map(checksum).collect(),
        }
    }

    /// Cut into pieces at these places.
    fn pieces(bytes: &[u8], cuts: &[usize]) -> Data {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let piece = |two: &[usize]| Piece::Bytes(Bytes::from(bytes[two[0]..two[1]].to_vec()));
        Data::Many(at.windows(2).map(piece).collect())
    }

    fn joined(data: &Data) -> Vec<u8> {
        let bytes = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => bytes.to_vec(),
            _ => panic!("not memory"),
        };
        data.pieces().iter().flat_map(bytes).collect()
    }

    proptest! {
        #[test]
        fn what_is_cut_is_what_stands_there(
            cuts in prop::collection::vec(any::<usize>(), 0..6), from in 0u64..33_000, len in 1u64..33_000,
        ) {
            let bytes = bytes();
            let data = pieces(&bytes, &cuts);
            let range = from as usize..(from + len) as usize;
            let found = cut(&data, from..from + len).map(|data| joined(&data));
            prop_assert_eq!(found.as_deref(), bytes.get(range));
        }

        #[test]
        fn c25_a_changed_bit_is_noticed_however_the_units_come(
            cuts in prop::collection::vec(any::<usize>(), 0..6), first in 0..UNITS, count in 1..UNITS,
            bit in 0..UNITS * UNIT_BYTES * 8,
        ) {
            let mut bytes = bytes();
            let trailer = trailer(&bytes);
            let units = first..(first + count).min(UNITS);
            let place = (units.start * UNIT_BYTES) as usize..(units.end * UNIT_BYTES) as usize;
            prop_assert!(are_sound(&trailer, units.clone(), &pieces(&bytes[place.clone()], &cuts)));
            let at = (bit / 8) as usize;
            bytes[at] ^= 1 << (bit % 8);
            let sound = are_sound(&trailer, units, &pieces(&bytes[place.clone()], &cuts));
            prop_assert_eq!(sound, !place.contains(&at));
        }
    }

    #[test]
    fn c11_short_and_long_answers_and_holes_are_not_sound() {
        let bytes = bytes();
        let trailer = trailer(&bytes);
        for len in [0, 1, 4095, 4096, 8191, 8193, 12_288] {
            assert!(
                !are_sound(&trailer, 0..2, &pieces(&bytes[..len], &[])),
                "{len}"
            );
        }
        assert!(!are_sound(&trailer, 0..1, &Data::One(Piece::Hole(4096))));
        assert!(cut(&Data::One(Piece::Hole(4096)), 0..10).is_none());
        // Behind the last unit there is no checksum to be right.
        assert!(!are_sound(
            &trailer,
            UNITS..UNITS + 1,
            &pieces(&bytes[..4096], &[])
        ));
    }
}
