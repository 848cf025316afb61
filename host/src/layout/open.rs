//! Open, create, destroy: the only place that knows all layouts.

mod distributed;
mod raw;
mod sharded;

use std::sync::Arc;

use nbd_rs_plugin::OpenFlags;

use super::uuid::Uuid;
use super::Layout;
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};
use crate::location::{List, Location, Place};
use crate::plugin::Registry;

pub use super::distributed::log::Survey;
pub use super::distributed::manage::Status as LogStatus;
pub use super::distributed::manage::{BackendFacts, Facts as DistributedFacts};
pub use super::distributed::volume::{Audit, Flaw, Report as AuditReport};
pub use super::sharded::check::{Finding, Report};
pub use super::sharded::manage::Facts as ShardedFacts;
pub use super::sharded::Way;

/// A layout by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// One object, byte for byte.
    Raw,
    /// Objects of one size.
    Sharded,
    /// The same on several backends, with a commit log.
    Distributed,
}

/// What a layout knows of a volume besides its size.
#[derive(Debug, Clone)]
pub enum Facts {
    /// Of a sharded one.
    Sharded(ShardedFacts),
    /// Of a distributed one.
    Distributed(DistributedFacts),
}

impl Facts {
    /// Which volume it is.
    pub fn uuid(&self) -> Uuid {
        match self {
            Facts::Sharded(facts) => facts.record.uuid,
            Facts::Distributed(facts) => facts.identity.volume,
        }
    }
}

impl std::str::FromStr for Driver {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "raw" => Ok(Driver::Raw),
            "sharded" => Ok(Driver::Sharded),
            "distributed" => Ok(Driver::Distributed),
            _ if name.contains([':', '@']) => Err(Error::new(
                Kind::Invalid,
                "the layout comes before the location, as in: raw file:/path",
            )),
            _ => Err(Error::new(
                Kind::Invalid,
                format!(
                    "unknown layout {:?}; known: raw, sharded, distributed",
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
            Driver::Sharded => f.write_str("sharded"),
            Driver::Distributed => f.write_str("distributed"),
        }
    }
}

/// What a volume is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To be served, read and written; read-only if it can't be written.
    ReadWrite,
    /// The same, also from an owner that lives: it is shut out.
    TakeOver,
    /// To be served, read only.
    ReadOnly,
    /// To be looked at: others may have it.
    Look,
}

impl Access {
    /// For a server.
    pub fn serving(read_only: bool, takeover: bool) -> Self {
        match (read_only, takeover) {
            (true, _) => Access::ReadOnly,
            (false, true) => Access::TakeOver,
            (false, false) => Access::ReadWrite,
        }
    }
}

/// A volume to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewVolume {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The size of its shards, where it has some.
    pub shard_bytes: Option<u64>,
    /// Start an empty one even where one exists.
    pub force: bool,
}

/// How a volume is compared with its objects.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Their contents are compared with their checksums, too.
    pub deep: bool,
    /// What can be mended is.
    pub repair: bool,
}

