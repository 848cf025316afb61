//! The journal of one volume: changes go in, become durable, and leave when the store has them.
//!
//! Calls that change something block: on the kernel taking the bytes ([`Journal::append`]), on the
//! disk ([`Journal::sync`], [`Journal::shipped`]), on each other. Those that only ask
//! ([`Journal::usage`], [`Journal::ticket`], [`Journal::last_seq`], [`Journal::durable_seq`],
//! [`Journal::failure`]) wait for none of that, whatever the disk does. Any number of threads may
//! make them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::change::Change;
use crate::claim::Ticket;
use crate::data::Data;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::format::record::{Contents, Header, RecordKind, Stamp};
use crate::ring::Ring;
use crate::segment::Segment;

mod commit;
mod names;
mod open;
mod replace;

pub use open::{discard, inspect, volumes, Inspection, Opened, Options, Recovered};

/// Of the ring, in percent: beyond it writers should be slowed down.
const HIGH_WATER_PERCENT: u64 = 80;

/// How full the ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of records that are not shipped, or whose room is not free yet.
    pub used_bytes: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
}

impl Usage {
    /// Whether writers should be slowed down.
    pub fn is_high(&self) -> bool {
        self.used_bytes * 100 >= self.ring_bytes * HIGH_WATER_PERCENT
    }
}

/// A journal that is open. Dropped without [`close`](Self::close) it is as after a crash: nothing
/// acknowledged is lost.
pub struct Journal {
    disk: Arc<dyn Disk>,
    /// Keeps other processes out until the journal is closed.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
    /// Held over writes to the file, so only by those who may block.
    state: Mutex<State>,
    /// What can be asked. Nothing is waited for while this is locked.
    facts: Mutex<Facts>,
    /// A sync ended, or room was made.
    changed: Condvar,
}

/// The state as it was after its last change.
#[derive(Clone)]
struct Facts {
    usage: Usage,
    last_seq: u64,
    durable_seq: u64,
    ticket: Ticket,
    failed: Option<Error>,
}

struct State {
    segment: Segment,
    ring: Ring,
    /// Files before this one with records that are not shipped: name and last record.
    older: Vec<(String, u64)>,
    last_seq: u64,
    durable_seq: u64,
    shipped_seq: u64,
    /// Records that no sync has covered, oldest first.
    unsynced: VecDeque<Unsynced>,
    /// Somebody syncs, or makes a new file: one at a time.
    syncing: bool,
    /// A new file is made: nothing may be appended until it is known which file counts.
    replacing: bool,
    /// The disk failed, and so did the way out.
    failed: Option<Error>,
}

/// A record that can be written again.
#[derive(Clone)]
struct Unsynced {
    seq: u64,
    header: Vec<u8>,
    data: Vec<Data>,
}

impl Unsynced {
    fn bytes(&self) -> u64 {
        let blocks = |len: usize| len.next_multiple_of(crate::format::BLOCK_BYTES) as u64;
        let data: u64 = self.data.iter().map(|data| blocks(data.len())).sum();
        self.header.len() as u64 + data
    }
}

impl State {
    fn usage(&self) -> Usage {
        Usage {
            used_bytes: self.ring.used(),
            ring_bytes: self.ring.bytes(),
        }
    }

    fn facts(&self) -> Facts {
        let superblock = &self.segment.superblock;
        Facts {
            usage: self.usage(),
            last_seq: self.last_seq,
            durable_seq: self.durable_seq,
            ticket: Ticket {
                journal: superblock.journal,
                epoch: superblock.epoch,
                shipped_seq: superblock.shipped_seq,
                passed_by: false,
            },
            failed: self.failed.clone(),
        }
    }

    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    fn header(&self, contents: Contents) -> Header {
        let superblock = &self.segment.superblock;
        Header {
            kind: RecordKind::WRITE,
            stamp: Stamp {
                volume: superblock.volume,
                writer: superblock.journal,
                epoch: superblock.epoch,
                seq: self.last_seq + 1,
                durable_seq: self.durable_seq,
                previous: [0; 16],
            },
            contents,
        }
    }

    /// Whether a record of so many bytes may be appended now.
    fn check_room(&self, bytes: u64) -> Result<()> {
        self.check()?;
        if bytes > self.ring.bytes() {
            let text = format!("a record of {bytes} bytes does not fit into the journal");
            return Err(Error::new(Kind::Invalid, text));
        }
        if !self.ring.fits(bytes) {
            let text = "the journal is full until something is shipped";
            return Err(Error::new(Kind::Full, text));
        }
        Ok(())
    }

    fn appended(&mut self, bytes: u64, header: Vec<u8>, data: Vec<Data>) -> u64 {
        self.last_seq += 1;
        let seq = self.last_seq;
        self.ring.push(seq, bytes);
        self.unsynced.push_back(Unsynced { seq, header, data });
        seq
    }
}

impl Journal {
    /// Adds the changes, all of them or none. When this returns the kernel has them: they survive
    /// the death of the process, and not yet that of the machine.
    ///
    /// `then` gets the number of the record before any later record is written; what it does for
    /// one record after the other is done in their order. It must not call the journal.
    ///
    /// # Errors
    /// [`Kind::Full`] until something is shipped; [`Kind::Invalid`] for changes that make no
    /// sense, are too many for one record, or none; what the disk says. Nothing is added then.
    pub fn append(&self, changes: &[Change], then: impl FnOnce(u64)) -> Result<Usage> {
        let contents = Contents::of(changes).filter(|_| !changes.is_empty());
        let contents = contents.ok_or_else(|| {
            let text = "no changes, or some that make no sense or are too many for one record";
            Error::new(Kind::Invalid, text)
        })?;
        let bytes = contents.record_bytes();
        let data: Vec<Data> = changes.iter().filter_map(Change::data).cloned().collect();
        let mut state = self.state();
        while state.replacing && state.failed.is_none() {
            state = self.wait(state);
        }
        state.check_room(bytes)?;
        let header = state.header(contents).encode();
        let position = state.ring.tail();
        if let Err(error) = state.segment.write(position, &header, &data) {
            self.refuse(state, position);
            return Err(Error::os(&error, "writing to the journal"));
        }
        then(state.appended(bytes, header, data));
        self.tell(&state);
        Ok(state.usage())
    }

    /// How full the ring is.
    pub fn usage(&self) -> Usage {
        self.facts().usage
    }

    /// Waits until the ring has room for `bytes`, but no longer than that. Whether it has.
    pub fn wait_for_room(&self, bytes: u64, most: Duration) -> bool {
        let end = Instant::now() + most;
        let mut state = self.state();
        loop {
            if state.ring.fits(bytes) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failed.is_some() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the volume has to know of this journal before the first write is acknowledged.
    pub fn ticket(&self) -> Ticket {
        self.facts().ticket
    }

    /// The last record; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.facts().last_seq
    }

    /// The last record that a sync covered.
    pub fn durable_seq(&self) -> u64 {
        self.facts().durable_seq
    }

    /// Why nothing is durable any more, if so.
    pub fn failure(&self) -> Option<Error> {
        self.facts().failed.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever changed the state calls this before it gives the lock back.
    fn tell(&self, state: &State) {
        *self.facts() = state.facts();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Journal({:?})", self.ticket())
    }
}
