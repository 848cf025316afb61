//! Files on their way: they have no name, or one in the root's own directory for them, until they
//! are whole.
//!
//! A file without a name (`O_TMPFILE`) is gone with the process. One with a name is locked by the
//! process that writes it, and the kernel gives the lock back when that ends, however it ends. So a
//! leftover is: in our directory, of our pattern, a regular file, and not locked. Whoever opens the
//! directory for writing removes those.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nbd_rs_plugin::{Body, Error, Kind, Result};
use rustix::fs::{
    flock, fstat, futimens, linkat, mkdirat, openat, renameat, renameat_with, statat, unlinkat,
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps,
    CWD,
};
use rustix::io::Errno;
use rustix::time::{clock_gettime, ClockId};

use crate::names::TEMPORARY;
use crate::root::{failed, is_kind, Root};

/// Of files that are made.
pub const MODE: Mode = Mode::from_raw_mode(0o644);
/// What the names of ours begin with; 16 hexadecimal digits follow.
const PATTERN: &str = "put-";
/// The kernel takes so many pieces in one write.
const MAX_PIECES: usize = 1024;

/// A file that is written and has no name of an object yet.
#[derive(Debug)]
pub struct Temporary<'a> {
    root: &'a Root,
    file: File,
    name: Option<Named>,
}

/// A name in the directory for files on their way; it goes with this value.
#[derive(Debug)]
struct Named {
    dir: File,
    name: String,
}

impl Drop for Named {
    fn drop(&mut self) {
        // Renamed meanwhile, usually. Else the next open finds it.
        let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

impl<'a> Temporary<'a> {
    /// An empty file that can become an object in `parent`.
    ///
    /// # Errors
    /// The system's; `ENOENT` if `parent` was removed.
    pub fn new(root: &'a Root, parent: &File) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let unnamed = match Path::new("/proc/self/fd").exists() {
            true => openat(parent, ".", flags, MODE),
            false => Err(Errno::OPNOTSUPP),
        };
        match unnamed {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Self::named(root),
            Err(error) => Err(error),
            Ok(file) => Ok(Self {
                root,
                file: file.into(),
                name: None,
            }),
        }
    }

    /// An empty file with a name, where there are none without.
    ///
    /// # Errors
    /// The system's.
    pub fn named(root: &'a Root) -> Result<Self, Errno> {
        loop {
            let dir = directory(root)?;
            let name = next_name();
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = match openat(&dir, &name, flags, MODE) {
                // Somebody's close has just removed the directory.
                Err(Errno::NOENT | Errno::EXIST) => continue,
                opened => File::from(opened?),
            };
            // Somebody may have taken it for a leftover before it was locked.
            if !is_locked_for_us(&file) || fstat(&file)?.st_nlink == 0 {
                continue;
            }
            let name = Some(Named { dir, name });
            return Ok(Self { root, file, name });
        }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, to be kept open.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Writes the contents, stamps them, and makes them durable.
    ///
    /// # Errors
    /// The system's; the file is of no use then.
    pub fn fill(&self, body: &Body) -> Result<()> {
        fill(&self.file, body)
    }

    /// Stamps the contents and makes them durable.
    ///
    /// # Errors
    /// The system's; the file is of no use then.
    pub fn finish(&self) -> Result<()> {
        finish(&self.file)
    }

    /// What the kernel knows of the file.
    ///
    /// # Errors
    /// The system's.
    pub fn stat(&self) -> Result<Stat> {
        fstat(&self.file).map_err(|error| failed(error, "looking at an object"))
    }

    /// Gives it the object's name if there is no such name.
    ///
    /// # Errors
    /// `EEXIST`, and the system's.
    pub fn publish_new(&self, parent: &File, leaf: &str) -> Result<(), Errno> {
        let Some(named) = &self.name else {
            return self.link(parent, leaf);
        };
        let moved = renameat_with(
            &named.dir,
            &named.name,
            parent,
            leaf,
            RenameFlags::NOREPLACE,
        );
        match moved {
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(&named.dir, &named.name, parent, leaf, AtFlags::empty())
            }
            moved => moved,
        }
    }

    /// Gives it the object's name, in place of what has it now.
    ///
    /// # Errors
    /// The system's.
    pub fn publish(&mut self, parent: &File, leaf: &str) -> Result<(), Errno> {
        if self.name.is_none() {
            match self.link(parent, leaf) {
                Err(Errno::EXIST) => self.name = Some(self.take_name()?),
                linked => return linked,
            }
        }
        match &self.name {
            Some(named) => renameat(&named.dir, &named.name, parent, leaf),
            None => Ok(()),
        }
    }

    fn link(&self, parent: &File, leaf: &str) -> Result<(), Errno> {
        let ours = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, ours, parent, leaf, AtFlags::SYMLINK_FOLLOW)
    }

