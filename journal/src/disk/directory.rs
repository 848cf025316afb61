//! A real directory, with the calls of the system.

use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};

use super::{Disk, DiskFile};
use crate::error::{Error, Kind, Result};
use crate::format::superblock::FileIdentity;

/// Zeros written at once when a file is made.
const ZEROS_BYTES: usize = 1 << 20;
const OTHERS_MAY_WRITE: u32 = 0o022;

/// A directory of journals, for this user alone.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Opens the directory, which is made (mode 0700) if it is not there.
    ///
    /// # Errors
    /// If it can't be made or opened, or if others may write to it.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let failed = |error: &io::Error| Error::os(error, format!("opening {}", path.display()));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| failed(&error))?;
        let handle = File::open(path).map_err(|error| failed(&error))?;
        let mode = handle.metadata().map_err(|error| failed(&error))?.mode();
        if mode & OTHERS_MAY_WRITE != 0 {
            let text = format!(
                "others may write to {}: make it yours alone (chmod 700) or choose another directory",
                path.display()
            );
            return Err(Error::new(Kind::Invalid, text));
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            handle,
        }))
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&self.handle, name, flags, mode)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() > 1 {
            let text = "it is not a plain file with one name";
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        Ok(file)
    }

    fn is_named(&self, file: &File, name: &str) -> io::Result<bool> {
        let here = rustix::fs::fstat(file)?;
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(&self.handle, name, flags) {
            Ok(there) => Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Disk for Directory {
    fn lock(&self, name: &str) -> io::Result<Box<dyn Send + Sync>> {
        loop {
            let mut file = self.file(name, OFlags::CREATE)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held_by(&mut file)),
                Err(errno) => return Err(errno.into()),
            }
            // Whoever had it may have removed it: then the name is another file's by now.
            if !self.is_named(&file, name)? {
                continue;
            }
            file.set_len(0)?;
            file.write_all_at(std::process::id().to_string().as_bytes(), 0)?;
            return Ok(Box::new(file));
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.file(name, OFlags::CREATE | OFlags::EXCL)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.file(name, OFlags::empty())?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.handle, from, &self.handle, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

fn held_by(file: &mut File) -> io::Error {
    let mut holder = String::new();
    // Only to say who: the lock itself has decided.
    let _ = file.take(16).read_to_string(&mut holder);
    let pid = holder.trim().parse::<u32>();
    let text = pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
    io::Error::new(ErrorKind::WouldBlock, text)
}

impl DiskFile for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        write_all(parts, |written, parts| {
            Ok(rustix::io::pwritev(self, parts, offset + written)?)
        })
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // The zeros below allocate, too, only not in one piece.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = 0;
        while at < bytes {
            let len = (bytes - at).min(ZEROS_BYTES as u64);
            self.write_all_at(&zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        let metadata = self.metadata()?;
        Ok(FileIdentity {
            inode: metadata.ino(),
            born_ns: born_ns(&metadata),
        })
    }
}

fn born_ns(metadata: &Metadata) -> u64 {
    let born = metadata.created().ok();
    let since = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Calls `write` with what is left until nothing is. It gets the bytes written so far, and answers
/// how many more it wrote.
fn write_all(
    parts: &[IoSlice<'_>],
    mut write: impl FnMut(u64, &[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    let mut parts = parts.to_vec();
    let mut left = &mut parts[..];
    let mut written = 0;
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match write(written, left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(more) => {
                written += more as u64;
                IoSlice::advance_slices(&mut left, more);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{symlink, PermissionsExt};

    fn directory() -> (tempfile::TempDir, Arc<Directory>) {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(&dir.path().join("a/b")).unwrap();
        (dir, directory)
    }

    #[test]
    fn f17_short_and_interrupted_writes_are_finished() {
        let parts = [b"ab".as_slice(), b"", b"cdefg", b"h"].map(IoSlice::new);
        let (mut out, mut calls) = (Vec::new(), 0);
        write_all(&parts, |written, parts| {
            calls += 1;
            assert_eq!(written, out.len() as u64);
            if calls % 2 == 0 {
                return Err(ErrorKind::Interrupted.into());
            }
            let flat: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            let len = flat.len().min(3);
            out.extend_from_slice(&flat[..len]);
            Ok(len)
        })
        .unwrap();
        assert_eq!(out, b"abcdefgh");
        let error = write_all(&parts, |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WriteZero);
        write_all(&[IoSlice::new(b"")], |_, _| panic!("nothing to write")).unwrap();
    }

    #[test]
    fn u14_links_and_directories_of_others_are_refused() {
        let (dir, directory) = directory();
        let path = dir.path().join("a/b");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        std::fs::write(dir.path().join("victim"), b"x").unwrap();
        symlink(dir.path().join("victim"), path.join("link")).unwrap();
        std::fs::hard_link(dir.path().join("victim"), path.join("hard")).unwrap();
        for name in ["link", "hard"] {
            assert!(directory.open(name).is_err(), "{name}");
            assert!(directory.create(name).is_err(), "{name}");
            assert!(directory.lock(name).is_err(), "{name}");
        }
        let file = directory.create("file").unwrap();
        assert!(directory.create("file").is_err());
        let mode = std::fs::metadata(path.join("file")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(file.identity().unwrap().inode, 0);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Directory::open(&path).unwrap_err();
        assert!(error.message.contains("others may write"), "{error}");
    }

    #[test]
    fn a_lock_keeps_others_out_and_says_who_has_it() {
        let (_dir, directory) = directory();
        let lock = directory.lock("lock").unwrap();
        let error = directory.lock("lock").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let expected = format!("process {}", std::process::id());
        assert_eq!(error.to_string(), expected);
        drop(lock);
        directory.lock("lock").unwrap();
    }

    #[test]
    fn a_file_that_was_copied_over_another_is_another() {
        let (dir, directory) = directory();
        let before = directory.create("file").unwrap().identity().unwrap();
        let path = dir.path().join("a/b/file");
        assert_eq!(directory.open("file").unwrap().identity().unwrap(), before);
        std::fs::copy(&path, dir.path().join("copy")).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::copy(dir.path().join("copy"), &path).unwrap();
        assert_ne!(directory.open("file").unwrap().identity().unwrap(), before);
    }

    #[test]
    fn a_new_file_is_zeros_of_its_whole_length() {
        let (_dir, directory) = directory();
        let file = directory.create("file").unwrap();
        file.preallocate((1 << 20) + 5).unwrap();
        assert_eq!(file.bytes().unwrap(), (1 << 20) + 5);
        let mut bytes = vec![1; 10];
        file.read_at((1 << 20) - 5, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 10]);
        let error = file.read_at(1 << 20, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}
