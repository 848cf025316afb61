//! A new volume: an identity on each of its backends.

use futures_util::future::join_all;
use nbd_rs_plugin::options::display_size;
use nbd_rs_plugin::{Body, Bytes, CapabilityFlags, OpenFlags};

use super::super::format::identity::Identity;
use super::super::format::names::VOLUME;
use super::super::roster::too_few_backends;
use super::remove::remove_all;
use super::{identities, Reached, Typed};
use crate::error::{Error, Kind, Result};
use crate::layout::geometry::Geometry;
use crate::layout::sharded::manage::delete;
use crate::layout::sharded::names::Names;
use crate::layout::sharded::store::Store;
use crate::layout::sharded::{probe, process};
use crate::layout::uuid::Uuid;

/// A volume to be made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How large it is.
    pub geometry: Geometry,
    /// Copies of each shard.
    pub replicas: u32,
    /// So many backends have a record before it is acknowledged; a majority by default.
    pub write_quorum: Option<u32>,
    /// Start an empty one even where one exists.
    pub force: bool,
}

/// Makes a volume of zeros. All backends have to answer.
///
/// # Errors
/// [`Kind::Exists`] without `force`; [`Kind::Busy`] while the one that is replaced is served;
/// [`Kind::Invalid`] for a backend that is given twice, [`Kind::Unsupported`] for one that does not obey.
pub async fn create(
    typed: &[Typed],
    plan: Plan,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Identity> {
    let count = typed.len() as u32;
    let first = Identity {
        volume: Uuid::random()?,
        revision: 0,
        geometry: plan.geometry,
        created_s: process::now_s()?,
        write_quorum: plan.write_quorum.unwrap_or(count / 2 + 1),
        replicas: plan.replicas,
        backend: Uuid([0; 16]),
        backends: (0..count).map(|_| Uuid::random()).collect::<Result<_>>()?,
    };
    let of = |&backend: &Uuid| Identity {
        backend,
        ..first.clone()
    };
    let identities: Vec<Identity> = first.backends.iter().map(of).collect();
    for identity in &identities {
        identity.check()?;
    }
    if let Some(warning) = too_few_backends(&first) {
        tracing::warn!("{warning}");
    }
    let reached = reach_all(typed, OpenFlags::WRITE | OpenFlags::CREATE).await?;
    existing(typed, &reached, plan.force).await?;
    let names = Names::of(first.volume);
    let probes = typed.iter().zip(&reached).map(|(typed, reached)| {
        let names = &names;
        async move {
            let probed = probed(&reached.store, names).await;
            probed.map_err(|error| error.context(&typed.name))
        }
    });
    join_all(probes).await.into_iter().collect::<Result<()>>()?;
    are_distinct(typed, &reached, first.volume).await?;
    if plan.force {
        remove_all(typed, &reached, progress).await?;
    }
    for (identity, (typed, reached)) in identities.iter().zip(typed.iter().zip(&reached)) {
        let put = identities::put(&reached.store, identity, VOLUME).await;
        put.map_err(|error| error.context(&typed.name))?;
    }
    close_all(&reached).await?;
    Ok(first)
}

/// All backends of a list.
///
/// # Errors
/// The first one's that does not answer.
pub(super) async fn reach_all(typed: &[Typed], flags: OpenFlags) -> Result<Vec<Reached>> {
    let all = typed.iter().map(|typed| async move {
        let reached = typed.reach(flags).await;
        reached.map_err(|error| error.context(&typed.name))
    });
    join_all(all).await.into_iter().collect()
}

pub(super) async fn close_all(reached: &[Reached]) -> Result<()> {
    let closes = reached.iter().map(|reached| reached.chain.close());
    join_all(closes).await.into_iter().collect()
}

/// What lies there already: nothing, unless it is to be replaced.
async fn existing(typed: &[Typed], reached: &[Reached], force: bool) -> Result<()> {
    for (typed, reached) in typed.iter().zip(reached) {
        let found = match identities::read(&reached.store).await {
            Ok(found) => found,
            // What can't be read can be replaced, but for what a newer program may read.
            Err(error) if force && error.kind == Kind::Corrupt => None,
            Err(error) => return Err(error.context(&typed.name)),
        };
        if let Some(old) = found.filter(|_| !force) {
            let (name, size) = (&typed.name, display_size(old.geometry.size_bytes));
            let volume = old.volume;
            return Err(Error::new(
                Kind::Exists,
                format!(
                    "{name}: a backend of a volume of {size} exists already ({volume}); --force \
                     starts an empty one in its place"
                ),
            ));
        }
    }
    Ok(())
}

async fn probed(store: &Store, names: &Names) -> Result<()> {
    let strong = CapabilityFlags::STRONG_READ_AFTER_WRITE;
    if !store.chain.capabilities().has(strong) {
        return Err(Error::new(
            Kind::Unsupported,
            "the store may show old data after a write, which no commit log can bear",
        ));
    }
    probe::obeys(store, names).await?;
    probe::one_creates(store, names).await
}

/// What is put on one backend is on no other.
async fn are_distinct(typed: &[Typed], reached: &[Reached], volume: Uuid) -> Result<()> {
    let mark = |at: usize| format!("{volume}/mark-{at}");
    for (at, reached) in reached.iter().enumerate() {
        let body = Body::One(Bytes::from(vec![b'1']));
        let (store, mark) = (&reached.store, mark(at));
        let put = store.put(&mark, body, store.if_absent());
        put.await.map_err(|error| error.context(&typed[at].name))?;
    }
    let mut found = None;
    for (at, reached) in reached.iter().enumerate() {
        for other in (0..typed.len()).filter(|&other| other != at) {
            if reached.store.read(mark(other)).await?.is_some() {
                found = Some((at, other));
            }
        }
    }
    for (at, reached) in reached.iter().enumerate() {
        delete(&reached.store, vec![mark(at)]).await?;
    }
    match found {
        None => Ok(()),
        Some((at, other)) => {
            let (one, two) = (&typed[at].name, &typed[other].name);
            let text = format!("{one} and {two} are the same place");
            Err(Error::new(Kind::Invalid, text))
        }
    }
}
