//! Deleting objects, and the directories that are left empty.

use std::collections::BTreeMap;

use nbd_rs_plugin::{Error, Kind, Result};
use rustix::fs::{statat, unlinkat, AtFlags, FileType};
use rustix::io::Errno;

use crate::directory::Directory;
use crate::names::{directory_of, Name};
use crate::root::is_kind;

impl Directory {
    /// Deletes objects: one result per key, in order.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::delete`].
    pub fn delete(&self, keys: &[String]) -> Result<Vec<Result<()>>> {
        self.root.check_linked()?;
        let names: Vec<Result<Name>> = keys.iter().map(|key| Name::new(key)).collect();
        let mut results: Vec<Result<()>> = Vec::with_capacity(keys.len());
        for name in &names {
            results.push(name.clone().and_then(|name| self.unlink(&name)));
        }
        // Each directory is synced once, for all that went from it.
        let mut synced: BTreeMap<&str, Result<()>> = BTreeMap::new();
        for (name, result) in names.iter().zip(&mut results) {
            let (Ok(name), Ok(())) = (name, &result) else {
                continue;
            };
            let directory = name.directory();
            let settled = synced.entry(directory);
            *result = settled.or_insert_with(|| self.settle(directory)).clone();
        }
        Ok(results)
    }

    fn unlink(&self, name: &Name) -> Result<()> {
        let failed = |error| self.root.failed(error, name.as_str());
        let _held = self.gate()?.enter()?;
        let parent = match self.root.directory(name.directory()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        let stat = match statat(&parent, name.leaf(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.map_err(failed)?,
        };
        if is_kind(&stat, FileType::Directory) {
            return Ok(());
        }
        if !is_kind(&stat, FileType::RegularFile) {
            let path = self.path_of(name);
            let what = match is_kind(&stat, FileType::BlockDevice) {
                true => "is a block device",
                false => "is not a file",
            };
            let text = format!("{} {what}, so it is not removed", path.display());
            return Err(Error::new(Kind::Invalid, text));
        }
        match unlinkat(&parent, name.leaf(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Removes a directory that is empty, and makes durable what is gone. An object that was
    /// missing counts too: another process may have deleted it and not have synced yet.
    fn settle(&self, directory: &str) -> Result<()> {
        let mut left = self.prune(directory);
        loop {
            match self.root.directory(left) {
                Ok(opened) => {
                    let synced = self.sync_opened(left, &opened);
                    return synced.map_err(|error| Error {
                        kind: Kind::Ambiguous,
                        ..error
                    });
                }
                Err(Errno::NOENT | Errno::NOTDIR) if !left.is_empty() => left = directory_of(left),
                Err(error) => return Err(self.root.failed(error, left)),
            }
        }
    }

    /// Removes a directory below the root and those above it, as far as they are empty; gives the
    /// first that stays. A put that wanted to use one of them makes it again.
    pub(crate) fn prune<'a>(&self, directory: &'a str) -> &'a str {
        let mut left = directory;
        // An empty directory that stays does no harm.
        let Ok(_held) = self.gate().and_then(|gate| gate.enter()) else {
            return left;
        };
        while !left.is_empty() {
            let above = directory_of(left);
            let leaf = left.rsplit('/').next().unwrap_or(left);
            let Ok(parent) = self.root.directory(above) else {
                left = above;
                continue;
            };
            match unlinkat(&parent, leaf, AtFlags::REMOVEDIR) {
                Ok(()) => self.forget(left),
                Err(Errno::NOENT) => {}
                Err(_) => break,
            }
            left = above;
        }
        left
    }
}
