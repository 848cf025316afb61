//! A start: whose journal it is, what a crash left in it, and a new epoch.
//!
//! Nothing is changed before everything was read and found in order, and then in steps that may be
//! cut off anywhere: a start that crashed is followed by one that finds the same records.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex};

use super::{names, replace, Journal, State};
use crate::change::Change;
use crate::claim::Claim;
use crate::disk::Disk;
use crate::error::{Error, Kind, Result};
use crate::format::superblock::{Superblock, MAX_RING_BYTES, MIN_RING_BYTES};
use crate::format::BLOCK_BYTES;
use crate::ring::Ring;
use crate::scan::Found;
use crate::segment::Segment;
use crate::uuid::Uuid;

/// How a journal is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the ring, a multiple of 4 KiB. A journal with records in it keeps its size.
    pub ring_bytes: u64,
}

/// A record that the store may not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Its number.
    pub seq: u64,
    /// What it changes, in order.
    pub changes: Vec<Change>,
}

/// A journal, and what was in it.
#[derive(Debug)]
pub struct Opened {
    /// Ready for use.
    pub journal: Journal,
    /// What the store may not have, oldest first, without a gap. All of it is durable here.
    pub records: Vec<Recovered>,
    /// Whoever had it before did not close it.
    pub crashed: bool,
}

/// What is known of a journal that nobody has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspection {
    /// The newest superblock.
    pub superblock: Superblock,
    /// The last record.
    pub last_seq: u64,
    /// Records that the store may not have.
    pub records: u64,
    /// Bytes of the ring that they take.
    pub bytes: u64,
}

impl Journal {
    /// Opens the volume's journal, or makes one. A read-write start calls this after it became the
    /// owner, and stores [`ticket`](Self::ticket) before it acknowledges a write.
    ///
    /// # Errors
    /// [`Kind::InUse`], [`Kind::Missing`], [`Kind::Foreign`], [`Kind::Moved`], [`Kind::Unknown`],
    /// [`Kind::Newer`], [`Kind::Damaged`], each with its reason; what the disk says. Nothing was changed then that matters.
    pub fn open(disk: Arc<dyn Disk>, claim: &Claim, options: &Options) -> Result<Opened> {
        check_size(options.ring_bytes)?;
        let lock = take_lock(&*disk, claim.volume)?;
        let (generations, unfinished) = list(&*disk, claim.volume)?;
        settle_names(&*disk, &unfinished)?;
        let newest = generations.last().copied();
        let fresh = |lock| fresh(&disk, claim, options, lock, &generations);
        let Some(newest) = newest else {
            claim.check_absence()?;
            return fresh(lock);
        };
        if claim.ticket.is_some_and(|ticket| ticket.passed_by) {
            return fresh(lock);
        }
        let chain = Chain::open(&*disk, claim.volume, newest)?;
        let replay = match chain.check(claim) {
            Ok(()) => chain.replay()?,
            Err(refused) if chain.is_worthless(claim) => {
                drop(refused);
                return fresh(lock);
            }
            Err(refused) => return Err(refused),
        };
        let superblock = *chain.superblock();
        claim.check_records(&superblock, replay.last_seq)?;
        if claim.ticket.is_none() && superblock.ring_bytes != options.ring_bytes {
            return fresh(lock);
        }
        let state = chain.begin_epoch(claim, &replay)?;
        remove_but(&*disk, claim.volume, &generations, &state);
        let shipped_seq = state.shipped_seq;
        Ok(Opened {
            journal: journal(disk, lock, state),
            records: replay.recovered(shipped_seq),
            crashed: superblock.open,
        })
    }
}

/// Looks at a journal without changing it.
///
/// # Errors
/// As [`Journal::open`]; [`Kind::Missing`] if there is none.
pub fn inspect(disk: &dyn Disk, volume: Uuid) -> Result<Inspection> {
    let _lock = take_lock(disk, volume)?;
    let (generations, _) = list(disk, volume)?;
    let Some(newest) = generations.last() else {
        let text = format!("volume {volume} has no journal here");
        return Err(Error::new(Kind::Missing, text));
    };
    let chain = Chain::open(disk, volume, *newest)?;
    let replay = chain.replay()?;
    let superblock = *chain.superblock();
    let unshipped = replay.unshipped(superblock.shipped_seq);
    let bytes = unshipped
        .clone()
        .map(|found| found.header.contents.record_bytes());
    Ok(Inspection {
        superblock,
        last_seq: replay.last_seq,
        records: unshipped.count() as u64,
        bytes: bytes.sum(),
    })
}

