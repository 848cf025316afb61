//! What a volume is, and which of its backends this one is. Pure.
//!
//! The first identity is put by `init` under the fixed name. A later one (the volume grew, a backend
//! was replaced) has the next revision and a name of its own; the last one that is there counts.

use std::collections::BTreeSet;

use super::fields::{Fields, Writer};
use super::Version;
use crate::error::{Error, Kind, Result};
use crate::layout::frame::What;
use crate::layout::geometry::Geometry;
use crate::layout::uuid::Uuid;

/// Most backends of a volume.
pub const MAX_BACKENDS: usize = 64;
/// Most shards of a volume: they have numbers of 32 bits.
pub const MAX_SHARDS: u64 = 1 << 32;

/// The identity of one backend of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub volume: Uuid,
    /// How often the identities of the volume were put again.
    pub revision: u64,
    /// How large the volume is.
    pub geometry: Geometry,
    /// When it was made, in seconds since 1970, UTC.
    pub created_s: u64,
    /// W: so many backends have a record before it is acknowledged.
    pub write_quorum: u32,
    /// So many copies of each shard were asked for.
    pub replicas: u32,
    /// This backend: one of `backends`.
    pub backend: Uuid,
    /// All backends. Their order is that of the log's owner, and means nothing else.
    pub backends: Vec<Uuid>,
}

impl Identity {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with what would do.
    pub fn check(&self) -> Result<()> {
        self.geometry.check(MAX_SHARDS)?;
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        let backends = self.backends.len();
        if !(1..=MAX_BACKENDS).contains(&backends) {
            return invalid(format!(
                "{backends} backends: a volume has 1 to {MAX_BACKENDS}"
            ));
        }
        let distinct: BTreeSet<&Uuid> = self.backends.iter().collect();
        if distinct.len() < backends || !distinct.contains(&self.backend) {
            return invalid("two backends are the same, or this one is none of them".to_owned());
        }
        if !(1..=backends).contains(&(self.write_quorum as usize)) {
            let asked = self.write_quorum;
            return invalid(format!(
                "a write quorum of {asked}: with {backends} backends it is 1 to {backends}"
            ));
        }
        match self.replicas {
            0 => invalid("0 replicas: a shard has 1 copy at least".to_owned()),
            _ => Ok(()),
        }
    }

    /// R: how many copies each shard has. Not more than there are backends.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.backends.len().min(self.replicas as usize)
    }

    /// This backend's place in the list.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        self.backends.iter().position(|uuid| *uuid == self.backend)
    }

    /// As bytes.
    ///
    /// # Errors
    /// As for [`check`](Self::check).
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut writer = Writer::new(Version::default());
        writer.u64(self.geometry.size_bytes);
        writer.u64(self.geometry.shard_bytes);
        writer.u64(self.created_s);
        writer.u32(self.write_quorum);
        writer.u32(self.replicas);
        writer.bytes(&self.backend.0);
        writer.count(self.backends.len());
        self.backends.iter().for_each(|uuid| writer.bytes(&uuid.0));
        Ok(writer.seal(What::Identity, self.volume, self.revision))
    }

    /// Reads one, of whatever volume it is.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a newer version, [`Kind::Corrupt`] for anything that is not what
    /// [`encode`](Self::encode) writes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (volume, revision, version, mut fields) = Fields::open_any(What::Identity, bytes)?;
        fields.require(version == Version::default())?;
        let mut identity = Self {
            volume,
            revision,
            geometry: Geometry {
                size_bytes: fields.u64()?,
                shard_bytes: fields.u64()?,
            },
            created_s: fields.u64()?,
            write_quorum: fields.u32()?,
            replicas: fields.u32()?,
            backend: fields.uuid()?,
            backends: Vec::new(),
        };
        for _ in 0..fields.count(16)? {
            identity.backends.push(fields.uuid()?);
        }
        fields.end()?;
        fields.require(identity.check().is_ok())?;
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{refuses_damage, tells_a_newer_version};
    use super::*;

    fn identities() -> impl Strategy<Value = Identity> {
        let uuids = prop::collection::btree_set(any::<[u8; 16]>(), 1..8);
        let numbers = (
            any::<[u8; 16]>(),
            any::<u64>(),
            1_u64..1 << 40,
            16_u32..27,
            any::<u64>(),
        );
        let places = (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            1..u32::MAX,
        );
        (uuids, numbers, places).prop_map(|(uuids, numbers, (backend, quorum, replicas))| {
            let backends: Vec<Uuid> = uuids.into_iter().map(Uuid).collect();
            let (volume, revision, size_bytes, power, created_s) = numbers;
            Identity {
                volume: Uuid(volume),
                revision,
                geometry: Geometry {
                    size_bytes,
                    shard_bytes: 1 << power,
                },
                created_s,
                write_quorum: 1 + quorum.index(backends.len()) as u32,
                replicas,
                backend: backends[backend.index(backends.len())],
                backends,
            }
        })
    }

    fn example() -> Identity {
        Identity {
            volume: Uuid([1; 16]),
            revision: 2,
            geometry: Geometry {
                size_bytes: 10 << 20,
                shard_bytes: 4 << 20,
            },
            created_s: 1_700_000_000,
            write_quorum: 2,
            replicas: 3,
            backend: Uuid([3; 16]),
            backends: vec![Uuid([2; 16]), Uuid([3; 16])],
        }
    }

    proptest! {
        #[test]
        fn an_identity_is_read_as_it_was_written(identity in identities()) {
            let bytes = identity.encode().unwrap();
            prop_assert_eq!(&Identity::decode(&bytes).unwrap(), &identity);
            prop_assert_eq!(identity.backends[identity.index().unwrap()], identity.backend);
            prop_assert!(identity.copies() <= identity.backends.len());
        }
    }

    #[test]
    fn c26_a_damaged_or_newer_identity_is_refused() {
        let bytes = example().encode().unwrap();
        refuses_damage(&bytes, Identity::decode);
        tells_a_newer_version(&bytes, Identity::decode);
    }

    #[test]
    fn more_replicas_than_backends_are_as_many_as_there_are() {
        assert_eq!(example().copies(), 2);
    }

    #[test]
    fn identities_that_make_no_sense_are_refused() {
        let wrong: [fn(&mut Identity); 8] = [
            |it| it.geometry.size_bytes = 0,
            |it| it.geometry.shard_bytes = 5000,
            |it| it.geometry.size_bytes = i64::MAX as u64,
            |it| it.write_quorum = 3,
            |it| it.write_quorum = 0,
            |it| it.replicas = 0,
            |it| it.backend = Uuid([9; 16]),
            |it| it.backends = vec![it.backend; 2],
        ];
        for change in wrong {
            let mut identity = example();
            change(&mut identity);
            assert_eq!(
                identity.encode().unwrap_err().kind,
                Kind::Invalid,
                "{identity:?}"
            );
        }
    }
}
