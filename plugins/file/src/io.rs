//! Positioned reads and writes in full, holes, and syncs.
//!
//! Durability: a write that was acknowledged is in the page cache and survives this process; it
//! survives the machine when `fdatasync` on the same, still open descriptor has succeeded. A sync
//! that fails has told its error for the first and last time, so nothing here syncs twice.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nbd_rs_plugin::{Buf, Error, Extent, ExtentFlags, Kind, Result, ZeroFlags};
use rustix::fs::{fallocate, seek, FallocateFlags, SeekFrom};
use rustix::io::{preadv2, Errno as Os, ReadWriteFlags};

/// Zeros are written in steps of this, in bytes.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Reads without waiting for the disk; `None` if not all of it is in memory.
pub fn read_now(file: &File, buf: &mut Buf, offset: u64) -> Option<()> {
    let len = buf.len();
    let mut slices = [io::IoSliceMut::new(buf)];
    match preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(read) if read == len => Some(()),
        _ => None,
    }
}

/// Fills `buf` from `offset` on.
///
/// # Errors
/// Also if the file ends before; it is cut, then.
pub fn read_full(file: &File, buf: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buf, offset)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut(file),
            _ => Error::os(
                &error,
                format_args!("reading {} bytes at {offset}", buf.len()),
            ),
        })
}

/// Writes all of `bytes` at `offset`, which must lie inside the file.
///
/// # Errors
/// Also if the file ends before: it does not grow back.
pub fn write_full(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    inside(file, offset, bytes.len() as u64)?;
    let failed = |error| {
        Error::os(
            &error,
            format_args!("writing {} bytes at {offset}", bytes.len()),
        )
    };
    file.write_all_at(bytes, offset).map_err(failed)
}

/// Whether a range lies inside the file as it is now.
///
/// # Errors
/// If the file was cut behind our back.
pub fn inside(file: &File, offset: u64, len: u64) -> Result<()> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::os(&error, "looking at the file"))?;
    if metadata.is_file() && metadata.len() < offset + len {
        return Err(cut(file));
    }
    Ok(())
}

fn cut(file: &File) -> Error {
    let now = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    Error::new(
        Kind::Io,
        format!("the image was cut while it was open: it has {now} bytes now"),
    )
}

/// Makes durable what was written.
///
/// # Errors
/// What the kernel says, once.
pub fn sync(file: &File) -> Result<()> {
    file.sync_data()
        .map_err(|error| Error::os(&error, "fdatasync"))
}

/// Makes a range read as zeros.
///
/// # Errors
/// [`Kind::Unsupported`] with nothing changed, if it should be fast and can't be.
pub fn zero(file: &File, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
    inside(file, offset, len)?;
    let done = match flags.has(ZeroFlags::NO_HOLE) {
        true => zero_allocated(file, offset, len)?,
        false => punch(file, offset, len)?,
    };
    if !done && flags.has(ZeroFlags::FAST) {
        return Err(Error::unsupported("zeroing fast"));
    }
    if !done {
        write_zeros(file, offset, len)?;
    }
    if flags.has(ZeroFlags::FUA) {
        sync(file)?;
    }
    Ok(())
}

/// One fallocate; false if the file system has none of that kind.
fn try_fallocate(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> Result<bool> {
    loop {
        match fallocate(file, mode, offset, len) {
            Ok(()) => return Ok(true),
            Err(Os::INTR) => {}
            // Block devices refuse what is not aligned to their sectors.
            Err(Os::OPNOTSUPP | Os::NOSYS | Os::NODEV | Os::INVAL) => return Ok(false),
            Err(error) => {
                let doing = format_args!("zeroing {len} bytes at {offset}");
                return Err(Error::os(&error.into(), doing));
            }
        }
    }
}

fn punch(file: &File, offset: u64, len: u64) -> Result<bool> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    try_fallocate(file, mode, offset, len)
}

fn zero_allocated(file: &File, offset: u64, len: u64) -> Result<bool> {
    let keep = FallocateFlags::KEEP_SIZE;
    if try_fallocate(file, FallocateFlags::ZERO_RANGE | keep, offset, len)? {
        return Ok(true);
    }
    // Allocating first: if there is no space nothing has changed yet.
    Ok(try_fallocate(file, keep, offset, len)?
        && punch(file, offset, len)?
        && try_fallocate(file, keep, offset, len)?)
}

fn write_zeros(file: &File, mut offset: u64, mut len: u64) -> Result<()> {
    while len > 0 {
        let part = len.min(ZEROS.len() as u64);
        write_full(file, &ZEROS[..part as usize], offset)?;
        offset += part;
        len -= part;
    }
    Ok(())
}

/// Whether punching holes works here. The probe lies behind the end, where there is nothing.
pub fn punches_holes(file: &File, size: u64) -> bool {
    let behind = size.next_multiple_of(1 << 20);
    punch(file, behind, 4096).unwrap_or(false)
}

/// Whether holes can be told from data.
pub fn finds_holes(file: &File) -> bool {
    matches!(seek(file, SeekFrom::Hole(0)), Ok(_) | Err(Os::NXIO))
}

/// The next data at or behind `offset`; `None` if there is none.
///
/// # Errors
/// When the file can't be asked.
pub fn next_data(file: impl AsFd, offset: u64) -> Result<Option<u64>> {
    seek_to(file, SeekFrom::Data(offset))
}

fn next_hole(file: impl AsFd, offset: u64) -> Result<Option<u64>> {
    seek_to(file, SeekFrom::Hole(offset))
}

fn seek_to(file: impl AsFd, to: SeekFrom) -> Result<Option<u64>> {
    loop {
        match seek(&file, to) {
            Ok(at) => return Ok(Some(at)),
            Err(Os::NXIO) => return Ok(None),
            Err(Os::INTR) => {}
            Err(error) => return Err(Error::os(&error.into(), "looking for holes")),
        }
    }
}

/// Holes and data of a range, at most `limit` extents.
///
/// # Errors
/// When the file can't be asked, or was cut.
pub fn extents(file: &File, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
    inside(file, offset, len)?;
    let end = offset + len;
    let mut found = Vec::new();
    let mut at = offset;
    let mut add = |from: &mut u64, to: u64, flags| {
        if to > *from {
            found.push(Extent {
                len: to - *from,
                flags,
            });
            *from = to;
        }
        found.len() >= limit as usize
    };
    while at < end {
        let data = next_data(file, at)?.unwrap_or(end).clamp(at, end);
        if add(&mut at, data, ExtentFlags::HOLE | ExtentFlags::ZERO) || at == end {
            break;
        }
        let hole = next_hole(file, at)?.unwrap_or(end).clamp(at + 1, end);
        if add(&mut at, hole, ExtentFlags::NONE) {
            break;
        }
    }
    Ok(found)
}
