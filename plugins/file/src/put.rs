//! Storing whole objects: a file of its own is written and synced, then gets the name, then the
//! directory is synced. A reader, and a crash at any point, finds the old object or the new one.
//! Where there is no space for that a small object is written to room that was kept for it.

use std::fs::File;
use std::path::PathBuf;

use nbd_rs_plugin::{Body, Condition, Error, Kind, ObjectFlags, ObjectMode, Put, Result};
use rustix::fs::{fstat, statat, AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::directory::{etag, Directory};
use crate::names::Name;
use crate::root::is_kind;
use crate::temporary::{or_failed, Temporary};
use crate::{lock, room, single};

/// How often a put begins again because its directory was removed by a delete.
const ATTEMPTS: usize = 100;

impl Directory {
    /// Stores an object.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::put`].
    pub fn put(&self, name: &Name, body: &Body, condition: &Condition) -> Result<Put> {
        let small = body.len() <= room::MOST_BYTES;
        if small {
            self.keep_room()?;
        }
        let placed = self.place(name, condition, |temporary| temporary.fill(body));
        let stat = match placed {
            Err(error) if small && error.kind == Kind::NoSpace => {
                self.replace_in_room(name, body, condition)?.ok_or(error)?
            }
            placed => placed?.1,
        };
        Ok(Put::new(&etag(&stat)))
    }

    /// Replaces a small object where no space is left; `None` if there is none to replace, or no room
    /// was kept. The gate is held for as long as some KiB take to the disk: another put would take
    /// the same room. Who has the object open in place has the room open from then on.
    fn replace_in_room(
        &self,
        name: &Name,
        body: &Body,
        condition: &Condition,
    ) -> Result<Option<Stat>> {
        let Ok(parent) = self.root.directory(name.directory()) else {
            return Ok(None);
        };
        let _held = self.gate()?.enter()?;
        self.check(name, &parent, condition)?;
        let Ok(old) = statat(&parent, name.leaf(), AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(None);
        };
        let Some(room) = room::Room::find(&self.root, body.len(), &old) else {
            return Ok(None);
        };
        let named = |error: Error| error.context(self.path_of(name).display());
        room.fill(body).map_err(named)?;
        if room.exchange(&parent, name.leaf()).is_err() {
            return Ok(None);
        }
        self.room_was_used();
        self.sync_opened(name.directory(), &parent)
            .map_err(ambiguous)?;
        let stat = fstat(room.file());
        stat.map(Some)
            .map_err(|error| self.root.failed(error, name.as_str()))
    }

    /// Fills a file and gives it the object's name.
    fn place(
        &self,
        name: &Name,
        condition: &Condition,
        fill: impl Fn(&Temporary<'_>) -> Result<()>,
    ) -> Result<(File, Stat)> {
        self.gate()?;
        for attempt in 0..ATTEMPTS {
            let placed = self.try_place(name, condition, &fill, attempt > 0);
            if placed.is_err() {
                // A directory that was made for it.
                self.prune(name.directory());
            }
            match placed? {
                Some(placed) => return Ok(placed),
                None => continue,
            }
        }
        let text = format!(
            "{}: its directory was removed again and again",
            self.path_of(name).display()
        );
        Err(Error::new(Kind::Transient, text))
    }

    /// One attempt; `None` if the directory was removed meanwhile. With `closed` no delete of this
    /// store's can do so while the file is made: a directory whose name is being synced would
    /// lose every race with one.
    fn try_place(
        &self,
        name: &Name,
        condition: &Condition,
        fill: &impl Fn(&Temporary<'_>) -> Result<()>,
        closed: bool,
    ) -> Result<Option<(File, Stat)>> {
        let removed = |error: &Error| error.errno == Errno::NOENT.raw_os_error();
        let held = match closed {
            true => Some(self.gate()?.enter()?),
            false => None,
        };
        let mut parent = match self.parent(name) {
            Err(error) if removed(&error) => return self.again(),
            parent => parent?,
        };
        // A refusal now saves the writing.
        self.check(name, &parent, condition)?;
        let mut temporary = match Temporary::new(&self.root, &parent) {
            Err(error) if is_removed(&parent, error) => return self.again(),
            made => or_failed(made, &self.root, name.as_str())?,
        };
        drop(held);
        let named = |error: Error| error.context(self.path_of(name).display());
        fill(&temporary).map_err(named)?;
        let published = {
            let _held = self.gate()?.enter()?;
            if is_unlinked(&parent) {
                parent = match self.parent(name) {
                    Err(error) if removed(&error) => return self.again(),
                    parent => parent?,
                };
            }
            self.check(name, &parent, condition)?;
            match condition {
                Condition::IfAbsent => temporary.publish_new(&parent, name.leaf()),
                _ => temporary.publish(&parent, name.leaf()),
            }
        };
        match published {
            Err(error) if is_removed(&parent, error) => return self.again(),
            Err(Errno::EXIST) => return Err(self.exists(name, &parent)),
            published => or_failed(published, &self.root, name.as_str())?,
        }
        self.sync_opened(name.directory(), &parent)
            .map_err(ambiguous)?;
        let stat = temporary.stat()?;
        Ok(Some((temporary.into_file(), stat)))
    }

    /// The directory is gone; if the root is there, it can be made again.
    fn again<T>(&self) -> Result<Option<T>> {
        self.root.check_linked().map(|()| None)
    }

    /// Whether a put may happen, as things stand.
    fn check(&self, name: &Name, parent: &File, condition: &Condition) -> Result<()> {
        let there = match statat(parent, name.leaf(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            stat => Some(stat.map_err(|error| self.root.failed(error, name.as_str()))?),
        };
        if let Some(stat) = &there {
            if is_kind(stat, FileType::Directory) {
                return or_failed(Err(Errno::ISDIR), &self.root, name.as_str());
            }
            if !is_kind(stat, FileType::RegularFile) {
                let text = format!("{} is not a regular file", self.path_of(name).display());
                return Err(Error::new(Kind::Invalid, text));
            }
        }
        match (condition, there) {
            (Condition::Always, _) | (Condition::IfAbsent, None) => Ok(()),
            (Condition::IfAbsent, Some(_)) => Err(self.exists(name, parent)),
            (Condition::IfMatch(wanted), Some(stat)) if etag(&stat) == wanted.as_str() => Ok(()),
            (Condition::IfMatch(_), _) => {
                let text = format!("{}: another ETag", self.path_of(name).display());
                Err(Error::new(Kind::Precondition, text))
            }
        }
    }

    /// The answer to a put that must not replace. Who reads it may count on the object, so it is
    /// made durable for whoever stored it.
    fn exists(&self, name: &Name, parent: &File) -> Error {
        match self.sync_opened(name.directory(), parent) {
            Err(error) => error,
            Ok(()) => {
                let text = format!("{} exists already", self.path_of(name).display());
                Error::new(Kind::Exists, text)
            }
        }
    }

    /// Opens an object in place, made if `mode` says so: whole, with its size.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::open_object`].
    pub fn open_in_place(&self, name: &Name, mode: ObjectMode) -> Result<(File, PathBuf)> {
        let has = |flag| mode.flags.has(flag);
        let path = self.path_of(name);
        if has(ObjectFlags::WRITE) || has(ObjectFlags::CREATE) {
            self.gate()?;
        }
        if has(ObjectFlags::CREATE) {
            let made = self.place(name, &Condition::IfAbsent, |temporary| {
                let sized = temporary.file().set_len(mode.size);
                sized.map_err(|error| Error::os(&error, path.display()))?;
                if has(ObjectFlags::LOCK) {
                    lock::acquire(temporary.file(), &path, true)?;
                }
                temporary.finish()
            });
            match made {
                Err(error) if error.kind == Kind::Exists && !has(ObjectFlags::CREATE_NEW) => {}
                made => return Ok((made?.0, path)),
            }
        }
        let access = match has(ObjectFlags::WRITE) {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        let (file, _) = self.object(name, access)?;
        single::prepare(&file, &path, mode)?;
        Ok((file, path))
    }
}

/// Whether something failed because its directory was removed. ext4 answers EPERM to a file without
/// a name in such a one, and others ENOENT.
fn is_removed(parent: &File, error: Errno) -> bool {
    error == Errno::NOENT || (error == Errno::PERM && is_unlinked(parent))
}

fn is_unlinked(dir: &File) -> bool {
    fstat(dir).is_ok_and(|stat| stat.st_nlink == 0)
}

/// It has the name; whether that survives is not known.
fn ambiguous(mut error: Error) -> Error {
    error.kind = Kind::Ambiguous;
    error
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::{Bytes, OpenFlags};

    use super::*;

    #[test]
    fn c19_c24_who_reads_a_file_that_became_room_notices() {
        let dir = tempfile::tempdir().unwrap();
        let opened = Directory::open(dir.path(), OpenFlags::WRITE).unwrap();
        let name = Name::new("page").unwrap();
        let body = |version: u8| Body::from(Bytes::from(vec![version; 16_444]));
        opened.put(&name, &body(1), &Condition::Always).unwrap();
        let (_, read) = opened.object(&name, OFlags::RDONLY).unwrap();
        assert!(opened.is_still(&name, &read));
        // Once the file has another name; then another object is written to it, and gets its name.
        for version in [2, 3] {
            let replaced = opened.replace_in_room(&name, &body(version), &Condition::Always);
            replaced.unwrap().expect("there is room");
            assert!(!opened.is_still(&name, &read), "{version}");
        }
        let (_, now) = opened.object(&name, OFlags::RDONLY).unwrap();
        assert_eq!(now.st_ino, read.st_ino, "the file has come round");
    }
}
