//! Journals that nobody has open: what is in them, and giving them up.

use std::path::Path;
use std::sync::Arc;

use nbd_rs_journal::disk::Directory;
use nbd_rs_journal::error::Kind as JournalKind;
pub use nbd_rs_journal::uuid::Uuid;
pub use nbd_rs_journal::Inspection;

use super::of_disk;
use crate::error::Result;

/// One volume's journal, or what is wrong with it.
#[derive(Debug)]
pub struct Verified {
    /// The volume.
    pub volume: Uuid,
    /// What is in it.
    pub found: Result<Inspection>,
}

/// The disk there, if it is there: to look at journals makes no directory.
fn disk(directory: &Path) -> Result<Option<Arc<Directory>>> {
    match std::fs::metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => Directory::open(directory).map(Some).map_err(of_disk),
    }
}

/// Reads all journals in a directory, or that of one volume, and checks every byte of them.
///
/// # Errors
/// If the directory can't be read.
pub fn verify(directory: &Path, volume: Option<Uuid>) -> Result<Vec<Verified>> {
    let Some(disk) = disk(directory)? else {
        return Ok(Vec::new());
    };
    let mut volumes = nbd_rs_journal::volumes(&*disk).map_err(of_disk)?;
    volumes.retain(|found| volume.is_none_or(|volume| volume == *found));
    let verified = volumes.into_iter().map(|volume| Verified {
        volume,
        found: nbd_rs_journal::inspect(&*disk, volume).map_err(of_disk),
    });
    Ok(verified.collect())
}

/// Whether a volume has a journal there.
///
/// # Errors
/// If the directory can't be read.
pub fn exists(directory: &Path, volume: Uuid) -> Result<bool> {
    match disk(directory)? {
        Some(disk) => Ok(nbd_rs_journal::volumes(&*disk)
            .map_err(of_disk)?
            .contains(&volume)),
        None => Ok(false),
    }
}

/// Removes a volume's journal, whatever is in it. Whether there was one.
///
/// # Errors
/// [`Kind::Busy`](crate::error::Kind::Busy) while a server has it; what the disk says.
pub fn discard(directory: &Path, volume: Uuid) -> Result<bool> {
    let Some(disk) = disk(directory)? else {
        return Ok(false);
    };
    let volumes = nbd_rs_journal::volumes(&*disk).map_err(of_disk)?;
    if !volumes.contains(&volume) {
        return Ok(false);
    }
    match nbd_rs_journal::discard(&*disk, volume) {
        Err(error) if error.kind == JournalKind::Missing => Ok(false),
        removed => removed.map(|()| true).map_err(of_disk),
    }
}
