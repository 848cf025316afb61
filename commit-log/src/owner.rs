//! An owner of a volume's log, as a machine: events in, actions out.
//!
//! It asks each backend one thing at a time, and asks the same again until it has an answer. Whoever
//! drives it may hold a request back for as long as it likes, so a backend that is away needs no event.

use crate::lane::{Lane, Outcome, Phase};
use crate::record::{Entry, Epoch, Floor, Kind, Position, Record};
use crate::replica::{choose, common, Held, Replica};
use crate::rules::{Quorum, Rules};

/// What a backend is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// The floor of this number. Answered by [`Answer::Floor`].
    GetFloor {
        /// Its number.
        number: u64,
    },
    /// The entry in a slot. Answered by [`Answer::Entry`].
    ///
    /// An entry that was read ahead may be given, since it never changes. That a slot is empty has to be
    /// asked now.
    Get {
        /// The slot.
        slot: u64,
    },
    /// An entry into a slot, if that is empty. Answered by [`Answer::Stored`] or [`Answer::Exists`].
    ///
    /// A checkpoint stands for everything before it: before it is put, what it names has to be
    /// durable on that backend.
    Put {
        /// The slot.
        slot: u64,
        /// The entry.
        entry: Entry,
    },
}

/// What a backend answered. It had effect, or was true, at some moment since the request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The floor, or that there is none of this number.
    Floor(Option<Floor>),
    /// The entry, or that the slot is empty.
    Entry(Option<Entry>),
    /// The entry is in its slot, durably.
    Stored,
    /// The slot was taken (HTTP 412), maybe by an earlier attempt at the same put.
    Exists,
}

/// What happens to an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The answer to the request that was sent last to a backend. An answer that comes in after
    /// [`Event::Unanswered`] was told is to be thrown away.
    Answered {
        /// The backend.
        backend: usize,
        /// What it said.
        answer: Answer,
    },
    /// The request had no answer in time, or was refused, or the answer does not say what came of it. It
    /// may still have effect, at any time. It is sent again: when, is up to the driver.
    Unanswered {
        /// The backend.
        backend: usize,
    },
    /// Something lies in a slot of [`Owner::watched`]. The driver looks every few seconds.
    Watched {
        /// The backend.
        backend: usize,
        /// The slot.
        slot: u64,
        /// What was found.
        entry: Entry,
    },
    /// Backends that have not answered by now are not waited for: choose as soon as enough are fenced.
    Decide,
    /// A record is to follow. Only when [`Owner::is_idle`]; else nothing happens.
    Append(Kind),
}

/// What an owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask a backend. There is no other request of this owner outstanding there.
    Send {
        /// The backend.
        backend: usize,
        /// What to ask.
        request: Request,
    },
    /// The volume is as the log before this owner's first record says, and will never be otherwise
    /// again: reads and writes may be served.
    Started,
    /// The record is durable: the flushes that wait for it are acknowledged.
    Acknowledged(Position),
    /// A newer owner was met. Nothing is acknowledged any more.
    Ended {
        /// Who it was.
        by: Epoch,
    },
}

/// Where an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Fencing backends and reading what they hold.
    Fencing,
    /// Writing the chosen log, and its own first record, to enough backends.
    Starting,
    /// Serving.
    Serving,
    /// A newer owner was met.
    Ended,
}

/// An owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner<R> {
    rules: R,
    epoch: Epoch,
    quorum: Quorum,
    stage: Stage,
    /// Whether backends that have not answered are waited for.
    waits: bool,
    lanes: Vec<Lane>,
    /// The chosen log and what this owner added, from the last checkpoint on that it chose or
    /// acknowledged.
    log: Vec<Record>,
    /// The record that its own follow.
    base: Option<Position>,
    /// The number of the last record that is acknowledged; until it serves, of `base`.
    acknowledged: u64,
}

