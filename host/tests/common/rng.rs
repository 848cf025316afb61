//! Random numbers that can be had again: the seed is printed, and `NBD_RS_TEST_SEED` sets it.

use std::time::SystemTime;

/// splitmix64: small, good enough, the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    /// A generator for the named test; prints how to have the same one again.
    pub(crate) fn for_test(name: &str) -> Self {
        let seed = match std::env::var("NBD_RS_TEST_SEED") {
            Ok(given) => given.parse().expect("NBD_RS_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(1, |now| {
                    now.as_secs() * 1_000_000 + u64::from(now.subsec_micros())
                }),
        };
        println!("{name}: to replay, set NBD_RS_TEST_SEED={seed}");
        Self::new(seed)
    }

    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// That many bytes of noise.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = length.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}