    /// A name for a whole file that has none: only a named file can replace another.
    fn take_name(&self) -> Result<Named, Errno> {
        is_locked_for_us(&self.file);
        loop {
            let dir = directory(self.root)?;
            let name = next_name();
            match self.link(&dir, &name) {
                Err(Errno::NOENT | Errno::EXIST) => {}
                linked => return linked.map(|()| Named { dir, name }),
            }
        }
    }
}

/// Writes an object to a file from its beginning, cuts what is behind it, and finishes it.
///
/// # Errors
/// The system's; the file holds no object then.
pub fn fill(file: &File, body: &Body) -> Result<()> {
    let doing = || format!("writing an object of {} bytes", body.len());
    let written = write_all(file, body.pieces()).and_then(|()| file.set_len(body.len()));
    written.map_err(|error| Error::os(&error, doing()))?;
    finish(file)
}

fn finish(file: &File) -> Result<()> {
    // The kernel's own stamps stand still for some milliseconds: two puts could share one.
    let now = clock_gettime(ClockId::Realtime);
    let now = Timespec {
        tv_sec: now.tv_sec,
        tv_nsec: now.tv_nsec,
    };
    let stamps = Timestamps {
        last_access: now,
        last_modification: now,
    };
    futimens(file, &stamps).map_err(|error| failed(error, "stamping an object"))?;
    // Not fdatasync: that may leave the stamp, of which the ETag is made, behind.
    let synced = file.sync_all();
    synced.map_err(|error| Error::os(&error, "syncing an object"))
}

fn is_locked_for_us(file: &File) -> bool {
    // Where there are no locks nothing is taken for a leftover either.
    flock(file, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}

/// The directory for files on their way, made if it is missing.
///
/// # Errors
/// The system's.
pub fn directory(root: &Root) -> Result<File, Errno> {
    loop {
        match root.directory(TEMPORARY) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        match mkdirat(root.dir(), TEMPORARY, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // The root itself is gone.
            Err(error) => return Err(error),
        }
    }
}

/// A name that no other process and no earlier one has, but for a chance of 1 in 2^64.
fn next_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut seed = [0; 8];
    let drawn = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::NONBLOCK);
    let random = match drawn {
        Ok(8) => u64::from_ne_bytes(seed),
        _ => clock_gettime(ClockId::Realtime).tv_nsec as u64 ^ u64::from(std::process::id()) << 32,
    };
    let random = random.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    format!("{PATTERN}{random:016x}")
}

