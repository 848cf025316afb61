//! The opened root of a directory of objects, and the way below it: never up, never through a
//! symbolic link, never onto another file system.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nbd_rs_plugin::{Error, Kind, Result};
use rustix::fs::{
    fstat, mkdirat, open, openat, openat2, statat, AtFlags, FileType, Mode, OFlags, ResolveFlags,
    Stat,
};
use rustix::io::Errno;

/// How names are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// One `openat2` that the kernel keeps below the root (Linux 5.6).
    Kernel,
    /// Part by part, where there is no `openat2`.
    Stepwise,
}

/// An opened directory of objects.
#[derive(Debug)]
pub struct Root {
    dir: File,
    path: PathBuf,
    lookup: Lookup,
    device: u64,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// For what is looked at only.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// For every file that is opened: a FIFO must not hold us up before it is recognised.
const CAREFUL: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// `openat2` refuses flags that mean nothing for `O_PATH`.
fn careful(flags: OFlags) -> OFlags {
    match flags.contains(OFlags::PATH) {
        true => flags | LOOK,
        false => flags | CAREFUL,
    }
}

impl Root {
    /// Opens the directory; it may be reached by a symbolic link.
    ///
    /// # Errors
    /// What the system says, never [`Kind::NotFound`]: no object was looked for.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = DIRECTORY | OFlags::CLOEXEC;
        let dir = open(path, flags, Mode::empty()).map_err(|e| failed(e, path.display()))?;
        let stat = fstat(&dir).map_err(|e| failed(e, path.display()))?;
        // An old sandbox answers EPERM for a system call that it does not know.
        let probe = openat2(&dir, ".", OFlags::PATH, Mode::empty(), BENEATH);
        let lookup = match probe {
            Err(Errno::NOSYS | Errno::PERM) => Lookup::Stepwise,
            _ => Lookup::Kernel,
        };
        Ok(Self {
            dir: File::from(dir),
            path: path.to_owned(),
            lookup,
            device: stat.st_dev,
        })
    }

    /// The opened directory itself.
    pub fn dir(&self) -> &File {
        &self.dir
    }

    /// The path of a name, for messages.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// An error about a name, with the kind that it has for an object.
    pub fn failed(&self, error: Errno, name: &str) -> Error {
        let path = self.path_of(name);
        match error {
            Errno::LOOP => Error::new(
                Kind::Invalid,
                format!("{}: a symbolic link, which is not followed", path.display()),
            ),
            Errno::XDEV => Error::new(
                Kind::Invalid,
                format!("{}: another file system is mounted there", path.display()),
            ),
            _ => failed(error, path.display()),
        }
    }

    /// The error of an object that is not there; of another kind if the root is gone.
    pub fn missing(&self, name: &str) -> Error {
        match self.check_linked() {
            Ok(()) => Error::new(
                Kind::NotFound,
                format!("{}: no such object", self.path_of(name).display()),
            ),
            Err(error) => error,
        }
    }

    /// Whether the root itself still exists.
    ///
    /// # Errors
    /// If it was removed.
    pub fn check_linked(&self) -> Result<()> {
        match fstat(&self.dir) {
            Ok(stat) if stat.st_nlink > 0 => Ok(()),
            Ok(_) => Err(Error::new(
                Kind::Io,
                format!("{} was removed", self.path.display()),
            )),
            Err(error) => Err(failed(error, self.path.display())),
        }
    }

    /// Opens what `name` names; the empty name is the root.
    ///
    /// # Errors
    /// The system's.
    pub fn lookup(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let name = if name.is_empty() { "." } else { name };
        let flags = careful(flags);
        match self.lookup {
            Lookup::Kernel => loop {
                match openat2(&self.dir, name, flags, Mode::empty(), BENEATH) {
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    opened => return opened,
                }
            },
            Lookup::Stepwise => self.step(name, flags),
        }
    }

    /// Opens what `name` names if nothing has to be read from the disk for that.
    pub fn lookup_now(&self, name: &str, flags: OFlags) -> Option<OwnedFd> {
        let resolve = BENEATH.union(ResolveFlags::CACHED);
        match self.lookup {
            Lookup::Kernel => openat2(&self.dir, name, careful(flags), Mode::empty(), resolve).ok(),
            Lookup::Stepwise => None,
        }
    }

    fn step(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let (directories, leaf) = name.rsplit_once('/').unwrap_or(("", name));
        let mut at = openat(&self.dir, ".", LOOK, Mode::empty())?;
        for part in directories.split('/').filter(|part| !part.is_empty()) {
            at = self.step_into(&at, part, LOOK | OFlags::DIRECTORY)?;
        }
        self.step_into(&at, leaf, flags)
    }

