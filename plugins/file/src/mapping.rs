//! A shared mapping of the image that only the kernel reads and writes: its copies answer `EFAULT`
//! where a load or store of ours would be a SIGBUS (a cut file, a full or failing disk).

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use nbd_rs_plugin::Mapped;

/// The page size that residency is asked in, in bytes.
const PAGE_BYTES: usize = 4096;
/// The longest range that residency is asked for, in bytes: that of the largest payload.
const MAX_BYTES: usize = 32 << 20;

/// The mapping.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
    writable: bool,
    /// Writing through it is refused here (a sandbox, most likely).
    refused: AtomicBool,
}

impl Mapping {
    /// Maps `bytes` of `file`; `None` where that can't be done.
    pub fn new(file: &File, bytes: u64, writable: bool) -> Option<Arc<Self>> {
        let len = usize::try_from(bytes).ok().filter(|&len| len > 0)?;
        let mut options = MmapOptions::new();
        options.len(len);
        let map = match writable {
            true => options.map_raw(file),
            false => options.map_raw_read_only(file),
        };
        let map = map
            .inspect_err(|error| tracing::debug!("the image is not mapped: {error}"))
            .ok()?;
        Some(Arc::new(Self {
            map,
            writable,
            refused: AtomicBool::new(false),
        }))
    }

    fn contains(&self, offset: u64, len: usize) -> bool {
        let end = offset.checked_add(len as u64);
        len > 0 && len <= MAX_BYTES && end.is_some_and(|end| end <= self.map.len() as u64)
    }

    /// Whether all pages of a range are in memory.
    pub fn is_resident(&self, offset: u64, len: usize) -> bool {
        if !self.contains(offset, len) {
            return false;
        }
        let first = offset as usize / PAGE_BYTES * PAGE_BYTES;
        let mut at = first;
        let end = offset as usize + len;
        let mut pages = [0u8; 1024];
        while at < end {
            let part = (end - at).min(pages.len() * PAGE_BYTES);
            // SAFETY: the range lies inside the mapping, begins on a page, and `pages` has a byte
            // for each of its pages.
            let asked = unsafe {
                let start = self.map.as_mut_ptr().add(at);
                libc::mincore(start.cast(), part, pages.as_mut_ptr())
            };
            let count = part.div_ceil(PAGE_BYTES);
            if asked != 0 || pages[..count].iter().any(|page| page & 1 == 0) {
                return false;
            }
            at += part;
        }
        true
    }

    /// Lends a range, if it is in memory.
    pub fn lend(self: &Arc<Self>, offset: u64, len: usize) -> Option<Mapped> {
        if !self.is_resident(offset, len) {
            return None;
        }
        // SAFETY: the range lies inside the mapping, which the owner keeps.
        Some(unsafe {
            let start = self.map.as_ptr().add(offset as usize);
            Mapped::from_raw_parts(start, len, self.clone())
        })
    }

    /// Lets the kernel copy `bytes` into the mapping; how many it did. Fewer than all means that
    /// the same range has to be written in another way, which will say why.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> usize {
        if !self.writable || self.refused.load(Ordering::Relaxed) {
            return 0;
        }
        if !self.contains(offset, bytes.len()) {
            return 0;
        }
        let local = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: the remote range is our own mapping, inside its bounds, and nobody in this
        // process holds a reference into it; the kernel copies, and tells of faults by its answer.
        let copied = unsafe {
            let remote = libc::iovec {
                iov_base: self.map.as_mut_ptr().add(offset as usize).cast(),
                iov_len: bytes.len(),
            };
            libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0)
        };
        if copied < 0 {
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EFAULT) {
                tracing::debug!("the image is not written through its mapping: {error}");
                self.refused.store(true, Ordering::Relaxed);
            }
            return 0;
        }
        copied as usize
    }
}
