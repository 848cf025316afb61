//! Error kind to NBD error number: the only table (proto.md, "Error values").

use nbd_rs_plugin::{Error, Kind};

/// An error number of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted, read-only.
    Perm = 1,
    /// I/O error.
    Io = 5,
    /// Out of memory. Never sent by us.
    Nomem = 12,
    /// The request makes no sense.
    Inval = 22,
    /// No space, or beyond the end.
    Nospc = 28,
    /// Too large for one reply.
    Overflow = 75,
    /// Not as fast as asked.
    Notsup = 95,
    /// The server is going down.
    Shutdown = 108,
}

impl From<&Error> for Errno {
    fn from(error: &Error) -> Self {
        match error.kind {
            Kind::NoSpace => Errno::Nospc,
            Kind::ReadOnly | Kind::Denied => Errno::Perm,
            Kind::Invalid => Errno::Inval,
            Kind::Unsupported => Errno::Notsup,
            Kind::Fenced => Errno::Shutdown,
            _ => Errno::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w70_every_failure_has_a_number_of_the_protocol() {
        for (errno, expected) in [
            (1, Errno::Perm),    // EPERM
            (5, Errno::Io),      // EIO
            (12, Errno::Io),     // ENOMEM
            (13, Errno::Perm),   // EACCES
            (27, Errno::Nospc),  // EFBIG
            (28, Errno::Nospc),  // ENOSPC
            (30, Errno::Perm),   // EROFS
            (110, Errno::Io),    // ETIMEDOUT
            (116, Errno::Io),    // ESTALE
            (122, Errno::Nospc), // EDQUOT
            (9999, Errno::Io),
        ] {
            let error = Error::os(&std::io::Error::from_raw_os_error(errno), "x");
            assert_eq!(Errno::from(&error), expected, "{errno}");
        }
        for kind in 0..40 {
            let sent = Errno::from(&Error::new(Kind(kind), "")) as u32;
            assert!(sent != Errno::Nomem as u32 && sent < 1 << 31);
        }
    }
}