impl<R: Rules> Owner<R> {
    /// A new owner, and its first requests. The epoch must never have been used.
    #[must_use]
    pub fn new(rules: R, quorum: Quorum, epoch: Epoch) -> (Self, Vec<Action>) {
        let mut owner = Self {
            rules,
            epoch,
            quorum,
            stage: Stage::Fencing,
            waits: true,
            lanes: vec![Lane::new(); quorum.backends()],
            log: Vec::new(),
            base: None,
            acknowledged: 0,
        };
        let mut actions = Vec::new();
        owner.send(&mut actions);
        (owner, actions)
    }

    /// Takes in an event, and adds what is to be done to `actions`, in order.
    pub fn step(&mut self, event: &Event, actions: &mut Vec<Action>) {
        if self.stage == Stage::Ended {
            return;
        }
        match *event {
            Event::Answered { backend, answer } => {
                if let Outcome::Lost(by) = self.answered(backend, &answer) {
                    self.end(by, actions);
                    return;
                }
            }
            Event::Unanswered { backend } => {
                let asked = self.lanes.get(backend).and_then(|lane| lane.asked);
                actions.extend(asked.map(|request| Action::Send { backend, request }));
            }
            Event::Watched { entry, .. } if entry.writer() > self.epoch => {
                self.end(entry.writer(), actions);
                return;
            }
            Event::Watched { backend, slot, .. } => self.pass(backend, slot),
            Event::Decide => self.waits = false,
            Event::Append(kind) => self.append(kind),
        }
        self.choose();
        self.join();
        self.start(actions);
        self.acknowledge(actions);
        self.send(actions);
    }

