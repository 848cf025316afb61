//! Names of a volume's objects. Pure.

use super::uuid::Uuid;

/// The only fixed name: the volume record.
pub(super) const VOLUME: &str = "volume";

/// Names under one volume's identity.
#[derive(Debug, Clone)]
pub(in crate::layout) struct Names {
    prefix: String,
}

impl Names {
    pub(in crate::layout) fn of(uuid: Uuid) -> Self {
        Self {
            prefix: format!("{uuid}/"),
        }
    }

    /// What everything but the volume record begins with.
    pub(super) fn all(&self) -> &str {
        &self.prefix
    }

    pub(in crate::layout) fn owner(&self) -> String {
        format!("{}owner", self.prefix)
    }

    pub(super) fn index(&self) -> String {
        format!("{}index", self.prefix)
    }

    pub(super) fn journal(&self) -> String {
        format!("{}journal", self.prefix)
    }

    pub(super) fn probe(&self, nonce: Uuid) -> String {
        format!("{}probe-{nonce}", self.prefix)
    }

    pub(super) fn page(&self, page: u64) -> String {
        format!("{}state/{page:08x}", self.prefix)
    }

    /// What shards begin with.
    pub(super) fn shards(&self) -> String {
        format!("{}shard/", self.prefix)
    }

    /// Twelve digits: the order of the names is the order of the shards, for any volume.
    pub(super) fn shard(&self, shard: u64) -> String {
        format!("{}shard/{shard:012x}", self.prefix)
    }

    /// The number of a shard, from exactly the name that [`shard`](Self::shard) gives it.
    pub(super) fn shard_of(&self, key: &str) -> Option<u64> {
        let digits = key.strip_prefix(&self.prefix)?.strip_prefix("shard/")?;
        let shard = u64::from_str_radix(digits, 16).ok()?;
        (self.shard(shard) == key).then_some(shard)
    }

    /// The number of a state page, likewise.
    pub(super) fn page_of(&self, key: &str) -> Option<u64> {
        let digits = key.strip_prefix(&self.prefix)?.strip_prefix("state/")?;
        let page = u64::from_str_radix(digits, 16).ok()?;
        (self.page(page) == key).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_say_their_numbers_and_sort_like_them(a in 0u64..1 << 47, b in 0u64..1 << 47) {
            let names = Names::of(Uuid([1; 16]));
            prop_assert_eq!(names.shard_of(&names.shard(a)), Some(a));
            prop_assert_eq!(names.page_of(&names.page(a)), Some(a));
            prop_assert_eq!(names.shard(a).cmp(&names.shard(b)), a.cmp(&b));
        }
    }

    #[test]
    fn other_spellings_are_no_shards() {
        let names = Names::of(Uuid([1; 16]));
        for tail in [
            "shard/1",
            "shard/00000000000A",
            "shard/+00000000001",
            "state/00000001",
            "owner",
        ] {
            assert_eq!(
                names.shard_of(&format!("{}{tail}", names.all())),
                None,
                "{tail}"
            );
        }
        assert_eq!(names.shard_of("shard/000000000001"), None);
    }
}
