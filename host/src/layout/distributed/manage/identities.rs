//! The identity that lies on a backend.

use nbd_rs_plugin::{Body, Bytes};

use super::super::format::identity::Identity;
use super::super::format::names::{Names, Object, VOLUME};
use crate::error::{Error, Kind, Result};
use crate::layout::frame::corrupt;
use crate::layout::sharded::manage::delete;
use crate::layout::sharded::store::Store;
use crate::layout::sharded::volume::VolumeRecord;

/// The last identity of a backend; none if there is no volume.
///
/// # Errors
/// [`Kind::Corrupt`] or [`Kind::Unsupported`] if something else lies there; what keeps it from answering.
pub(super) async fn read(store: &Store) -> Result<Option<Identity>> {
    let Some((bytes, _)) = store.read(VOLUME.to_owned()).await? else {
        return Ok(None);
    };
    if VolumeRecord::decode(&bytes).is_ok() {
        let text = "a sharded volume lies there, and no backend of a distributed one";
        return Err(Error::new(Kind::Invalid, text));
    }
    let mut identity = Identity::decode(&bytes)?;
    let names = Names::of(identity.volume);
    loop {
        let revision = identity.revision + 1;
        let name = names.name(&Object::Identity { revision });
        let Some((bytes, _)) = store.read(name).await? else {
            return Ok(Some(identity));
        };
        let next = Identity::decode(&bytes)?;
        let follows = next.volume == identity.volume
            && next.backend == identity.backend
            && next.revision == revision;
        if !follows {
            return Err(corrupt("the identities of a backend contradict each other"));
        }
        identity = next;
    }
}

/// Puts an identity, which is durable then.
///
/// # Errors
/// [`Kind::Exists`] if there is another.
pub(super) async fn put(store: &Store, identity: &Identity, name: &str) -> Result<()> {
    let body = Body::One(Bytes::from(identity.encode()?));
    match store.put(name, body, store.if_absent()).await {
        Ok(_) => store.settle().await,
        Err(error) if error.kind == Kind::Exists || error.kind == Kind::Ambiguous => {
            match store.read(name.to_owned()).await? {
                Some((bytes, _)) if bytes == identity.encode()? => store.settle().await,
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Removes what is there of the identities up to this one.
pub(super) async fn remove(store: &Store, last: &Identity) -> Result<()> {
    let names = Names::of(last.volume);
    let later = (1..=last.revision).map(|revision| names.name(&Object::Identity { revision }));
    let all = std::iter::once(VOLUME.to_owned()).chain(later);
    delete(store, all.collect()).await
}

/// The name of an identity.
pub(super) fn name(identity: &Identity) -> String {
    let revision = identity.revision;
    Names::of(identity.volume).name(&Object::Identity { revision })
}
