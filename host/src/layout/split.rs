//! Cuts ranges of a volume at the borders of its shards. Pure.

use std::ops::Range;

use nbd_rs_plugin::{Body, Bytes};

/// The part of a range that lies in one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Number of the shard.
    pub shard: u64,
    /// Where it starts inside the shard, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
}

impl Part {
    /// As a range inside the shard.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }
}

/// The parts of `len` bytes at `offset`, in order. The range must not wrap.
pub fn parts(shard_bytes: u64, offset: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let left = end - at;
        let inside = at % shard_bytes;
        let part = Part {
            shard: at / shard_bytes,
            offset: inside,
            len: left.min(shard_bytes - inside),
        };
        at += part.len;
        (left > 0).then_some(part)
    })
}

/// A range as whole shards with what is left at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Shards that are covered whole.
    pub whole: Range<u64>,
    /// What is left: one part, or two at different ends, or none.
    pub edges: Vec<Part>,
}

/// Splits a range. The last shard counts as whole when all that the volume has of it is covered.
pub fn split(shard_bytes: u64, volume_bytes: u64, offset: u64, len: u64) -> Split {
    let end = offset + len;
    let first = offset.div_ceil(shard_bytes);
    let last = match end == volume_bytes {
        true => end.div_ceil(shard_bytes),
        false => end / shard_bytes,
    };
    if first >= last {
        let edges = parts(shard_bytes, offset, len).collect();
        return Split {
            whole: first..first,
            edges,
        };
    }
    let head = parts(shard_bytes, offset, first * shard_bytes - offset);
    let covered = (last * shard_bytes).min(end);
    let tail = parts(shard_bytes, covered, end - covered);
    Split {
        whole: first..last,
        edges: head.chain(tail).collect(),
    }
}

/// `len` bytes of a body from `offset` on, without a copy.
pub fn cut(body: &Body, offset: u64, len: u64) -> Body {
    if (offset, len) == (0, body.len()) {
        return body.clone();
    }
    let (mut skip, mut left) = (offset as usize, len as usize);
    let mut pieces: Vec<Bytes> = Vec::new();
    for piece in body.pieces() {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let take = left.min(piece.len() - skip);
        if take > 0 {
            pieces.push(piece.clone().slice(skip..skip + take));
        }
        skip = 0;
        left -= take;
    }
    debug_assert_eq!(left, 0);
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([piece]) => Body::One(piece),
        Err(pieces) => Body::Many(pieces.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_a_range_once_in_order(
            power in 12u32..24, offset in 0u64..1 << 40, len in 0u64..1 << 27,
        ) {
            let shard_bytes = 1u64 << power;
            let len = len.min(shard_bytes * 40);
            let mut at = offset;
            for part in parts(shard_bytes, offset, len) {
                prop_assert_eq!(part.shard * shard_bytes + part.offset, at);
                prop_assert!(part.len > 0 && part.offset + part.len <= shard_bytes);
                at += part.len;
            }
            prop_assert_eq!(at, offset + len);
        }

        #[test]
        fn a_split_covers_every_byte_once(
            volume in 1u64..1 << 16, a in 0u64..1 << 16, b in 0u64..1 << 16,
        ) {
            let shard_bytes = 4096;
            let (a, b) = (a.min(volume), b.min(volume));
            let (start, end) = (a.min(b), a.max(b));
            prop_assume!(start < end);
            let split = split(shard_bytes, volume, start, end - start);
            let mut covered: Vec<Range<u64>> = split.edges.iter()
                .map(|part| part.shard * shard_bytes + part.offset..part.shard * shard_bytes + part.offset + part.len)
                .collect();
            for shard in split.whole.clone() {
                covered.push(shard * shard_bytes..((shard + 1) * shard_bytes).min(volume));
            }
            covered.sort_by_key(|range| range.start);
            let mut at = start;
            for range in covered {
                prop_assert_eq!(range.start, at);
                at = range.end;
            }
            prop_assert_eq!(at, end);
            // Nothing that could count as whole is left at the edges.
            for part in &split.edges {
                prop_assert!(part.len < shard_bytes);
                prop_assert!(part.offset > 0 || part.shard * shard_bytes + part.len < volume);
            }
        }

        #[test]
        fn cutting_a_body_gives_the_bytes_that_stand_there(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6),
            a in 0usize..200, b in 0usize..200,
        ) {
            let all = pieces.concat();
            let (a, b) = (a.min(all.len()), b.min(all.len()));
            let (start, end) = (a.min(b), a.max(b));
            let body = Body::Many(pieces.into_iter().map(Bytes::from).collect());
            let cut = cut(&body, start as u64, (end - start) as u64);
            let bytes: Vec<u8> = cut.pieces().iter().flat_map(|piece| piece.to_vec()).collect();
            prop_assert_eq!(&bytes[..], &all[start..end]);
        }
    }
}