    fn step_into(&self, at: &OwnedFd, part: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let opened = match openat(at, part, flags, Mode::empty()) {
            // Without O_DIRECTORY this would be ELOOP.
            Err(Errno::NOTDIR) if is_symlink(at, part) => return Err(Errno::LOOP),
            opened => opened?,
        };
        let stat = fstat(&opened)?;
        if FileType::from_raw_mode(stat.st_mode).is_symlink() {
            return Err(Errno::LOOP);
        }
        match stat.st_dev == self.device {
            true => Ok(opened),
            false => Err(Errno::XDEV),
        }
    }

    /// Opens a directory, to make names in it and to sync it.
    ///
    /// # Errors
    /// The system's.
    pub fn directory(&self, name: &str) -> Result<File, Errno> {
        match self.lookup(name, DIRECTORY) {
            // Without O_DIRECTORY it would have been ELOOP.
            Err(Errno::NOTDIR) if self.is_symlink(name) => Err(Errno::LOOP),
            opened => opened.map(File::from),
        }
    }

    fn is_symlink(&self, name: &str) -> bool {
        match self.lookup(name, OFlags::PATH).and_then(fstat) {
            Ok(stat) => is_kind(&stat, FileType::Symlink),
            Err(error) => error == Errno::LOOP,
        }
    }

    /// Opens a directory, made if it is missing and the ones above it too; `made` is told the
    /// directory that has got a new entry.
    ///
    /// # Errors
    /// The system's.
    pub fn make_directory(
        &self,
        name: &str,
        made: &impl Fn(&str, &File) -> Result<()>,
    ) -> Result<File> {
        match self.directory(name) {
            Err(Errno::NOENT) if !name.is_empty() => {}
            opened => return opened.map_err(|error| self.failed(error, name)),
        }
        let (above_name, leaf) = name.rsplit_once('/').unwrap_or(("", name));
        let above = self.make_directory(above_name, made)?;
        match mkdirat(&above, leaf, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed(error, name)),
        }
        made(above_name, &above)?;
        self.directory(name)
            .map_err(|error| self.failed(error, name))
    }
}

fn is_symlink(at: impl AsFd, part: &str) -> bool {
    let stat = statat(at, part, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| is_kind(&stat, FileType::Symlink))
}

/// Whether a file is of that kind.
pub fn is_kind(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// An error that says nothing of whether an object exists.
pub fn failed(error: Errno, doing: impl std::fmt::Display) -> Error {
    let mut error = Error::os(&error.into(), doing);
    if error.kind == Kind::NotFound || error.kind == Kind::Exists {
        error.kind = Kind::Io;
    }
    error
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn both(path: &Path) -> [Root; 2] {
        [Lookup::Kernel, Lookup::Stepwise].map(|lookup| Root {
            lookup,
            ..Root::open(path).unwrap()
        })
    }

    /// Old kernels and sandboxes have no `openat2`; what they do must be the same.
    #[test]
    fn u04_both_ways_to_look_up_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        symlink("file", root.join("a/b/link")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        for root in both(&root) {
            let lookup = |name| root.lookup(name, OFlags::RDONLY).map(drop);
            assert_eq!(lookup("a/b/file"), Ok(()), "{root:?}");
            assert_eq!(lookup("a/b"), Ok(()), "{root:?}");
            assert_eq!(lookup(""), Ok(()), "{root:?}");
            assert_eq!(lookup("a/none"), Err(Errno::NOENT), "{root:?}");
            assert_eq!(lookup("none/none"), Err(Errno::NOENT), "{root:?}");
            assert_eq!(lookup("a/b/file/x"), Err(Errno::NOTDIR), "{root:?}");
            for name in ["up", "up/root/a/b/file", "a/b/link", "magic/etc/passwd"] {
                assert_eq!(lookup(name), Err(Errno::LOOP), "{name} {root:?}");
            }
            let directory = |name| root.directory(name).map(drop);
            assert_eq!(directory("a/b"), Ok(()), "{root:?}");
            assert_eq!(directory("up"), Err(Errno::LOOP), "{root:?}");
            assert_eq!(directory("a/b/file"), Err(Errno::NOTDIR), "{root:?}");
            let stat = root.lookup("a/b/file", OFlags::PATH).and_then(fstat);
            assert_eq!(stat.unwrap().st_size, 1);
        }
    }

    #[test]
    fn u04_another_file_system_below_the_root_is_not_entered() {
        for root in both(Path::new("/")) {
            let entered = root.lookup("proc/version", OFlags::RDONLY).map(drop);
            assert_eq!(entered, Err(Errno::XDEV), "{root:?}");
        }
    }
}
