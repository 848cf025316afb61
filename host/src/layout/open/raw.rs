//! Raw volumes by their location.

use std::sync::Arc;

use nbd_rs_plugin::{CapabilityFlags, ObjectFlags, ObjectMode, OpenFlags};

use super::{Access, Ask, Volume};
use crate::backend::chain::Chain;
use crate::backend::Object;
use crate::error::{Error, Kind, Result};
use crate::layout::raw::Raw;
use crate::layout::Layout;
use crate::plugin::Registry;

/// Why that can't be asked of an image.
pub(super) fn has_no(ask: Ask<'_>) -> Error {
    let text = match ask {
        Ask::Create(_) => "--shard-size is not for raw, which has no shards",
        Ask::Grow => "resize is not for raw: truncate(1) does it for a file",
        Ask::Check => "check is not for raw, which keeps nothing but the bytes",
        Ask::Replay => "journal replay is not for raw, which has no journal",
        Ask::Copies(command) => return super::has_no_copies(command),
    };
    Error::new(Kind::Invalid, text)
}

pub(super) async fn open(
    volume: &Volume,
    registry: &Registry,
    access: Access,
) -> Result<Arc<dyn Layout>> {
    let flags = match access {
        Access::ReadOnly => OpenFlags::SINGLE_OBJECT,
        _ => OpenFlags::SINGLE_OBJECT | OpenFlags::WRITE,
    };
    let chain = volume.chain(registry, flags).await?;
    let object = open_object(volume, &chain, access).await?;
    if !object.capabilities().has(CapabilityFlags::IN_PLACE) {
        return Err(Error::new(
            Kind::Unsupported,
            "the raw layout needs a store that can read and write inside an object",
        ));
    }
    Ok(Arc::new(Raw::new(chain, object).await?))
}

async fn open_object(volume: &Volume, chain: &Chain, access: Access) -> Result<Object> {
    let flags = match access {
        Access::Look => ObjectFlags::NONE,
        _ => ObjectFlags::LOCK,
    };
    if access != Access::ReadOnly {
        let mode = ObjectMode::new(flags | ObjectFlags::WRITE);
        match chain.open_object("", mode).await {
            Err(error) if matches!(error.kind, Kind::Denied | Kind::ReadOnly) => {
                tracing::warn!("{volume} can't be written, so it is read-only: {error}");
            }
            opened => return opened,
        }
    }
    chain.open_object("", ObjectMode::new(flags)).await
}

pub(super) async fn create(
    volume: &Volume,
    registry: &Registry,
    size: u64,
    force: bool,
) -> Result<()> {
    let flags = OpenFlags::SINGLE_OBJECT | OpenFlags::WRITE | OpenFlags::CREATE;
    let chain = volume.chain(registry, flags).await?;
    let how = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::LOCK;
    let how = match force {
        true => how | ObjectFlags::TRUNCATE,
        false => how | ObjectFlags::CREATE_NEW,
    };
    let opened = chain.open_object("", ObjectMode::create(how, size)).await;
    let object = opened.map_err(|error| match error.kind {
        Kind::Exists => Error {
            message: format!(
                "{} exists already; --force starts an empty volume in its place",
                volume.location
            )
            .into(),
            ..error
        },
        _ => error,
    })?;
    object.sync().await?;
    object.close().await?;
    chain.close().await
}

pub(super) async fn destroy(volume: &Volume, registry: &Registry) -> Result<()> {
    let flags = OpenFlags::SINGLE_OBJECT | OpenFlags::WRITE;
    let chain = volume.chain(registry, flags).await?;
    // A missing object counts as deleted, but a person who names one wants to know.
    let mode = ObjectMode::new(ObjectFlags::NONE);
    let object = chain.open_object("", mode).await?;
    object.close().await?;
    drop(object);
    let deleted = chain.delete(vec![String::new()]).wait().await?;
    deleted.into_iter().collect::<Result<()>>()?;
    chain.close().await
}
