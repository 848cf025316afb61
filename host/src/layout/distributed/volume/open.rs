//! From a log to a volume: the last checkpoint, and what came after it.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::super::environment::Environment;
use super::super::format::changes::Changes;
use super::super::format::UnitSums;
use super::super::log::{Config, Entries, Kind, Log, LogEntry, LogStore, Position, Quorum, Timing};
use super::super::news::News;
use super::super::state::policy::Policy;
use super::super::state::State;
use super::copies::{root_of, Copies, Preparing};
use super::locks::Locks;
use super::replicas::{Pace, Replicas};
use super::shared::{Core, Counts, Inner};
use super::trailers::Trailers;
use super::{commit, tell, upkeep, Volume};
use crate::backend::Later;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::layout::geometry::Geometry;
use crate::layout::uuid::Uuid;

/// Memory for the checksums of images, in bytes.
const TRAILER_BYTES: usize = 8 << 20;

/// How a volume is served.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// When images and checkpoints are made.
    pub policy: Policy,
    /// What a batch takes in before others wait, in bytes; one change more than that.
    pub batch_bytes: u64,
    /// So long a read, a change or a flush waits for backends that do not answer.
    pub patience: Duration,
    /// Without an answer for so long, a read asks the next backend as well.
    pub hedge: Duration,
    /// Changes are acknowledged when they are durable: nothing before this keeps them over a crash.
    pub write_through: bool,
    /// Nothing will be changed, but for what upkeep does.
    pub read_only: bool,
    /// Payloads that are kept in memory for backends that are behind, in bytes.
    pub backlog_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            batch_bytes: 16 << 20,
            patience: Duration::from_secs(30),
            hedge: Duration::from_secs(1),
            write_through: true,
            read_only: false,
            backlog_bytes: 32 << 20,
        }
    }
}

/// What a volume is, and who wants to own it.
#[derive(Clone)]
pub struct Setup {
    /// The volume.
    pub volume: Uuid,
    /// Its size and that of its shards.
    pub geometry: Geometry,
    /// The identities of its backends, in the order of their stores.
    pub backends: Vec<Uuid>,
    /// Copies of each shard.
    pub copies: usize,
    /// How many backends have to take a record.
    pub quorum: Quorum,
    /// By chance, and never used before.
    pub owner: u64,
    /// The greatest epoch counter that the caller knows of, 0 if none.
    pub counter_seen: u64,
    /// How long the log takes.
    pub timing: Timing,
    /// How it is served.
    pub tuning: Tuning,
    /// Time, tasks and chance.
    pub environment: Arc<dyn Environment>,
    /// Called when the volume was closed: nobody has it any more.
    pub released: Released,
}

/// See [`Setup::released`].
pub type Released = Arc<dyn Fn() -> Later<()> + Send + Sync>;

/// Takes the volume over, and goes on from what its log says.
///
/// # Errors
/// As [`Log::open`] says; [`Corrupt`](crate::error::Kind::Corrupt) if the log or its checkpoint is
/// whole nowhere.
pub async fn open(setup: Setup, stores: Vec<Arc<dyn LogStore>>) -> Result<Volume> {
    let Setup {
        volume,
        geometry,
        quorum,
        timing,
        tuning,
        ..
    } = setup;
    let environment = setup.environment.clone();
    let pace = Pace {
        call: timing.call,
        hedge: tuning.hedge,
        retry: timing.retry_first,
    };
    let homes = (setup.backends.clone(), setup.copies);
    let replicas = Replicas::new(volume, homes, quorum, &stores, pace, environment.clone());
    let copies = Copies::new(replicas.clone(), geometry.shard_bytes);
    let config = Config {
        volume,
        owner: setup.owner,
        counter_seen: setup.counter_seen,
        quorum,
        timing,
        backlog_bytes: tuning.backlog_bytes,
        environment: environment.clone(),
        prepare: Arc::new(Preparing(copies.clone())),
    };
    let (log, entries) = Log::open(config, stores).await?;
    replicas.owned_by(log.epoch());
    let state = replayed(&log, entries, &replicas, geometry).await?;
    let inner = Arc::new(Inner {
        volume,
        geometry,
        sums: UnitSums::of(volume),
        tuning,
        log,
        replicas,
        copies,
        environment: environment.clone(),
        locks: Locks::default(),
        trailers: Trailers::new(TRAILER_BYTES),
        core: Mutex::new(Core::new(state)),
        changed: News::default(),
        commit: Notify::new(),
        upkeep: Notify::new(),
        made: AtomicU64::new(0),
        ended: OnceLock::new(),
        counts: Counts::default(),
        wants_checkpoint: AtomicBool::new(false),
        released: setup.released,
    });
    environment.spawn(Box::pin(commit::run(inner.clone())));
    environment.spawn(Box::pin(upkeep::run(inner.clone())));
    environment.spawn(Box::pin(tell::run(inner.clone())));
    let watched = inner.clone();
    environment.spawn(Box::pin(async move {
        let error = watched.log.lost().await;
        watched.end(error);
    }));
    Ok(Volume { inner })
}

/// The volume as the chosen log says it is, this owner's start record included.
async fn replayed(
    log: &Log,
    mut entries: Entries,
    replicas: &Replicas,
    geometry: Geometry,
) -> Result<State> {
    // Asked before anything is appended: it is the start record.
    let start = log.status().last;
    let start = start.ok_or_else(|| Error::new(ErrorKind::Io, "the log has no start record"))?;
    let mut state: Option<State> = None;
    while let Some(entry) = entries.next().await? {
        let changes = Changes::decode(replicas.volume, &entry.payload)?;
        let mut next = match state.take() {
            Some(state) => state,
            None => first(&entry, &changes, replicas, geometry).await?,
        };
        skip(&mut next, entry.position)?;
        next.apply(entry.position, &changes)?;
        state = Some(next);
    }
    let mut state = state.unwrap_or_else(|| State::new(geometry));
    skip(&mut state, start)?;
    state.apply(start, &Changes::default())?;
    Ok(state)
}

/// What there was before the first record.
async fn first(
    entry: &LogEntry,
    changes: &Changes,
    replicas: &Replicas,
    geometry: Geometry,
) -> Result<State> {
    if entry.kind != Kind::Checkpoint {
        return Ok(State::new(geometry));
    }
    let named = root_of(changes)?;
    let (_, root) = replicas.anywhere().root(named).await?;
    let mut pages = Vec::with_capacity(root.pages.len());
    for &(number, named) in &root.pages {
        pages.push(replicas.anywhere().page(number, named).await?.1);
    }
    State::restore(geometry, &root, named, pages)
}

/// Start records carry nothing and are left out; they have numbers all the same.
fn skip(state: &mut State, next: Position) -> Result<()> {
    loop {
        let seq = state.last().map_or(0, |last| last.seq) + 1;
        if seq >= next.seq {
            return Ok(());
        }
        let epoch = next.epoch;
        state.apply(Position { epoch, seq }, &Changes::default())?;
    }
}
