//! What the tasks of a volume share. Its one lock is never held over a wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::super::environment::{within, Environment};
use super::super::format::{UnitSums, Version};
use super::super::log::{Log, Position};
use super::super::news::News;
use super::super::state::State;
use super::batch::Batch;
use super::copies::Copies;
use super::locks::Locks;
use super::open::Released;
use super::replicas::Replicas;
use super::trailers::Trailers;
use super::Tuning;
use crate::error::{Error, Kind, Result};
use crate::layout::geometry::Geometry;
use crate::layout::uuid::Uuid;

/// A checkpoint, as upkeep asks commit for it.
#[derive(Debug)]
pub(super) enum Checkpoint {
    Idle,
    Wanted,
    /// It was made, or why not.
    Ended(Result<Position>),
}

/// What was done since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) folds: AtomicU64,
    pub(super) packs: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    /// Records of the log that were deleted, on all backends together.
    pub(super) collected: AtomicU64,
    /// Objects that were given up and deleted.
    pub(super) garbage: AtomicU64,
    /// Objects that nobody needed and nobody had given up, on all backends together.
    pub(super) swept: AtomicU64,
    pub(super) lost_units: AtomicU64,
}

impl Counts {
    pub(super) fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

/// What is behind the lock. Batches have numbers, from 1 on.
pub(super) struct Core {
    pub(super) open: Batch,
    /// The number of the open batch.
    pub(super) opened: u64,
    /// The batch that is on its way, older than the open one.
    pub(super) flight: Option<Arc<Batch>>,
    /// Batches up to this one are to be on their way.
    pub(super) wanted: u64,
    /// Batches up to this one are durable, and in `state`.
    pub(super) done: u64,
    pub(super) state: State,
    pub(super) checkpoint: Checkpoint,
    /// No more changes are taken in.
    pub(super) is_closing: bool,
    /// Upkeep has nothing on its way any more.
    pub(super) is_upkeep_over: bool,
    /// Why commit does not get on, if it is so.
    pub(super) trouble: Option<Error>,
}

impl Core {
    pub(super) fn new(state: State) -> Self {
        Self {
            open: Batch::default(),
            opened: 1,
            flight: None,
            wanted: 0,
            done: 0,
            state,
            checkpoint: Checkpoint::Idle,
            is_closing: false,
            is_upkeep_over: false,
            trouble: None,
        }
    }

    /// The open batch is to go, if there is anything in it. The number of the last batch.
    pub(super) fn want(&mut self) -> u64 {
        if self.open.is_empty() {
            return self.opened - 1;
        }
        self.wanted = self.opened;
        self.opened
    }

    /// What is in no record yet, newest first.
    pub(super) fn batches(&self) -> Vec<&Batch> {
        let flight = self.flight.as_deref();
        std::iter::once(&self.open).chain(flight).collect()
    }
}

/// One volume.
pub(super) struct Inner {
    pub(super) volume: Uuid,
    pub(super) geometry: Geometry,
    pub(super) sums: UnitSums,
    pub(super) tuning: Tuning,
    pub(super) log: Log,
    pub(super) replicas: Arc<Replicas>,
    pub(super) copies: Arc<Copies>,
    pub(super) environment: Arc<dyn Environment>,
    pub(super) locks: Locks,
    pub(super) trailers: Trailers,
    pub(super) core: Mutex<Core>,
    /// Ticks when something behind the lock may let somebody go on.
    pub(super) changed: News,
    /// Wakes commit and upkeep.
    pub(super) commit: Notify,
    pub(super) upkeep: Notify,
    pub(super) made: AtomicU64,
    pub(super) ended: OnceLock<Error>,
    pub(super) counts: Counts,
    /// A checkpoint is to be made, whether or not it is due.
    pub(super) wants_checkpoint: AtomicBool,
    pub(super) released: Released,
}

impl Inner {
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a new object.
    pub(super) fn version(&self) -> Version {
        Version {
            epoch: self.log.epoch(),
            seq: self.made.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// Nothing goes on any more. The first reason counts.
    pub(super) fn end(&self, error: Error) {
        // Whoever comes second is told the first reason.
        let _ = self.ended.set(error);
        self.log.abandon();
        self.commit.notify_one();
        self.upkeep.notify_one();
        self.changed.tell();
    }

    /// # Errors
    /// Why nothing goes on any more.
    pub(super) fn going_on(&self) -> Result<()> {
        self.ended.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Waits until `look` finds something, as long as patience lasts.
    ///
    /// # Errors
    /// Why nothing goes on any more; [`Kind::Timeout`] with what keeps it from going on.
    pub(super) async fn until<T>(
        &self,
        mut look: impl FnMut(&mut Core) -> Option<Result<T>>,
    ) -> Result<T> {
        let mut changes = self.changed.listen();
        let wait = async {
            loop {
                self.going_on()?;
                let found = look(&mut self.core());
                if let Some(found) = found {
                    return found;
                }
                // The sender is in `self`.
                changes.changed().await;
            }
        };
        let patience = self.tuning.patience;
        if let Some(outcome) = within(&*self.environment, patience, wait).await {
            return outcome;
        }
        let text = format!(
            "for {} s too few backends took what was written",
            patience.as_secs_f32()
        );
        let trouble = self.core().trouble.clone();
        let text = trouble.map_or(text.clone(), |trouble| format!("{text}: {trouble}"));
        Err(Error::new(Kind::Timeout, text))
    }

    /// Whether nobody else can serve the volume; waits for it as long as patience lasts.
    ///
    /// # Errors
    /// As [`Log::readable`] says.
    pub(super) async fn held(&self) -> Result<()> {
        self.going_on()?;
        match self.log.may_read() {
            true => Ok(()),
            false => self.log.readable(self.tuning.patience).await,
        }
    }

    /// Makes durable what was acknowledged before the first poll. Whether or not somebody waits, it
    /// becomes so.
    pub(super) async fn flush(&self) -> Result<()> {
        let last = self.core().want();
        self.commit.notify_one();
        self.until(|core| (core.done >= last).then_some(Ok(())))
            .await?;
        self.held().await
    }

    /// Gives the volume back: everything is durable, and on all backends that answer.
    pub(super) async fn close(&self) -> Result<()> {
        self.core().is_closing = true;
        self.upkeep.notify_one();
        // The log refuses records once it is being closed: upkeep's have to be through before.
        let rested = self.until(|core| core.is_upkeep_over.then_some(Ok(())));
        let rested = rested.await;
        let flushed = rested.and(self.flush().await);
        let closed = self.log.close(self.tuning.patience).await;
        self.end(Error::new(Kind::Fenced, "the volume was closed"));
        let released = (self.released)().await;
        flushed.and(closed).and(released)
    }
}
