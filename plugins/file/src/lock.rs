//! Keeps a second writer off an image, with the locks that qemu takes, so that each respects the
//! other: a shared lock on byte 100 + n for each permission that is used, and on byte 200 + n for
//! each that nobody else may use.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nbd_rs_plugin::{Error, Kind, Result};

const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// A permission, numbered as qemu's block layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Permission(i64, &'static str);

const READ: Permission = Permission(0, "read");
const WRITE: Permission = Permission(1, "write");
const RESIZE: Permission = Permission(3, "resize");

/// Takes the locks; they go with the file's descriptor.
///
/// # Errors
/// [`Kind::Busy`] if another process uses the image in a way that does not go together.
pub fn acquire(file: &File, path: &Path, writable: bool) -> Result<()> {
    let used: &[Permission] = match writable {
        true => &[READ, WRITE, RESIZE],
        false => &[READ],
    };
    let unshared = [WRITE, RESIZE];
    let own = used.iter().map(|permission| USED_BASE + permission.0);
    let own = own.chain(
        unshared
            .iter()
            .map(|permission| UNSHARED_BASE + permission.0),
    );
    for byte in own {
        match set(file, byte) {
            Ok(()) => {}
            Err(error) if is_unsupported(&error) => {
                tracing::warn!("{}: no locks on this file system: {error}", path.display());
                return Ok(());
            }
            Err(error) => return Err(Error::os(&error, "locking the image")),
        }
    }
    // First all of ours, then a look at the others': of two who come together at least one sees.
    let wanted = used
        .iter()
        .map(|p| (UNSHARED_BASE + p.0, "does not share", p.1));
    let denied = unshared.iter().map(|p| (USED_BASE + p.0, "has", p.1));
    for (byte, how, what) in wanted.chain(denied) {
        if is_held(file, byte).map_err(|error| Error::os(&error, "looking at the locks"))? {
            return Err(Error::new(
                Kind::Busy,
                format!(
                    "{} is in use: another process {how} {what} access",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

/// Gives the locks back.
///
/// # Errors
/// What the system says.
pub fn release(file: &File) -> io::Result<()> {
    let all = libc::flock {
        l_len: 0,
        ..byte_lock(libc::F_UNLCK, 0)
    };
    // SAFETY: as in `set`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &all) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the file system has no such locks.
pub fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [libc::ENOLCK, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS]
        .map(Some)
        .contains(&errno)
}

fn byte_lock(kind: i32, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn set(file: &File, byte: i64) -> io::Result<()> {
    let lock = byte_lock(libc::F_RDLCK, byte);
    // SAFETY: a valid descriptor and a lock that lives over the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether somebody else has a lock on `byte`.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = byte_lock(libc::F_WRLCK, byte);
    // SAFETY: as in `set`; the kernel writes its answer into `lock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}
