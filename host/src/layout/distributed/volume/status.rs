//! How a volume stands, for people, scripts and tests.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::log;
use super::super::state::{Tail, Waiting};
use super::shared::Inner;

/// The whole volume.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its log.
    pub log: log::Status,
    /// What is in records and packs, and waits to be folded.
    pub waiting: Waiting,
    /// The log behind the last checkpoint.
    pub tail: Tail,
    /// What was done.
    pub work: Work,
}

/// What was done since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Images that were made of what waited in the log.
    pub folds: u64,
    /// Packs that were made for checkpoints.
    pub packs: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Records of the log that were deleted, on all backends together.
    pub collected_records: u64,
    /// Objects that were given up and deleted.
    pub deleted_objects: u64,
    /// Leftovers of dead owners that were deleted, on all backends together.
    pub swept_objects: u64,
    /// Units that were found to be whole on no backend when they were to be moved.
    pub lost_units: u64,
}

impl Inner {
    pub(super) fn status(&self) -> Status {
        let log = self.log.status();
        let (waiting, tail) = {
            let core = self.core();
            (core.state.waiting(), core.state.tail())
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        let work = Work {
            folds: count(&counts.folds),
            packs: count(&counts.packs),
            checkpoints: count(&counts.checkpoints),
            collected_records: count(&counts.collected),
            deleted_objects: count(&counts.garbage),
            swept_objects: count(&counts.swept),
            lost_units: count(&counts.lost_units),
        };
        Status {
            log,
            waiting,
            tail,
            work,
        }
    }
}
