//! Bytes of an object and the blocks that they lie in. Pure.

use std::ops::Range;

use nbd_rs_plugin::{Bytes, Data, Piece};

/// Blocks of one size, the last one of an object shorter.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    block: u64,
}

/// Part of an answer, cut at the block borders, in memory of its own.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Which block it lies in.
    pub block: u64,
    /// Whether it is all of that block.
    pub whole: bool,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Grid {
    /// Blocks of `block` bytes, a power of two.
    pub fn new(block: u64) -> Self {
        Self { block }
    }

    /// Bytes in a whole block.
    pub fn block_bytes(&self) -> u64 {
        self.block
    }

    /// The blocks that hold these bytes.
    pub fn blocks(&self, bytes: &Range<u64>) -> Range<u64> {
        match bytes.is_empty() {
            true => bytes.start / self.block..bytes.start / self.block,
            false => bytes.start / self.block..bytes.end.div_ceil(self.block),
        }
    }

    /// The bytes that lie in these blocks of an object of `size` bytes.
    pub fn bytes(&self, blocks: &Range<u64>, size: u64) -> Range<u64> {
        let at = |block: u64| block.saturating_mul(self.block).min(size);
        at(blocks.start)..at(blocks.end)
    }

    /// Cuts what was read from `start` of an object of `size` bytes, and copies it: a copy that is
    /// kept must not keep a larger buffer alive. Nothing if a piece is not memory.
    pub fn cut(&self, start: u64, data: &Data, size: u64) -> Option<Vec<Chunk>> {
        let read = start..start + data.len();
        let mut source = Source::new(data.pieces());
        let chunk = |block: u64| {
            let all = self.bytes(&(block..block + 1), size);
            let part = all.start.max(read.start)..all.end.min(read.end);
            Some(Chunk {
                block,
                whole: part == all,
                bytes: source.take((part.end - part.start) as usize)?,
            })
        };
        self.blocks(&read).map(chunk).collect()
    }
}

/// Takes bytes off the front of some pieces.
struct Source<'a> {
    pieces: std::slice::Iter<'a, Piece>,
    left: &'a [u8],
}

impl<'a> Source<'a> {
    fn new(pieces: &'a [Piece]) -> Self {
        Self {
            pieces: pieces.iter(),
            left: &[],
        }
    }

    fn take(&mut self, len: usize) -> Option<Bytes> {
        let mut taken = Vec::with_capacity(len);
        while taken.len() < len {
            if self.left.is_empty() {
                match self.pieces.next()? {
                    Piece::Bytes(bytes) => self.left = bytes,
                    Piece::Mapped(_) | Piece::Hole(_) => return None,
                }
            }
            let part = self.left.len().min(len - taken.len());
            let (head, tail) = self.left.split_at(part);
            taken.extend_from_slice(head);
            self.left = tail;
        }
        Some(Bytes::from_owner(taken.into_boxed_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_hold_just_the_bytes_asked_for(
            start in 0u64..100_000, len in 0u64..100_000, more in 0u64..10_000,
        ) {
            let grid = Grid::new(4096);
            let (asked, size) = (start..start + len, start + len + more);
            let blocks = grid.blocks(&asked);
            let bytes = grid.bytes(&blocks, size);
            prop_assert!(len == 0 || bytes.start <= asked.start && asked.end <= bytes.end);
            prop_assert!(asked.start - bytes.start.min(asked.start) < 4096);
            prop_assert!(bytes.end.saturating_sub(asked.end) < 4096);
            prop_assert!(bytes.end <= size);
        }

        #[test]
        fn what_is_cut_is_what_was_read(
            start in 0u64..20_000, len in 0usize..20_000, more in 0u64..10_000,
            cuts in prop::collection::vec(0usize..20_000, 0..6),
        ) {
            let grid = Grid::new(4096);
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
            let size = start + len as u64 + more;
            let mut at: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).collect();
            at.extend([0, len]);
            at.sort_unstable();
            let piece = |pair: &[usize]| {
                Piece::Bytes(Bytes::from(bytes[pair[0]..pair[1]].to_vec()))
            };
            let data = Data::Many(at.windows(2).map(piece).collect());
            let chunks = grid.cut(start, &data, size).unwrap();
            let mut joined = Vec::new();
            for chunk in &chunks {
                let all = grid.bytes(&(chunk.block..chunk.block + 1), size);
                prop_assert_eq!(chunk.whole, chunk.bytes.len() as u64 == all.end - all.start);
                joined.extend_from_slice(&chunk.bytes);
            }
            prop_assert_eq!(joined, bytes);
        }
    }

    #[test]
    fn holes_and_mappings_are_not_kept() {
        let data = Data::One(Piece::Hole(4096));
        assert!(Grid::new(4096).cut(0, &data, 4096).is_none());
    }
}
