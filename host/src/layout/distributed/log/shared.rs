//! What the tasks of a log share: the owner's machine and what waits for it, under one lock that is
//! never held over a wait.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_rs_commit_log::{
    Action, Answer, Entry, Epoch, Event, Kind as RecordKind, Owner, Phase, Position, Protocol,
    Request, Stage,
};
use nbd_rs_plugin::Body;
use tokio::sync::{oneshot, Notify};

use super::super::news::{Listener, News};
use super::append::Appended;
use super::call::Caller;
use super::config::Config;
use super::known::Known;
use super::lease::Lease;
use super::object::{Seal, MAX_PAYLOAD_BYTES};
use super::payloads::{Payload, Payloads};
use crate::error::{Error, Kind, Result};

/// A record that waits for its turn.
struct Queued {
    kind: RecordKind,
    payload: Payload,
    tell: oneshot::Sender<Result<Position>>,
}

/// The record that is on its way.
struct Flight {
    position: Position,
    /// Before any of its puts.
    began: Duration,
    tell: oneshot::Sender<Result<Position>>,
}

/// What is behind the lock.
pub(super) struct Core {
    pub(super) owner: Owner<Protocol>,
    pub(super) known: Vec<Known>,
    pub(super) payloads: Payloads,
    queue: VecDeque<Queued>,
    flight: Option<Flight>,
    /// Why nothing is done any more.
    pub(super) ended: Option<Error>,
    /// No more records are taken in.
    closing: bool,
    /// Why a start has to be made again, and who is to be left out of it.
    pub(super) in_vain: Option<(Error, BTreeSet<usize>)>,
}

impl Core {
    /// The payload of a record of this owner, if it is kept.
    pub(super) fn payload(&self, position: Position) -> Option<Payload> {
        let is_mine = position.epoch == self.owner.epoch();
        let kept = self.payloads.get(position.seq).filter(|_| is_mine);
        kept.cloned()
    }

    /// The bytes of a record's payload, if any backend is known to hold it.
    pub(super) fn payload_bytes(&self, position: Position) -> Option<u64> {
        let mut places = self.known.iter().filter_map(|known| known.place(position));
        places.next().map(|(_, seal)| seal.len)
    }
}

/// One owner of the log, with its backends.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) epoch: Epoch,
    pub(super) callers: Arc<Vec<Caller>>,
    pub(super) lease: Lease,
    core: Mutex<Core>,
    /// Wakes the task of each backend.
    lanes: Vec<Notify>,
    /// Wakes the one that looks for somebody newer.
    pub(super) look: Notify,
    changed: News,
}

impl Shared {
    /// A new owner. `known` is what was seen of each backend already.
    pub(super) fn new(
        config: Config,
        callers: Arc<Vec<Caller>>,
        epoch: Epoch,
        known: Vec<Known>,
    ) -> Arc<Self> {
        // The first requests are found where those of any lane are: nobody is asleep yet.
        let (owner, _) = Owner::new(Protocol, config.quorum, epoch);
        let payloads = Payloads::new(config.backlog_bytes);
        Arc::new(Self {
            lanes: callers.iter().map(|_| Notify::new()).collect(),
            callers,
            config,
            epoch,
            lease: Lease::default(),
            core: Mutex::new(Core {
                owner,
                known,
                payloads,
                queue: VecDeque::new(),
                flight: None,
                ended: None,
                closing: false,
                in_vain: None,
            }),
            look: Notify::new(),
            changed: News::default(),
        })
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.config.environment.now()
    }

    pub(super) async fn sleep(&self, time: Duration) {
        self.config.environment.sleep(time).await;
    }

