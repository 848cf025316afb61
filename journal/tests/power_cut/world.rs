//! A journal that lives on a recorded disk, what happened to it and when, and what may be left of
//! it after a crash.

use nbd_rs_journal::change::Change;
use nbd_rs_journal::claim::{Claim, Ticket};
use nbd_rs_journal::error::Kind;
use nbd_rs_journal::uuid::Uuid;
use nbd_rs_journal::{Journal, Opened};

use crate::common::rng::Rng;
use crate::common::{any_changes, claim, options};
use nbd_rs_recorder_disk::{Faults, Image, Recorder};

/// The process dies, or the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    Kill,
    Power,
}

/// Something that came true between two moments.
struct Event {
    began: usize,
    ended: usize,
    seq: u64,
}

pub(crate) struct World {
    disk: Recorder,
    /// Moments before this one were in an earlier life.
    start: usize,
    journal: Option<Journal>,
    ticket: Option<Ticket>,
    /// When that was stored, and what the volume knew before.
    stored: usize,
    known: Option<Ticket>,
    epoch: u64,
    /// How often the machine was started.
    boots: u8,
    ring_blocks: u64,
    /// The changes of each record, from record 1.
    records: Vec<Vec<Change>>,
    appended: Vec<Event>,
    /// Records that were refused; a crash while that is found out may leave one all the same.
    refused: Vec<(Event, Vec<Change>)>,
    synced: Vec<Event>,
    shipped: Vec<Event>,
}

