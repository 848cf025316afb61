//! A quick 64-bit hash that mixes well enough for fingerprints of states.

use std::hash::{BuildHasher, Hash, Hasher};

const KEY: u64 = 0x9e37_79b9_7f4a_7c15;
const OTHER_KEY: u64 = 0xd6e8_feb8_6659_fd93;

/// Multiplies to 128 bits and folds, for each word.
#[derive(Default, Clone, Copy)]
pub(crate) struct Folding(u64);

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product =
            u128::from(self.0 ^ word ^ KEY) * u128::from(OTHER_KEY ^ self.0.rotate_left(23));
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = *self;
        last.write_u64(KEY);
        last.0
    }
}

pub(crate) fn of(value: &impl Hash) -> u64 {
    let mut hasher = Folding::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// For tables of what is a hash already.
#[derive(Default, Clone, Copy)]
pub(crate) struct Already(u64);

impl Hasher for Already {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Default, Clone, Copy)]
pub(crate) struct BuildAlready;

impl BuildHasher for BuildAlready {
    type Hasher = Already;

    fn build_hasher(&self) -> Already {
        Already::default()
    }
}
