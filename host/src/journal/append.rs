//! Changes on their way in: into the journal, past it, or waiting until there is room.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nbd_rs_journal::change::{Change, What};
use nbd_rs_journal::data::Data;
use nbd_rs_journal::error::Kind as JournalKind;
use nbd_rs_journal::format::record::MAX_HEADER_BLOCKS;
use nbd_rs_journal::index::{Piece, Source};
use nbd_rs_plugin::{Body, ZeroFlags};

use super::{care, of_disk, ship, Core, Mode, UNIT_BYTES};
use crate::backend::Answer;
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// Shorter bodies are copied: the memory they come in may be several times their size, and is
/// wanted back.
const COPIED_BYTES: u64 = 1 << 20;
/// A sync is begun ahead of the shipper after so many bytes, so that it need not wait for the disk.
const AHEAD_BYTES: u64 = 16 << 20;
/// This part of the ring is kept for what is put behind all other records again: where it had no
/// room those before it could not be done with, and there would never be any.
const RESERVE: u64 = 8;
/// The ring has room for so many of the largest records.
const RECORDS: u64 = 16;
/// One record has so many changes at the most,
const EXTENTS: usize = 256;
/// and so large a header.
const HEADER_BYTES: u64 = MAX_HEADER_BLOCKS as u64 * UNIT_BYTES;
/// The longest that a writer is slowed down before it must wait.
const SLOWEST: Duration = Duration::from_millis(20);

/// A body as it waits in memory.
pub(super) fn kept(body: &Body) -> Data {
    match body {
        Body::One(bytes) if body.len() >= COPIED_BYTES => Data::new(bytes.clone()),
        _ => {
            let mut copy = Vec::with_capacity(body.len() as usize);
            for piece in body.pieces() {
                copy.extend_from_slice(piece);
            }
            Data::new(copy)
        }
    }
}

/// The units that a range covers whole; one that the volume's end cuts counts as whole.
pub(super) fn whole_units(range: Range<u64>, volume_bytes: u64) -> Range<u64> {
    let start = range.start.next_multiple_of(UNIT_BYTES);
    let end = match range.end == volume_bytes {
        true => range.end,
        false => range.end / UNIT_BYTES * UNIT_BYTES,
    };
    start..end.max(start)
}

/// A piece that waits, as a change.
fn change_of(piece: Piece) -> Option<Change> {
    let what = match piece.source {
        Source::Store => return None,
        Source::Zeros => What::Zero,
        Source::Data(data) => What::Data(data),
    };
    Some(Change {
        offset: piece.range.start,
        len: piece.range.end - piece.range.start,
        what,
    })
}

