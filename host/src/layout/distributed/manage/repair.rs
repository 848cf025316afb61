//! Volumes that nobody serves are compared, mended, and given other backends.
//!
//! A backend that is to begin with nothing has no vote before all others have the whole log: else what was
//! acknowledged on it and one more could be forgotten. So the volume is opened without it first, until the
//! others are level; then its identity is put, that of a new one last.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_plugin::OpenFlags;

use super::super::format::identity::Identity;
use super::super::format::names::VOLUME;
use super::super::volume::{Audit, Report, Volume};
use super::owners::Owners;
use super::{gather, identities, open_all, Gathered, How, Reached, Typed};
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::names::Names;
use crate::layout::sharded::probe;
use crate::layout::uuid::Uuid;
use crate::layout::Layout;

/// So long backends may take to get level.
const LEVEL: Duration = Duration::from_secs(24 * 3600);
/// So long a backend may be silent before it counts as away.
const SILENT: Duration = Duration::from_secs(15);

/// Compares a volume with its backends, and mends it.
///
/// # Errors
/// [`Kind::Busy`] while it is served; what keeps it from being opened.
pub async fn scrub(
    typed: Vec<Typed>,
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let (volume, _) = open_all(typed, How::default()).await?;
    audited(volume, audit, progress).await
}

async fn audited(
    volume: Volume,
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    // Whoever is away is named in the report.
    if let Err(error) = volume.settled(None, SILENT).await {
        tracing::warn!("{error}");
    }
    let report = volume.audit(audit, progress).await;
    let closed = volume.close().await;
    match (report, closed) {
        (Ok(report), Err(error)) if report.away.is_empty() => {
            tracing::warn!("{error}");
            Ok(report)
        }
        (report, _) => report,
    }
}

/// Makes a backend of the list a full copy again, also one that was emptied.
///
/// # Errors
/// [`Kind::Invalid`] if it is none of the list; [`Kind::Timeout`] if the others do not have the whole log.
pub async fn resync(
    typed: Vec<Typed>,
    backend: usize,
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let Gathered {
        mut reached,
        identities,
        roster,
    } = gather(&typed, OpenFlags::WRITE | OpenFlags::CREATE).await?;
    let is_damaged = matches!(&identities[backend], Err(error) if error.kind == Kind::Corrupt);
    if is_damaged {
        reached[backend] = Some(typed[backend].reach(OpenFlags::WRITE).await?);
    }
    let Some(there) = reached[backend].take() else {
        let error = identities[backend].clone().err();
        let away = || Error::new(Kind::Transient, "it does not answer");
        return Err(error.unwrap_or_else(away).context(&typed[backend].name));
    };
    if is_damaged || matches!(&identities[backend], Ok(None)) {
        let place = missing(&roster.places, &typed[backend].name)?;
        let uuid = roster.identity.backends[place];
        let owners = level_without(typed.clone(), place).await?;
        probed(&there, roster.identity.volume).await?;
        let identity = Identity {
            backend: uuid,
            ..roster.identity.clone()
        };
        if is_damaged {
            identities::remove(&there.store, &identity).await?;
        }
        identities::put(&there.store, &identity, VOLUME).await?;
        owners.release().await;
    }
    drop(reached);
    let (volume, places) = open_all(typed, How::default()).await?;
    let only = places.iter().position(|place| *place == Some(backend));
    let audit = Audit { only, ..*audit };
    audited(volume, &audit, progress).await
}

