//! Which of the backends that a location names is which of the volume's. Pure.
//!
//! The order of the list means nothing: each backend says who it is. One that does not answer, or has
//! nothing any more, may be any of those that nobody else is.

use std::collections::BTreeMap;

use nbd_rs_commit_log::Quorum;

use super::format::identity::Identity;
use crate::error::{Error, Kind, Result};
use crate::layout::uuid::Uuid;

/// What was found on a backend of the list.
#[derive(Debug, Clone)]
pub struct Found {
    /// As people know it, without secrets.
    pub name: String,
    /// Its last identity; none if there is no volume; an error if it did not answer, or not with
    /// anything that can be used.
    pub identity: Result<Option<Identity>>,
}

/// The volume, and who is who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// What the volume is, as the newest identity says.
    pub identity: Identity,
    /// For each of its backends, in its order, the place in the list; none if that is not known.
    pub places: Vec<Option<usize>>,
    /// Places in the list that did not say who they are.
    pub unknown: Vec<usize>,
    /// What its owner should be told.
    pub warnings: Vec<String>,
}

impl Roster {
    /// Finds out who is who.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no volume anywhere; [`Kind::Invalid`] for a list that is not that
    /// of one volume: a backend twice, one of another volume, one too many or too few; [`Kind::Io`] with the reasons if too few answered.
    pub fn of(list: &[Found]) -> Result<Self> {
        let identity = newest(list)?;
        let places = places(list, &identity)?;
        let is_unknown = |at: &usize| !matches!(list[*at].identity, Ok(Some(_)));
        let unknown: Vec<usize> = (0..list.len()).filter(is_unknown).collect();
        let all = identity.backends.len();
        if list.len() != all {
            let given = list.len();
            let text = format!("the volume has {all} backends, and {given} are given");
            return Err(Error::new(Kind::Invalid, text));
        }
        let roster = Self {
            warnings: warnings(list, &identity),
            places,
            unknown,
            identity,
        };
        let quorum = roster.quorum()?;
        if all - roster.unknown.len() < quorum.fence().max(quorum.write()) {
            return Err(too_few(list));
        }
        Ok(roster)
    }

    /// How many backends have to take a record.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the identity's can't be.
    pub fn quorum(&self) -> Result<Quorum> {
        let (all, write) = (self.identity.backends.len(), self.identity.write_quorum);
        let wrong = || Error::new(Kind::Corrupt, "the volume's write quorum can't be");
        Quorum::new(all, write as usize).ok_or_else(wrong)
    }
}

/// What can be told of copies that are fewer than were asked for.
#[must_use]
pub fn too_few_backends(identity: &Identity) -> Option<String> {
    let (asked, copies) = (identity.replicas as usize, identity.copies());
    (copies < asked)
        .then(|| format!("replicas={asked} with {copies} backends: each shard has {copies} copies"))
}

/// The newest identity. All are of one volume.
fn newest(list: &[Found]) -> Result<Identity> {
    let mut newest: Option<(&Found, &Identity)> = None;
    for found in list {
        let Ok(Some(identity)) = &found.identity else {
            continue;
        };
        if let Some((other, known)) = newest.filter(|(_, known)| known.volume != identity.volume) {
            let text = format!(
                "{} is of volume {}, and {} of {}: these are two volumes",
                other.name, known.volume, found.name, identity.volume
            );
            return Err(Error::new(Kind::Invalid, text));
        }
        if newest.is_none_or(|(_, known)| known.revision < identity.revision) {
            newest = Some((found, identity));
        }
    }
    match newest {
        Some((_, identity)) => Ok(identity.clone()),
        None if list.iter().any(|found| found.identity.is_err()) => Err(too_few(list)),
        None => {
            let text = "no distributed volume here: make one with nbd-rs init";
            Err(Error::new(Kind::NotFound, text))
        }
    }
}

fn places(list: &[Found], volume: &Identity) -> Result<Vec<Option<usize>>> {
    let mut by_backend: BTreeMap<Uuid, usize> = BTreeMap::new();
    for (at, found) in list.iter().enumerate() {
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        let identity = match &found.identity {
            Err(_) => continue,
            Ok(None) => continue,
            Ok(Some(identity)) => identity,
        };
        if let Some(other) = by_backend.insert(identity.backend, at) {
            let (one, two) = (&list[other].name, &found.name);
            return invalid(format!("{one} and {two} are the same backend"));
        }
        if !volume.backends.contains(&identity.backend) {
            let name = &found.name;
            return invalid(format!(
                "{name} was replaced: it is no backend of the volume"
            ));
        }
    }
    let place = |uuid: &Uuid| by_backend.get(uuid).copied();
    Ok(volume.backends.iter().map(place).collect())
}

fn warnings(list: &[Found], identity: &Identity) -> Vec<String> {
    let away = list.iter().filter_map(|found| match &found.identity {
        Err(error) => Some(format!("degraded: {}: {error}", found.name)),
        Ok(None) => Some(format!("degraded: {}", empty(found))),
        Ok(Some(_)) => None,
    });
    too_few_backends(identity).into_iter().chain(away).collect()
}

