//! The bytes of one object: pages that are there, and holes that read as zeros. Pure but for the
//! count of what is held.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use nbd_rs_plugin::{
    Body, Bytes, Data, Error, Extent, ExtentFlags, Kind, Piece, Range as ByteRange, Result,
};

use crate::page::{Page, Space, PAGE_BYTES};

const PAGE: u64 = PAGE_BYTES as u64;

/// The bytes of one object.
#[derive(Debug)]
pub struct Contents {
    size: u64,
    pages: BTreeMap<u64, Arc<Page>>,
    space: Arc<Space>,
}

/// A part of one page: its number, and where in it.
struct Part {
    page: u64,
    within: Range<usize>,
}

/// The pages that a range touches.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (page, from) = (at / PAGE, (at % PAGE) as usize);
        let len = (PAGE - from as u64).min(end - at);
        at += len;
        Some(Part {
            page,
            within: from..from + len as usize,
        })
    })
}

impl Contents {
    /// So many zeros, which take no memory.
    pub fn zeros(space: &Arc<Space>, size: u64) -> Self {
        Self {
            size,
            pages: BTreeMap::new(),
            space: space.clone(),
        }
    }

    /// A copy of what a body holds.
    ///
    /// # Errors
    /// [`Kind::NoSpace`].
    pub fn of_body(space: &Arc<Space>, body: &Body) -> Result<Self> {
        let mut contents = Self::zeros(space, body.len());
        contents.write(0, body)?;
        Ok(contents)
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the range holds: pages are lent, not copied, holes are spelt out unless `holes`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a range outside.
    pub fn read(&self, range: ByteRange, holes: bool) -> Result<Data> {
        let range = range.within(self.size)?;
        let (offset, len) = (range.start as u64, range.len() as u64);
        let mut pieces = Vec::new();
        for part in parts(offset, len) {
            self.read_part(&part, holes, &mut pieces);
        }
        Ok(match pieces.len() {
            0 => Bytes::from(Vec::new()).into(),
            1 => Data::One(pieces.remove(0)),
            _ => Data::Many(pieces.into()),
        })
    }

    fn read_part(&self, part: &Part, holes: bool, pieces: &mut Vec<Piece>) {
        let page = self.pages.get(&part.page);
        let there = page.map_or(0, |page| (**page).as_ref().len());
        let within = part.within.start..part.within.end.min(there);
        let zeros = part.within.len() - within.len();
        if let Some(page) = page.filter(|_| !within.is_empty()) {
            pieces.push(Piece::Bytes(Bytes::from_arc(page.clone()).slice(within)));
        }
        match zeros {
            0 => {}
            zeros if holes => pieces.push(Piece::Hole(zeros as u64)),
            zeros => pieces.push(Piece::Bytes(zero_bytes(zeros))),
        }
    }

    /// Stores a body, from `offset` on; the object does not grow.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a range outside; [`Kind::NoSpace`], after which a part may be written.
    pub fn write(&mut self, offset: u64, body: &Body) -> Result<()> {
        ByteRange::new(offset, body.len()).within(self.size)?;
        let mut at = offset;
        for piece in body.pieces() {
            let mut left: &[u8] = piece;
            for part in parts(at, left.len() as u64) {
                let (now, rest) = left.split_at(part.within.len());
                self.page(part.page, part.within.end)?[part.within].copy_from_slice(now);
                left = rest;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// The first `len` bytes of a page, to be changed: made, copied or grown as it must be.
    fn page(&mut self, number: u64, len: usize) -> Result<&mut [u8]> {
        let page = match self.pages.entry(number) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(hole) => {
                hole.insert(Arc::new(Page::zeros(&self.space, len)?))
            }
        };
        if Arc::get_mut(page).is_none() {
            // Somebody reads it: who was lent these bytes goes on seeing them.
            *page = Arc::new(page.copy()?);
        }
        let page = Arc::get_mut(page).ok_or_else(|| Error::new(Kind::Busy, "a page in use"))?;
        page.grow(len)?;
        Ok(page.bytes_mut())
    }

    /// Makes a range read as zeros; `allocate` takes the memory for it now, else whole pages are
    /// given back.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a range outside; [`Kind::NoSpace`].
    pub fn zero(&mut self, offset: u64, len: u64, allocate: bool) -> Result<()> {
        let len = ByteRange::new(offset, len).within(self.size)?.len() as u64;
        if allocate {
            for part in parts(offset, len) {
                self.page(part.page, part.within.end)?[part.within].fill(0);
            }
            return Ok(());
        }
        // Only pages that are there are looked at: a hole of 8 EiB takes no longer than an empty one.
        let last = (offset + len).saturating_sub(1) / PAGE;
        let there = self.pages.range(offset / PAGE..=last);
        let there: Vec<u64> = there.map(|(number, _)| *number).collect();
        for number in there {
            let start = number * PAGE;
            let from = offset.saturating_sub(start).min(PAGE) as usize;
            let to = (offset + len - start).min(PAGE) as usize;
            self.zero_within(number, from..to)?;
        }
        Ok(())
    }

    fn zero_within(&mut self, number: u64, within: Range<usize>) -> Result<()> {
        let Some(page) = self.pages.get(&number) else {
            return Ok(());
        };
        let there = (**page).as_ref().len();
        if within.start == 0 && within.end >= there {
            self.pages.remove(&number);
            return Ok(());
        }
        let within = within.start.min(there)..within.end.min(there);
        self.page(number, there)?[within].fill(0);
        Ok(())
    }

    /// Grows or cuts it; new space reads as zeros and takes no memory.
    ///
    /// # Errors
    /// [`Kind::NoSpace`].
    pub fn resize(&mut self, size: u64) -> Result<()> {
        if size < self.size {
            drop(self.pages.split_off(&size.div_ceil(PAGE)));
            let (number, len) = (size / PAGE, (size % PAGE) as usize);
            let is_longer = |page: &Arc<Page>| (**page).as_ref().len() > len;
            if self.pages.get(&number).is_some_and(is_longer) {
                self.page(number, len)?;
                let page = self.pages.get_mut(&number).and_then(Arc::get_mut);
                page.into_iter().for_each(|page| page.cut(len));
            }
        }
        self.size = size;
        Ok(())
    }

    /// What is held and what is a hole, from `offset` on: at most `limit` stretches.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a range outside.
    pub fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        let end = ByteRange::new(offset, len).within(self.size)?.end as u64;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end {
            let held = self.pages.contains_key(&(at / PAGE));
            let until = match held {
                true => (at / PAGE + 1) * PAGE,
                false => self
                    .next_page(at / PAGE)
                    .map_or(end, |number| number * PAGE),
            };
            let len = until.min(end) - at;
            let flags = match held {
                true => ExtentFlags::NONE,
                false => ExtentFlags::HOLE | ExtentFlags::ZERO,
            };
            let full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len += len,
                _ if full => break,
                _ => extents.push(Extent { len, flags }),
            }
            at += len;
        }
        Ok(extents)
    }

    fn next_page(&self, behind: u64) -> Option<u64> {
        self.pages
            .range(behind + 1..)
            .next()
            .map(|(number, _)| *number)
    }
}

/// Zeros that everybody shares.
fn zero_bytes(len: usize) -> Bytes {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    struct Zeros;
    impl AsRef<[u8]> for Zeros {
        fn as_ref(&self) -> &[u8] {
            &ZEROS
        }
    }
    Bytes::from_owner(Zeros).slice(0..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: &[u8]) -> Body {
        Bytes::from(bytes.to_vec()).into()
    }

    fn read(contents: &Contents, offset: u64, len: u64) -> Vec<u8> {
        let data = contents.read(ByteRange::new(offset, len), false).unwrap();
        let mut bytes = Vec::new();
        for piece in data.pieces() {
            let Piece::Bytes(piece) = piece else {
                panic!("{piece:?} was not asked for");
            };
            bytes.extend_from_slice(piece);
        }
        bytes
    }

    #[test]
    fn a_volume_of_8_eib_takes_what_was_written_and_no_more() {
        let space = Space::new(1 << 20);
        let size = i64::MAX as u64;
        let mut contents = Contents::zeros(&space, size);
        contents.write(size - 3, &body(b"end")).unwrap();
        assert_eq!(read(&contents, size - 5, 5), b"\0\0end");
        assert!(space.used_bytes() <= PAGE, "{}", space.used_bytes());
        let extents = contents.extents(0, size, 10).unwrap();
        assert_eq!(extents.len(), 2);
        assert!(extents[0].flags.has(ExtentFlags::ZERO));
        contents.zero(0, size, false).unwrap();
        assert_eq!(space.used_bytes(), 0);
        assert_eq!(read(&contents, size - 5, 5), [0; 5]);
    }

    #[test]
    fn what_was_lent_does_not_change() {
        let space = Space::new(1 << 20);
        let mut contents = Contents::of_body(&space, &body(b"before")).unwrap();
        let lent = contents.read(ByteRange::ALL, false).unwrap();
        contents.write(0, &body(b"after!")).unwrap();
        let Data::One(Piece::Bytes(lent)) = lent else {
            panic!("one piece");
        };
        assert_eq!(&lent[..], b"before");
        assert_eq!(read(&contents, 0, 6), b"after!");
    }

    #[test]
    fn what_is_cut_off_does_not_come_back() {
        let space = Space::new(1 << 20);
        let mut contents = Contents::of_body(&space, &body(&[7; 200_000])).unwrap();
        contents.resize(100_000).unwrap();
        contents.resize(200_000).unwrap();
        assert_eq!(read(&contents, 99_999, 3), [7, 0, 0]);
        assert_eq!(read(&contents, 131_072, 2), [0, 0]);
    }

    #[test]
    fn c24_a_full_memory_is_no_space_and_zeroing_gives_it_back() {
        let space = Space::new(2 * PAGE);
        let mut contents = Contents::zeros(&space, 1 << 30);
        contents.write(0, &body(&[1; 2 * PAGE_BYTES])).unwrap();
        let full = contents.write(1 << 20, &body(b"x")).unwrap_err();
        assert_eq!((full.kind, full.errno), (Kind::NoSpace, 28));
        let allocate = contents.zero(1 << 20, 10, true).unwrap_err();
        assert_eq!(allocate.kind, Kind::NoSpace);
        contents.zero(0, PAGE, false).unwrap();
        contents.write(1 << 20, &body(b"x")).unwrap();
    }
}