    /// Where it stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether it would take in a record: it serves, and has none in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Serving && self.acknowledged == self.last_seq()
    }

    /// Whether enough backends are fenced to choose a log, which is not chosen yet.
    #[must_use]
    pub fn may_decide(&self) -> bool {
        let fenced = self.lanes.iter().filter(|lane| lane.phase == Phase::Fenced);
        self.stage == Stage::Fencing && self.rules.may_choose(fenced.count(), &self.quorum)
    }

    /// How it stands with each backend.
    #[must_use]
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// What a backend was asked and has not answered.
    #[must_use]
    pub fn asked(&self, backend: usize) -> Option<Request> {
        self.lanes.get(backend)?.asked
    }

    /// The chosen log and what was added, from the last checkpoint on that was chosen or acknowledged.
    #[must_use]
    pub fn log(&self) -> &[Record] {
        &self.log
    }

    /// The last record of the log that was chosen; none before, and for an empty volume.
    #[must_use]
    pub fn base(&self) -> Option<Position> {
        self.base
    }

    /// The number of the last record that is acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The slots, each with its backend, that somebody newer would have taken.
    ///
    /// If [`Quorum::fence`] of them are empty, nobody newer had started when the first of them was
    /// looked at: what this owner has acknowledged is all there is, and may be read.
    pub fn watched(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let last = self.last_seq();
        let is_sure = move |lane: &Lane| {
            lane.phase == Phase::Joined && lane.held == last && lane.asked.is_none()
        };
        let lanes = self.lanes.iter().enumerate();
        let lanes = lanes.filter(move |(_, lane)| is_sure(lane));
        lanes.map(|(backend, lane)| (backend, lane.next))
    }

    /// What somebody older left in the next slot is no reason to look there for ever.
    fn pass(&mut self, backend: usize, slot: u64) {
        if self.watched().any(|watched| watched == (backend, slot)) {
            self.lanes[backend].next += 1;
        }
    }

    fn end(&mut self, by: Epoch, actions: &mut Vec<Action>) {
        self.stage = Stage::Ended;
        actions.push(Action::Ended { by });
    }

    fn last_seq(&self) -> u64 {
        self.log.last().map_or(0, |record| record.position.seq)
    }

    fn answered(&mut self, backend: usize, answer: &Answer) -> Outcome {
        let Some(lane) = self.lanes.get_mut(backend) else {
            return Outcome::Nothing;
        };
        match lane.asked.take() {
            Some(_) => lane.answer(&self.rules, self.epoch, answer),
            None => Outcome::Nothing,
        }
    }

    fn append(&mut self, kind: Kind) {
        if !self.is_idle() || kind == Kind::Start {
            return;
        }
        let prev = self.log.last().map(|record| record.position);
        let position = Position {
            epoch: self.epoch,
            seq: self.last_seq() + 1,
        };
        self.log.push(Record {
            position,
            prev,
            kind,
        });
    }

    /// With enough backends fenced, takes the best of their logs for its own.
    fn choose(&mut self) {
        let fenced = |lane: &&Lane| lane.phase == Phase::Fenced;
        let all = self.lanes.iter().all(|lane| fenced(&lane));
        if !self.may_decide() || (self.waits && !all) {
            return;
        }
        let replicas = self.lanes.iter().filter(fenced).map(|lane| &lane.replica);
        let chosen = choose(&self.rules, replicas).map_or(&[][..], Replica::log);
        // What a checkpoint stands for is given to nobody: it may be collected already.
        let is_checkpoint = |held: &Held| held.record.kind == Kind::Checkpoint;
        let from = chosen.iter().rposition(is_checkpoint).unwrap_or(0);
        self.log = chosen[from..].iter().map(|held| held.record).collect();
        self.base = self.log.last().map(|record| record.position);
        self.acknowledged = self.last_seq();
        self.log.extend(self.rules.opening(self.epoch, self.base));
        self.stage = Stage::Starting;
    }

    fn join(&mut self) {
        if self.stage == Stage::Fencing {
            return;
        }
        let fenced = |lane: &&mut Lane| lane.phase == Phase::Fenced;
        for lane in self.lanes.iter_mut().filter(fenced) {
            lane.join(common(&lane.replica, &self.log));
        }
    }

    fn holders(&self, seq: u64) -> usize {
        let holds = |lane: &&Lane| lane.phase == Phase::Joined && lane.held >= seq;
        self.lanes.iter().filter(holds).count()
    }

    /// Serves when its first record, and so everything before it, is on enough backends.
    fn start(&mut self, actions: &mut Vec<Action>) {
        let holders = self.holders(self.last_seq());
        if self.stage == Stage::Starting && self.rules.is_started(holders, &self.quorum) {
            self.stage = Stage::Serving;
            self.acknowledged = self.last_seq();
            actions.push(Action::Started);
        }
    }

    fn acknowledge(&mut self, actions: &mut Vec<Action>) {
        let last = self.log.last().copied();
        let Some(record) = last.filter(|_| self.stage == Stage::Serving) else {
            return;
        };
        let seq = record.position.seq;
        if self.acknowledged == seq || !self.rules.is_durable(self.holders(seq), &self.quorum) {
            return;
        }
        self.acknowledged = seq;
        actions.push(Action::Acknowledged(record.position));
        if record.kind == Kind::Checkpoint {
            self.log.drain(..self.log.len() - 1);
        }
    }

    /// Asks every backend that is not asked already what is to be asked next.
    fn send(&mut self, actions: &mut Vec<Action>) {
        let (first, last) = match (self.log.first(), self.log.last()) {
            (Some(first), Some(last)) => (first.position.seq, last.position.seq),
            _ => (1, 0),
        };
        for (backend, lane) in self.lanes.iter_mut().enumerate() {
            if lane.asked.is_some() {
                continue;
            }
            let next = self.rules.next(lane.held, first, last);
            let record = next.and_then(|seq| self.log.get(usize::try_from(seq - first).ok()?));
            let lacks = record.map(|&record| Entry::Record {
                writer: self.epoch,
                record,
            });
            lane.asked = lane.question(self.epoch, lacks);
            actions.extend(lane.asked.map(|request| Action::Send { backend, request }));
        }
    }
}