fn empty(found: &Found) -> String {
    let name = &found.name;
    format!(
        "{name} has no volume, and others have one: it was emptied, or is the wrong place; nbd-rs \
         resync makes it a copy again"
    )
}

fn too_few(list: &[Found]) -> Error {
    let reasons = list.iter().filter_map(|found| match &found.identity {
        Ok(Some(_)) => None,
        Ok(None) => Some(empty(found)),
        Err(error) => Some(format!("{}: {error}", found.name)),
    });
    let reasons: Vec<String> = reasons.collect();
    let text = format!("too few backends answer: {}", reasons.join("; "));
    Error::new(Kind::Io, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::geometry::Geometry;

    fn identity(volume: u8, backend: u8) -> Identity {
        Identity {
            volume: Uuid([volume; 16]),
            revision: 0,
            geometry: Geometry {
                size_bytes: 1 << 30,
                shard_bytes: 4 << 20,
            },
            created_s: 1,
            write_quorum: 2,
            replicas: 3,
            backend: Uuid([backend; 16]),
            backends: (1..4).map(|at| Uuid([at; 16])).collect(),
        }
    }

    fn found(identity: Identity) -> Found {
        let name = format!("node{}", identity.backend.0[0]);
        let identity = Ok(Some(identity));
        Found { name, identity }
    }

    fn away() -> Found {
        Found {
            name: "away".to_owned(),
            identity: Err(Error::new(Kind::Transient, "no answer")),
        }
    }

    fn refused(list: &[Found]) -> (Kind, String) {
        let error = Roster::of(list).expect_err("it is refused");
        (error.kind, error.to_string())
    }

    #[test]
    fn the_order_of_the_list_means_nothing() {
        let list = [3, 1, 2].map(|at| found(identity(9, at)));
        let roster = Roster::of(&list).unwrap();
        assert_eq!(roster.places, [Some(1), Some(2), Some(0)]);
        assert!(roster.unknown.is_empty() && roster.warnings.is_empty());
    }

    #[test]
    fn c20_one_of_three_may_be_away_and_two_may_not() {
        let list = [found(identity(9, 3)), away(), found(identity(9, 1))];
        let roster = Roster::of(&list).unwrap();
        assert_eq!(roster.places, [Some(2), None, Some(0)]);
        assert_eq!(roster.unknown, [1]);
        assert!(roster.warnings[0].starts_with("degraded: away"));
        let (kind, text) = refused(&[found(identity(9, 3)), away(), away()]);
        assert_eq!(kind, Kind::Io);
        assert!(text.contains("away: "), "{text}");
    }

    #[test]
    fn f46_f54_one_that_was_emptied_is_away_and_two_are_too_many() {
        let empty = || Found {
            name: "empty".to_owned(),
            identity: Ok(None),
        };
        let list = [found(identity(9, 1)), found(identity(9, 2)), empty()];
        let roster = Roster::of(&list).unwrap();
        assert_eq!((roster.places[2], &roster.unknown[..]), (None, &[2][..]));
        assert!(roster.warnings[0].contains("resync"));
        let (kind, text) = refused(&[found(identity(9, 3)), empty(), empty()]);
        assert_eq!(kind, Kind::Io);
        assert!(text.contains("has no volume"), "{text}");
    }

    #[test]
    fn f55_a_backend_twice_or_of_another_volume_is_refused() {
        let one = || found(identity(9, 1));
        let empty = Found {
            name: "empty".to_owned(),
            identity: Ok(None),
        };
        for (list, says) in [
            (
                vec![one(), one(), found(identity(9, 2))],
                "are the same backend",
            ),
            (
                vec![one(), found(identity(8, 2)), found(identity(9, 3))],
                "two volumes",
            ),
            (vec![one(), found(identity(9, 2))], "are given"),
            (
                vec![one(), found(identity(9, 2)), found(identity(9, 7))],
                "was replaced",
            ),
        ] {
            let (kind, text) = refused(&list);
            assert_eq!(kind, Kind::Invalid);
            assert!(text.contains(says), "{text}");
        }
        assert_eq!(refused(&[empty.clone(), empty.clone()]).0, Kind::NotFound);
        // Where nobody answered, nobody knows whether there is a volume.
        assert_eq!(refused(&[empty, away()]).0, Kind::Io);
    }

    #[test]
    fn the_newest_identity_counts_and_fewer_copies_than_asked_for_are_told() {
        let mut newer = identity(9, 2);
        newer.revision = 3;
        newer.replicas = 5;
        let list = [found(identity(9, 1)), found(newer), found(identity(9, 3))];
        let roster = Roster::of(&list).unwrap();
        assert_eq!(roster.identity.revision, 3);
        assert_eq!(
            roster.warnings,
            ["replicas=5 with 3 backends: each shard has 3 copies"]
        );
    }
}