/// What a command asks of a volume.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// That it is made.
    Create(&'a NewVolume),
    /// That it grows.
    Grow,
    /// That it is compared with its objects.
    Check,
    /// That what waits in its journal is sent.
    Replay,
    /// That this command is about its copies.
    Copies(&'a str),
}

/// A volume as it was typed: layout and location.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The layout.
    pub driver: Driver,
    /// Where it lives.
    pub location: Place,
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
        let driver = driver.parse()?;
        let one = |options: &[&str]| {
            let location = Location::parse_with(config, &lookup, options)?;
            Ok::<_, Error>(Place::One(location))
        };
        let location = match driver {
            Driver::Raw => one(&[])?,
            Driver::Sharded => one(&sharded::OPTIONS)?,
            Driver::Distributed => Place::Many(List::parse(config, &lookup, &distributed::FIELDS)?),
        };
        let volume = Self { driver, location };
        if driver == Driver::Distributed {
            distributed::check(&volume)?;
        }
        Ok(volume)
    }

    /// Whether every option in its location can be meant, also those that only their plugin
    /// understands. Nothing is opened.
    ///
    /// # Errors
    /// What is wrong with which option.
    pub fn check_options(&self, registry: &Registry) -> Result<()> {
        let flags = match self.driver {
            Driver::Raw => OpenFlags::SINGLE_OBJECT,
            Driver::Sharded | Driver::Distributed => OpenFlags::NONE,
        };
        if self.driver == Driver::Sharded {
            sharded::Said::of(self)?;
        }
        let mut locations = self.location.locations().iter();
        locations.try_for_each(|location| Chain::check(registry, location, flags))
    }

    /// Whether that can be asked of a volume of this layout at all. Nothing is opened.
    ///
    /// # Errors
    /// Why not.
    pub fn takes(&self, ask: Ask<'_>) -> Result<()> {
        match (self.driver, ask) {
            (Driver::Raw, Ask::Create(new)) if new.shard_bytes.is_none() => Ok(()),
            (Driver::Raw, ask) => Err(raw::has_no(ask)),
            (Driver::Sharded, Ask::Create(new)) => sharded::plan(self, new)?.check(),
            (Driver::Sharded, Ask::Grow | Ask::Check | Ask::Replay) => Ok(()),
            (Driver::Sharded, Ask::Copies(command)) => Err(has_no_copies(command)),
            (Driver::Distributed, Ask::Check) => Err(distributed::has_no_check()),
            (Driver::Distributed, _) => Ok(()),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub async fn open(&self, registry: &Registry, access: Access) -> Result<Arc<dyn Layout>> {
        match self.driver {
            Driver::Raw => raw::open(self, registry, access).await,
            Driver::Sharded => sharded::open(self, registry, access).await,
            Driver::Distributed => distributed::open(self, registry, access).await,
        }
    }

    /// Makes it, all zeros; with `force` also where one exists. `progress` is told how many
    /// objects of that one are gone.
    ///
    /// # Errors
    /// [`Kind::Exists`] without `force`; [`Kind::Busy`] while it is served.
    pub async fn create(
        &self,
        registry: &Registry,
        new: &NewVolume,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<()> {
        self.takes(Ask::Create(new))?;
        match self.driver {
            Driver::Raw => raw::create(self, registry, new.size_bytes, new.force).await,
            Driver::Sharded => sharded::create(self, registry, new, progress).await,
            Driver::Distributed => distributed::create(self, registry, new, progress).await,
        }
    }

    /// Removes what belongs to it. `progress` is told how many objects are gone.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none; [`Kind::Busy`] while it is served.
    pub async fn destroy(
        &self,
        registry: &Registry,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<()> {
        match self.driver {
            Driver::Raw => raw::destroy(self, registry).await,
            Driver::Sharded => sharded::destroy(self, registry, progress).await,
            Driver::Distributed => distributed::destroy(self, registry, progress).await,
        }
    }

    /// Grows it, while nobody serves it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a size that is not larger; [`Kind::Busy`] while it is served.
    pub async fn grow(&self, registry: &Registry, size_bytes: u64) -> Result<()> {
        match self.driver {
            Driver::Raw => Err(raw::has_no(Ask::Grow)),
            Driver::Sharded => sharded::grow(self, registry, size_bytes).await,
            Driver::Distributed => distributed::grow(self, registry, size_bytes).await,
        }
    }

    /// What the layout knows of it besides its size, also while it is served.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn facts(&self, registry: &Registry) -> Result<Option<Facts>> {
        match self.driver {
            Driver::Raw => Ok(None),
            Driver::Sharded => {
                let facts = sharded::facts(self, registry).await?;
                Ok(Some(Facts::Sharded(facts)))
            }
            Driver::Distributed => {
                let facts = distributed::facts(self, registry).await?;
                Ok(Some(Facts::Distributed(facts)))
            }
        }
    }

    /// Compares it with its objects, and mends it if that was asked for and nobody serves it.
    /// `progress` is told how many of how many shards are done.
    ///
    /// # Errors
    /// If that can't be done; [`Kind::Busy`] for a repair while it is served. What is wrong with the volume is in the report.
    pub async fn check(
        &self,
        registry: &Registry,
        how: Check,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Report> {
        match self.driver {
            Driver::Raw => Err(raw::has_no(Ask::Check)),
            Driver::Sharded => sharded::compare(self, registry, how, progress).await,
            Driver::Distributed => Err(distributed::has_no_check()),
        }
    }

    /// How it stands on its backends, also while it is served.
    ///
    /// # Errors
    /// If too few of them answer.
    pub async fn status(&self, registry: &Registry) -> Result<LogStatus> {
        self.takes(Ask::Copies("status"))?;
        distributed::status(self, registry).await
    }

    /// Compares all copies, while nobody serves it. `progress` is told how many of how many objects are
    /// done.
    ///
    /// # Errors
    /// If that can't be done. What is wrong with the volume is in the report.
    pub async fn scrub(
        &self,
        registry: &Registry,
        audit: &Audit,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<AuditReport> {
        self.takes(Ask::Copies("scrub"))?;
        distributed::scrub(self, registry, audit, progress).await
    }

    /// Makes a backend a full copy again.
    ///
    /// # Errors
    /// As for [`scrub`](Self::scrub).
    pub async fn resync(
        &self,
        registry: &Registry,
        backend: usize,
        audit: &Audit,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<AuditReport> {
        self.takes(Ask::Copies("resync"))?;
        distributed::resync(self, registry, backend, audit, progress).await
    }

    /// Puts a backend in the place of another.
    ///
    /// # Errors
    /// As for [`scrub`](Self::scrub).
    pub async fn replace(
        &self,
        registry: &Registry,
        old: usize,
        new: &Location,
        audit: &Audit,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<AuditReport> {
        self.takes(Ask::Copies("replace-backend"))?;
        distributed::replace(self, registry, (old, new), audit, progress).await
    }

    /// Which of its backends that is.
    pub fn place_of(&self, location: &Location) -> Option<usize> {
        match &self.location {
            Place::One(_) => None,
            Place::Many(list) => list.place_of(location),
        }
    }

    async fn chain(&self, registry: &Registry, flags: OpenFlags) -> Result<Chain> {
        match &self.location {
            Place::One(location) => Chain::open(registry, location, flags).await,
            Place::Many(_) => Err(Error::new(Kind::Invalid, "one location is needed here")),
        }
    }
}

fn has_no_copies(command: &str) -> Error {
    let text = format!("{command} is for distributed volumes: others have no copies");
    Error::new(Kind::Invalid, text)
}
