//! One file that is the object: opened, made, cut, removed.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nbd_rs_plugin::{
    Error, GetFlags, Got, Host, Kind, Meta, ObjectFlags, ObjectMode, Range, Result,
};
use rustix::fs::Stat;

use crate::{directory, lock};

/// Opens the file at `path` as `mode` says; `make_dirs` for missing directories.
///
/// # Errors
/// What the system says, with the path; [`Kind::Busy`] if a lock was asked for and is taken.
pub fn open(path: &Path, mode: ObjectMode, make_dirs: bool) -> Result<File> {
    let has = |flag| mode.flags.has(flag);
    let failed = |error: std::io::Error| failed(&error, path);
    let writable = has(ObjectFlags::WRITE);
    if has(ObjectFlags::CREATE) {
        match make(path, mode, make_dirs) {
            Err(error) if error.kind == Kind::Exists && !has(ObjectFlags::CREATE_NEW) => {}
            made => return made,
        }
    }
    let mut options = OpenOptions::new();
    // Not blocking: a FIFO must not hold us up before it is recognised.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    options.read(true).write(writable).custom_flags(flags);
    let file = options.open(path).map_err(failed)?;
    prepare(&file, path, mode)?;
    Ok(file)
}

/// Does with an opened file what `mode` asks for besides opening.
///
/// # Errors
/// As [`open`].
pub fn prepare(file: &File, path: &Path, mode: ObjectMode) -> Result<()> {
    let has = |flag| mode.flags.has(flag);
    let failed = |error: std::io::Error| Error::os(&error, path.display());
    check_kind(file, path)?;
    if has(ObjectFlags::LOCK) {
        lock::acquire(file, path, has(ObjectFlags::WRITE))?;
    }
    if has(ObjectFlags::TRUNCATE) {
        if !file.metadata().map_err(failed)?.is_file() {
            let text = format!(
                "{} is a block device: it is served as it is",
                path.display()
            );
            return Err(Error::new(Kind::Invalid, text));
        }
        // Cut to nothing first: what was there must not come back.
        file.set_len(0)
            .and_then(|()| file.set_len(mode.size))
            .map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    Ok(())
}

/// Reads a part of the file.
///
/// # Errors
/// See [`nbd_rs_plugin::Backend::get`].
pub fn get(host: Host, path: &Path, range: Range, flags: GetFlags) -> Result<Got> {
    let file = open(path, ObjectMode::new(ObjectFlags::NONE), false)?;
    let stat = stat(&file, path)?;
    directory::read(host, &file, "", &stat, range, flags)
        .map_err(|error| error.context(path.display()))
}

/// Size and ETag of the file.
///
/// # Errors
/// See [`nbd_rs_plugin::Backend::head`].
pub fn head(path: &Path) -> Result<Meta> {
    let file = open(path, ObjectMode::new(ObjectFlags::NONE), false)?;
    Ok(directory::meta("", &stat(&file, path)?))
}

/// What the kernel knows of the file, with the size that a block device has.
fn stat(mut file: &File, path: &Path) -> Result<Stat> {
    let failed = |error: std::io::Error| Error::os(&error, path.display());
    let mut stat = rustix::fs::fstat(file).map_err(|error| failed(error.into()))?;
    stat.st_size = file.seek(SeekFrom::End(0)).map_err(failed)? as i64;
    Ok(stat)
}

fn failed(error: &std::io::Error, path: &Path) -> Error {
    match error.kind() {
        std::io::ErrorKind::IsADirectory => wrong_kind(path, A_DIRECTORY),
        _ => Error::os(error, path.display()),
    }
}

const A_DIRECTORY: &str = "a directory: the raw layout serves one file or block device";

fn wrong_kind(path: &Path, what: &str) -> Error {
    Error::new(Kind::Invalid, format!("{} is {what}", path.display()))
}

/// That something is there already is told as [`Kind::Exists`] only if it is a file.
fn not_made(error: &std::io::Error, path: &Path) -> Error {
    let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
    match kind {
        Ok(kind) if kind.is_block_device() => {
            wrong_kind(path, "a block device: it is served as it is, without init")
        }
        Ok(kind) if kind.is_dir() => wrong_kind(path, A_DIRECTORY),
        Ok(kind) if !kind.is_file() => wrong_kind(path, "neither a file nor a block device"),
        _ => failed(error, path),
    }
}

fn check_kind(file: &File, path: &Path) -> Result<()> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::os(&error, path.display()))?;
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = match kind.is_dir() {
        true => A_DIRECTORY,
        false => "neither a file nor a block device",
    };
    Err(wrong_kind(path, what))
}

/// Makes the file, durably: itself, its size, and its name in the directory.
fn make(path: &Path, mode: ObjectMode, make_dirs: bool) -> Result<File> {
    let failed = |error: std::io::Error| Error::os(&error, path.display());
    let dir = directory_of(path);
    if make_dirs && !dir.exists() {
        make_directories(&dir)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o644);
    let file = options.open(path).map_err(|error| not_made(&error, path))?;
    let made = (|| {
        if mode.flags.has(ObjectFlags::LOCK) {
            lock::acquire(&file, path, true)?;
        }
        file.set_len(mode.size).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        sync_directory(&dir)
    })();
    if made.is_err() {
        // Half a volume is none. That it can't be removed adds nothing to the error.
        let _ = std::fs::remove_file(path);
    }
    made.map(|()| file)
}

/// Removes the image, if nobody uses it.
///
/// # Errors
/// [`Kind::Busy`] if it is in use, [`Kind::Invalid`] if it is not a file.
pub fn remove(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::os(&error, path.display());
    let link = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(failed)?,
    };
    if link.is_symlink() {
        let target = std::fs::read_link(path).map_err(failed)?;
        let text = format!(
            "{} is a link to {}: destroy that",
            path.display(),
            target.display()
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    if !link.is_file() {
        let what = match link.file_type().is_block_device() {
            true => "a block device",
            false => "not a file",
        };
        let text = format!("{} is {what}, so it is not removed", path.display());
        return Err(Error::new(Kind::Invalid, text));
    }
    let mode = ObjectMode::new(ObjectFlags::WRITE | ObjectFlags::LOCK);
    let file = open(path, mode, false)?;
    let locked = file.metadata().map_err(failed)?;
    if (locked.dev(), locked.ino()) != (link.dev(), link.ino()) {
        let text = format!("{} was replaced meanwhile", path.display());
        return Err(Error::new(Kind::Busy, text));
    }
    std::fs::remove_file(path).map_err(failed)?;
    sync_directory(&directory_of(path))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes the name of a file in `dir` durable.
///
/// # Errors
/// What the system says.
pub fn sync_directory(dir: &Path) -> Result<()> {
    let opened = File::open(dir).and_then(|dir| dir.sync_all());
    opened.map_err(|error| Error::os(&error, format_args!("syncing {}", dir.display())))
}

/// Makes a directory and those above it, durably.
///
/// # Errors
/// What the system says.
pub fn make_directories(dir: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::os(&error, dir.display());
    let above = directory_of(dir);
    if !above.exists() {
        make_directories(&above)?;
    }
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(()) => sync_directory(&above),
    }
}
