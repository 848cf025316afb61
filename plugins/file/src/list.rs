//! Listing: a walk in the order of the names' bytes, which holds a page of names for each level and
//! not a whole directory. A directory is read once for each page that passes it, so a very large one
//! is better spread over several.

use std::collections::BTreeSet;

use nbd_rs_plugin::{Meta, Page, Result};
use rustix::fs::{fstat, statat, AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use crate::directory::{meta, Directory};
use crate::names::{check_prefix, directory_of, Wanted, TEMPORARY};
use crate::root::{failed, is_kind};

/// Objects on one page.
const PAGE_ITEMS: usize = 1000;

/// A page that is being filled: one object more than it holds is found, to see whether it is the
/// last one.
struct Walk<'a> {
    directory: &'a Directory,
    wanted: Wanted<'a>,
    items: Vec<Meta>,
}

impl Directory {
    /// A page of a listing.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::list`].
    pub fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        check_prefix(prefix)?;
        self.root.check_linked()?;
        let mut walk = Walk {
            directory: self,
            wanted: Wanted { prefix, after },
            items: Vec::new(),
        };
        let start = directory_of(prefix);
        match start.is_empty() {
            true => walk.visit("")?,
            false => walk.visit(&format!("{start}/"))?,
        }
        let mut items = walk.items;
        let more = items.len() > PAGE_ITEMS;
        items.truncate(PAGE_ITEMS);
        let mut page = Page::last(items);
        if more {
            page.next = page.items.last().map(|item| item.key.clone()).into();
        }
        Ok(page)
    }
}

impl Walk<'_> {
    fn missing(&self) -> usize {
        PAGE_ITEMS + 1 - self.items.len()
    }

    /// Takes what is wanted of a directory and below; `path` is empty or ends with `/`.
    fn visit(&mut self, path: &str) -> Result<()> {
        let mut behind: Option<String> = None;
        while self.missing() > 0 {
            let room = self.missing();
            let entries = self.entries(path, behind.as_deref(), room)?;
            for entry in &entries {
                if self.missing() == 0 {
                    return Ok(());
                }
                match entry.ends_with('/') {
                    true => self.visit(entry)?,
                    false => self.take(entry)?,
                }
            }
            // Fewer than were asked for: there are no more. Else some may have held nothing.
            if entries.len() < room {
                return Ok(());
            }
            behind = entries.into_iter().next_back();
        }
        Ok(())
    }

    /// The first `room` entries behind `behind` that may hold something wanted, with their whole
    /// names; directories end with `/`, which is where their objects stand in the order.
    fn entries(&self, path: &str, behind: Option<&str>, room: usize) -> Result<BTreeSet<String>> {
        let root = &self.directory.root;
        let mut first = BTreeSet::new();
        let dir = match root.directory(path.trim_end_matches('/')) {
            // Removed meanwhile, or replaced by an object.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(first),
            opened => opened.map_err(|error| root.failed(error, path))?,
        };
        let doing = || format!("listing {}", root.path_of(path).display());
        for entry in Dir::read_from(&dir).map_err(|error| failed(error, doing()))? {
            let entry = entry.map_err(|error| failed(error, doing()))?;
            // What is not UTF-8 is no object's name.
            let Ok(leaf) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(leaf, "." | "..") || (path.is_empty() && leaf == TEMPORARY) {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(&dir, leaf),
                kind => kind,
            };
            let name = match kind {
                FileType::RegularFile => format!("{path}{leaf}"),
                FileType::Directory => format!("{path}{leaf}/"),
                _ => continue,
            };
            let wanted = match kind {
                FileType::Directory => self.wanted.directory(&name),
                _ => self.wanted.object(&name),
            };
            if wanted && behind.is_none_or(|behind| name.as_str() > behind) {
                first.insert(name);
                if first.len() > room {
                    first.pop_last();
                }
            }
        }
        Ok(first)
    }

    fn take(&mut self, name: &str) -> Result<()> {
        let root = &self.directory.root;
        let stat = match root.lookup(name, OFlags::PATH) {
            // Deleted meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened
                .and_then(fstat)
                .map_err(|error| root.failed(error, name))?,
        };
        if is_kind(&stat, FileType::RegularFile) {
            self.items.push(meta(name, &stat));
        }
        Ok(())
    }
}

/// The kind of an entry, on a file system that does not say it in the directory.
fn kind_of(dir: &std::fs::File, leaf: &str) -> FileType {
    let stat = statat(dir, leaf, AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or(FileType::Unknown, |stat| {
        FileType::from_raw_mode(stat.st_mode)
    })
}
