//! What can go wrong: a kind to decide on, an errno, one line that says what to do.

use std::fmt;
use std::io;

/// What to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The volume says that writes wait in a journal, and it is not here.
    Missing,
    /// A journal of something else: another volume, or another time.
    Foreign,
    /// Written on another machine, or to another file: a copy, unless it was moved.
    Moved,
    /// Records wait in it that the volume does not know of: it was served without them.
    Unknown,
    /// Written by a newer nbd-rs.
    Newer,
    /// What should be there is not, or is not what was written.
    Damaged,
    /// Another process has it.
    InUse,
    /// No room until something is shipped.
    Full,
    /// The disk is full.
    NoSpace,
    /// The call makes no sense.
    Invalid,
    /// The disk failed.
    Io,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What to decide on.
    pub kind: Kind,
    /// The operating system's number, or 0.
    pub errno: i32,
    /// One line for a person.
    pub message: String,
}

/// The result of every fallible call here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            errno: 0,
            message: message.into(),
        }
    }

    /// An error of the operating system, met while `doing` something.
    pub(crate) fn os(error: &io::Error, doing: impl fmt::Display) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Kind::NoSpace,
            // A file that was cut.
            io::ErrorKind::UnexpectedEof => Kind::Damaged,
            _ => Kind::Io,
        };
        Self {
            kind,
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("{doing}: {error}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
