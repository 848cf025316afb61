//! What is known of the segments: which block lies where, and who goes first.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::record::{Header, HEADER};

/// So many files are open at most.
const SEGMENTS_MAX: usize = 512;

/// A block of a version, by number.
pub type Slot = (u64, u64);

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the segment.
    pub segment: u64,
    /// Where its record begins.
    pub offset: u64,
    /// Bytes of the record.
    pub len: u32,
    /// [`Header::object`].
    pub object: u64,
}

/// One file.
#[derive(Debug)]
pub struct Segment {
    /// Opened for as long as it is known.
    pub file: Arc<File>,
    /// Bytes in it.
    pub len: u64,
    slots: Vec<Slot>,
}

/// All that is in the directory, in memory.
#[derive(Debug, Default)]
pub struct Places {
    /// The segments, oldest first.
    pub segments: BTreeMap<u64, Segment>,
    blocks: HashMap<Slot, Place>,
    /// Blocks of each object, of whatever version.
    objects: HashMap<u64, u32>,
    /// Bytes of all segments.
    pub bytes: u64,
    /// The segment that is appended to.
    pub active: Option<u64>,
}

impl Places {
    /// Where a block lies, and the file.
    pub fn find(&self, slot: Slot) -> Option<(Place, Arc<File>)> {
        let place = self.blocks.get(&slot)?;
        let segment = self.segments.get(&place.segment)?;
        Some((*place, segment.file.clone()))
    }

    /// Whether a block is here.
    pub fn holds(&self, slot: Slot) -> bool {
        self.blocks.contains_key(&slot)
    }

    /// Whether anything of an object is here, of whatever version.
    pub fn knows(&self, object: u64) -> bool {
        self.objects.contains_key(&object)
    }

    /// How many blocks are here.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The active segment and its end, if `more` bytes fit into one of `most`.
    pub fn appended_to(&self, more: u64, most: u64) -> Option<(u64, u64, Arc<File>)> {
        let number = self.active?;
        let segment = self.segments.get(&number)?;
        let fits = segment.len + more <= most;
        fits.then(|| (number, segment.len, segment.file.clone()))
    }

    /// The number of the next file.
    pub fn next_number(&self) -> u64 {
        let last = self.segments.last_key_value();
        last.map_or(0, |(number, _)| number.wrapping_add(1))
    }

    /// Forgets the oldest segments until `more` bytes fit; their numbers.
    pub fn drop_oldest(&mut self, limit: u64, more: u64) -> Vec<u64> {
        let mut dropped = Vec::new();
        while self.bytes + more > limit || self.segments.len() > SEGMENTS_MAX {
            let Some((number, segment)) = self.segments.pop_first() else {
                break;
            };
            self.bytes -= segment.len;
            for slot in segment.slots {
                self.forget_in(slot, number);
            }
            if self.active == Some(number) {
                self.active = None;
            }
            dropped.push(number);
        }
        dropped
    }

    /// A file of `len` bytes, and the blocks found in it.
    pub fn add(&mut self, number: u64, file: Arc<File>, len: u64, found: &[(Slot, Place)]) {
        let slots = Vec::new();
        self.segments.insert(number, Segment { file, len, slots });
        self.bytes += len;
        for (slot, place) in found {
            self.place(*slot, *place);
        }
    }

    /// A record was appended.
    pub fn appended(&mut self, slot: Slot, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.len = place.offset + u64::from(place.len);
            self.bytes += u64::from(place.len);
            self.place(slot, place);
        }
    }

    fn place(&mut self, slot: Slot, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.slots.push(slot);
            if self.blocks.insert(slot, place).is_none() {
                *self.objects.entry(place.object).or_default() += 1;
            }
        }
    }

    /// Forgets a block.
    pub fn forget(&mut self, slot: Slot) {
        let Some(place) = self.blocks.remove(&slot) else {
            return;
        };
        if let Some(blocks) = self.objects.get_mut(&place.object) {
            *blocks -= 1;
            if *blocks == 0 {
                self.objects.remove(&place.object);
            }
        }
    }

    /// Forgets a block if its place is in that segment; a later one may hold it as well.
    fn forget_in(&mut self, slot: Slot, segment: u64) {
        let there = self.blocks.get(&slot);
        if there.is_some_and(|place| place.segment == segment) {
            self.forget(slot);
        }
    }
}

/// The records of a file up to the first that is torn, damaged, or of another file, and where that
/// one begins: the end of the file, if there is none. One small read for each record.
///
/// # Errors
/// If the disk fails.
pub fn headers(file: &File, number: u64, len: u64) -> io::Result<(Vec<(Slot, Place)>, u64)> {
    let (mut offset, mut found) = (0, Vec::new());
    let mut head = [0; HEADER];
    while offset + HEADER as u64 <= len {
        match file.read_exact_at(&mut head, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let header = Header::decode(&head).filter(|header| header.segment == number);
        let end = header.map(|header| (header, offset + header.record_len()));
        let Some((header, end)) = end.filter(|(_, end)| *end <= len) else {
            break;
        };
        let place = Place {
            segment: number,
            offset,
            len: header.record_len() as u32,
            object: header.object,
        };
        found.push(((header.version, header.block), place));
        offset = end;
    }
    Ok((found, offset))
}