/// Cuts changes into runs that one record each can hold.
fn in_records(changes: &[Change], most_bytes: u64) -> Vec<&[Change]> {
    let mut runs = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, change) in changes.iter().enumerate() {
        let len = change.data().map_or(0, |data| data.len() as u64);
        let len = len.next_multiple_of(UNIT_BYTES);
        if at > start && (at - start == EXTENTS || bytes + len > most_bytes) {
            runs.push(&changes[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += len;
    }
    runs.push(&changes[start..]);
    runs.retain(|run| !run.is_empty());
    runs
}

/// What a record of these changes takes in the ring, at the most.
fn most_bytes_of(changes: &[Change]) -> u64 {
    let data = changes.iter().filter_map(Change::data);
    let data: u64 = data
        .map(|data| (data.len() as u64).next_multiple_of(UNIT_BYTES))
        .sum();
    data + HEADER_BYTES
}

/// What became of an attempt.
enum Appended {
    /// It is record so-and-so.
    As(u64),
    /// There is no room.
    Full,
    /// The journal's disk failed.
    DiskFailed,
}

impl Core {
    /// Makes a change: at once, if nothing stands in the way. The flags are FUA and FAST.
    pub(super) fn change(self: &Arc<Self>, change: Change, flags: ZeroFlags) -> Answer<()> {
        let fua = flags.has(ZeroFlags::FUA);
        let most = self.ring_bytes / RECORDS;
        if change.data().is_some() && change.len > most {
            let core = self.clone();
            return Answer::later(async move { core.change_in_parts(change, most, fua).await });
        }
        if self.takes_at_once() {
            match self.append(std::slice::from_ref(&change)) {
                Ok(Appended::As(_)) if !fua => return Answer::Ready(Ok(())),
                Ok(Appended::As(seq)) => {
                    let core = self.clone();
                    return Answer::later(async move { core.durable(seq, false).await });
                }
                Ok(Appended::Full | Appended::DiskFailed) => {}
                Err(error) => return Answer::Ready(Err(error)),
            }
        }
        let core = self.clone();
        Answer::later(async move { core.change_when_possible(change, flags).await })
    }

    /// Makes a change that is too large for one record. Its parts are in order, and no promise holds
    /// across units. They are copied: what is left of one would keep the memory of all.
    async fn change_in_parts(self: &Arc<Self>, change: Change, most: u64, fua: bool) -> Result<()> {
        let Some(data) = change.data() else {
            return Ok(());
        };
        let end = change.offset + change.len;
        let mut at = change.offset;
        while at < end {
            let until = end.min((at + most) / UNIT_BYTES * UNIT_BYTES);
            let part = &data[(at - change.offset) as usize..(until - change.offset) as usize];
            let part = Change::write(at, Data::new(part.to_vec()));
            self.change_when_possible(part, ZeroFlags::NONE).await?;
            at = until;
        }
        match fua {
            true => self.durable(self.journal.last_seq(), true).await,
            false => Ok(()),
        }
    }

    fn takes_at_once(&self) -> bool {
        let progress = self.progress.borrow();
        progress.mode == Mode::Journal
            && progress.failure.is_none()
            && self.unshipped.pressure().is_none()
            && self.ledger.is_held()
    }

    async fn change_when_possible(
        self: &Arc<Self>,
        change: Change,
        flags: ZeroFlags,
    ) -> Result<()> {
        let fua = flags.has(ZeroFlags::FUA);
        let mut progress = self.progress.subscribe();
        let began = Instant::now();
        if let Some(pressure) = self.unshipped.pressure() {
            self.wake.notify_one();
            let slow_down = SLOWEST.mul_f64(pressure);
            // Room that comes meanwhile is no news: the pause is short.
            let _ = runtime::timeout(slow_down, std::future::pending::<()>()).await;
        }
        loop {
            self.held().await?;
            let now = progress.borrow_and_update().clone();
            now.check()?;
            // What frees space on a full store is let through.
            let needs_space = change.data().is_some();
            if let Some(full) = now.failure.as_ref().filter(|_| needs_space) {
                if full.kind == Kind::NoSpace {
                    return Err(full.clone());
                }
            }
            match now.mode {
                Mode::Journal if !needs_space || !self.unshipped.is_full() => {
                    match self.append(std::slice::from_ref(&change))? {
                        Appended::As(seq) if fua => return self.durable(seq, false).await,
                        Appended::As(_) => return Ok(()),
                        Appended::Full => self.no_room(now.failure, began)?,
                        Appended::DiskFailed => self.wake.notify_one(),
                    }
                }
                Mode::Journal => self.no_room(now.failure, began)?,
                Mode::Past => return self.pass(&change, flags).await,
                Mode::Draining => {
                    if let Some(failure) =
                        now.failure.filter(|_| began.elapsed() > self.timing.flush)
                    {
                        return Err(failure);
                    }
                }
            }
            let _ = runtime::timeout(ship::RETRY, progress.changed()).await;
        }
    }

    /// There is no room. Room comes when something is shipped, but what lost shards refuse never is:
    /// if that is all there is, nobody waits for ever.
    fn no_room(&self, failure: Option<Error>, waiting_since: Instant) -> Result<()> {
        self.wake.notify_one();
        let has_patience = waiting_since.elapsed() < self.timing.flush;
        let refusal = failure.filter(|failure| care::is_final(failure) && !has_patience);
        refusal.map_or(Ok(()), Err)
    }

    /// Appends changes as one record.
    fn append(self: &Arc<Self>, changes: &[Change]) -> Result<Appended> {
        let _order = self.order.read().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: going past the journal begins only when nobody is here.
        if self.mode() != Mode::Journal {
            return Ok(Appended::DiskFailed);
        }
        // What takes no room may mend what takes it.
        let needs_space = changes.iter().any(|change| change.data().is_some());
        let kept = match needs_space {
            true => self.ring_bytes / RESERVE,
            false => self.ring_bytes / RESERVE / 2,
        };
        if self.journal.usage().used_bytes >= self.ring_bytes - kept {
            return Ok(Appended::Full);
        }
        self.append_in_order(changes)
    }

    fn append_in_order(self: &Arc<Self>, changes: &[Change]) -> Result<Appended> {
        let (mut number, mut was_empty) = (0, false);
        let appended = self.journal.append(changes, |seq| {
            number = seq;
            // In here, so that nobody empties it in between and goes to sleep.
            was_empty = self.unshipped.is_empty();
            self.unshipped.insert(seq, changes);
        });
        match appended {
            Ok(usage) => {
                if was_empty || self.unshipped.is_worth_it() || usage.is_high() {
                    self.wake.notify_one();
                }
                self.sync_ahead(changes.iter().map(|change| change.len).sum());
                Ok(Appended::As(number))
            }
            Err(error) if error.kind == JournalKind::Full => Ok(Appended::Full),
            Err(error)
                if error.kind == JournalKind::Invalid && self.journal.failure().is_none() =>
            {
                Err(of_disk(error))
            }
            Err(error) => {
                tracing::debug!("the journal takes nothing in: {error}");
                Ok(Appended::DiskFailed)
            }
        }
    }

    fn sync_ahead(self: &Arc<Self>, bytes: u64) {
        let before = self.ahead_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes < AHEAD_BYTES {
            return;
        }
        let Ok(turn) = self.sync_turn.clone().try_lock_owned() else {
            return;
        };
        self.ahead_bytes.store(0, Ordering::Relaxed);
        let core = self.clone();
        let sync = move || {
            let _turn = turn;
            core.journal.sync()
        };
        // Whoever needs the sync asks again, and is told if it failed.
        drop(runtime::handle().spawn_blocking(sync));
    }

    /// Puts what waits of these ranges behind all other records, so that those before it can be
    /// done with. Blocks. The last record that this made; nothing if there was no room.
    pub(super) fn append_again(self: &Arc<Self>, ranges: &[Range<u64>]) -> Result<Option<u64>> {
        let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
        let pieces = ranges
            .iter()
            .flat_map(|range| self.unshipped.read(range.clone()));
        let changes: Vec<Change> = pieces.filter_map(change_of).collect();
        let records = in_records(&changes, self.ring_bytes / RECORDS);
        // All of them or none, and some room is left for what takes none and may mend the volume.
        let room = self.ring_bytes - self.ring_bytes / RESERVE / 2;
        let bytes: u64 = records.iter().map(|record| most_bytes_of(record)).sum();
        if self.journal.usage().used_bytes + bytes > room {
            return Ok(None);
        }
        let mut last = self.journal.last_seq();
        for together in records {
            match self.append_in_order(together)? {
                Appended::As(seq) => last = seq,
                Appended::Full | Appended::DiskFailed => return Ok(None),
            }
        }
        Ok(Some(last))
    }

    /// Makes a change past the journal.
    async fn pass(&self, change: &Change, flags: ZeroFlags) -> Result<()> {
        let passed = self.apply(change, flags).await;
        self.went_past.fetch_add(1, Ordering::AcqRel);
        passed
    }

    /// Makes a change of the volume itself.
    pub(super) async fn apply(&self, change: &Change, flags: ZeroFlags) -> Result<()> {
        let answer = match &change.what {
            What::Data(data) => {
                let body = Body::One(nbd_rs_plugin::Bytes::from_owner(data.clone()));
                self.volume
                    .write(change.offset, body, flags.has(ZeroFlags::FUA))
            }
            // What is left of a trim when later writes have cut it need not be whole units any
            // more, and has to be zero all the same.
            What::Zero | What::Trim => self.volume.zero(change.offset, change.len, flags),
        };
        answer.wait().await
    }

    /// Zeros that take space: the volume has to say whether there is some, so they go past the
    /// journal. What waits goes first, and the journal knows durably that it did: a restart must
    /// not bring back what was in the range. That is never fast.
    pub(super) fn allocate(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> Answer<()> {
        if flags.has(ZeroFlags::FAST) {
            let text = "what waits in the journal has to be in the store first";
            return Answer::Ready(Err(Error::new(Kind::Unsupported, text)));
        }
        let core = self.clone();
        Answer::later(async move {
            loop {
                core.settled().await?;
                if core.mode() == Mode::Past {
                    break;
                }
                let seq = core.journal.last_seq();
                core.stored(seq).await?;
                let told = core.note_shipped(seq).await;
                // One that has failed keeps that in memory alone.
                if told.is_ok() && core.journal.failure().is_none() {
                    break;
                }
            }
            let zeroed = core.volume.zero(offset, len, flags).wait().await;
            core.went_past.fetch_add(1, Ordering::AcqRel);
            zeroed
        })
    }

    /// Waits until it is decided whether changes go into the journal or past it.
    async fn settled(&self) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let end = Instant::now() + self.timing.flush;
        loop {
            let has_failed = self.journal.failure().is_some();
            let now = progress.borrow_and_update().clone();
            now.check()?;
            match now.mode {
                Mode::Journal if !has_failed => return Ok(()),
                Mode::Past => return Ok(()),
                _ => {}
            }
            if let Some(failure) = now.failure.filter(|_| Instant::now() > end) {
                return Err(failure);
            }
            self.wake.notify_one();
            let _ = runtime::timeout(ship::RETRY, progress.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn c08_a_trim_covers_whole_units_and_the_volumes_end(
            start in 0u64..40_000, len in 0u64..40_000, more in 0u64..5000,
        ) {
            let range = start..start + len;
            let units = whole_units(range.clone(), range.end + more);
            prop_assert!(units.is_empty() || units.start >= range.start && units.end <= range.end);
            prop_assert!(units.start.is_multiple_of(UNIT_BYTES));
            let at_end = more == 0 && units.end == range.end;
            prop_assert!(units.is_empty() || units.end.is_multiple_of(UNIT_BYTES) || at_end);
            prop_assert!(range.end.saturating_sub(units.end.max(start)) < UNIT_BYTES || units.is_empty());
        }
    }

    #[test]
    fn what_is_kept_is_what_came() {
        let pieces = [vec![1u8; 3], vec![2; 5]].map(nbd_rs_plugin::Bytes::from);
        let many = Body::Many(pieces.to_vec().into());
        assert_eq!(&*kept(&many), &[1, 1, 1, 2, 2, 2, 2, 2]);
        let large = Body::One(vec![7; COPIED_BYTES as usize].into());
        assert_eq!(kept(&large).len() as u64, COPIED_BYTES);
    }
}
