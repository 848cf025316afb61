//! Errors that cross the border: a kind to decide on, an errno, a text to read.

use abi_stable::std_types::RString;
use abi_stable::StableAbi;

/// What to do about a failure is decided on this, and on nothing else.
///
/// A number with names, not an enum: later versions may add kinds, and an unknown one is treated
/// as [`Kind::Io`].
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(pub u32);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident / $variant:ident = $value:literal,)*) => {
        #[allow(non_upper_case_globals)]
        impl Kind {
            $($(#[$doc])* pub const $variant: Kind = Kind($value);)*
        }
        impl std::fmt::Debug for Kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.0 {
                    $($value => f.write_str(stringify!($variant)),)*
                    other => write!(f, "Kind({other})"),
                }
            }
        }
        impl std::fmt::Display for Kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.0 {
                    $($value => f.write_str(stringify!($name)),)*
                    other => write!(f, "unknown_kind_{other}"),
                }
            }
        }
        #[cfg(test)]
        const ALL: &[(Kind, u32)] = &[$((Kind::$variant, $value),)*];
    };
}

kinds! {
    /// Anything that has no kind of its own. Permanent until something changes.
    io / Io = 0,
    /// The object does not exist. The answer of a reachable store, never a guess.
    not_found / NotFound = 1,
    /// It exists already, and the call said it must not.
    exists / Exists = 2,
    /// A condition (an ETag) did not hold.
    precondition / Precondition = 3,
    /// Not allowed: credentials, file permissions.
    denied / Denied = 4,
    /// Opened or stored read-only.
    read_only / ReadOnly = 5,
    /// Somebody else uses it.
    busy / Busy = 6,
    /// The call makes no sense: a bad name, a range outside the object.
    invalid / Invalid = 7,
    /// This backend does not have that operation.
    unsupported / Unsupported = 8,
    /// No space, quota or file-size limit.
    no_space / NoSpace = 9,
    /// It took too long; nothing was changed.
    timeout / Timeout = 10,
    /// It failed, nothing was changed, and asking again may help.
    transient / Transient = 11,
    /// The outcome is unknown: it may have been carried out. Only idempotent calls may be repeated.
    ambiguous / Ambiguous = 12,
    /// The data is there and wrong.
    corrupt / Corrupt = 13,
    /// A newer owner took over; stop.
    fenced / Fenced = 14,
    /// The plugin panicked.
    panic / Panic = 15,
}

/// A failed call: [`Kind`], errno (0 if there was none), and one line for a person.
///
/// Texts never hold secrets: credentials are masked before they get here.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What to decide on.
    pub kind: Kind,
    /// The operating system's number, or 0.
    pub errno: i32,
    /// One line: what was tried, and what happened.
    pub message: RString,
}

/// The result of every fallible call here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without an errno.
    pub fn new(kind: Kind, message: impl AsRef<str>) -> Self {
        Self {
            kind,
            errno: 0,
            message: message.as_ref().into(),
        }
    }

    /// The operation does not exist here.
    pub fn unsupported(operation: &str) -> Self {
        Self::new(Kind::Unsupported, format!("{operation} is not supported"))
    }

    /// The operation would change something that only reads.
    pub fn read_only(operation: &str) -> Self {
        Self::new(Kind::ReadOnly, format!("{operation}: read-only"))
    }

    /// An operating-system error with the kind that its errno stands for.
    pub fn os(error: &std::io::Error, doing: impl std::fmt::Display) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        Self {
            kind: kind_of(error),
            errno,
            message: format!("{doing}: {error}").into(),
        }
    }

    /// The same error with words put before its text.
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message).into();
        self
    }
}

fn kind_of(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind as E;
    match error.kind() {
        E::NotFound => Kind::NotFound,
        E::AlreadyExists => Kind::Exists,
        E::PermissionDenied => Kind::Denied,
        E::ReadOnlyFilesystem => Kind::ReadOnly,
        E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::NoSpace,
        E::ResourceBusy | E::ExecutableFileBusy => Kind::Busy,
        E::InvalidInput | E::NotADirectory | E::IsADirectory | E::InvalidFilename => Kind::Invalid,
        E::Unsupported => Kind::Unsupported,
        E::TimedOut => Kind::Timeout,
        E::Interrupted | E::WouldBlock => Kind::Transient,
        _ => Kind::Io,
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::os(&error, "I/O")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_keep_their_numbers() {
        for (at, (kind, value)) in ALL.iter().enumerate() {
            assert_eq!((kind.0, *value), (at as u32, at as u32));
        }
        assert_eq!(
            format!("{} {:?}", Kind::NoSpace, Kind(99)),
            "no_space Kind(99)"
        );
    }

    #[test]
    fn errnos_get_the_kind_that_callers_decide_on() {
        for (errno, kind) in [
            (2, Kind::NotFound),
            (5, Kind::Io),
            (13, Kind::Denied),
            (17, Kind::Exists),
            (27, Kind::NoSpace),  // EFBIG
            (28, Kind::NoSpace),  // ENOSPC
            (30, Kind::ReadOnly), // EROFS
            (122, Kind::NoSpace), // EDQUOT
        ] {
            let error = Error::os(&std::io::Error::from_raw_os_error(errno), "write");
            assert_eq!((error.kind, error.errno), (kind, errno));
        }
    }
}
