//! What a log is told when it is opened.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_commit_log::{Position, Quorum};
use nbd_rs_plugin::Bytes;

use crate::backend::Later;
use crate::layout::distributed::environment::Environment;
use crate::layout::sharded::Uuid;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two looks for somebody newer.
    pub heartbeat: Duration,
    /// So long after the last look that found nobody newer, reads and acknowledgements end.
    pub lease: Duration,
    /// One call may take so long.
    pub call: Duration,
    /// One look may take so long.
    pub look: Duration,
    /// At a start: backends that said nothing for so long are not waited for, if the others are enough.
    pub patience: Duration,
    /// At a start: no backend is waited for longer than this, if the others are enough.
    pub patience_most: Duration,
    /// A start that took so long has failed.
    pub start: Duration,
    /// Before the first retry of a call. Each further one waits twice as long as the one before.
    pub retry_first: Duration,
    /// Before any retry, at the most.
    pub retry_most: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(3),
            lease: Duration::from_secs(10),
            call: Duration::from_secs(30),
            look: Duration::from_secs(3),
            patience: Duration::from_secs(3),
            patience_most: Duration::from_secs(60),
            start: Duration::from_secs(120),
            retry_first: Duration::from_millis(100),
            retry_most: Duration::from_secs(5),
        }
    }
}

/// Makes a backend ready for a checkpoint, which stands for all records before it.
pub trait Prepare: Send + Sync {
    /// Brings to `backend` what the checkpoint names and what is to be there, durably. It may be asked
    /// again, also when all is there. The checkpoint is put on that backend after this has ended well.
    fn checkpoint(&self, backend: usize, position: Position, payload: Bytes) -> Later<()>;
}

/// What a log is told.
#[derive(Clone)]
pub struct Config {
    /// The volume.
    pub volume: Uuid,
    /// By chance, and never used before: the part of the epoch that keeps two owners apart.
    pub owner: u64,
    /// The greatest epoch counter that the caller knows of, 0 if none.
    pub counter_seen: u64,
    /// How many backends there are, and how many have to take a record.
    pub quorum: Quorum,
    /// How long things take.
    pub timing: Timing,
    /// Payloads that are kept in memory for backends that are behind, in bytes. Those beyond are read
    /// again from a backend that has them.
    pub backlog_bytes: u64,
    /// Time, tasks and chance.
    pub environment: Arc<dyn Environment>,
    /// Readies backends for checkpoints.
    pub prepare: Arc<dyn Prepare>,
}
