//! What tests of formats share.

use nbd_rs_commit_log::Epoch;
use proptest::prelude::*;

use super::{Hash, Named, Version};
use crate::error::Result;

pub(crate) fn versions() -> impl Strategy<Value = Version> {
    // Small numbers too: equal parts are what goes wrong.
    let number = || prop_oneof![0_u64..3, any::<u64>()];
    (number(), number(), number()).prop_map(|(counter, owner, seq)| Version {
        epoch: Epoch { counter, owner },
        seq,
    })
}

pub(crate) fn named() -> impl Strategy<Value = Named> {
    (versions(), any::<[u8; 16]>()).prop_map(|(version, hash)| Named {
        version,
        hash: Hash(hash),
    })
}

/// Every changed bit, every cut, and anything behind it is refused.
pub(crate) fn refuses_damage<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T>) {
    assert!(decode(bytes).is_ok());
    let mut damaged = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&damaged).is_err(), "bit {bit}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    damaged.push(0);
    assert!(decode(&damaged).is_err(), "a byte more");
}

/// A newer version is refused in plain words.
pub(crate) fn tells_a_newer_version<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T>) {
    let mut newer = bytes.to_vec();
    newer[7] += 1;
    let error = decode(&newer).err().expect("a newer version is refused");
    assert_eq!(error.kind, crate::error::Kind::Unsupported);
    assert!(error.message.contains("use a newer nbd-rs"), "{error}");
}
