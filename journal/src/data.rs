//! Bytes of a change, shared by all that need them until the store has them.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Read-only bytes whose owner is counted: cloning and slicing never copy.
#[derive(Clone)]
pub struct Data {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    part: Range<usize>,
}

impl Data {
    /// Shares the memory of `owner`: one small allocation, no copy.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let len = owner.as_ref().len();
        Self {
            owner: Arc::new(owner),
            part: 0..len,
        }
    }

    /// A part of these bytes.
    ///
    /// # Panics
    /// If `part` is not inside them.
    pub fn slice(&self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len());
        Self {
            owner: self.owner.clone(),
            part: self.part.start + part.start..self.part.start + part.end,
        }
    }
}

/// The memory that some [`Data`] keep: all of a buffer, however little of it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Buffer {
    address: usize,
    pub(crate) bytes: u64,
}

impl Data {
    /// What is kept as long as this is. Two are the same if their memory is, while both are there.
    pub(crate) fn buffer(&self) -> Buffer {
        Buffer {
            address: Arc::as_ptr(&self.owner).cast::<()>() as usize,
            bytes: (*self.owner).as_ref().len() as u64,
        }
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.part.clone()]
    }
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Data {}
