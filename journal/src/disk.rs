//! What the journal asks of a local disk, so that tests can stand in for one.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::format::superblock::FileIdentity;

mod directory;

pub use directory::Directory;

/// A directory on a local disk. Names are plain file names.
pub trait Disk: Send + Sync {
    /// Keeps other processes from the file of that name, which is made if need be, until what is
    /// returned is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process has it; its text may say who.
    fn lock(&self, name: &str) -> io::Result<Box<dyn Send + Sync>>;

    /// The names of all files in it.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes a file that does not exist.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file; never through a symbolic link.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, which nobody has.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
}

/// A file in such a directory.
pub trait DiskFile: Send + Sync {
    /// Fills the buffer from `offset` on.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] behind the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all the parts, one behind the other, from `offset` on. On return they are with the
    /// kernel, and survive this process.
    ///
    /// # Errors
    /// What the system says; any part may have been written.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Makes a new file this long, with zeros in blocks that are really there: later writes and
    /// syncs have no metadata to write, and can't run out of space.
    ///
    /// # Errors
    /// What the system says.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;

    /// Makes everything written durable. After an error nothing is known of what was written
    /// since the last success, and asking again proves nothing.
    ///
    /// # Errors
    /// What the system says.
    fn sync_data(&self) -> io::Result<()>;

    /// As [`sync_data`](Self::sync_data), the file's length and blocks included.
    ///
    /// # Errors
    /// What the system says.
    fn sync_all(&self) -> io::Result<()>;

    /// Its length.
    ///
    /// # Errors
    /// What the system says.
    fn bytes(&self) -> io::Result<u64>;

    /// Which file it is.
    ///
    /// # Errors
    /// What the system says.
    fn identity(&self) -> io::Result<FileIdentity>;
}
