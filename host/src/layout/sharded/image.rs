//! A whole shard in memory: base, changes, checksums. Pure.

use std::ops::Range;
use std::sync::OnceLock;

use nbd_rs_plugin::{Body, Buf, Bytes};

use super::frame::Stamp;
use super::trailer::{checksum, checksums, Trailer, UNIT_BYTES};
use super::uuid::Uuid;
use crate::pool;

/// A change of a part of a shard.
#[derive(Debug, Clone)]
pub(super) enum Edit {
    /// These bytes go there.
    Write(u64, Body),
    /// So many zeros.
    Zero(Range<u64>),
}

impl Edit {
    pub(super) fn range(&self) -> Range<u64> {
        match self {
            Edit::Write(offset, body) => *offset..*offset + body.len(),
            Edit::Zero(range) => range.clone(),
        }
    }
}

/// Pieces of this size, on average, are lent to a put; smaller ones are cheaper to copy.
const LENT_BYTES: u64 = 64 << 10;

/// What a shard held before.
pub(super) enum Base {
    Zeros,
    /// Its data, in which the changes are made, and the checksums that it was put with.
    Shard(Buf, Vec<u32>),
}

/// Whose shard it becomes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    pub(super) uuid: Uuid,
    pub(super) shard: u64,
    pub(super) stamp: Stamp,
}

fn checksum_of_zeros() -> u32 {
    static CHECKSUM: OnceLock<u32> = OnceLock::new();
    *CHECKSUM.get_or_init(|| checksum(&[0; UNIT_BYTES as usize]))
}

/// Whether the changes together cover all of the first `len` bytes.
pub(super) fn covers(edits: &[Edit], len: u64) -> bool {
    covers_range(edits, 0..len)
}

/// Whether the changes together cover all of a range.
pub(super) fn covers_range(edits: &[Edit], wanted: Range<u64>) -> bool {
    covered(edits.iter().map(Edit::range).collect(), wanted)
}

/// Whether these ranges together cover that one.
pub(super) fn covered(mut ranges: Vec<Range<u64>>, wanted: Range<u64>) -> bool {
    ranges.sort_by_key(|range| range.start);
    let mut at = wanted.start;
    for range in ranges {
        if range.start > at {
            break;
        }
        at = at.max(range.end);
    }
    at >= wanted.end
}

/// Whether writes of these ranges, with so many pieces in all, can be put as they are, without
/// memory of our own: one behind the other, they are the whole shard.
pub(super) fn are_lent(ranges: &[Range<u64>], pieces: usize, shard_bytes: u64) -> bool {
    let abut = ranges.windows(2).all(|two| two[0].end == two[1].start);
    let ends = ranges.first().zip(ranges.last());
    let whole = ends.is_some_and(|(first, last)| first.start == 0 && last.end == shard_bytes);
    abut && whole && pieces as u64 * LENT_BYTES <= shard_bytes.max(LENT_BYTES)
}

/// The client's own bytes, if they are all of the shard.
fn lent(edits: &[Edit], shard_bytes: u64) -> Option<Body> {
    let mut writes: Vec<(u64, &Body)> = Vec::with_capacity(edits.len());
    for edit in edits {
        match edit {
            Edit::Write(offset, body) => writes.push((*offset, body)),
            Edit::Zero(_) => return None,
        }
    }
    writes.sort_by_key(|(offset, _)| *offset);
    let ranges = writes
        .iter()
        .map(|(start, body)| *start..*start + body.len());
    let pieces = writes.iter().map(|(_, body)| body.pieces().len()).sum();
    if !are_lent(&ranges.collect::<Vec<_>>(), pieces, shard_bytes) {
        return None;
    }
    if let [(_, body)] = writes[..] {
        return Some(body.clone());
    }
    let pieces = writes.iter().flat_map(|(_, body)| body.pieces()).cloned();
    Some(Body::Many(pieces.collect()))
}

/// The data of the shard after the changes, and its trailer.
pub(super) fn build(label: Label, shard_bytes: u64, base: Base, edits: &[Edit]) -> (Body, Trailer) {
    if let Some(body) = lent(edits, shard_bytes) {
        let checksums = checksums(body.pieces().iter().map(|piece| &piece[..]));
        return (body, trailer(label, checksums));
    }
    let (mut data, mut checksums) = match base {
        Base::Zeros => {
            let mut data = pool::buf(shard_bytes as usize);
            data.fill(0);
            let units = shard_bytes / UNIT_BYTES;
            (data, vec![checksum_of_zeros(); units as usize])
        }
        Base::Shard(data, checksums) => (data, checksums),
    };
    for edit in edits {
        apply(&mut data, edit);
    }
    for unit in changed_units(edits, checksums.len()) {
        let start = unit * UNIT_BYTES as usize;
        checksums[unit] = checksum(&data[start..start + UNIT_BYTES as usize]);
    }
    (Body::One(data.freeze()), trailer(label, checksums))
}

fn trailer(label: Label, checksums: Vec<u32>) -> Trailer {
    Trailer {
        uuid: label.uuid,
        shard: label.shard,
        stamp: label.stamp,
        checksums,
    }
}

