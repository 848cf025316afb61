//! Open, create, destroy: the only place that knows all layouts.

use std::sync::Arc;

use nbd_rs_plugin::{CapabilityFlags, ObjectFlags, ObjectMode, OpenFlags};

use super::raw::Raw;
use super::Layout;
use crate::backend::chain::Chain;
use crate::backend::Object;
use crate::error::{Error, Kind, Result};
use crate::location::Location;
use crate::plugin::Registry;

/// A layout by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// One object, byte for byte.
    Raw,
}

impl std::str::FromStr for Driver {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "raw" => Ok(Driver::Raw),
            "sharded" | "distributed" => Err(Error::new(
                Kind::Unsupported,
                format!("the {name} layout is not in this version yet; raw is"),
            )),
            _ if name.contains([':', '@']) => Err(Error::new(
                Kind::Invalid,
                "the layout comes before the location, as in: raw file:/path",
            )),
            _ => Err(Error::new(
                Kind::Invalid,
                format!(
                    "unknown layout {:?}; known: raw",
                    crate::error::printable(name, 40)
                ),
            )),
        }
    }
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Driver::Raw => f.write_str("raw"),
        }
    }
}

/// What a volume is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To be served, read and written; read-only if it can't be written.
    ReadWrite,
    /// To be served, read only.
    ReadOnly,
    /// To be looked at: others may have it.
    Look,
}

impl Access {
    /// For a server.
    pub fn serving(read_only: bool) -> Self {
        match read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        }
    }
}

/// A volume as it was typed: layout and location.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The layout.
    pub driver: Driver,
    /// Where it lives.
    pub location: Location,
}

impl std::fmt::Display for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.driver, self.location)
    }
}

impl Volume {
    /// Reads `DRIVER DRIVER_CFG`.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn parse(driver: &str, config: &str, registry: &Registry) -> Result<Self> {
        let lookup = |scheme: &str| Ok(&registry.get(scheme)?.description);
        Ok(Self {
            driver: driver.parse()?,
            location: Location::parse(config, &lookup)?,
        })
    }

    /// Opens it.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub async fn open(&self, registry: &Registry, access: Access) -> Result<Arc<dyn Layout>> {
        let flags = match access {
            Access::ReadOnly => OpenFlags::SINGLE_OBJECT,
            Access::ReadWrite | Access::Look => OpenFlags::SINGLE_OBJECT | OpenFlags::WRITE,
        };
        let chain = self.chain(registry, flags).await?;
        let object = self.open_object(&chain, access).await?;
        if !object.capabilities().has(CapabilityFlags::IN_PLACE) {
            return Err(Error::new(
                Kind::Unsupported,
                "the raw layout needs a store that can read and write inside an object",
            ));
        }
        Ok(Arc::new(Raw::new(chain, object).await?))
    }

    async fn open_object(&self, chain: &Chain, access: Access) -> Result<Object> {
        let flags = match access {
            Access::ReadWrite | Access::ReadOnly => ObjectFlags::LOCK,
            Access::Look => ObjectFlags::NONE,
        };
        if access != Access::ReadOnly {
            let mode = ObjectMode::new(flags | ObjectFlags::WRITE);
            match chain.open_object("", mode).await {
                Err(error) if matches!(error.kind, Kind::Denied | Kind::ReadOnly) => {
                    tracing::warn!("{self} can't be written, so it is read-only: {error}");
                }
                opened => return opened,
            }
        }
        chain.open_object("", ObjectMode::new(flags)).await
    }

    /// Makes it, `size` bytes of zeros; with `force` also where one exists.
    ///
    /// # Errors
    /// [`Kind::Exists`] without `force`; [`Kind::Busy`] while it is served.
    pub async fn create(&self, registry: &Registry, size: u64, force: bool) -> Result<()> {
        let flags = OpenFlags::SINGLE_OBJECT | OpenFlags::WRITE | OpenFlags::CREATE;
        let chain = self.chain(registry, flags).await?;
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
                    self.location
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

    /// Removes what belongs to it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none; [`Kind::Busy`] while it is served.
    pub async fn destroy(&self, registry: &Registry) -> Result<()> {
        let flags = OpenFlags::SINGLE_OBJECT | OpenFlags::WRITE;
        let chain = self.chain(registry, flags).await?;
        // A missing object counts as deleted, but a person who names one wants to know.
        let mode = ObjectMode::new(ObjectFlags::NONE);
        let object = chain.open_object("", mode).await?;
        object.close().await?;
        drop(object);
        chain.delete("").await?;
        chain.close().await
    }

    async fn chain(&self, registry: &Registry, flags: OpenFlags) -> Result<Chain> {
        Chain::open(registry, &self.location, flags).await
    }
}
