//! Which bytes of the ring are in use: allocation, wrapping, giving back. Pure.
//!
//! Positions count bytes since the ring was made and only grow; where a position lies in the ring
//! is its rest. A record may lie across the end.

use std::collections::VecDeque;

/// A part of the ring that lies in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes from the ring's start.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Where `len` bytes at `position` lie in a ring of `ring_bytes`: in one piece or two, the second
/// one empty. `len` is at most the ring.
pub fn pieces(ring_bytes: u64, position: u64, len: u64) -> [Piece; 2] {
    let offset = position % ring_bytes;
    let first = len.min(ring_bytes - offset);
    let piece = |offset, len| Piece { offset, len };
    [piece(offset, first), piece(0, len - first)]
}

/// The records that wait in the ring.
#[derive(Debug, Clone)]
pub struct Ring {
    bytes: u64,
    /// Bytes before it may be written over: the superblock that says so is durable.
    freed: u64,
    tail: u64,
    /// Number and end of each record, oldest first; the first begins at `head`.
    records: VecDeque<(u64, u64)>,
    head: u64,
}

impl Ring {
    /// An empty ring whose first record will be at `head`.
    pub fn new(bytes: u64, head: u64) -> Self {
        Self {
            bytes,
            freed: head,
            tail: head,
            records: VecDeque::new(),
            head,
        }
    }

    /// Bytes of the ring.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next record goes.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Where the oldest record that is not shipped begins; the tail if all are.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Bytes that can't be written over.
    pub fn used(&self) -> u64 {
        self.tail - self.freed
    }

    /// Whether `len` bytes more have room.
    pub fn fits(&self, len: u64) -> bool {
        len <= self.bytes - self.used()
    }

    /// Takes the bytes behind the tail for record `seq`.
    ///
    /// # Panics
    /// If there is no room.
    pub fn push(&mut self, seq: u64, len: u64) {
        assert!(self.fits(len), "no room in the ring");
        self.tail += len;
        self.records.push_back((seq, self.tail));
    }

    /// The store has all records up to `seq`: the head moves behind them. Their bytes stay in use
    /// until that is durable.
    pub fn ship(&mut self, seq: u64) {
        while let Some(&(_, end)) = self.records.front().filter(|(first, _)| *first <= seq) {
            self.head = end;
            self.records.pop_front();
        }
    }

    /// A durable superblock has its head here: what is before may be written over.
    pub fn free(&mut self, head: u64) {
        self.freed = self.freed.max(head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_the_range_in_order(blocks in 1u64..50, position in 0u64..1000, len in 0u64..50) {
            let len = len.min(blocks);
            let found = pieces(blocks, position, len);
            let bytes = found.iter().flat_map(|piece| piece.offset..piece.offset + piece.len);
            let expected = (position..position + len).map(|byte| byte % blocks);
            prop_assert!(bytes.eq(expected));
        }

        /// A plain map says for each byte of the ring which record needs it.
        #[test]
        fn f70_no_byte_that_is_needed_is_given_away(
            bytes in 8u64..40, steps in prop::collection::vec((0u8..3, 1u64..20), 1..200),
        ) {
            let mut ring = Ring::new(bytes, 7);
            let mut map = vec![None; bytes as usize];
            let (mut last, mut shipped, mut durable) = (0, 0, (0, 7));
            for (step, amount) in steps {
                match step {
                    0 if ring.fits(amount) => {
                        last += 1;
                        for piece in pieces(bytes, ring.tail(), amount) {
                            for byte in piece.offset..piece.offset + piece.len {
                                prop_assert_eq!(map[byte as usize].replace(last), None);
                            }
                        }
                        ring.push(last, amount);
                    }
                    0 => {
                        let free = map.iter().filter(|byte| byte.is_none()).count() as u64;
                        prop_assert!(amount > free);
                    }
                    1 => {
                        shipped = (shipped + amount % 3).min(last);
                        ring.ship(shipped);
                        durable = (shipped, ring.head());
                    }
                    _ => {
                        ring.free(durable.1);
                        for byte in &mut map {
                            *byte = byte.filter(|seq| *seq > durable.0);
                        }
                    }
                }
                let used = map.iter().filter(|byte| byte.is_some()).count() as u64;
                prop_assert_eq!(ring.used(), used);
            }
        }
    }
}
