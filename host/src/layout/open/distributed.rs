//! Distributed volumes by their backends.

use std::sync::Arc;

use nbd_rs_plugin::options::{self, display_size};
use nbd_rs_plugin::{Body, Capabilities, Data, Extent, ReadFlags, ZeroFlags};

use super::{Access, NewVolume, Volume};
use crate::backend::chain::Opener;
use crate::backend::{Answer, Later};
use crate::error::{Error, Kind, Result};
use crate::layout::distributed::manage::{self, Facts, How, Plan, Status, Typed};
use crate::layout::distributed::state::policy::Policy;
use crate::layout::distributed::volume::{capabilities, Audit, Report, Tuning, FLUSH_MEANS};
use crate::layout::geometry::Geometry;
use crate::layout::Layout;
use crate::location::{Location, Place};
use crate::plugin::Registry;

/// Fields beside the backends.
pub(super) const FIELDS: [&str; 5] = [
    "replicas",
    "write_quorum",
    "shard",
    "log_budget",
    "fold_percent",
];
/// The size of shards, in bytes, if nothing else is said.
const SHARD_BYTES: u64 = 4 << 20;
/// Copies of each shard, if nothing else is said.
const REPLICAS: u32 = 3;
/// What may wait in the log, in bytes: with less it is folded all the time, with more it takes memory.
const LOG_BUDGET: std::ops::RangeInclusive<u64> = 16 << 20..=256 << 30;

fn typed(volume: &Volume, registry: &Registry) -> Result<Vec<Typed>> {
    let Place::Many(list) = &volume.location else {
        let text = "a distributed volume has a list of backends";
        return Err(Error::new(Kind::Invalid, text));
    };
    let typed = list.backends.iter().map(|location| {
        Ok(Typed {
            name: location.to_string(),
            opener: Opener::new(registry, location)?,
        })
    });
    typed.collect()
}

fn invalid(name: &str, what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("{name}: {what}"))
}

fn count(volume: &Volume, name: &str) -> Result<Option<u32>> {
    let given = volume.location.layout_option(name);
    let number = |text: &str| match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(invalid(name, "must be a number from 1 on")),
    };
    given.map(number).transpose()
}

fn size(volume: &Volume, name: &str) -> Result<Option<u64>> {
    let given = volume.location.layout_option(name);
    let bytes = |text: &str| options::size(text).map_err(|error| invalid(name, error.message));
    given.map(bytes).transpose()
}

/// The options of the layout, checked before anything is opened.
///
/// # Errors
/// [`Kind::Invalid`] with what would do.
pub(super) fn check(volume: &Volume) -> Result<()> {
    count(volume, "replicas")?;
    count(volume, "write_quorum")?;
    size(volume, "shard")?;
    policy(volume).map(drop)
}

fn policy(volume: &Volume) -> Result<Policy> {
    let mut policy = Policy::default();
    if let Some(bytes) = size(volume, "log_budget")? {
        if !LOG_BUDGET.contains(&bytes) {
            let (least, most) = (
                display_size(*LOG_BUDGET.start()),
                display_size(*LOG_BUDGET.end()),
            );
            return Err(invalid(
                "log_budget",
                format!("must be from {least} to {most}"),
            ));
        }
        policy.budget_bytes = bytes;
        policy.checkpoint_bytes = policy.checkpoint_bytes.min(bytes);
    }
    if let Some(percent) = count(volume, "fold_percent")? {
        if percent > 100 {
            return Err(invalid("fold_percent", "must be from 1 to 100"));
        }
        policy.image_percent = u64::from(percent);
        policy.least_percent = policy.least_percent.min(policy.image_percent);
    }
    Ok(policy)
}

pub(super) async fn open(
    volume: &Volume,
    registry: &Registry,
    access: Access,
) -> Result<Arc<dyn Layout>> {
    let typed = typed(volume, registry)?;
    if access == Access::Look {
        let facts = manage::facts(&typed).await?;
        return Ok(Arc::new(Glance(facts.identity.geometry)));
    }
    let tuning = Tuning {
        policy: policy(volume)?,
        read_only: access == Access::ReadOnly,
        ..Tuning::default()
    };
    let how = How {
        takeover: access == Access::TakeOver,
        tuning,
    };
    Ok(Arc::new(manage::open(typed, how).await?))
}

pub(super) fn has_no_check() -> Error {
    Error::new(Kind::Invalid, "check is not for distributed: scrub does it")
}

pub(super) async fn create(
    volume: &Volume,
    registry: &Registry,
    new: &NewVolume,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<()> {
    let shard_bytes = match (new.shard_bytes, size(volume, "shard")?) {
        (Some(_), Some(_)) => {
            return Err(invalid("shard", "--shard-size says that already"));
        }
        (given, field) => given.or(field).unwrap_or(SHARD_BYTES),
    };
    let plan = Plan {
        geometry: Geometry {
            size_bytes: new.size_bytes,
            shard_bytes,
        },
        replicas: count(volume, "replicas")?.unwrap_or(REPLICAS),
        write_quorum: count(volume, "write_quorum")?,
        force: new.force,
    };
    manage::create(&typed(volume, registry)?, plan, progress).await?;
    Ok(())
}

pub(super) async fn destroy(
    volume: &Volume,
    registry: &Registry,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<()> {
    manage::destroy(&typed(volume, registry)?, progress).await
}

pub(super) async fn grow(volume: &Volume, registry: &Registry, size_bytes: u64) -> Result<()> {
    manage::grow(&typed(volume, registry)?, size_bytes).await
}

pub(super) async fn facts(volume: &Volume, registry: &Registry) -> Result<Facts> {
    manage::facts(&typed(volume, registry)?).await
}

pub(super) async fn status(volume: &Volume, registry: &Registry) -> Result<Status> {
    manage::status(&typed(volume, registry)?).await
}

pub(super) async fn scrub(
    volume: &Volume,
    registry: &Registry,
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    manage::scrub(typed(volume, registry)?, audit, progress).await
}

pub(super) async fn resync(
    volume: &Volume,
    registry: &Registry,
    backend: usize,
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    manage::resync(typed(volume, registry)?, backend, audit, progress).await
}

pub(super) async fn replace(
    volume: &Volume,
    registry: &Registry,
    (old, new): (usize, &Location),
    audit: &Audit,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let new = Typed {
        name: new.to_string(),
        opener: Opener::new(registry, new)?,
    };
    manage::replace(typed(volume, registry)?, old, new, audit, progress).await
}

/// A volume that is only looked at: its log is another's, and what it says nobody knows from here.
struct Glance(Geometry);

fn not_owned<T>() -> Answer<T> {
    let text = "a distributed volume is read by whoever owns it";
    Answer::Ready(Err(Error::new(Kind::Unsupported, text)))
}

impl Layout for Glance {
    fn size(&self) -> u64 {
        self.0.size_bytes
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.0, true)
    }

    fn read(&self, _: u64, _: u64, _: ReadFlags) -> Answer<Data> {
        not_owned()
    }

    fn write(&self, _: u64, _: Body, _: bool) -> Answer<()> {
        not_owned()
    }

    fn zero(&self, _: u64, _: u64, _: ZeroFlags) -> Answer<()> {
        not_owned()
    }

    fn extents(&self, _: u64, _: u64, _: u32) -> Answer<Vec<Extent>> {
        not_owned()
    }

    fn prefetch(&self, _: u64, _: u64) -> Answer<()> {
        not_owned()
    }

    fn flush(&self) -> Later<()> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> Later<()> {
        Box::pin(async { Ok(()) })
    }

    fn flush_means(&self) -> &'static str {
        FLUSH_MEANS
    }
}
