//! Room that is kept for small objects: one file of each of two sizes, whose space is allocated. On a
//! full disk a small object is replaced by writing such a file and letting it and the object's file
//! exchange their names. What was the object keeps the room from then on, so replacing never needs
//! space, nor a new file, however often it is done.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use nbd_rs_plugin::{Body, Result};
use rustix::fs::{openat, renameat_with, unlinkat, AtFlags, Dir, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::names::TEMPORARY;
use crate::root::Root;
use crate::temporary::{directory, fill, tidy, MODE};

/// Which files there are. The host's records of a volume are of these sizes: a state page has 16 KiB
/// and a frame, the others some hundred bytes.
const ROOMS: [Kept; 2] = [
    Kept {
        name: "room-4096",
        bytes: 4 << 10,
        least_bytes: 0,
    },
    Kept {
        name: "room-20480",
        bytes: MOST_BYTES,
        least_bytes: 16 << 10,
    },
];
/// Larger objects are not replaced this way, in bytes.
pub const MOST_BYTES: u64 = 20 << 10;

/// A file that is kept.
struct Kept {
    name: &'static str,
    /// What it is made with.
    bytes: u64,
    /// It is not given for the file of an object that has less.
    least_bytes: u64,
}
/// What the kernel counts allocated space in, in bytes.
const SECTOR_BYTES: u64 = 512;

/// Makes the files that are missing or too small. The gate is held.
///
/// # Errors
/// The system's.
pub fn keep(root: &Root) -> std::io::Result<()> {
    let dir = directory(root)?;
    for Kept { name, bytes, .. } in ROOMS {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&dir, name, flags, MODE)?);
        let metadata = file.metadata()?;
        if metadata.is_file() && allocated(metadata.blocks()) < bytes {
            // Written, not only allocated: then writing again needs no new piece of a map either.
            file.write_all(&vec![0; bytes as usize])?;
            file.sync_all()?;
        }
    }
    dir.sync_all()
}

fn allocated(sectors: u64) -> u64 {
    sectors * SECTOR_BYTES
}

/// A file that an object may be written to, and whose name it may take.
#[derive(Debug)]
pub struct Room {
    dir: File,
    name: &'static str,
    file: File,
}

impl Room {
    /// The smallest that has so many bytes, for an object in the place of `old`; `None` if there is
    /// none, or if what is left would be too small for the next one.
    pub fn find(root: &Root, bytes: u64, old: &Stat) -> Option<Self> {
        let dir = root.directory(TEMPORARY).ok()?;
        for Kept {
            name, least_bytes, ..
        } in ROOMS
        {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(file) = openat(&dir, name, flags, Mode::empty()).map(File::from) else {
                continue;
            };
            let metadata = file.metadata().ok()?;
            let fits = metadata.is_file() && allocated(metadata.blocks()) >= bytes;
            let stays = allocated(old.st_blocks as u64) >= least_bytes;
            if fits && stays {
                return Some(Self { dir, name, file });
            }
        }
        None
    }

    /// Writes the object, durably.
    ///
    /// # Errors
    /// The system's; nothing has changed then.
    pub fn fill(&self, body: &Body) -> Result<()> {
        fill(&self.file, body)
    }

    /// Gives the file the object's name, and the object's file the name of the room.
    ///
    /// # Errors
    /// The system's; `EINVAL` where names can't be exchanged.
    pub fn exchange(&self, parent: &File, leaf: &str) -> Result<(), Errno> {
        renameat_with(&self.dir, self.name, parent, leaf, RenameFlags::EXCHANGE)?;
        // The entry of this directory is durable with the other one, or a moment later: either file
        // will do as room.
        let _ = self.dir.sync_all();
        Ok(())
    }

    /// The file, which is an object by now.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Removes the files where no objects are left. The gate is held.
pub fn give_back(root: &Root) {
    let Ok(dir) = root.directory(TEMPORARY) else {
        return;
    };
    let is_own = |name: &[u8]| matches!(name, b"." | b"..") || name == TEMPORARY.as_bytes();
    let empty = Dir::read_from(root.dir()).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| is_own(entry.file_name().to_bytes())))
    });
    if empty {
        for Kept { name, .. } in ROOMS {
            // What stays takes 24 KiB, and does no harm.
            let _ = unlinkat(&dir, name, AtFlags::empty());
        }
        tidy(root);
    }
}
