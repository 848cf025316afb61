//! Removing and growing volumes that nobody serves.

use std::sync::Arc;

use futures_util::future::join_all;
use nbd_rs_plugin::options::display_size;
use nbd_rs_plugin::OpenFlags;

use super::super::format::identity::Identity;
use super::super::format::names::{Names, VOLUME};
use super::create::{close_all, reach_all};
use super::{gather, identities, Gathered, Reached, Typed};
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::lease::{Lease, Timing};
use crate::layout::sharded::manage::delete;
use crate::layout::sharded::names::Names as RecordNames;
use crate::layout::sharded::store::Store;
use crate::layout::uuid::Uuid;

/// Objects in one bulk delete.
const BULK: usize = 1000;

/// Removes a volume from all its backends, which have to answer. It may be called again after it failed:
/// backends without a volume are done.
///
/// # Errors
/// [`Kind::NotFound`] if there is none; [`Kind::Busy`] while it is served.
pub async fn destroy(typed: &[Typed], progress: &mut (dyn FnMut(u64) + Send)) -> Result<()> {
    let reached = reach_all(typed, OpenFlags::WRITE).await?;
    let removed = remove_all(typed, &reached, progress).await?;
    if removed == 0 {
        let text = "no distributed volume here";
        return Err(Error::new(Kind::NotFound, text));
    }
    close_all(&reached).await
}

/// Removes the volume of each backend, whichever it is; how many backends had one.
pub(super) async fn remove_all(
    typed: &[Typed],
    reached: &[Reached],
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<usize> {
    let mut owned: Vec<(&Store, Uuid, Option<Arc<Lease>>)> = Vec::new();
    for (typed, reached) in typed.iter().zip(reached) {
        let store = &reached.store;
        let taken = match identities::read(store).await {
            Ok(None) => continue,
            Ok(Some(identity)) => owner(store, identity.volume)
                .await
                .map(|lease| (store, identity.volume, lease)),
            // What belongs to it can't be told.
            Err(error) if error.kind == Kind::Corrupt => {
                delete(store, vec![VOLUME.to_owned()]).await?;
                continue;
            }
            Err(error) => Err(error),
        };
        match taken {
            Ok(taken) => owned.push(taken),
            Err(error) => {
                give_back(&owned).await;
                return Err(error.context(&typed.name));
            }
        }
    }
    let mut removed = 0;
    for (store, volume, lease) in &owned {
        remove(store, *volume, lease.as_ref(), &mut removed, progress).await?;
    }
    Ok(owned.len())
}

async fn owner(store: &Store, volume: Uuid) -> Result<Option<Arc<Lease>>> {
    let key = RecordNames::of(volume).owner();
    Lease::take(store, key, volume, false, Timing::default(), Some(0)).await
}

async fn give_back(owned: &[(&Store, Uuid, Option<Arc<Lease>>)]) {
    let leases = owned.iter().filter_map(|(_, _, lease)| lease.as_ref());
    // Nothing was changed: the next one need not wait.
    join_all(leases.map(|lease| lease.release())).await;
}

/// Deletes all that carries the volume's name, what names it last.
async fn remove(
    store: &Store,
    volume: Uuid,
    lease: Option<&Arc<Lease>>,
    removed: &mut u64,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<()> {
    let names = Names::of(volume);
    let owner = RecordNames::of(volume).owner();
    loop {
        let mut keys = Vec::new();
        let each = |meta: &nbd_rs_plugin::Meta| {
            if meta.key != owner {
                keys.push(meta.key.to_string());
            }
            keys.len() < BULK
        };
        store.list(names.all(), None, each).await?;
        if keys.is_empty() {
            break;
        }
        *removed += keys.len() as u64;
        delete(store, keys).await?;
        progress(*removed);
    }
    if let Some(lease) = lease {
        lease.release().await?;
    }
    delete(store, vec![owner, VOLUME.to_owned()]).await
}

/// Grows a volume that is not served. All backends have to answer.
///
/// # Errors
/// [`Kind::Invalid`] for a size that is not larger; [`Kind::Busy`] while it is served.
pub async fn grow(typed: &[Typed], size_bytes: u64) -> Result<()> {
    let Gathered {
        reached, roster, ..
    } = gather(typed, OpenFlags::WRITE).await?;
    let old = &roster.identity;
    if size_bytes <= old.geometry.size_bytes {
        let text = format!(
            "the volume has {} already: it can only grow, since a smaller one would lose data",
            display_size(old.geometry.size_bytes)
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    let all: Option<Vec<Reached>> = reached.into_iter().collect();
    let away = || {
        Error::new(
            Kind::Io,
            "a volume is grown while all its backends are there",
        )
    };
    let reached = all.ok_or_else(away)?;
    let mut leases = Vec::new();
    for reached in &reached {
        match owner(&reached.store, old.volume).await {
            Ok(lease) => leases.push((&reached.store, old.volume, lease)),
            Err(error) => {
                give_back(&leases).await;
                return Err(error);
            }
        }
    }
    let grown = put_larger(&reached, old, size_bytes).await;
    give_back(&leases).await;
    grown.and(close_all(&reached).await)
}

/// The next identity on each backend. Whoever gets only so far that some have it may grow it again.
async fn put_larger(reached: &[Reached], newest: &Identity, size_bytes: u64) -> Result<()> {
    for reached in reached {
        let Some(mut identity) = identities::read(&reached.store).await? else {
            return Err(Error::new(
                Kind::Busy,
                "the volume was removed a moment ago",
            ));
        };
        while identity.revision <= newest.revision {
            identity.revision += 1;
            if identity.revision <= newest.revision {
                // It missed an earlier one.
                identity.geometry = newest.geometry;
            } else {
                identity.geometry.size_bytes = size_bytes;
            }
            identity.write_quorum = newest.write_quorum;
            identity.replicas = newest.replicas;
            identity.backends.clone_from(&newest.backends);
            let name = identities::name(&identity);
            identities::put(&reached.store, &identity, &name).await?;
        }
    }
    Ok(())
}
