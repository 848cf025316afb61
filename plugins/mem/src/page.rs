//! Pages of memory, counted against a limit as long as anybody holds them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nbd_rs_plugin::{Error, Kind, Result};

/// Bytes of contents that one page stands for.
pub const PAGE_BYTES: usize = 64 << 10;

/// What may be held, and what is.
#[derive(Debug)]
pub struct Space {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl Space {
    /// Room for so many bytes.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            used_bytes: AtomicU64::new(0),
        })
    }

    /// What is held now, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// The limit, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let add = |used: u64| {
            used.checked_add(bytes)
                .filter(|sum| *sum <= self.limit_bytes)
        };
        let taken = self
            .used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        taken.map(drop).map_err(|used| {
            let limit = self.limit_bytes;
            let text = format!("memory is full: {used} of {limit} bytes are in use (limit=)");
            Error {
                errno: 28, // ENOSPC
                ..Error::new(Kind::NoSpace, text)
            }
        })
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Up to [`PAGE_BYTES`] of an object; what lies behind its end reads as zeros.
#[derive(Debug)]
pub struct Page {
    bytes: Vec<u8>,
    space: Arc<Space>,
}

impl Page {
    /// A page of so many zeros.
    ///
    /// # Errors
    /// [`Kind::NoSpace`].
    pub fn zeros(space: &Arc<Space>, len: usize) -> Result<Self> {
        space.take(len as u64)?;
        Ok(Self {
            bytes: vec![0; len],
            space: space.clone(),
        })
    }

    /// A copy of this page, for who must change it while somebody else reads it.
    ///
    /// # Errors
    /// [`Kind::NoSpace`].
    pub fn copy(&self) -> Result<Self> {
        self.space.take(self.bytes.len() as u64)?;
        Ok(Self {
            bytes: self.bytes.clone(),
            space: self.space.clone(),
        })
    }

    /// Makes it at least so long.
    ///
    /// # Errors
    /// [`Kind::NoSpace`], with nothing changed.
    pub fn grow(&mut self, len: usize) -> Result<()> {
        if let Some(more) = len.checked_sub(self.bytes.len()).filter(|more| *more > 0) {
            self.space.take(more as u64)?;
            self.bytes.resize(len, 0);
        }
        Ok(())
    }

    /// Makes it at most so long.
    pub fn cut(&mut self, len: usize) {
        if let Some(less) = self.bytes.len().checked_sub(len) {
            self.bytes.truncate(len);
            self.bytes.shrink_to_fit();
            self.space.give_back(less as u64);
        }
    }

    /// What it holds, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.space.give_back(self.bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c24_what_is_held_is_counted_until_the_last_one_lets_go() {
        let space = Space::new(10);
        let mut page = Page::zeros(&space, 4).unwrap();
        let copy = page.copy().unwrap();
        assert_eq!(space.used_bytes(), 8);
        assert_eq!(page.grow(7).unwrap_err().kind, Kind::NoSpace);
        assert_eq!((page.as_ref().len(), space.used_bytes()), (4, 8));
        drop(copy);
        page.grow(7).unwrap();
        page.cut(2);
        assert_eq!(space.used_bytes(), 2);
        drop(page);
        assert_eq!(space.used_bytes(), 0);
    }
}
