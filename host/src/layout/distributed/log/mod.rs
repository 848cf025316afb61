//! The replicated commit log over real stores. The decisions are those of the crate `nbd-rs-commit-log`
//! ([`docs/commit-protocol.md`]); here they are carried out.
//!
//! ```text
//! open -> scan         what lies where, so that the epoch is the greatest
//!      -> shared       the machine, what waits for it, the lease
//!           lane       a task for each backend: asks, puts, catches up, tries again
//!           watch      a task that looks for somebody newer
//! Log  -> append, collect, status, entries (what a new owner goes on from)
//! ```
//!
//! - pure: `object` (names and bytes), `known` (what lies where), `payloads` (what is kept in memory),
//!   `lease`;
//! - `store`: what is asked of one backend; `call`: in time; `slots`: floors and slots; `fetch`: a
//!   payload from whoever has it.
//!
//! [`docs/commit-protocol.md`]: https://github.com/nbd-rs/nbd-rs/blob/main/docs/commit-protocol.md

mod append;
mod call;
mod collect;
mod config;
mod entries;
mod fetch;
mod known;
mod lane;
mod lease;
pub mod object;
mod open;
mod payloads;
mod scan;
mod shared;
mod slots;
mod status;
mod store;
mod survey;
mod watch;

#[cfg(test)]
pub(in crate::layout::distributed) mod tests;

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_commit_log::Epoch;
pub use nbd_rs_commit_log::{Kind, Position, Quorum};
use nbd_rs_plugin::{Body, Bytes, Range};

pub use append::Appended;
pub(in crate::layout::distributed) use call::Caller;
pub use collect::Collected;
pub use config::{Config, Prepare, Timing};
pub use entries::{Entries, LogEntry};
pub use status::{BackendStatus, Status};
pub use store::{Created, Listed, LogStore, Remote};
pub use survey::{survey, Survey};

use crate::error::{Error, Result};
use crate::layout::distributed::environment::within;
use shared::{closed, Shared};

/// A log that this process owns. Dropped, it is as after a crash: nothing more is asked.
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Takes the log over: fences, chooses, and writes its start record to W backends, in the order of
    /// the protocol, until it has its lease. Who owns it so far is not asked: that is up to the caller.
    ///
    /// `stores` are the N backends, each in its place for the life of the log. An empty log is as good
    /// as any other.
    ///
    /// # Errors
    /// [`Busy`](crate::error::Kind::Busy) if others took it over meanwhile, again and again;
    /// [`Io`](crate::error::Kind::Io), with each backend's reason, if too few answered in time. Fences
    /// may have been put all the same.
    pub async fn open(config: Config, stores: Vec<Arc<dyn LogStore>>) -> Result<(Self, Entries)> {
        let log = open::open(config, stores).await?;
        let entries = Entries::new(log.shared.clone());
        Ok((log, entries))
    }

    /// Who this owner is.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Appends a record, behind all that were appended before. One is on its way at a time.
    ///
    /// A checkpoint stands for everything before it: what it names has to be durable already.
    pub fn append(&self, kind: Kind, payload: Body) -> Appended {
        self.shared.append(kind, payload)
    }

    /// Whether reads may be served now. Costs a look at the clock.
    pub fn may_read(&self) -> bool {
        self.shared.lease.holds(self.shared.now())
    }

    /// Waits until reads may be served, so long at the most.
    ///
    /// # Errors
    /// [`Fenced`](crate::error::Kind::Fenced) when this owner has ended;
    /// [`Timeout`](crate::error::Kind::Timeout) if the lease did not come back.
    pub async fn readable(&self, most: Duration) -> Result<()> {
        let shared = &self.shared;
        let mut changes = shared.changes();
        let wait = async {
            loop {
                if let Some(error) = shared.core().ended.clone() {
                    return Err(error);
                }
                if self.may_read() {
                    return Ok(());
                }
                shared.look.notify_one();
                changes.changed().await;
            }
        };
        let late = || {
            let text = "too few backends confirm that this server owns the volume";
            Err(Error::new(crate::error::Kind::Timeout, text))
        };
        within(&*shared.config.environment, most, wait)
            .await
            .unwrap_or_else(late)
    }

    /// Waits until this owner has ended, and says why: a newer owner was met, or it was closed.
    pub async fn lost(&self) -> Error {
        let mut changes = self.shared.changes();
        loop {
            if let Some(error) = self.shared.core().ended.clone() {
                return error;
            }
            // The sender is in `shared`, so there is a next one.
            changes.changed().await;
        }
    }

    /// A part of the payload of a record, from any backend that has it so that it `is_sound`.
    ///
    /// # Errors
    /// [`NotFound`](crate::error::Kind::NotFound) if no backend has the record any more;
    /// [`Corrupt`](crate::error::Kind::Corrupt) if it is damaged wherever it lies; else that of a backend.
    pub async fn read(
        &self,
        position: Position,
        range: Range,
        is_sound: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<Bytes> {
        self.shared.part(position, range, is_sound).await
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Deletes the records in front of a checkpoint that was acknowledged, on all backends that hold
    /// it. What it stands for has to be durable on all that are to do without these records.
    ///
    /// # Errors
    /// [`Invalid`](crate::error::Kind::Invalid) if it is no acknowledged checkpoint of this log;
    /// [`Fenced`](crate::error::Kind::Fenced) when this owner has ended.
    pub async fn collect(&self, checkpoint: Position) -> Result<Collected> {
        self.shared.collect(checkpoint).await
    }

    /// Ends at once, as after a crash: nothing more is asked.
    pub fn abandon(&self) {
        self.shared.end(closed());
    }

    /// Takes in no more records, waits until those that were taken in are acknowledged and on all
    /// backends that answer, so long at the most, and ends.
    ///
    /// # Errors
    /// Why it had ended before; [`Timeout`](crate::error::Kind::Timeout) if something was left.
    pub async fn close(&self, most: Duration) -> Result<()> {
        let shared = &self.shared;
        shared.closing();
        let mut changes = shared.changes();
        let settle = async {
            while !shared.is_settled() && !shared.has_ended() {
                changes.changed().await;
            }
        };
        let settled = within(&*shared.config.environment, most, settle).await;
        if let Some(error) = shared.core().ended.clone() {
            return Err(error);
        }
        shared.end(closed());
        let text = "not all backends have all of the log";
        settled.ok_or_else(|| Error::new(crate::error::Kind::Timeout, text))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.end(closed());
    }
}
