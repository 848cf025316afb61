//! Journals that nobody has open: what is in them, and giving them up.

use std::path::Path;

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

/// Reads all journals in a directory, or that of one volume, and checks every byte of them.
///
/// # Errors
/// If the directory can't be read.
pub fn verify(directory: &Path, volume: Option<Uuid>) -> Result<Vec<Verified>> {
    let disk = Directory::open(directory).map_err(of_disk)?;
    let volumes = match volume {
        Some(volume) => vec![volume],
        None => nbd_rs_journal::volumes(&*disk).map_err(of_disk)?,
    };
    let verified = volumes.into_iter().map(|volume| Verified {
        volume,
        found: nbd_rs_journal::inspect(&*disk, volume).map_err(of_disk),
    });
    Ok(verified.collect())
}

/// How many records of a volume wait in its journal; `None` if it has none, or one that can't be
/// read.
pub fn waiting(directory: &Path, volume: Uuid) -> Option<u64> {
    let disk = Directory::open(directory).ok()?;
    let found = nbd_rs_journal::inspect(&*disk, volume).ok()?;
    Some(found.records)
}

/// Removes a volume's journal, whatever is in it. Whether there was one.
///
/// # Errors
/// [`Kind::Busy`](crate::error::Kind::Busy) while a server has it; what the disk says.
pub fn discard(directory: &Path, volume: Uuid) -> Result<bool> {
    let disk = Directory::open(directory).map_err(of_disk)?;
    let volumes = nbd_rs_journal::volumes(&*disk).map_err(of_disk)?;
    if !volumes.contains(&volume) {
        return Ok(false);
    }
    match nbd_rs_journal::discard(&*disk, volume) {
        Err(error) if error.kind == JournalKind::Missing => Ok(false),
        removed => removed.map(|()| true).map_err(of_disk),
    }
}
