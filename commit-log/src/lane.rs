//! What an owner does on one backend: find the end of the log, fence it, then fill it in order.

use crate::owner::{Answer, Request};
use crate::record::{Entry, Epoch, Floor};
use crate::replica::Replica;
use crate::rules::{Occupied, Rules};

/// How far an owner got on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Looking for the last floor.
    Floor,
    /// Reading slots.
    Walk,
    /// Putting the fence where no entry was found.
    Fence,
    /// Looking whether the floor is still the last.
    Confirm,
    /// Fenced and read.
    Fenced,
    /// Gets the records of the owner's log.
    Joined,
    /// Something was in a slot that can't be there. Used no more.
    Stopped,
}

/// The owner's side of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    pub(crate) phase: Phase,
    /// The number of the floor to look for.
    floors: u64,
    floor: Floor,
    /// The slot to look at, or to put into, next.
    pub(crate) next: u64,
    pub(crate) replica: Replica,
    /// The last record of the owner's log that is here, together with all before it.
    pub(crate) held: u64,
    /// What is being put into the slot `next`; the same until it is known what lies there.
    putting: Option<Entry>,
    /// The slot was taken, and is to be read.
    occupied: bool,
    /// What the backend was asked and has not answered.
    pub(crate) asked: Option<Request>,
}

/// What an answer led to, beyond the next question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Nothing,
    Lost(Epoch),
}

impl Lane {
    /// How far the owner got.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The last record of the owner's log that the backend holds, together with all before it.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// What the backend was asked and has not answered.
    #[must_use]
    pub fn asked(&self) -> Option<Request> {
        self.asked
    }

    /// How many floors were seen there.
    #[must_use]
    pub fn floors(&self) -> u64 {
        self.floors
    }

    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Floor,
            floors: 0,
            floor: Floor::default(),
            next: 0,
            replica: Replica::default(),
            held: 0,
            putting: None,
            occupied: false,
            asked: None,
        }
    }

    /// The owner has a log, and the backend holds it through `held`.
    pub(crate) fn join(&mut self, held: u64) {
        self.phase = Phase::Joined;
        self.replica = Replica::default();
        self.held = held;
    }

    /// The next question. `lacks` is what the backend is to be given next.
    pub(crate) fn question(&mut self, me: Epoch, lacks: Option<Entry>) -> Option<Request> {
        let slot = self.next;
        match self.phase {
            Phase::Floor | Phase::Confirm => Some(Request::GetFloor {
                number: self.floors,
            }),
            Phase::Walk => Some(Request::Get { slot }),
            Phase::Fence => Some(Request::Put {
                slot,
                entry: Entry::Fence(me),
            }),
            Phase::Joined if self.occupied => Some(Request::Get { slot }),
            Phase::Joined => {
                self.putting = self.putting.or(lacks);
                self.putting.map(|entry| Request::Put { slot, entry })
            }
            Phase::Fenced | Phase::Stopped => None,
        }
    }

    /// Takes in an answer to what was asked.
    pub(crate) fn answer<R: Rules>(&mut self, rules: &R, me: Epoch, answer: &Answer) -> Outcome {
        match (self.phase, answer) {
            (Phase::Floor, Answer::Floor(Some(floor))) => self.rise(floor),
            (Phase::Floor, Answer::Floor(None)) => {
                self.phase = Phase::Walk;
                self.next = rules.first_slot(&self.floor);
                self.replica = Replica::behind(&self.floor);
            }
            (Phase::Confirm, Answer::Floor(Some(floor))) => self.rise(floor),
            (Phase::Confirm, Answer::Floor(None)) => self.phase = Phase::Fenced,
            (Phase::Walk, Answer::Entry(None)) => self.phase = Phase::Fence,
            (Phase::Walk, Answer::Entry(Some(entry))) => return self.walk(rules, me, entry),
            (Phase::Fence, Answer::Exists) => self.phase = Phase::Walk,
            (Phase::Fence, Answer::Stored) => self.fenced(rules),
            (Phase::Joined, Answer::Exists) => self.occupied = true,
            (Phase::Joined, Answer::Entry(None)) => self.occupied = false,
            (Phase::Joined, Answer::Stored) => self.holds(),
            (Phase::Joined, Answer::Entry(Some(found))) => return self.resolve(rules, me, found),
            // Not an answer to the question, which is asked again.
            _ => {}
        }
        Outcome::Nothing
    }

    fn rise(&mut self, floor: &Floor) {
        self.floor = *floor;
        self.floors += 1;
        self.phase = Phase::Floor;
    }

    fn walk<R: Rules>(&mut self, rules: &R, me: Epoch, entry: &Entry) -> Outcome {
        if entry.writer() > me {
            return Outcome::Lost(entry.writer());
        }
        if *entry == Entry::Fence(me) {
            self.fenced(rules);
        } else {
            self.replica.read(rules, entry);
            self.next += 1;
        }
        Outcome::Nothing
    }

    fn fenced<R: Rules>(&mut self, rules: &R) {
        self.next += 1;
        self.phase = match rules.confirms_floor() {
            true => Phase::Confirm,
            false => Phase::Fenced,
        };
    }

    fn resolve<R: Rules>(&mut self, rules: &R, me: Epoch, found: &Entry) -> Outcome {
        self.occupied = false;
        let Some(mine) = self.putting else {
            return Outcome::Nothing;
        };
        match rules.occupied(me, &mine, found) {
            Occupied::Mine => self.holds(),
            Occupied::Skip => {
                self.next += 1;
                self.putting = None;
            }
            Occupied::Damaged => self.phase = Phase::Stopped,
            Occupied::Lost(by) => return Outcome::Lost(by),
        }
        Outcome::Nothing
    }

    fn holds(&mut self) {
        if let Some(Entry::Record { record, .. }) = self.putting.take() {
            self.next += 1;
            self.held = record.position.seq;
        }
    }
}
