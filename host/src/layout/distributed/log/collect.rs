//! Deletes the records that a checkpoint stands for, on every backend that holds it.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use nbd_rs_commit_log::collect::{collectable, Answer, Collection, Collector, Request};
use nbd_rs_commit_log::{Entry, Floor, Kind as RecordKind, Phase, Position, Protocol};
use nbd_rs_plugin::{Body, Bytes};

use super::object::{encode_floor, floor_key, slot_key};
use super::shared::Shared;
use super::store::Created;
use crate::error::{Error, Kind, Result};

/// How often one step is tried.
const TRIES: u32 = 3;
/// Names in one call.
const DELETES: usize = 500;

/// What came of a collection.
#[derive(Debug, Default)]
pub struct Collected {
    /// Records that were deleted, on all backends together.
    pub records: u64,
    /// Backends that were left as they are, and why. The next collection gets them too.
    pub left: Vec<(usize, Error)>,
}

impl Shared {
    /// Deletes what is in front of an acknowledged checkpoint.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no acknowledged checkpoint of this log; [`Kind::Fenced`] if this owner
    /// has ended.
    pub(super) async fn collect(&self, checkpoint: Position) -> Result<Collected> {
        self.check(checkpoint)?;
        let backends = 0..self.callers.len();
        let sweeps = backends.map(|backend| self.sweep(backend, checkpoint));
        let mut collected = Collected::default();
        for (backend, swept) in join_all(sweeps).await.into_iter().enumerate() {
            match swept {
                Ok(records) => collected.records += records,
                Err(error) => collected.left.push((backend, error)),
            }
        }
        let ended = self.core().ended.clone();
        ended.map_or(Ok(collected), Err)
    }

    fn check(&self, checkpoint: Position) -> Result<()> {
        let core = self.core();
        if let Some(error) = &core.ended {
            return Err(error.clone());
        }
        let mut log = core.owner.log().iter();
        let is_it = |kind| kind == RecordKind::Checkpoint;
        let found = log.find(|it| it.position == checkpoint && is_it(it.kind));
        match found.is_some() && checkpoint.seq <= core.owner.acknowledged() {
            true => Ok(()),
            false => {
                let text = format!("{checkpoint:?} is no acknowledged checkpoint");
                Err(Error::new(Kind::Invalid, text))
            }
        }
    }

    async fn sweep(&self, backend: usize, checkpoint: Position) -> Result<u64> {
        let Some((collection, floors)) = self.plan(backend, checkpoint)? else {
            return Ok(0);
        };
        let floor = collection.floor.slot;
        let slots: BTreeSet<u64> = collection.slots.iter().copied().collect();
        let mut collector = Collector::new(collection, floors);
        while let Some(request) = collector.request() {
            let answer = self.tried(backend, &request).await?;
            collector.answered(&answer);
        }
        self.core().known[backend].collected(&slots, floor);
        Ok(slots.len() as u64)
    }

    /// What can go from a backend, and how many floors it has.
    fn plan(&self, backend: usize, checkpoint: Position) -> Result<Option<(Collection, u64)>> {
        let core = self.core();
        let (lane, known) = (&core.owner.lanes()[backend], &core.known[backend]);
        let holds = lane.phase() == Phase::Joined && lane.held() >= checkpoint.seq;
        if !holds || known.away_since.is_some() {
            let text = "the backend does not have the checkpoint yet, or is away";
            return Err(Error::new(Kind::Transient, text));
        }
        let entries = known.entries();
        let Some(mut collection) = collectable(&Protocol, &entries, checkpoint) else {
            return Ok(None);
        };
        // What another backend is being given may be read from here yet.
        let needed: BTreeSet<Position> = core.owner.lanes().iter().filter_map(asked).collect();
        let is_needed = |slot: &u64| match known.entry(*slot) {
            Some((Entry::Record { record, .. }, _)) => needed.contains(&record.position),
            _ => false,
        };
        collection.slots.retain(|slot| !is_needed(slot));
        if collection.slots.is_empty() {
            return Ok(None);
        }
        Ok(Some((collection, lane.floors().max(known.floors()))))
    }

    async fn tried(&self, backend: usize, request: &Request) -> Result<Answer> {
        let mut tries = 0;
        loop {
            if let Some(error) = &self.core().ended {
                return Err(error.clone());
            }
            tries += 1;
            match self.collecting(backend, request).await {
                Err(_) if tries < TRIES => self.sleep(self.config.timing.retry_first).await,
                outcome => return outcome,
            }
        }
    }

    async fn collecting(&self, backend: usize, request: &Request) -> Result<Answer> {
        match request {
            Request::GetFloor { number } => {
                let floor = self.slots(backend).floor(*number).await?;
                self.noted(backend, *number, floor);
                Ok(Answer::Floor(floor))
            }
            Request::PutFloor { number, floor } => {
                let header = encode_floor(self.config.volume, *number, floor);
                let body = Body::One(Bytes::from(header));
                match self.callers[backend].put(floor_key(*number), body).await? {
                    Created::Exists => Ok(Answer::Exists),
                    Created::Stored => {
                        self.noted(backend, *number, Some(*floor));
                        Ok(Answer::Stored)
                    }
                }
            }
            Request::Delete { slots } => {
                for slots in slots.chunks(DELETES) {
                    let keys = slots.iter().map(|slot| slot_key(*slot)).collect();
                    self.callers[backend].delete(keys).await?;
                }
                Ok(Answer::Deleted)
            }
        }
    }

    fn noted(&self, backend: usize, number: u64, floor: Option<Floor>) {
        if let Some(floor) = floor {
            self.core().known[backend].note_floor(number, floor);
        }
    }
}

fn asked(lane: &nbd_rs_commit_log::Lane) -> Option<Position> {
    use nbd_rs_commit_log::Request;
    match lane.asked() {
        Some(Request::Put {
            entry: Entry::Record { record, .. },
            ..
        }) => Some(record.position),
        _ => None,
    }
}
