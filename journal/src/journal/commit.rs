//! Syncs, shared among those who wait, and what is told by them: how far the store is.

use std::sync::{MutexGuard, PoisonError};

use super::{Journal, State};
use crate::error::{Error, Kind, Result};
use crate::format::superblock::Superblock;

use super::Usage;

impl Journal {
    /// Makes durable every record that was there before the call. Those who come while a sync
    /// runs share the next one.
    ///
    /// When the disk fails, the records are written to a new file, which takes the place of this
    /// one; only if that fails, too, this is an error, and stays one until [`retry`](Self::retry).
    ///
    /// # Errors
    /// [`Kind::Io`] or [`Kind::NoSpace`]: nothing appended since the last success may be called
    /// durable.
    pub fn sync(&self) -> Result<()> {
        let state = self.state();
        let wanted = state.last_seq;
        self.commit_until(state, |state| state.durable_seq >= wanted)
            .map(drop)
    }

    /// The store has every record up to `seq`, durably. Only durable records may be shipped: a
    /// number that the store has seen is never given again. While the journal has failed any record
    /// may be, and progress is kept in memory.
    ///
    /// The next sync, whoever asks for it, makes this durable and their room free; until then a
    /// restart gives them once more.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for records that are not durable.
    pub fn note_shipped(&self, seq: u64) -> Result<Usage> {
        self.noted(seq).map(|state| state.usage())
    }

    /// The same, durable and with their room free when this returns.
    ///
    /// # Errors
    /// Those, and as [`sync`](Self::sync).
    pub fn shipped(&self, seq: u64) -> Result<Usage> {
        let state = self.noted(seq)?;
        if state.failed.is_some() {
            return Ok(state.usage());
        }
        let told = |state: &State| state.segment.superblock.shipped_seq >= seq;
        Ok(self.commit_until(state, told)?.usage())
    }

    fn noted(&self, seq: u64) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let most = match state.failed {
            None => state.durable_seq,
            Some(_) => state.last_seq,
        };
        if seq > most {
            let text = format!("record {seq} was shipped and only {most} are durable here");
            return Err(Error::new(Kind::Invalid, text));
        }
        state.shipped_seq = state.shipped_seq.max(seq);
        state.ring.ship(seq);
        if state.failed.is_some() {
            state.forget_until(seq);
        }
        self.tell(&state);
        Ok(state)
    }

    /// After a failure: tries once more to write everything that is not durable, and not shipped
    /// since, to a new file.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn retry(&self) -> Result<()> {
        let mut state = self.state();
        while state.syncing {
            state = self.wait(state);
        }
        // A closed one stays closed.
        if let Some(cause) = state
            .failed
            .clone()
            .filter(|cause| cause.kind != Kind::Invalid)
        {
            state = self.replace(state, &cause.message);
        }
        state.check()
    }

    /// Makes everything durable and says that the journal was left in order. From then on another
    /// process may have it, and every call here is an error.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn close(&self) -> Result<()> {
        self.sync()?;
        let mut state = self.state();
        // One that covers nothing new may be under way all the same.
        while state.syncing {
            state = self.wait(state);
        }
        let superblock = Superblock {
            open: false,
            ..state.next_superblock()
        };
        let written = state.segment.write_superblock(&superblock);
        let synced = written.and_then(|()| state.segment.file.sync_data());
        synced.map_err(|error| Error::os(&error, "closing the journal"))?;
        state.settle(superblock);
        self.drop_older(&mut state);
        state.failed = Some(Error::new(Kind::Invalid, "the journal was closed"));
        self.tell(&state);
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// A record could not be written. Whoever wanted it hears of an error, so it must not be there
    /// after a restart, not even by a chance of what a failing disk kept.
    pub(super) fn refuse(&self, mut state: MutexGuard<'_, State>, position: u64) {
        let wiped = state.segment.wipe(position);
        while state.syncing {
            state = self.wait(state);
        }
        match wiped {
            // What comes out of a failure is a new file.
            _ if state.failed.is_some() => {}
            Ok(()) => drop(self.commit(state)),
            Err(error) => drop(self.replace(state, &error.to_string())),
        }
    }

    /// Syncs until `is_done`, which a sync that covers everything makes true.
    fn commit_until<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        is_done: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'a, State>> {
        loop {
            if is_done(&state) {
                return Ok(state);
            }
            state.check()?;
            state = match state.syncing {
                true => self.wait(state),
                false => self.commit(state),
            };
        }
    }

    /// One sync of everything that is there when it begins.
    fn commit<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.syncing = true;
        let covered = state.last_seq;
        let superblock = state.next_superblock();
        let is_news = superblock.shipped_seq > state.segment.superblock.shipped_seq;
        let written = match is_news {
            true => state.segment.write_superblock(&superblock),
            false => Ok(()),
        };
        let file = state.segment.file.clone();
        drop(state);
        let synced = written.and_then(|()| file.sync_data());
        let mut state = self.state();
        state.syncing = false;
        match synced {
            Ok(()) => {
                state.durable(covered);
                if is_news {
                    state.settle(superblock);
                    self.drop_older(&mut state);
                }
            }
            Err(error) => return self.replace(state, &error.to_string()),
        }
        self.tell(&state);
        self.changed.notify_all();
        state
    }

    /// Removes the files before this one that nothing is needed of. A file that stays is no harm:
    /// the next start looks again.
    pub(super) fn drop_older(&self, state: &mut State) {
        let shipped = state.segment.superblock.shipped_seq;
        state.older.retain(|(name, last_seq)| {
            let needed = *last_seq > shipped;
            if !needed {
                let _ = self.disk.remove(name);
            }
            needed
        });
    }
}

impl State {
    /// What a superblock that is written now says.
    pub(super) fn next_superblock(&self) -> Superblock {
        let now = &self.segment.superblock;
        Superblock {
            counter: now.counter + 1,
            shipped_seq: self.shipped_seq,
            head: self.ring.head(),
            durable_seq: self.durable_seq,
            ..*now
        }
    }

    fn durable(&mut self, seq: u64) {
        self.durable_seq = self.durable_seq.max(seq);
        self.forget_until(seq);
        self.segment.mark(self.durable_seq);
    }

    fn settle(&mut self, superblock: Superblock) {
        self.segment.settle(superblock);
        self.ring.free(superblock.head);
    }

    /// Records up to this one need not be written again.
    pub(super) fn forget_until(&mut self, seq: u64) {
        while self
            .unsynced
            .front()
            .is_some_and(|record| record.seq <= seq)
        {
            self.unsynced.pop_front();
        }
    }
}