    /// Ticks whenever something happened.
    pub(super) fn changes(&self) -> Listener<'_> {
        self.changed.listen()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.core().ended.is_some()
    }

    /// What a backend is to be asked next; none when this owner has ended.
    pub(super) async fn request(&self, backend: usize) -> Option<(Request, Phase)> {
        loop {
            {
                let core = self.core();
                if core.ended.is_some() {
                    return None;
                }
                let phase = core.owner.lanes()[backend].phase();
                if let Some(request) = core.owner.asked(backend) {
                    return Some((request, phase));
                }
            }
            self.lanes[backend].notified().await;
        }
    }

    /// Takes in an answer, and what it says about a slot.
    pub(super) fn answered(
        &self,
        backend: usize,
        answer: Answer,
        found: Option<(u64, Entry, Seal)>,
    ) {
        let mut core = self.core();
        if core.ended.is_some() {
            return;
        }
        let now = self.now();
        let known = &mut core.known[backend];
        if known.away_since.take().is_some() {
            tracing::info!("{}: it answers again", self.callers[backend].name());
        }
        (known.answered, known.failures, known.error) = (now, 0, None);
        if let Some((slot, entry, seal)) = found {
            known.note(slot, entry, seal);
        }
        self.step(&mut core, &Event::Answered { backend, answer });
    }

    /// A call failed; how long to wait before the next.
    pub(super) fn failed(&self, backend: usize, error: Error) -> Duration {
        let timing = &self.config.timing;
        let mut core = self.core();
        let now = self.now();
        let known = &mut core.known[backend];
        if known.away_since.is_none() && known.failures == 0 {
            tracing::warn!("{}: {error}; trying again", self.callers[backend].name());
        }
        known.away_since.get_or_insert(now);
        let pause = timing.retry_first * (1 << known.failures.min(16));
        known.failures += 1;
        known.error = Some(error);
        drop(core);
        self.changed.tell();
        self.jitter(pause.min(timing.retry_most))
    }

    /// Between a half and the whole of a time, so that many do not come at once.
    pub(super) fn jitter(&self, time: Duration) -> Duration {
        let part = (self.config.environment.random() % 1000) as u32;
        time / 2 + time / 2 * part / 1000
    }

    /// A record of the chosen log can't be had. Where that ends a start, it has to be made again.
    ///
    /// If the record is gone, the log was cut meanwhile. If it is damaged wherever it lies, and the
    /// other backends are enough to choose from, those it lies on are as good as away: they wait until
    /// a log was chosen without them.
    pub(super) fn is_unreadable(&self, position: Position, error: &Error) {
        let mut core = self.core();
        if core.owner.stage() != Stage::Starting {
            return;
        }
        let known = core.known.iter().enumerate();
        let holders = known.filter(|(_, known)| known.place(position).is_some());
        let holders: BTreeSet<usize> = holders.map(|(backend, _)| backend).collect();
        let is_enough = self.callers.len() - holders.len() >= self.config.quorum.fence();
        match error.kind {
            Kind::NotFound => core.in_vain = Some((error.clone(), BTreeSet::new())),
            Kind::Corrupt if is_enough => core.in_vain = Some((error.clone(), holders)),
            _ => {}
        }
    }

    /// Waits until a log was chosen.
    pub(super) async fn chosen(&self) {
        let mut changes = self.changes();
        loop {
            {
                let core = self.core();
                if core.ended.is_some() || core.owner.stage() != Stage::Fencing {
                    return;
                }
            }
            changes.changed().await;
        }
    }

    /// Something happened.
    pub(super) fn happened(&self, event: &Event) {
        let mut core = self.core();
        self.step(&mut core, event);
    }

    /// Nobody newer had started at `began`.
    pub(super) fn confirmed(&self, began: Duration) {
        self.lease.renew(began + self.config.timing.lease);
        let mut core = self.core();
        self.pump(&mut core);
        self.changed.tell();
    }

    /// Takes a record in.
    pub(super) fn append(&self, kind: RecordKind, body: Body) -> Appended {
        let (tell, told) = oneshot::channel();
        let payload = Payload::new(body);
        let mut core = self.core();
        match self.refusal(&core, kind, &payload) {
            Some(error) => drop(tell.send(Err(error))),
            None => {
                core.queue.push_back(Queued {
                    kind,
                    payload,
                    tell,
                });
                self.pump(&mut core);
            }
        }
        Appended::new(told, self.config.environment.clone(), self.config.quorum)
    }

    fn refusal(&self, core: &Core, kind: RecordKind, payload: &Payload) -> Option<Error> {
        if core.ended.is_some() {
            return core.ended.clone();
        }
        if core.closing {
            return Some(closed());
        }
        if kind == RecordKind::Start || payload.seal.len > MAX_PAYLOAD_BYTES {
            let text = format!("no record of {} bytes can be appended", payload.seal.len);
            return Some(Error::new(Kind::Invalid, text));
        }
        None
    }

    /// No more records are taken in.
    pub(super) fn closing(&self) {
        self.core().closing = true;
    }

    /// Whether every record was acknowledged, and every backend that answers has it.
    pub(super) fn is_settled(&self) -> bool {
        let core = self.core();
        let last = core.owner.log().last().map_or(0, |it| it.position.seq);
        let has_all = |backend: usize| {
            core.known[backend].away_since.is_some() || core.owner.lanes()[backend].held() == last
        };
        core.flight.is_none() && core.queue.is_empty() && (0..self.callers.len()).all(has_all)
    }

    /// Nothing is asked or acknowledged any more. The first reason counts.
    pub(super) fn end(&self, error: Error) {
        self.end_core(&mut self.core(), error);
    }

    fn end_core(&self, core: &mut Core, error: Error) {
        self.lease.end();
        if core.ended.is_none() {
            core.ended = Some(error.clone());
        }
        let waiting = core.flight.take().map(|flight| flight.tell);
        let queued = core.queue.drain(..).map(|queued| queued.tell);
        for tell in waiting.into_iter().chain(queued) {
            let _ = tell.send(Err(error.clone()));
        }
        for lane in &self.lanes {
            lane.notify_one();
        }
        self.look.notify_one();
        self.changed.tell();
    }

    fn step(&self, core: &mut Core, event: &Event) {
        if core.ended.is_some() {
            return;
        }
        let mut actions = Vec::new();
        core.owner.step(event, &mut actions);
        for action in actions {
            match action {
                Action::Send { backend, .. } => self.lanes[backend].notify_one(),
                Action::Ended { by } => self.end_core(core, fenced(by)),
                // Both are looked for below.
                Action::Started | Action::Acknowledged(_) => {}
            }
        }
        self.forget(core);
        self.pump(core);
        self.changed.tell();
    }

    /// Payloads that all backends have are needed by nobody.
    fn forget(&self, core: &mut Core) {
        let joined = |lane: &&nbd_rs_commit_log::Lane| lane.phase() == Phase::Joined;
        let lanes = core.owner.lanes().iter().filter(joined);
        let all_have = lanes.map(nbd_rs_commit_log::Lane::held).min().unwrap_or(0);
        core.payloads.forget_through(all_have);
    }

    /// Acknowledges what is durable, and lets the next record go, both only while the lease holds.
    fn pump(&self, core: &mut Core) {
        if core.ended.is_some() || core.owner.stage() != Stage::Serving {
            return;
        }
        loop {
            if let Some(flight) = &core.flight {
                if core.owner.acknowledged() < flight.position.seq {
                    return;
                }
                // W backends took it since it began, so no newer owner had started then.
                self.lease.renew(flight.began + self.config.timing.lease);
            }
            if core.flight.is_none() && core.queue.is_empty() {
                return;
            }
            if !self.lease.holds(self.now()) {
                self.look.notify_one();
                return;
            }
            if let Some(flight) = core.flight.take() {
                let _ = flight.tell.send(Ok(flight.position));
            }
            if !core.owner.is_idle() {
                return;
            }
            if let Some(queued) = core.queue.pop_front() {
                self.begin(core, queued);
            }
        }
    }

    /// Only when none is on its way.
    fn begin(&self, core: &mut Core, queued: Queued) {
        let began = self.now();
        let mut actions = Vec::new();
        core.owner.step(&Event::Append(queued.kind), &mut actions);
        let Some(record) = core.owner.log().last().copied() else {
            return;
        };
        core.payloads.keep(record.position.seq, queued.payload);
        core.flight = Some(Flight {
            position: record.position,
            began,
            tell: queued.tell,
        });
        for action in actions {
            if let Action::Send { backend, .. } = action {
                self.lanes[backend].notify_one();
            }
        }
    }
}

fn fenced(by: Epoch) -> Error {
    let text = format!("a newer owner of the volume was met ({by:?}): this one is shut out");
    Error::new(Kind::Fenced, text)
}

pub(super) fn closed() -> Error {
    Error::new(Kind::Fenced, "the log was closed")
}