/// The volumes that have a journal on this disk.
///
/// # Errors
/// What the disk says.
pub fn volumes(disk: &dyn Disk) -> Result<Vec<Uuid>> {
    let names = disk.names();
    let names = names.map_err(|error| Error::os(&error, "looking for journals"))?;
    Ok(names::volumes(&names))
}

/// Removes the volume's journal, whatever is in it.
///
/// # Errors
/// [`Kind::InUse`]; what the disk says.
pub fn discard(disk: &dyn Disk, volume: Uuid) -> Result<()> {
    let _lock = take_lock(disk, volume)?;
    let (generations, unfinished) = list(disk, volume)?;
    // Oldest first: one that is left alone must not look whole.
    let files = generations
        .iter()
        .map(|&generation| names::file(volume, generation));
    let mut removed = unfinished
        .into_iter()
        .chain(files)
        .map(|name| disk.remove(&name));
    let all = removed.try_for_each(|removed| removed);
    // One that stays is harmless.
    let _ = disk.remove(&names::lock(volume));
    let all = all.and_then(|()| disk.sync());
    all.map_err(|error| Error::os(&error, "removing the journal"))
}

fn check_size(ring_bytes: u64) -> Result<()> {
    let sized = (MIN_RING_BYTES..=MAX_RING_BYTES).contains(&ring_bytes);
    match sized && ring_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Invalid,
            format!("a journal can't have {ring_bytes} bytes: choose a multiple of 4 KiB from {MIN_RING_BYTES} to {MAX_RING_BYTES}"),
        )),
    }
}

fn take_lock(disk: &dyn Disk, volume: Uuid) -> Result<Box<dyn Send + Sync>> {
    disk.lock(&names::lock(volume))
        .map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Error::new(
                Kind::InUse,
                format!("the journal of volume {volume} is in use by {error}"),
            ),
            _ => Error::os(&error, "locking the journal"),
        })
}

fn list(disk: &dyn Disk, volume: Uuid) -> Result<(Vec<u64>, Vec<String>)> {
    let names = disk.names();
    let names = names.map_err(|error| Error::os(&error, "looking for the journal"))?;
    Ok(names::of_volume(volume, &names))
}

fn journal(disk: Arc<dyn Disk>, lock: Box<dyn Send + Sync>, state: State) -> Journal {
    Journal {
        disk,
        lock: Mutex::new(Some(lock)),
        facts: Mutex::new(state.facts()),
        state: Mutex::new(state),
        changed: Condvar::new(),
    }
}

/// A new journal, and none of the old files.
fn fresh(
    disk: &Arc<dyn Disk>,
    claim: &Claim,
    options: &Options,
    lock: Box<dyn Send + Sync>,
    generations: &[u64],
) -> Result<Opened> {
    let superblock = Superblock {
        counter: 1,
        volume: claim.volume,
        journal: random()?,
        host: claim.host,
        boot: claim.boot,
        generation: generations.last().copied().unwrap_or(0) + 1,
        first_seq: 1,
        epoch: claim.epoch,
        epoch_seq: 1,
        ring_bytes: options.ring_bytes,
        open: true,
        ..Superblock::default()
    };
    let made = replace::make(&**disk, superblock, std::iter::empty());
    let (segment, ring) = made.map_err(|error| Error::os(&error, "making the journal"))?;
    let state = State::new(segment, ring, Vec::new(), 0);
    remove_but(&**disk, claim.volume, generations, &state);
    Ok(Opened {
        journal: journal(disk.clone(), lock, state),
        records: Vec::new(),
        crashed: false,
    })
}

fn random() -> Result<Uuid> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    // So few bytes come at once or not at all (getrandom(2)).
    got.map_err(|errno| Error::os(&errno.into(), "random numbers"))?;
    Ok(Uuid::from_random(bytes))
}