/// Puts another backend in the place of one of the list, which need not answer.
///
/// # Errors
/// [`Kind::Exists`] if something lies at the new place; [`Kind::Timeout`] if the others do not have the
/// whole log; [`Kind::Invalid`] for a volume with one copy of each shard.
pub async fn replace(
    typed: Vec<Typed>,
    old: usize,
    new: Typed,
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let Gathered {
        reached, roster, ..
    } = gather(&typed, OpenFlags::WRITE).await?;
    let identity = &roster.identity;
    if identity.copies() < 2 {
        let text = "each shard has one copy: nobody else has what lies on the backend";
        return Err(Error::new(Kind::Invalid, text));
    }
    let place = match roster.places.iter().position(|place| *place == Some(old)) {
        Some(place) => place,
        None => missing(&roster.places, &typed[old].name)?,
    };
    let there = new.reach(OpenFlags::WRITE | OpenFlags::CREATE).await;
    let there = there.map_err(|error| error.context(&new.name))?;
    let other = |found: &Identity| found.backends.get(place) != Some(&found.backend);
    match identities::read(&there.store).await? {
        None => {}
        Some(found) => {
            let (name, volume) = (&new.name, found.volume);
            // The same place by another name is one of the volume's already.
            let text = match other(&found) && volume == identity.volume {
                true => format!("{name} is a backend of this volume already"),
                false => format!("{name}: a backend of a volume exists there already ({volume})"),
            };
            return Err(Error::new(Kind::Exists, text));
        }
    }
    probed(&there, identity.volume).await?;
    let owners = level_without(typed.clone(), place).await?;
    let mut next = Identity {
        revision: identity.revision + 1,
        ..identity.clone()
    };
    next.backends[place] = Uuid::random()?;
    for (at, reached) in reached.iter().enumerate().filter(|(at, _)| *at != old) {
        if let (Some(reached), Some(place)) =
            (reached, roster.places.iter().position(|it| *it == Some(at)))
        {
            let identity = Identity {
                backend: next.backends[place],
                ..next.clone()
            };
            let name = identities::name(&identity);
            identities::put(&reached.store, &identity, &name).await?;
        }
    }
    let identity = Identity {
        backend: next.backends[place],
        ..next
    };
    identities::put(&there.store, &identity, VOLUME).await?;
    owners.release().await;
    drop((reached, there));
    let mut typed = typed;
    typed[old] = new;
    let (volume, _) = open_all(typed, How::default()).await?;
    audited(volume, audit, progress).await
}

/// The one backend of the volume that nobody of the list is.
fn missing(places: &[Option<usize>], name: &str) -> Result<usize> {
    let mut missing = (0..places.len()).filter(|&at| places[at].is_none());
    match (missing.next(), missing.next()) {
        (Some(place), None) => Ok(place),
        _ => Err(Error::new(
            Kind::Invalid,
            format!(
                "which backend of the volume {name} was can't be told, since others are away, too"
            ),
        )),
    }
}

async fn probed(there: &Reached, volume: Uuid) -> Result<()> {
    let names = Names::of(volume);
    probe::obeys(&there.store, &names).await?;
    probe::one_creates(&there.store, &names).await
}

/// Opens the volume until all backends but one have its whole log, and keeps it from others.
async fn level_without(typed: Vec<Typed>, place: usize) -> Result<Arc<Owners>> {
    let (volume, _, owners) = super::open_kept(typed, How::default()).await?;
    let level = async {
        // A silent one is told at once; one that is being brought up to date is waited for.
        if let Err(error) = volume.settled(Some(place), SILENT).await {
            let away = volume.status().log.backends;
            let is_away = away.iter().enumerate().any(|(at, backend)| {
                at != place && (backend.away_for.is_some() || !backend.is_in_use())
            });
            if is_away {
                return Err(error);
            }
            volume.settled(Some(place), LEVEL).await?;
        }
        // Whether the one that is left out has it does not matter.
        if let Err(error) = volume.close().await {
            tracing::debug!("{error}");
        }
        let status = volume.status().log;
        let mut others = status
            .backends
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != place);
        match others.all(|(_, backend)| backend.behind_records == 0) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Timeout,
                "the other backends are not level",
            )),
        }
    };
    match level.await {
        Ok(()) => Ok(owners),
        Err(error) => {
            owners.release().await;
            Err(error)
        }
    }
}