fn apply(data: &mut [u8], edit: &Edit) {
    match edit {
        Edit::Write(offset, body) => {
            let mut at = *offset as usize;
            for piece in body.pieces() {
                data[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
        }
        Edit::Zero(range) => data[range.start as usize..range.end as usize].fill(0),
    }
}

/// The units that were touched, each once.
fn changed_units(edits: &[Edit], units: usize) -> impl Iterator<Item = usize> {
    let mut changed = vec![false; units];
    for edit in edits {
        let range = edit.range();
        let first = (range.start / UNIT_BYTES) as usize;
        let end = range.end.div_ceil(UNIT_BYTES) as usize;
        changed[first..end].fill(true);
    }
    (0..units).filter(move |&unit| changed[unit])
}

/// Data and trailer as one body.
pub(super) fn object(data: &Body, trailer: &Trailer) -> Body {
    let mut pieces: Vec<Bytes> = data.pieces().to_vec();
    pieces.push(Bytes::from(trailer.encode()));
    Body::Many(pieces.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARD_BYTES: u64 = 64 << 10;

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let edit = (any::<u8>(), 0u64..SHARD_BYTES, 1u64..20_000, any::<bool>());
        let edit = edit.prop_map(|(byte, start, len, zero)| {
            let len = len.min(SHARD_BYTES - start);
            match zero {
                true => Edit::Zero(start..start + len),
                false => Edit::Write(start, Body::One(Bytes::from(vec![byte; len as usize]))),
            }
        });
        prop::collection::vec(edit, 1..12)
    }

    fn label(sequence: u64) -> Label {
        Label {
            uuid: Uuid([1; 16]),
            shard: 4,
            stamp: Stamp { epoch: 1, sequence },
        }
    }

    fn bytes(body: &Body) -> Vec<u8> {
        body.pieces()
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect()
    }

    proptest! {
        #[test]
        fn c25_writes_that_are_the_whole_shard_are_lent_and_their_checksums_fit(
            cuts in prop::collection::vec(0u64..=16 * SHARD_BYTES, 0..12), seed in any::<u8>(),
        ) {
            let shard_bytes = 16 * SHARD_BYTES;
            let model: Vec<u8> = (0..shard_bytes).map(|at| (at / 999) as u8 ^ seed).collect();
            let mut ends = [&cuts[..], &[0, shard_bytes]].concat();
            ends.sort_unstable();
            ends.dedup();
            let write = |two: &[u64]| {
                let bytes = model[two[0] as usize..two[1] as usize].to_vec();
                Edit::Write(two[0], Body::One(Bytes::from(bytes)))
            };
            let mut edits: Vec<Edit> = ends.windows(2).map(write).collect();
            edits.rotate_left(seed as usize % ends.len().min(3));
            prop_assert!(lent(&edits, shard_bytes).is_some());
            let (data, trailer) = build(label(1), shard_bytes, Base::Zeros, &edits);
            prop_assert_eq!(data.pieces().len(), edits.len());
            prop_assert!(bytes(&data) == model);
            prop_assert_eq!(trailer.damaged(&model), Vec::<u64>::new());
            // With a hole, or in crumbs, they are not.
            let holed = &edits[1..];
            prop_assert!(lent(holed, shard_bytes).is_none());
            let crumbs = model.chunks(4096).zip(0..);
            let crumbs = crumbs.map(|(bytes, at)| {
                Edit::Write(at * 4096, Body::One(Bytes::from(bytes.to_vec())))
            });
            prop_assert!(lent(&crumbs.collect::<Vec<_>>(), shard_bytes).is_none());
        }

        #[test]
        fn c25_an_image_is_base_and_changes_and_its_checksums_fit(first in edits(), second in edits()) {
            let mut model = vec![0; SHARD_BYTES as usize];
            let (data, trailer) = build(label(1), SHARD_BYTES, Base::Zeros, &first);
            first.iter().for_each(|edit| apply(&mut model, edit));
            prop_assert_eq!(&bytes(&data), &model);
            let mut base = pool::buf(SHARD_BYTES as usize);
            base.copy_from_slice(&model);
            let base = Base::Shard(base, trailer.checksums);
            let (data, trailer) = build(label(2), SHARD_BYTES, base, &second);
            second.iter().for_each(|edit| apply(&mut model, edit));
            prop_assert_eq!(&bytes(&data), &model);
            prop_assert_eq!(trailer.first_damaged(0, model.chunks(UNIT_BYTES as usize)), None);
            prop_assert_eq!(trailer.stamp, label(2).stamp);
        }

        #[test]
        fn covering_is_judged_right(edits in edits(), len in 1u64..SHARD_BYTES) {
            let mut covered = vec![false; SHARD_BYTES as usize];
            for edit in &edits {
                let range = edit.range();
                covered[range.start as usize..range.end as usize].fill(true);
            }
            prop_assert_eq!(covers(&edits, len), covered[..len as usize].iter().all(|&c| c));
        }
    }

    #[test]
    fn a_write_of_a_whole_shard_is_not_copied() {
        let bytes = Bytes::from(vec![3; SHARD_BYTES as usize]);
        let place = bytes.as_ptr();
        let edits = [Edit::Write(0, Body::One(bytes))];
        let (data, trailer) = build(label(1), SHARD_BYTES, Base::Zeros, &edits);
        assert_eq!(data.pieces()[0].as_ptr(), place);
        let object = object(&data, &trailer);
        assert_eq!(object.pieces()[0].as_ptr(), place);
    }
}
