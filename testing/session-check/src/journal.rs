//! The journal's decoders, and the scan of its ring, on any bytes. Checksums are put right on the
//! way, or nothing behind them would ever be reached.

use nbd_rs_journal::error::Result;
use nbd_rs_journal::format::record::{Header, MAX_HEADER_BLOCKS};
use nbd_rs_journal::format::superblock::{Mark, Superblock, MIN_RING_BYTES, SECTOR_BYTES};
use nbd_rs_journal::format::BLOCK_BYTES;
use nbd_rs_journal::ring::pieces;
use nbd_rs_journal::scan::{Scan, Source};

/// Bytes of the input that a block of the ring begins with; the others are zeros.
pub(crate) const BLOCK_START_BYTES: usize = 192;

const CHECKSUM_AT: usize = 8;

/// What an input is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Input {
    /// A record's header as it is.
    Header = 0,
    /// The same with its checksum put right.
    SealedHeader = 1,
    Superblock = 2,
    Mark = 3,
    /// A superblock, then the start of each block of a ring.
    Ring = 4,
}

/// Runs the decoder that the first byte names on the rest.
///
/// # Panics
/// If the decoder does, or what it decoded is not what the bytes said.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    match first % 5 {
        0 => header(bytes),
        1 => header(&sealed_header(bytes)),
        2 => superblock(&sealed(bytes, SECTOR_BYTES)),
        3 => mark(&sealed(bytes, SECTOR_BYTES)),
        _ => ring(bytes),
    }
}

fn header(bytes: &[u8]) {
    let Ok(header) = Header::decode(bytes) else {
        return;
    };
    let blocks = header.contents.header_blocks();
    assert_eq!(header.encode(), bytes[..blocks * BLOCK_BYTES]);
    let data_bytes = header.contents.data_blocks() * BLOCK_BYTES;
    let mut end = 0;
    for (extent, range) in header.extents() {
        assert!(extent.len > 0 && extent.offset.checked_add(extent.len).is_some());
        assert!(end <= range.start && range.start <= range.end);
        end = range.end;
    }
    assert!(end <= data_bytes);
}

fn superblock(sector: &[u8]) {
    if let Ok(superblock) = Superblock::decode(sector) {
        assert_eq!(superblock.encode(), sector);
        assert!(superblock.next_seq() >= superblock.first_seq);
    }
}

fn mark(sector: &[u8]) {
    if let Ok(mark) = Mark::decode(sector) {
        assert_eq!(mark.encode(), sector);
    }
}

/// So many bytes, with a checksum over all of them in its place.
fn sealed(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    sealed.resize(len, 0);
    put_right(&mut sealed);
    sealed
}

fn put_right(bytes: &mut [u8]) {
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
    let checksum = crc32c::crc32c(bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn sealed_header(bytes: &[u8]) -> Vec<u8> {
    let said = bytes
        .get(14..16)
        .map_or(1, |said| u16::from_le_bytes([said[0], said[1]]));
    let blocks = usize::from(said).clamp(1, MAX_HEADER_BLOCKS);
    sealed(bytes, blocks * BLOCK_BYTES)
}

struct Ring(Vec<u8>);

impl Source for Ring {
    fn read(&mut self, position: u64, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for piece in pieces(self.0.len() as u64, position, rest.len() as u64) {
            let (part, behind) = rest.split_at_mut(piece.len as usize);
            part.copy_from_slice(&self.0[piece.offset as usize..][..part.len()]);
            rest = behind;
        }
        Ok(())
    }
}

fn ring(bytes: &[u8]) {
    let (sector, starts) = bytes.split_at(bytes.len().min(SECTOR_BYTES));
    let Ok(superblock) = Superblock::decode(&sealed(sector, SECTOR_BYTES)) else {
        return;
    };
    if superblock.ring_bytes != MIN_RING_BYTES {
        return;
    }
    let mut ring = vec![0; MIN_RING_BYTES as usize];
    let blocks = ring.chunks_exact_mut(BLOCK_BYTES);
    for (block, start) in blocks.zip(starts.chunks(BLOCK_START_BYTES)) {
        block[..start.len()].copy_from_slice(start);
        if Header::blocks(block) == Ok(1) {
            put_right(block);
        }
    }
    let mut scan = Scan::new(&superblock, 0, Ring(ring));
    let (mut next, mut position) = (superblock.next_seq(), superblock.head);
    while let Ok(Some(found)) = scan.advance() {
        assert_eq!((found.seq(), found.position), (next, position));
        assert!(found.changes().iter().all(|change| change.len > 0));
        next += 1;
        position += found.header.contents.record_bytes();
        assert!(position - superblock.head <= superblock.ring_bytes);
    }
}