fn write_all(mut file: &File, pieces: &[nbd_rs_plugin::Bytes]) -> std::io::Result<()> {
    for pieces in pieces.chunks(MAX_PIECES) {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match file.write_vectored(left) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Removes what processes that are no more have left on its way.
///
/// # Errors
/// If the directory for it can't be read.
pub fn clean(root: &Root) -> Result<()> {
    let doing = || root.path_of(TEMPORARY).display().to_string();
    let dir = match root.directory(TEMPORARY) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.map_err(|error| failed(error, doing()))?,
    };
    for entry in Dir::read_from(&dir).map_err(|error| failed(error, doing()))? {
        let entry = entry.map_err(|error| failed(error, doing()))?;
        let name = entry.file_name().to_string_lossy();
        if is_ours(&name) && remove_leftover(&dir, &name) {
            tracing::info!("{}/{name}: a put that was cut off, removed", doing());
        }
    }
    tidy(root);
    Ok(())
}

/// Removes the directory for files on their way, if it is empty.
pub fn tidy(root: &Root) {
    // Not empty, not there, read-only: it may stay.
    let _ = unlinkat(root.dir(), TEMPORARY, AtFlags::REMOVEDIR);
}

fn is_ours(name: &str) -> bool {
    let digits = name.strip_prefix(PATTERN).unwrap_or_default();
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.len() == 16 && digits.bytes().all(digit)
}

/// Removes a file that nobody writes any more; whether it was one. Its lock is held until it is
/// gone: who has just made it sees that, and makes another.
fn remove_leftover(dir: &File, name: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(dir, name, flags, Mode::empty()) else {
        return false;
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    // It may have become an object since it was opened; then the name is free.
    let named = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    let same = match (fstat(&file), named) {
        (Ok(ours), Ok(named)) => ours.st_ino == named.st_ino,
        _ => false,
    };
    let regular = fstat(&file).is_ok_and(|stat| is_kind(&stat, FileType::RegularFile));
    same && regular && unlinkat(dir, name, AtFlags::empty()).is_ok()
}

/// What went wrong, if anything, as an error of a kind.
pub fn or_failed<T>(result: Result<T, Errno>, root: &Root, name: &str) -> Result<T> {
    result.map_err(|error| match error {
        Errno::ISDIR | Errno::NOTDIR => Error::new(
            Kind::Invalid,
            format!(
                "{}: an object can't also be the directory of others",
                root.path_of(name).display()
            ),
        ),
        _ => root.failed(error, name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Body {
        nbd_rs_plugin::Bytes::from(text.as_bytes().to_vec()).into()
    }

    /// On file systems without O_TMPFILE every put goes this way.
    #[test]
    fn c19_named_files_become_objects_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let path = dir.path().join("object");
        let read = || std::fs::read_to_string(&path).unwrap();

        let first = Temporary::named(&root).unwrap();
        first.fill(&text("first")).unwrap();
        first.publish_new(root.dir(), "object").unwrap();
        drop(first);
        assert_eq!(read(), "first");
        let second = Temporary::named(&root).unwrap();
        second.fill(&text("second")).unwrap();
        let refused = second.publish_new(root.dir(), "object");
        assert_eq!((refused, read().as_str()), (Err(Errno::EXIST), "first"));
        drop(second);
        let mut third = Temporary::named(&root).unwrap();
        third.fill(&text("third")).unwrap();
        third.publish(root.dir(), "object").unwrap();
        drop(third);
        assert_eq!(read(), "third");
        tidy(&root);
        assert!(!dir.path().join(TEMPORARY).exists());
    }

    #[test]
    fn who_writes_is_not_taken_for_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let writer = Temporary::named(&root).unwrap();
        let name = writer.name.as_ref().unwrap().name.clone();
        assert!(is_ours(&name), "{name}");
        clean(&root).unwrap();
        writer.fill(&text("kept")).unwrap();
        writer.publish_new(root.dir(), "object").unwrap();
        assert_eq!(std::fs::read(dir.path().join("object")).unwrap(), b"kept");
    }

    #[test]
    fn a_directory_for_files_on_their_way_may_go_while_others_want_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2000).for_each(|_| tidy(&root)));
            scope.spawn(|| (0..200).for_each(|_| clean(&root).unwrap()));
            for _ in 0..200 {
                let mut file = Temporary::named(&root).unwrap();
                file.publish(root.dir(), "object").unwrap();
            }
        });
    }
}
