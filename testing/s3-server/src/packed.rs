//! Bytes of which zeros take no memory: volumes are mostly zeros.

use std::ops::Range;
use std::sync::Arc;

const CHUNK_BYTES: usize = 4096;

/// The bytes of an object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    len: usize,
    /// What is not there is zeros.
    chunks: Vec<Option<Arc<[u8]>>>,
}

impl Packed {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let pack = |chunk: &[u8]| match chunk.iter().all(|byte| *byte == 0) {
            true => None,
            false => Some(chunk.into()),
        };
        Self {
            len: bytes.len(),
            chunks: bytes.chunks(CHUNK_BYTES).map(pack).collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.range(0..self.len)
    }

    /// The bytes of a range, which must lie inside.
    pub(crate) fn range(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        let mut at = range.start;
        while at < range.end {
            let (number, inside) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
            let end = ((number + 1) * CHUNK_BYTES).min(range.end);
            if let Some(chunk) = &self.chunks[number] {
                let to = at - range.start..end - range.start;
                bytes[to].copy_from_slice(&chunk[inside..inside + end - at]);
            }
            at = end;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_comes_back() {
        let mut bytes = vec![0; 3 * CHUNK_BYTES + 5];
        bytes[CHUNK_BYTES - 1..CHUNK_BYTES + 2].fill(7);
        bytes[3 * CHUNK_BYTES + 4] = 9;
        let packed = Packed::new(&bytes);
        assert_eq!(packed.bytes(), bytes);
        for start in [0, 1, CHUNK_BYTES - 2, CHUNK_BYTES, 3 * CHUNK_BYTES + 4] {
            for end in [start, start + 1, 2 * CHUNK_BYTES, bytes.len()] {
                if (start..=bytes.len()).contains(&end) {
                    assert_eq!(packed.range(start..end), bytes[start..end]);
                }
            }
        }
    }
}
