//! What the objects of a volume are called. Every name is put if absent and used once, ever; only the
//! fixed name is free again when a volume was destroyed. Pure.

use super::Version;
use crate::layout::uuid::Uuid;

/// The only fixed name: the identity of the backend, as it was made. The sharded layout has its
/// volume record there, so that no prefix has volumes of both.
pub const VOLUME: &str = "volume";

/// An object, without the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A later identity of the backend.
    Identity {
        /// Its revision, at least 1.
        revision: u64,
    },
    /// A version of a shard.
    Image {
        /// The shard.
        shard: u32,
        /// The version.
        version: Version,
    },
    /// Units that are not in an image yet, and in no record any more.
    Pack(Version),
    /// A version of a map page.
    Map {
        /// The page.
        page: u32,
        /// The version.
        version: Version,
    },
    /// A checkpoint.
    Root(Version),
}

impl Object {
    /// The version in its name.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match *self {
            Self::Identity { .. } => None,
            Self::Image { version, .. } | Self::Map { version, .. } => Some(version),
            Self::Pack(version) | Self::Root(version) => Some(version),
        }
    }
}

/// Names under one volume's identity.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Those of this volume.
    #[must_use]
    pub fn of(volume: Uuid) -> Self {
        Self {
            prefix: format!("{volume}/"),
        }
    }

    /// What everything but the fixed name begins with, the log's objects too.
    #[must_use]
    pub fn all(&self) -> &str {
        &self.prefix
    }

    /// The name of an object.
    #[must_use]
    pub fn name(&self, object: &Object) -> String {
        let prefix = &self.prefix;
        match object {
            Object::Identity { revision } => format!("{prefix}id/{revision:016x}"),
            Object::Image { shard, version } => format!("{prefix}s/{shard:08x}/{version}"),
            Object::Pack(version) => format!("{prefix}b/{version}"),
            Object::Map { page, version } => format!("{prefix}m/{page:08x}/{version}"),
            Object::Root(version) => format!("{prefix}root/{version}"),
        }
    }

    /// The object with this name, if [`name`](Self::name) gives it to one.
    #[must_use]
    pub fn parse(&self, name: &str) -> Option<Object> {
        let mut words = name.strip_prefix(&self.prefix)?.split('/');
        let (kind, mut word) = (words.next()?, || words.next());
        let number = |word: &str| u32::from_str_radix(word, 16).ok();
        let object = match kind {
            "id" => Object::Identity {
                revision: u64::from_str_radix(word()?, 16).ok()?,
            },
            "s" => Object::Image {
                shard: number(word()?)?,
                version: Version::parse(word()?)?,
            },
            "b" => Object::Pack(Version::parse(word()?)?),
            "m" => Object::Map {
                page: number(word()?)?,
                version: Version::parse(word()?)?,
            },
            "root" => Object::Root(Version::parse(word()?)?),
            _ => return None,
        };
        (self.name(&object) == name).then_some(object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::versions;
    use super::*;

    fn objects() -> impl Strategy<Value = Object> {
        prop_oneof![
            any::<u64>().prop_map(|revision| Object::Identity { revision }),
            (any::<u32>(), versions())
                .prop_map(|(shard, version)| Object::Image { shard, version }),
            versions().prop_map(Object::Pack),
            (any::<u32>(), versions()).prop_map(|(page, version)| Object::Map { page, version }),
            versions().prop_map(Object::Root),
        ]
    }

    proptest! {
        #[test]
        fn every_object_has_a_name_of_its_own(a in objects(), b in objects()) {
            let names = Names::of(Uuid([1; 16]));
            prop_assert_eq!(names.parse(&names.name(&a)), Some(a));
            prop_assert_eq!(names.name(&a) == names.name(&b), a == b);
            prop_assert!(names.name(&a).starts_with(names.all()));
            prop_assert_eq!(Names::of(Uuid([2; 16])).parse(&names.name(&a)), None);
        }

        #[test]
        fn versions_of_a_shard_sort_by_age(shard in any::<u32>(), a in versions(), b in versions()) {
            let names = Names::of(Uuid([1; 16]));
            let name = |version| names.name(&Object::Image { shard, version });
            prop_assert_eq!(name(a).cmp(&name(b)), a.cmp(&b));
        }
    }

    #[test]
    fn other_spellings_are_no_objects() {
        let names = Names::of(Uuid([1; 16]));
        let version = Version::default();
        for tail in [
            format!("s/1/{version}"),
            format!("s/0000000A/{version}"),
            format!("s/00000001/{version}/"),
            format!("b/{version}/x"),
            "id/1".to_owned(),
            "log/0000000000000000".to_owned(),
            String::new(),
        ] {
            let name = format!("{}{tail}", names.all());
            assert_eq!(names.parse(&name), None, "{name}");
        }
        assert_eq!(names.parse(VOLUME), None);
    }
}
