//! New files: the first of a journal, and the one behind a file whose disk failed.
//!
//! After a failed sync nothing is known of what was written since the last good one, and the
//! kernel won't say it again. What was not covered is in memory, so it is written to a new file,
//! which counts from the moment that its name is durable. Records that earlier syncs covered stay
//! where they are: the old file is read for them after a restart, until they are shipped.

use std::io;
use std::sync::MutexGuard;

use super::{names, Journal, State, Unsynced};
use crate::disk::Disk;
use crate::error::{Error, Kind};
use crate::format::superblock::Superblock;
use crate::ring::Ring;
use crate::segment::Segment;

/// Makes the file that `superblock` describes, with these records in it, all of it durable.
pub(super) fn make<'a>(
    disk: &dyn Disk,
    superblock: Superblock,
    records: impl Iterator<Item = &'a Unsynced>,
) -> io::Result<(Segment, Ring)> {
    let (volume, generation) = (superblock.volume, superblock.generation);
    let (name, new) = (
        names::file(volume, generation),
        names::new_file(volume, generation),
    );
    let made = fill(disk, &name, &new, superblock, records);
    made.inspect_err(|_| {
        // It does not count, and the next start removes it as well.
        let _ = disk.remove(&new);
    })
}

fn fill<'a>(
    disk: &dyn Disk,
    name: &str,
    new: &str,
    superblock: Superblock,
    records: impl Iterator<Item = &'a Unsynced>,
) -> io::Result<(Segment, Ring)> {
    let segment = Segment::create(name.to_owned(), disk.create(new)?, superblock)?;
    let mut ring = Ring::new(superblock.ring_bytes, superblock.head);
    for record in records {
        segment.write(ring.tail(), &record.header, &record.data)?;
        ring.push(record.seq, record.bytes());
    }
    segment.file.sync_all()?;
    disk.rename(new, name)?;
    disk.sync()?;
    Ok((segment, ring))
}

impl Journal {
    /// Goes on in a new file; if that can't be, the journal has failed. Nobody may be syncing.
    ///
    /// To fill the file takes its time, so it is done without the lock. Nothing is synced or
    /// appended meanwhile; the store may get further.
    pub(super) fn replace<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        cause: &str,
    ) -> MutexGuard<'a, State> {
        let superblock = state.superblock_of_next_file();
        let records = std::mem::take(&mut state.unsynced);
        (state.syncing, state.replacing) = (true, true);
        drop(state);
        let made = make(&*self.disk, superblock, records.iter());
        let mut state = self.state();
        (state.syncing, state.replacing) = (false, false);
        match made {
            Ok((segment, ring)) => {
                let last_seq = superblock.first_seq - 1;
                let old = std::mem::replace(&mut state.segment, segment);
                state.older.push((old.name, last_seq));
                state.ring = ring;
                let shipped_seq = state.shipped_seq;
                state.ring.ship(shipped_seq);
                state.durable_seq = state.last_seq;
                state.failed = None;
                state.segment.mark(state.durable_seq);
                self.drop_older(&mut state);
            }
            Err(error) => {
                state.unsynced = records;
                let shipped_seq = state.shipped_seq;
                state.forget_until(shipped_seq);
                let text = format!(
                    "the journal's disk failed ({cause}), and so did a new file ({error}): nothing is durable until it works again"
                );
                let errno = error.raw_os_error().unwrap_or(0);
                state.failed = Some(Error {
                    errno,
                    ..Error::new(Kind::Io, text)
                });
            }
        }
        self.tell(&state);
        self.changed.notify_all();
        state
    }
}

impl State {
    fn superblock_of_next_file(&self) -> Superblock {
        let now = &self.segment.superblock;
        Superblock {
            counter: 1,
            generation: now.generation + 1,
            first_seq: self.durable_seq.max(self.shipped_seq) + 1,
            shipped_seq: self.shipped_seq,
            head: 0,
            durable_seq: self.durable_seq,
            open: true,
            ..*now
        }
    }
}
