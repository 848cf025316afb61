//! One file of a journal: superblocks, mark, ring.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::data::Data;
use crate::disk::DiskFile;
use crate::error::{Error, Kind, Result};
use crate::format::record::padding;
use crate::format::superblock::{Mark, Superblock, MARK_AT, RING_AT, SECTOR_BYTES, SUPERBLOCKS_AT};
use crate::format::{Bad, BLOCK_BYTES};
use crate::ring::pieces;
use crate::scan::{Scan, Source};

/// A file whose superblock is known.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn DiskFile>,
    /// The newest one that is durable.
    pub(crate) superblock: Superblock,
    /// Where it stands, of the two places.
    slot: usize,
}

impl Segment {
    /// Reads the superblock of a file.
    pub(crate) fn open(name: String, file: Arc<dyn DiskFile>) -> Result<Self> {
        let failed = |error| Error::os(&error, format!("reading {name}"));
        let mut newest: Option<(Superblock, usize)> = None;
        let mut reason = Bad::Alien;
        for (slot, at) in places() {
            match read_superblock(&*file, at).map_err(failed)? {
                Ok(found) if newest.is_some_and(|(best, _)| best.counter >= found.counter) => {}
                Ok(found) => newest = Some((found, slot)),
                Err(newer @ Bad::Newer(_)) => return Err(bad(newer, &name)),
                Err(other) => reason = other,
            }
        }
        let (superblock, slot) = newest.ok_or_else(|| {
            let text = format!("{name}: no superblock is whole: {reason}");
            Error::new(Kind::Damaged, text)
        })?;
        let bytes = file.bytes().map_err(failed)?;
        if bytes < RING_AT + superblock.ring_bytes {
            let text = format!("{name} was cut: it has {bytes} bytes");
            return Err(Error::new(Kind::Damaged, text));
        }
        Ok(Self {
            name,
            file,
            superblock,
            slot,
        })
    }

    /// Of a new file, which has room for a ring of `superblock.ring_bytes`. Nothing is durable yet.
    pub(crate) fn create(
        name: String,
        file: Arc<dyn DiskFile>,
        mut superblock: Superblock,
    ) -> io::Result<Self> {
        file.preallocate(RING_AT + superblock.ring_bytes)?;
        superblock.identity = file.identity()?;
        for (_, at) in places() {
            file.write_at(at, &[IoSlice::new(&superblock.encode())])?;
        }
        Ok(Self {
            name,
            file,
            superblock,
            slot: 0,
        })
    }

    /// A pass over its records, from its head on.
    pub(crate) fn scan(&self) -> Result<Scan<'_, &Self>> {
        Ok(Scan::new(&self.superblock, self.marked()?, self))
    }

    fn marked(&self) -> Result<u64> {
        let mut sector = [0; SECTOR_BYTES];
        let read = self.file.read_at(MARK_AT, &mut sector);
        read.map_err(|error| Error::os(&error, format!("reading {}", self.name)))?;
        let mark = Mark::decode(&sector).ok();
        let mark = mark.filter(|mark| mark.journal == self.superblock.journal);
        Ok(mark.map_or(0, |mark| mark.durable_seq))
    }

    /// Writes a record.
    pub(crate) fn write(&self, position: u64, header: &[u8], data: &[Data]) -> io::Result<()> {
        let mut parts = vec![header];
        for data in data {
            parts.extend([&**data, padding(data.len())]);
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let [first, second] = pieces(self.superblock.ring_bytes, position, len as u64);
        let (before, behind) = split(&parts, first.len as usize);
        self.file.write_at(RING_AT + first.offset, &before)?;
        match second.len {
            0 => Ok(()),
            _ => self.file.write_at(RING_AT + second.offset, &behind),
        }
    }

    /// Makes sure that no record starts at `position`.
    pub(crate) fn wipe(&self, position: u64) -> io::Result<()> {
        let at = RING_AT + position % self.superblock.ring_bytes;
        self.file.write_at(at, &[IoSlice::new(&[0; BLOCK_BYTES])])
    }

    /// Writes the next superblock to the place of the older one. It counts from
    /// [`settle`](Self::settle) on, when it is durable.
    pub(crate) fn write_superblock(&self, superblock: &Superblock) -> io::Result<()> {
        let sector = superblock.encode();
        let [first, second] = SUPERBLOCKS_AT[1 - self.slot];
        self.file.write_at(first, &[IoSlice::new(&sector)])?;
        self.file.write_at(second, &[IoSlice::new(&sector)])
    }

    /// That superblock is durable.
    pub(crate) fn settle(&mut self, superblock: Superblock) {
        self.superblock = superblock;
        self.slot = 1 - self.slot;
    }

    /// Says how far a sync reached. A mark that does not arrive is no harm.
    pub(crate) fn mark(&self, durable_seq: u64) {
        let mark = Mark {
            journal: self.superblock.journal,
            durable_seq,
        };
        let _ = self.file.write_at(MARK_AT, &[IoSlice::new(&mark.encode())]);
    }
}

impl Source for &Segment {
    fn read(&mut self, position: u64, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for piece in pieces(self.superblock.ring_bytes, position, rest.len() as u64) {
            let (part, behind) = rest.split_at_mut(piece.len as usize);
            rest = behind;
            let read = self.file.read_at(RING_AT + piece.offset, part);
            read.map_err(|error| {
                let doing = format!("reading {} at byte {}", self.name, RING_AT + piece.offset);
                Error::os(&error, doing)
            })?;
        }
        Ok(())
    }
}

/// The number of each superblock, with where it stands.
fn places() -> impl Iterator<Item = (usize, u64)> {
    let slots = SUPERBLOCKS_AT.into_iter().enumerate();
    slots.flat_map(|(slot, places)| places.map(|at| (slot, at)))
}

fn read_superblock(file: &dyn DiskFile, at: u64) -> io::Result<Result<Superblock, Bad>> {
    let mut sector = [0; SECTOR_BYTES];
    file.read_at(at, &mut sector)?;
    Ok(Superblock::decode(&sector))
}

/// What a decoder said, as an error about `what`.
fn bad(bad: Bad, what: &str) -> Error {
    let kind = match bad {
        Bad::Newer(_) => Kind::Newer,
        _ => Kind::Damaged,
    };
    Error::new(kind, format!("{what}: {bad}"))
}

/// The first `len` bytes of the parts, and the rest.
fn split<'a>(parts: &[&'a [u8]], len: usize) -> (Vec<IoSlice<'a>>, Vec<IoSlice<'a>>) {
    let (mut before, mut behind) = (Vec::with_capacity(parts.len()), Vec::new());
    let mut left = len;
    for part in parts {
        let (first, second) = part.split_at(left.min(part.len()));
        left -= first.len();
        for (half, to) in [(first, &mut before), (second, &mut behind)] {
            if !half.is_empty() {
                to.push(IoSlice::new(half));
            }
        }
    }
    (before, behind)
}
