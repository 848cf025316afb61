//! Sharded volumes by their location.

use std::sync::Arc;

use nbd_rs_plugin::OpenFlags;

use super::{Access, Check, NewVolume, Volume};
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::check::{check, Report};
use crate::layout::sharded::manage::{self, Facts, How, Plan};
use crate::layout::sharded::repair::repair;
use crate::layout::sharded::volume::Way;
use crate::layout::sharded::Timing;
use crate::layout::Layout;
use crate::plugin::Registry;

/// Options in the query that are this layout's.
pub(super) const OPTIONS: [&str; 2] = ["fencing", "way"];
/// The size of shards, in bytes, if nothing else is said.
const SHARD_BYTES: u64 = 4 << 20;

/// What the location says to this layout.
pub(super) struct Said {
    fencing_is_external: bool,
    way: Option<Way>,
}

impl Said {
    /// # Errors
    /// What is wrong with which option.
    pub(super) fn of(volume: &Volume) -> Result<Self> {
        let fencing_is_external = match volume.location.layout_option("fencing") {
            None => false,
            Some("external") => true,
            Some(_) => {
                let text = "option fencing: external is all it can be; leave it out for the \
                            store's conditions";
                return Err(Error::new(Kind::Invalid, text));
            }
        };
        let way = volume.location.layout_option("way").map(str::parse);
        Ok(Self {
            fencing_is_external,
            way: way.transpose()?,
        })
    }
}

/// The volume that is to be made.
pub(super) fn plan(volume: &Volume, new: &NewVolume) -> Result<Plan> {
    Ok(Plan {
        size_bytes: new.size_bytes,
        shard_bytes: new.shard_bytes.unwrap_or(SHARD_BYTES),
        way: Said::of(volume)?.way,
        force: new.force,
    })
}

pub(super) async fn open(
    volume: &Volume,
    registry: &Registry,
    access: Access,
) -> Result<Arc<dyn Layout>> {
    let writes = matches!(access, Access::ReadWrite | Access::TakeOver);
    let flags = match access {
        Access::ReadOnly => OpenFlags::NONE,
        _ => OpenFlags::WRITE,
    };
    let said = Said::of(volume)?;
    let how = How {
        writes,
        looks: access == Access::Look,
        takeover: access == Access::TakeOver,
        way: said.way,
        fencing_is_external: said.fencing_is_external,
        timing: Timing::default(),
    };
    let chain = volume.chain(registry, flags).await?;
    Ok(Arc::new(manage::open(chain, how).await?))
}

pub(super) async fn create(
    volume: &Volume,
    registry: &Registry,
    new: &NewVolume,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<()> {
    let plan = plan(volume, new)?;
    let external = Said::of(volume)?.fencing_is_external;
    let chain = volume.chain(registry, OpenFlags::WRITE | OpenFlags::CREATE);
    let chain = chain.await?;
    let made = manage::create(chain.clone(), plan, external, progress).await;
    if made.is_err() {
        // The store may keep things for a volume that there is not; the first error counts.
        let _ = chain.close().await;
    }
    made.map(drop)
}

pub(super) async fn destroy(
    volume: &Volume,
    registry: &Registry,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<()> {
    let external = Said::of(volume)?.fencing_is_external;
    let chain = volume.chain(registry, OpenFlags::WRITE).await?;
    manage::destroy(chain, external, progress).await?;
    Ok(())
}

pub(super) async fn grow(volume: &Volume, registry: &Registry, size_bytes: u64) -> Result<()> {
    let external = Said::of(volume)?.fencing_is_external;
    let chain = volume.chain(registry, OpenFlags::WRITE).await?;
    manage::grow(chain, size_bytes, external).await?;
    Ok(())
}

pub(super) async fn facts(volume: &Volume, registry: &Registry) -> Result<Facts> {
    let chain = volume.chain(registry, OpenFlags::NONE).await?;
    let facts = manage::facts(&chain).await;
    chain.close().await.and(facts)
}

pub(super) async fn compare(
    volume: &Volume,
    registry: &Registry,
    how: Check,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let external = Said::of(volume)?.fencing_is_external;
    let flags = match how.repair {
        true => OpenFlags::WRITE,
        false => OpenFlags::NONE,
    };
    let chain = volume.chain(registry, flags).await?;
    let report = check_and_repair(&chain, how, external, progress).await;
    chain.close().await.and(report)
}

/// What is mended is compared again.
async fn check_and_repair(
    chain: &Chain,
    how: Check,
    fencing_is_external: bool,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let report = check(chain, how.deep, progress).await?;
    if !how.repair || !report.needs_repair() {
        return Ok(report);
    }
    let mended = repair(chain, fencing_is_external, Timing::default(), progress).await?;
    let report = check(chain, how.deep, progress).await?;
    Ok(Report { mended, ..report })
}
