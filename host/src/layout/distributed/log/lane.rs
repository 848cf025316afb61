//! The task of one backend: asks what the owner's machine wants to know, again until it is answered.
//! None waits for another, so that a slow backend does not set the pace.

use std::sync::Arc;

use nbd_rs_commit_log::{Answer, Entry, Kind as RecordKind, Phase, Record, Request};
use nbd_rs_plugin::Body;

use super::object::{encode_slot, slot_key, Seal};
use super::payloads::Payload;
use super::shared::Shared;
use super::slots::Ahead;
use super::store::Created;
use crate::error::Result;

/// What was learnt of a slot.
type Found = Option<(u64, Entry, Seal)>;

/// Until the owner has ended. One that `waits` has no part in what is chosen.
pub(super) async fn run(shared: Arc<Shared>, backend: usize, waits: bool) {
    if waits {
        shared.chosen().await;
    }
    let mut lane = Lane {
        shared,
        backend,
        ahead: Ahead::default(),
        putting: None,
    };
    while let Some((request, phase)) = lane.shared.request(backend).await {
        match lane.ask(request, phase).await {
            Ok((answer, found)) => lane.shared.answered(backend, answer, found),
            Err(error) => {
                let pause = lane.shared.failed(backend, error);
                lane.shared.sleep(pause).await;
            }
        }
    }
}

struct Lane {
    shared: Arc<Shared>,
    backend: usize,
    ahead: Ahead,
    /// What is being put, kept until it is known what came of it: by then nobody else may have it.
    putting: Option<(Record, Payload)>,
}

impl Lane {
    async fn ask(&mut self, request: Request, phase: Phase) -> Result<(Answer, Found)> {
        match request {
            Request::GetFloor { number } => self.floor(number).await,
            Request::Get { slot } if phase == Phase::Joined => self.occupied(slot).await,
            Request::Get { slot } => self.walk(slot).await,
            Request::Put { slot, entry } => self.put(slot, entry).await,
        }
    }

    async fn floor(&mut self, number: u64) -> Result<(Answer, Found)> {
        let known = self.shared.core().known[self.backend].floor(number);
        let floor = match known {
            Some(floor) => Some(floor),
            None => self.shared.slots(self.backend).floor(number).await?,
        };
        if let (None, Some(floor)) = (known, floor) {
            self.shared.core().known[self.backend].note_floor(number, floor);
        }
        Ok((Answer::Floor(floor), None))
    }

    /// An entry never changes: one that was seen is there. That a slot is empty is asked now.
    async fn walk(&mut self, slot: u64) -> Result<(Answer, Found)> {
        let known = self.shared.core().known[self.backend].entry(slot);
        if let Some((entry, _)) = known {
            return Ok((Answer::Entry(Some(entry)), None));
        }
        let slots = self.shared.slots(self.backend);
        let found = slots.from(slot, &mut self.ahead).await?;
        let mut core = self.shared.core();
        for (slot, entry, seal) in &found {
            core.known[self.backend].note(*slot, *entry, *seal);
        }
        let first = found.first().map(|(_, entry, _)| *entry);
        Ok((Answer::Entry(first), None))
    }

    /// Somebody was here before. If it is this owner's own record it must be whole to count.
    async fn occupied(&mut self, slot: u64) -> Result<(Answer, Found)> {
        let slots = self.shared.slots(self.backend);
        let Some((entry, seal)) = slots.header(slot).await? else {
            return Ok((Answer::Entry(None), None));
        };
        let is_mine = |(record, _): &&(Record, Payload)| {
            let (writer, record) = (self.shared.epoch, *record);
            entry == Entry::Record { writer, record }
        };
        if let Some((_, mine)) = self.putting.as_ref().filter(is_mine) {
            let whole = slots.whole(slot, mine.seal, true).await?;
            let (entry, seal) = (whole.map(|(entry, _)| entry), mine.seal);
            return Ok((Answer::Entry(entry), entry.map(|entry| (slot, entry, seal))));
        }
        Ok((Answer::Entry(Some(entry)), Some((slot, entry, seal))))
    }

    async fn put(&mut self, slot: u64, entry: Entry) -> Result<(Answer, Found)> {
        let payload = match entry {
            Entry::Fence(_) => Payload::empty(),
            Entry::Record { record, .. } => self.payload(record).await?,
        };
        let seal = payload.seal;
        let header = encode_slot(self.shared.config.volume, slot, &entry, seal);
        let body: Body = payload.behind(header);
        let caller = &self.shared.callers[self.backend];
        Ok(match caller.put(slot_key(slot), body).await? {
            Created::Stored => (Answer::Stored, Some((slot, entry, seal))),
            Created::Exists => (Answer::Exists, None),
        })
    }

    async fn payload(&mut self, record: Record) -> Result<Payload> {
        if let Some((_, payload)) = self.putting.as_ref().filter(|(it, _)| *it == record) {
            return Ok(payload.clone());
        }
        let payload = match record.kind {
            RecordKind::Start => Payload::empty(),
            _ => self.fetched(record).await?,
        };
        if record.kind == RecordKind::Checkpoint {
            let prepare = &self.shared.config.prepare;
            let bytes = payload.bytes();
            let ready = prepare.checkpoint(self.backend, record.position, bytes);
            ready.await?;
        }
        self.putting = Some((record, payload.clone()));
        Ok(payload)
    }

    async fn fetched(&self, record: Record) -> Result<Payload> {
        let payload = self.shared.payload(record.position).await;
        payload.inspect_err(|error| self.shared.is_unreadable(record.position, error))
    }
}