/// Removes files that were not finished: nothing was promised about them. A process that died may
/// have left names that are not durable, and what is built on them has to be.
fn settle_names(disk: &dyn Disk, unfinished: &[String]) -> Result<()> {
    let mut removed = unfinished.iter().map(|name| disk.remove(name));
    let settled = removed.try_for_each(|removed| removed);
    let settled = settled.and_then(|()| disk.sync());
    settled.map_err(|error| Error::os(&error, "looking after the journal's files"))
}

/// Removes files that nothing is needed of. One that stays is no harm: the newest says so again.
fn remove_but(disk: &dyn Disk, volume: Uuid, generations: &[u64], state: &State) {
    for &generation in generations {
        let name = names::file(volume, generation);
        let needed =
            state.segment.name == name || state.older.iter().any(|(older, _)| *older == name);
        if !needed {
            let _ = disk.remove(&name);
        }
    }
}

/// The files of a journal that records are needed of, oldest first; never empty.
struct Chain(Vec<Segment>);

/// What is in them.
struct Replay {
    /// Of each file.
    records: Vec<Vec<Found>>,
    last_seq: u64,
    /// Known to be durable: the others are only in the page cache, for all that is known.
    durable_seq: u64,
}

impl Replay {
    fn unshipped(&self, shipped_seq: u64) -> impl Iterator<Item = &Found> + Clone {
        let all = self.records.iter().flatten();
        all.filter(move |found| found.seq() > shipped_seq)
    }

    fn recovered(&self, shipped_seq: u64) -> Vec<Recovered> {
        let recovered = |found: &Found| Recovered {
            seq: found.seq(),
            changes: found.changes(),
        };
        self.unshipped(shipped_seq).map(recovered).collect()
    }
}

impl Chain {
    fn open(disk: &dyn Disk, volume: Uuid, newest: u64) -> Result<Self> {
        let mut segments = VecDeque::from([open_file(disk, volume, newest)?]);
        let superblock = segments[0].superblock;
        while superblock.shipped_seq + 1 < segments[0].superblock.first_seq {
            let generation = segments[0].superblock.generation;
            let segment = open_file(disk, volume, generation.saturating_sub(1))?;
            let found = &segment.superblock;
            if found.journal != superblock.journal || found.generation + 1 != generation {
                let text = format!(
                    "{} is not the file that {} follows",
                    segment.name, segments[0].name
                );
                return Err(Error::new(Kind::Damaged, text));
            }
            segments.push_front(segment);
        }
        Ok(Self(segments.into()))
    }

    fn newest(&self) -> &Segment {
        &self.0[self.0.len() - 1]
    }

    fn superblock(&self) -> &Superblock {
        &self.newest().superblock
    }

    fn check(&self, claim: &Claim) -> Result<()> {
        for segment in &self.0 {
            let identity = segment.file.identity();
            let identity = identity.map_err(|error| Error::os(&error, "looking at the journal"))?;
            match segment.superblock.generation == self.superblock().generation {
                true => claim.check(&segment.superblock, identity)?,
                // Only the newest file hears of new epochs.
                false => claim.check_place(&segment.superblock, identity)?,
            }
        }
        Ok(())
    }

    /// Whether nobody needs it: it is the volume's, nothing waits in it, and the volume says so.
    fn is_worthless(&self, claim: &Claim) -> bool {
        let superblock = self.superblock();
        let is_empty = |replay: Replay| replay.last_seq <= superblock.shipped_seq;
        superblock.volume == claim.volume
            && claim.ticket.is_none()
            && self.replay().is_ok_and(is_empty)
    }

    fn replay(&self) -> Result<Replay> {
        let mut records = Vec::new();
        for pair in self.0.windows(2) {
            records.push(records_of(&pair[0], pair[1].superblock.first_seq - 1)?.0);
        }
        let (newest, durable_seq) = records_of(self.newest(), u64::MAX)?;
        let superblock = self.superblock();
        let last_seq = newest.last().map_or(superblock.next_seq() - 1, Found::seq);
        records.push(newest);
        Ok(Replay {
            records,
            last_seq,
            durable_seq,
        })
    }

