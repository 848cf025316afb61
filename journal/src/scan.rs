//! What a crash left in a ring: the records from the head to the tail. Pure.
//!
//! The first thing that is not the next record is the end, if nothing says otherwise. Something
//! does when a record or the mark tells of a sync that covered what should be here: then it is
//! damage, and never a tail to cut off.

use crate::change::{Change, What};
use crate::data::Data;
use crate::error::{Error, Kind, Result};
use crate::format::record::{ExtentKind, Header, RecordKind};
use crate::format::superblock::Superblock;
use crate::format::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Read at once when looking for records behind the tail.
const STRIDE_BLOCKS: u64 = 256;

/// Reads so many bytes of the ring at a position, as [`crate::ring::pieces`] has it.
pub trait Source {
    /// Fills the buffer.
    ///
    /// # Errors
    /// If the disk fails; then so does the scan.
    fn read(&mut self, position: u64, buffer: &mut [u8]) -> Result<()>;
}

/// A record that was found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it starts.
    pub position: u64,
    /// Its header.
    pub header: Header,
    /// Its data blocks.
    pub data: Data,
}

impl Found {
    /// Its number.
    pub fn seq(&self) -> u64 {
        self.header.stamp.seq
    }

    /// What it changes, in order.
    pub fn changes(&self) -> Vec<Change> {
        let change = |(extent, bytes): (crate::format::record::Extent, _)| Change {
            offset: extent.offset,
            len: extent.len,
            what: match extent.kind {
                ExtentKind::Data | ExtentKind::Body => What::Data(self.data.slice(bytes)),
                ExtentKind::Zero => What::Zero,
                ExtentKind::Trim => What::Trim,
            },
        };
        self.header.extents().map(change).collect()
    }
}

/// Goes over the ring of one file.
#[derive(Debug)]
pub struct Scan<'a, S> {
    superblock: &'a Superblock,
    source: S,
    position: u64,
    next_seq: u64,
    epoch: u64,
    durable_seq: u64,
}

impl<'a, S: Source> Scan<'a, S> {
    /// From the head on. `marked` is what the mark of the same journal says is durable, or 0.
    pub fn new(superblock: &'a Superblock, marked: u64, source: S) -> Self {
        Self {
            superblock,
            source,
            position: superblock.head,
            next_seq: superblock.next_seq(),
            epoch: 0,
            durable_seq: superblock.durable_seq.max(marked),
        }
    }

    /// The number that the next record has to have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Where it has to start.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// All records up to this one were durable before the crash, as far as anything tells.
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// The next record; `None` at the tail.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if a record is gone that a sync had covered; [`Kind::Newer`]; [`Kind::Io`].
    pub fn advance(&mut self) -> Result<Option<Found>> {
        let left = self.superblock.head + self.superblock.ring_bytes - self.position;
        let Some(found) = self.record_here(left)? else {
            self.check_tail(left)?;
            return Ok(None);
        };
        let stamp = &found.header.stamp;
        self.durable_seq = self.durable_seq.max(stamp.durable_seq);
        self.epoch = stamp.epoch;
        self.next_seq += 1;
        self.position += found.header.contents.record_bytes();
        Ok(Some(found))
    }

    fn record_here(&mut self, left: u64) -> Result<Option<Found>> {
        let Some(header) = self.header_at(self.position, left)? else {
            return Ok(None);
        };
        if !self.is_next(&header) || header.contents.record_bytes() > left {
            return Ok(None);
        }
        let start = self.position + header.contents.header_blocks() as u64 * BLOCK;
        let mut data = vec![0; header.contents.data_blocks() * BLOCK_BYTES];
        self.source.read(start, &mut data)?;
        if header.check_data(&data).is_err() {
            return Ok(None);
        }
        check_kind(&header)?;
        Ok(Some(Found {
            position: self.position,
            header,
            data: Data::new(data),
        }))
    }

    /// A header of this journal, if there is one.
    fn header_at(&mut self, position: u64, left: u64) -> Result<Option<Header>> {
        if left < BLOCK {
            return Ok(None);
        }
        let mut bytes = vec![0; BLOCK_BYTES];
        self.source.read(position, &mut bytes)?;
        let Ok(blocks) = Header::blocks(&bytes) else {
            return Ok(None);
        };
        if blocks as u64 * BLOCK > left {
            return Ok(None);
        }
        bytes.resize(blocks * BLOCK_BYTES, 0);
        self.source
            .read(position + BLOCK, &mut bytes[BLOCK_BYTES..])?;
        let header = Header::decode(&bytes).ok();
        Ok(header.filter(|header| {
            let stamp = &header.stamp;
            stamp.volume == self.superblock.volume && stamp.writer == self.superblock.journal
        }))
    }

    /// Whether it is the next record, and not one of an earlier round or of a time that ended in
    /// a crash: that one may have written numbers that were given again.
    fn is_next(&self, header: &Header) -> bool {
        let stamp = &header.stamp;
        let of_its_time = match stamp.seq >= self.superblock.epoch_seq {
            true => stamp.epoch == self.superblock.epoch,
            false => stamp.epoch < self.superblock.epoch && stamp.epoch >= self.epoch,
        };
        stamp.seq == self.next_seq && of_its_time
    }

    /// Whether the records may end here.
    fn check_tail(&mut self, left: u64) -> Result<()> {
        if self.durable_seq < self.next_seq && self.superblock.open {
            self.look_behind(left)?;
        }
        match self.durable_seq < self.next_seq {
            true => Ok(()),
            false => Err(self.damaged(&format!(
                "all up to {} were durable and record {} is not there",
                self.durable_seq, self.next_seq
            ))),
        }
    }

    /// Learns from the headers behind the tail what was durable.
    fn look_behind(&mut self, left: u64) -> Result<()> {
        let end = self.position + left;
        let mut at = self.position;
        let mut bytes = vec![0; BLOCK_BYTES * STRIDE_BLOCKS.min(left / BLOCK) as usize];
        while at < end {
            let blocks = ((end - at) / BLOCK).min(STRIDE_BLOCKS);
            let bytes = &mut bytes[..blocks as usize * BLOCK_BYTES];
            self.source.read(at, bytes)?;
            for block in 0..blocks {
                let first = &bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
                if Header::blocks(first).is_ok() {
                    let position = at + block * BLOCK;
                    self.learn_from(position, end - position)?;
                }
            }
            at += blocks * BLOCK;
        }
        Ok(())
    }

    fn learn_from(&mut self, position: u64, left: u64) -> Result<()> {
        let Some(header) = self.header_at(position, left)? else {
            return Ok(());
        };
        if header.stamp.epoch > self.superblock.epoch {
            return Err(self.damaged("its records are of a later epoch than its superblocks"));
        }
        self.durable_seq = self.durable_seq.max(header.stamp.durable_seq);
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        let text = format!(
            "the journal of volume {} is damaged at byte {} of its ring: {what}",
            self.superblock.volume,
            self.position % self.superblock.ring_bytes,
        );
        Error::new(Kind::Damaged, text)
    }
}

/// Whether it is a kind of record that the journal has.
fn check_kind(header: &Header) -> Result<()> {
    let known = [RecordKind::NOOP, RecordKind::WRITE].contains(&header.kind);
    let bodies = header
        .extents()
        .any(|(extent, _)| extent.kind == ExtentKind::Body);
    match known && !bodies {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Newer,
            format!(
                "the journal has a record of kind {} that this program does not know: use a newer nbd-rs",
                header.kind.0
            ),
        )),
    }
}