impl World {
    /// A new journal on an empty disk.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let ring_blocks = 8 + rng.next() % 30;
        let mut world = Self {
            disk: Recorder::start(Image::default()),
            start: 0,
            journal: None,
            ticket: None,
            stored: 0,
            known: None,
            epoch: 1,
            boots: 0,
            ring_blocks,
            records: Vec::new(),
            appended: Vec::new(),
            refused: Vec::new(),
            synced: Vec::new(),
            shipped: Vec::new(),
        };
        let opened = world.open().expect("an empty disk");
        world.started(opened);
        world
    }

    fn open(&self) -> nbd_rs_journal::error::Result<Opened> {
        let claim = Claim {
            boot: Uuid([self.boots; 16]),
            ..claim(self.epoch, self.ticket)
        };
        Journal::open(self.disk.disk(), &claim, &options(self.ring_blocks))
    }

    fn started(&mut self, opened: Opened) {
        self.known = self.ticket;
        self.ticket = Some(opened.journal.ticket());
        self.stored = self.disk.moment();
        self.journal = Some(opened.journal);
    }

    /// Does this and that to the journal.
    pub(crate) fn live(&mut self, steps: u64, rng: &mut Rng) {
        for _ in 0..steps {
            match rng.next() % 20 {
                0..12 => self.append(rng),
                12..16 => self.sync(),
                16..18 => self.ship(rng),
                18 => self.disk.fail(any_faults(rng)),
                _ => self.retry(),
            }
        }
        self.disk.fail(Faults::default());
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().expect("it is open")
    }

    fn append(&mut self, rng: &mut Rng) {
        let changes = any_changes(rng);
        let began = self.disk.moment();
        let expected = self.records.len() as u64 + 1;
        let appended = self
            .journal()
            .append(&changes, |seq| assert_eq!(seq, expected));
        match appended {
            Ok(_) => {
                self.records.push(changes);
                self.appended.push(self.event(began, expected));
            }
            Err(error) if error.kind == Kind::Full => {
                self.sync();
                self.ship(rng);
            }
            // A fault, or more than this ring can ever take.
            Err(_) => {
                let mut event = self.event(began, expected);
                if self.journal().failure().is_some() {
                    event.ended = usize::MAX;
                }
                self.refused.push((event, changes));
            }
        }
    }

    fn event(&self, began: usize, seq: u64) -> Event {
        let ended = self.disk.moment();
        Event { began, ended, seq }
    }

    fn sync(&mut self) {
        let began = self.disk.moment();
        if self.journal().sync().is_ok() {
            self.synced
                .push(self.event(began, self.journal().last_seq()));
        }
        self.told();
    }

    /// How far the store is was noted, and a sync may have made that durable.
    fn told(&mut self) {
        let (moment, told) = (self.disk.moment(), self.journal().ticket().shipped_seq);
        for event in self.shipped.iter_mut().filter(|event| event.seq <= told) {
            event.ended = event.ended.min(moment);
        }
    }

    fn ship(&mut self, rng: &mut Rng) {
        let began = self.disk.moment();
        let last = self.shipped.last().map_or(0, |event| event.seq);
        let durable = self.journal().durable_seq().max(last);
        let seq = last + rng.next() % (durable - last + 1);
        if self.journal().failure().is_some() {
            return;
        }
        // What is only noted is durable with the next sync, or the one after it.
        let _ = match rng.next().is_multiple_of(2) {
            true => self.journal().note_shipped(seq),
            false => self.journal().shipped(seq),
        };
        // The store has it, whether that is written down here or not.
        let ended = usize::MAX;
        self.shipped.push(Event { began, ended, seq });
        self.told();
    }

    fn retry(&mut self) {
        let began = self.disk.moment();
        let failed = self.journal().failure().is_some();
        if failed && self.journal().retry().is_ok() {
            // A disk that failed may have kept a record that was refused; the new file has none.
            for (event, _) in &mut self.refused {
                event.ended = event.ended.min(self.disk.moment());
            }
            self.synced
                .push(self.event(began, self.journal().last_seq()));
        }
    }

    /// A moment since the journal was there, and a way to crash.
    pub(crate) fn any_moment(&self, rng: &mut Rng) -> (usize, Crash) {
        let moments = self.disk.moment() - self.start + 1;
        let moment = self.start + rng.next() as usize % moments;
        let crash = if rng.next().is_multiple_of(4) {
            Crash::Kill
        } else {
            Crash::Power
        };
        (moment, crash)
    }

    /// Crashes, starts again, and holds what is found up against what happened.
    pub(crate) fn crash(&self, moment: usize, crash: Crash, rng: &mut Rng) -> World {
        let disk = match crash {
            Crash::Kill => self.disk.after_kill(moment),
            Crash::Power => Recorder::start(self.disk.power_cut(moment, &mut || rng.next())),
        };
        let mut next = World {
            start: disk.moment(),
            disk,
            journal: None,
            ticket: self.ticket_at(moment, rng),
            stored: 0,
            known: None,
            epoch: self.epoch + 1 + rng.next() % 2,
            boots: self.boots + u8::from(crash == Crash::Power),
            ring_blocks: self.ring_blocks,
            records: Vec::new(),
            appended: Vec::new(),
            refused: Vec::new(),
            synced: Vec::new(),
            shipped: Vec::new(),
        };
        next.records = self.records_at(moment);
        let opened = next.open().unwrap_or_else(|error| {
            panic!("{crash:?} at {moment} of {}: {error}", self.disk.moment())
        });
        self.check(moment, crash, &opened);
        let last_seq = opened.journal.last_seq();
        next.records.truncate(last_seq as usize);
        let known = |seq| Event {
            began: 0,
            ended: 0,
            seq,
        };
        next.appended.push(known(last_seq));
        next.shipped
            .push(known(last(&self.shipped, |event| event.ended <= moment)));
        // What a dead process left in memory is durable only when the next one has seen to it.
        next.synced.push(match crash {
            Crash::Kill => known(last(&self.synced, |event| event.ended <= moment)),
            Crash::Power => known(last_seq),
        });
        next.synced.push(next.event(next.start, last_seq));
        next.shipped
            .push(next.event(0, opened.journal.ticket().shipped_seq));
        next.started(opened);
        next
    }

    /// The records that may be there then.
    fn records_at(&self, moment: usize) -> Vec<Vec<Change>> {
        let began = last(&self.appended, |event| event.began <= moment);
        let mut records = self.records[..began as usize].to_vec();
        let in_flight = |event: &Event| event.began <= moment && moment < event.ended;
        if let Some((event, changes)) = self.refused.iter().find(|(event, _)| in_flight(event)) {
            records.truncate(event.seq as usize - 1);
            records.push(changes.clone());
        }
        records
    }

    /// What the volume knew then. It may have heard how far the store was, or not.
    fn ticket_at(&self, moment: usize, rng: &mut Rng) -> Option<Ticket> {
        if moment < self.stored {
            return self.known;
        }
        let heard = last(&self.shipped, |event| event.began <= moment);
        self.ticket.map(|ticket| Ticket {
            shipped_seq: match rng.next().is_multiple_of(2) {
                true => heard.max(ticket.shipped_seq),
                false => ticket.shipped_seq,
            },
            ..ticket
        })
    }

    fn check(&self, moment: usize, crash: Crash, opened: &Opened) {
        let ended = |events: &[Event]| last(events, |event| event.ended <= moment);
        let began = |events: &[Event]| last(events, |event| event.began <= moment);
        let least = match crash {
            Crash::Kill => ended(&self.appended).max(ended(&self.synced)),
            Crash::Power => ended(&self.synced),
        };
        let last_seq = opened.journal.last_seq();
        let records = self.records_at(moment);
        let most = records.len() as u64;
        assert!(
            (least..=most).contains(&last_seq),
            "{crash:?} at {moment}: the last record is {last_seq} and should be in {least}..={most}"
        );
        let first = opened
            .records
            .first()
            .map_or(last_seq + 1, |record| record.seq);
        let (least, most) = (ended(&self.shipped) + 1, began(&self.shipped) + 1);
        assert!(
            (least..=most).contains(&first),
            "{crash:?} at {moment}: the first record is {first} and should be in {least}..={most}"
        );
        for (record, seq) in opened.records.iter().zip(first..) {
            assert_eq!(record.seq, seq);
            assert_eq!(record.changes, records[seq as usize - 1], "record {seq}");
        }
        assert_eq!(opened.records.len() as u64, last_seq + 1 - first);
    }
}

/// The number of the last of the events that are so; 0 if none is.
fn last(events: &[Event], is_so: impl Fn(&Event) -> bool) -> u64 {
    let those = events.iter().filter(|event| is_so(event));
    those.map(|event| event.seq).max().unwrap_or(0)
}

fn any_faults(rng: &mut Rng) -> Faults {
    let mut some = |one_in: u64| u32::from(rng.next().is_multiple_of(one_in));
    Faults {
        syncs: some(2) + some(4),
        writes: some(6),
        creates: some(6),
        name_syncs: some(8),
        ..Faults::default()
    }
}