    /// Makes what was found durable, and says in both superblocks that a new epoch begins behind
    /// it: whatever an earlier one wrote there, unheard, is void.
    ///
    /// What was written since the machine started may be in its memory alone. A sync that fails is
    /// told once, and perhaps not to us: only what is written again can be synced and believed.
    /// What is read after the machine started anew was on the disk, and must not be written over:
    /// a sync may have covered it, and the power may go again.
    fn begin_epoch(mut self, claim: &Claim, replay: &Replay) -> Result<State> {
        let failed =
            |error: &std::io::Error| Error::os(error, "beginning a new epoch of the journal");
        let mut segment = self.0.remove(self.0.len() - 1);
        let found = &replay.records[self.0.len()];
        let in_memory = segment.superblock.boot == claim.boot;
        let mut ring = Ring::new(segment.superblock.ring_bytes, segment.superblock.head);
        for found in found {
            ring.push(found.seq(), found.header.contents.record_bytes());
            if in_memory && found.seq() > replay.durable_seq {
                let data = std::slice::from_ref(&found.data);
                let written = segment.write(found.position, &found.header.encode(), data);
                written.map_err(|error| failed(&error))?;
            }
        }
        segment.file.sync_data().map_err(|error| failed(&error))?;
        let known = claim.ticket.map_or(0, |ticket| ticket.shipped_seq);
        let shipped_seq = segment.superblock.shipped_seq.max(known);
        ring.ship(shipped_seq);
        for older in &mut self.0 {
            if claim.moved {
                rewrite(older, |superblock| superblock.host = claim.host)?;
            }
        }
        rewrite(&mut segment, |superblock| {
            superblock.host = claim.host;
            superblock.boot = claim.boot;
            superblock.epoch = claim.epoch;
            superblock.epoch_seq = replay.last_seq + 1;
            superblock.shipped_seq = shipped_seq;
            superblock.head = ring.head();
            superblock.durable_seq = replay.last_seq;
            superblock.open = true;
        })?;
        ring.free(ring.head());
        let firsts = self.0.iter().skip(1).chain([&segment]);
        let lasts = firsts.map(|next| next.superblock.first_seq - 1);
        let older = self.0.iter().map(|older| older.name.clone()).zip(lasts);
        let older = older
            .filter(|(_, last_seq)| *last_seq > shipped_seq)
            .collect();
        segment.mark(replay.last_seq);
        Ok(State::new(segment, ring, older, replay.last_seq))
    }
}

/// Writes both superblocks anew, each durable before the next.
fn rewrite(segment: &mut Segment, change: impl Fn(&mut Superblock)) -> Result<()> {
    for _ in 0..2 {
        let mut superblock = segment.superblock;
        superblock.counter += 1;
        change(&mut superblock);
        let identity = segment.file.identity();
        let written = identity.and_then(|identity| {
            superblock.identity = identity;
            segment.write_superblock(&superblock)?;
            segment.file.sync_data()
        });
        written.map_err(|error| Error::os(&error, "writing a superblock of the journal"))?;
        segment.settle(superblock);
    }
    Ok(())
}

fn open_file(disk: &dyn Disk, volume: Uuid, generation: u64) -> Result<Segment> {
    let name = names::file(volume, generation);
    match disk.open(&name) {
        Ok(file) => Segment::open(name, file),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("{name} is missing, and records in it are not shipped");
            Err(Error::new(Kind::Damaged, text))
        }
        Err(error) => Err(Error::os(&error, format!("opening {name}"))),
    }
}

/// The records of a file up to `last_seq`, and up to which they are known to be durable. Those up
/// to a limit must all be there.
fn records_of(segment: &Segment, last_seq: u64) -> Result<(Vec<Found>, u64)> {
    let mut scan = segment.scan()?;
    let mut records = Vec::new();
    while scan.next_seq() <= last_seq {
        match scan.advance()? {
            Some(found) => records.push(found),
            None if last_seq == u64::MAX => break,
            None => {
                let text = format!("{}: record {} is not there", segment.name, scan.next_seq());
                return Err(Error::new(Kind::Damaged, text));
            }
        }
    }
    Ok((records, scan.durable_seq()))
}

impl State {
    /// Everything in it is durable.
    fn new(segment: Segment, ring: Ring, older: Vec<(String, u64)>, last_seq: u64) -> Self {
        Self {
            shipped_seq: segment.superblock.shipped_seq,
            segment,
            ring,
            older,
            last_seq,
            durable_seq: last_seq,
            unsynced: VecDeque::new(),
            syncing: false,
            replacing: false,
            failed: None,
        }
    }
}
