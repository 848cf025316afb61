//! A directory of objects: what all operations share, and those that read one object.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    Bytes, CapabilityFlags, Data, Error, GetFlags, Got, Host, Kind, Meta, OpenFlags, Piece, Range,
    Result,
};
use rustix::fs::{fstat, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::gate::Gate;
use crate::names::Name;
use crate::root::{failed, is_kind, Root};
use crate::{io, room, single, temporary};

/// Reads up to this size are answered on the spot when they are in memory, in bytes.
const INLINE_READ_BYTES: u64 = 1 << 20;
/// The largest piece of an answer, in bytes: the host lends no larger buffers than 1 GiB.
const PIECE_BYTES: u64 = 32 << 20;
/// So many directories are remembered as durable; then all are forgotten.
const KNOWN_DIRECTORIES: usize = 4096;
/// How often a small object is read again because it was replaced meanwhile.
const READS: usize = 8;

/// An opened directory of objects.
///
/// A handle of an open file is not kept from one `get` to the next. It could be kept right: a look
/// at the name tells whether it still stands for that file. That look is 3 of the 12 microseconds
/// that opening costs, but it may wait for the disk where a `try_get` must not, and the handle of an
/// object that was deleted keeps its space. Who reads an object often opens it in place.
#[derive(Debug)]
pub struct Directory {
    pub(crate) root: Root,
    /// For changes; none where only reads are allowed.
    gate: Option<Gate>,
    durability: Mutex<Durability>,
    /// Room for small objects is kept, as far as is known.
    has_room: AtomicBool,
}

/// What is known of the directories' own entries.
#[derive(Debug, Default)]
struct Durability {
    /// Their names are durable: device-unique number and name.
    named: HashSet<(u64, String)>,
    /// A sync of theirs has failed. The kernel tells that once and then takes the entries for
    /// clean, so that no later sync can be believed.
    failed: HashSet<String>,
}

impl Directory {
    /// Opens it; with [`OpenFlags::WRITE`] what was cut off before is removed, with
    /// [`OpenFlags::CREATE`] too it is made if it is missing.
    ///
    /// # Errors
    /// What the system says; [`Kind::NotFound`] if there is no such directory.
    pub fn open(path: &Path, flags: OpenFlags) -> Result<Self> {
        let writable = flags.has(OpenFlags::WRITE);
        if writable && flags.has(OpenFlags::CREATE) && !path.exists() {
            single::make_directories(path)?;
        }
        let root = Root::open(path).map_err(|mut error| {
            // No object was looked for, but the store itself: that is not there.
            if error.errno == Errno::NOENT.raw_os_error() {
                error.kind = Kind::NotFound;
            }
            error
        })?;
        let mut gate = None;
        if writable {
            let own = root.directory("").map_err(|e| failed(e, path.display()))?;
            gate = Some(Gate::new(own)?);
            temporary::clean(&root)?;
        }
        Ok(Self {
            root,
            gate,
            durability: Mutex::default(),
            has_room: AtomicBool::new(false),
        })
    }

    /// What this directory promises.
    pub fn capabilities(&self) -> CapabilityFlags {
        use CapabilityFlags as Flags;
        let reads = Flags::IN_PLACE | Flags::STRONG_READ_AFTER_WRITE | Flags::RANGED_GET;
        let writes = Flags::WRITABLE | Flags::DURABLE_ON_ACK | Flags::IF_ABSENT;
        match &self.gate {
            None => reads,
            Some(gate) if !gate.works() => reads | writes,
            Some(_) => reads | writes | Flags::IF_MATCH,
        }
    }

    /// The gate that changes pass.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] if there are none.
    pub(crate) fn gate(&self) -> Result<&Gate> {
        self.gate.as_ref().ok_or_else(|| Error::read_only("file"))
    }

    /// The path of an object, for messages.
    pub fn path_of(&self, name: &Name) -> PathBuf {
        self.root.path_of(name.as_str())
    }

    /// Opens an object, and looks at it.
    pub(crate) fn object(&self, name: &Name, flags: OFlags) -> Result<(File, Stat)> {
        let file = match self.root.lookup(name.as_str(), flags) {
            // ENOTDIR: what would be its directory is an object, so it can't be there.
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(self.root.missing(name.as_str())),
            // Writing to a directory.
            Err(Errno::ISDIR) => return Err(self.root.missing(name.as_str())),
            opened => opened.map_err(|error| self.root.failed(error, name.as_str()))?,
        };
        let stat = fstat(&file).map_err(|error| self.root.failed(error, name.as_str()))?;
        if is_kind(&stat, FileType::Directory) {
            return Err(self.root.missing(name.as_str()));
        }
        if is_kind(&stat, FileType::Symlink) {
            return Err(self.root.failed(Errno::LOOP, name.as_str()));
        }
        if !is_kind(&stat, FileType::RegularFile) {
            let text = format!("{} is not a regular file", self.path_of(name).display());
            return Err(Error::new(Kind::Invalid, text));
        }
        Ok((file.into(), stat))
    }

    /// Reads a part of an object.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::get`].
    pub fn get(&self, host: Host, name: &Name, range: Range, flags: GetFlags) -> Result<Got> {
        let named = |error: Error| error.context(self.path_of(name).display());
        for _ in 1..READS {
            let (file, stat) = self.object(name, OFlags::RDONLY)?;
            let got = read(host, &file, name.as_str(), &stat, range, flags);
            if self.is_still(name, &stat) {
                return got.map_err(named);
            }
        }
        let (file, stat) = self.object(name, OFlags::RDONLY)?;
        read(host, &file, name.as_str(), &stat, range, flags).map_err(named)
    }

    /// Whether what was read of a file is one object's. That of a small object that was replaced may
    /// be the room that another is written to.
    pub(crate) fn is_still(&self, name: &Name, stat: &Stat) -> bool {
        if stat.st_size as u64 > room::MOST_BYTES {
            return true;
        }
        let now = self.root.lookup(name.as_str(), OFlags::PATH);
        now.and_then(fstat)
            .is_ok_and(|now| etag(&now) == etag(stat))
    }

    /// Reads a part of an object if all of it, and the way to it, is in memory.
    pub fn get_now(
        &self,
        host: Host,
        name: &Name,
        range: Range,
        flags: GetFlags,
    ) -> Option<Result<Got>> {
        let file = File::from(self.root.lookup_now(name.as_str(), OFlags::RDONLY)?);
        let stat = fstat(&file).ok()?;
        if !is_kind(&stat, FileType::RegularFile) {
            return None;
        }
        let range = match range.within(stat.st_size as u64) {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        };
        if range.len() as u64 > INLINE_READ_BYTES {
            return None;
        }
        let mut data = Data::from(Bytes::from(Vec::new()));
        if !range.is_empty() {
            let mut buf = host.buf(range.len());
            io::read_now(&file, &mut buf, range.start as u64)?;
            data = buf.freeze().into();
        }
        if !self.is_still(name, &stat) {
            return None;
        }
        Some(Ok(got(data, name.as_str(), &stat, flags)))
    }

    /// Size and ETag of an object.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::head`].
    pub fn head(&self, name: &Name) -> Result<Meta> {
        let (_, stat) = self.object(name, OFlags::PATH)?;
        Ok(meta(name.as_str(), &stat))
    }

    /// Opens the directory of an object, made with those above it if it is missing: their names
    /// are durable then.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn parent(&self, name: &Name) -> Result<File> {
        let directory = name.directory();
        let synced = |name: &str, above: &File| self.sync_opened(name, above);
        let parent = self.root.make_directory(directory, &synced)?;
        if directory.is_empty() {
            return Ok(parent);
        }
        // Another process may have made it, and not have come as far as syncing its name.
        let number = fstat(&parent).map_err(|error| self.root.failed(error, directory))?;
        let known = (number.st_ino, directory.to_owned());
        if self.durability().named.contains(&known) {
            return Ok(parent);
        }
        let mut above = directory;
        while !above.is_empty() {
            above = crate::names::directory_of(above);
            self.sync(above)?;
        }
        let mut durability = self.durability();
        if durability.named.len() >= KNOWN_DIRECTORIES {
            durability.named.clear();
        }
        durability.named.insert(known);
        Ok(parent)
    }

    fn durability(&self) -> std::sync::MutexGuard<'_, Durability> {
        self.durability
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// The system's; from the first on always, for that directory.
    pub(crate) fn sync(&self, directory: &str) -> Result<()> {
        match self.root.directory(directory) {
            Ok(opened) => self.sync_opened(directory, &opened),
            Err(error) => Err(self.root.failed(error, directory)),
        }
    }

    /// As [`sync`](Self::sync), of a directory that is open.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn sync_opened(&self, directory: &str, opened: &File) -> Result<()> {
        let path = self.root.path_of(directory);
        if self.durability().failed.contains(directory) {
            let text = format!("a sync of {} has failed before", path.display());
            return Err(Error::new(Kind::Io, text));
        }
        opened.sync_all().map_err(|error| {
            self.durability().failed.insert(directory.to_owned());
            Error::os(&error, format_args!("syncing {}", path.display()))
        })
    }

    /// Keeps room for small objects that are replaced when the disk is full.
    ///
    /// # Errors
    /// If the gate can't be passed. That there is no room to be kept is only said.
    pub(crate) fn keep_room(&self) -> Result<()> {
        if self.has_room.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _held = self.gate()?.enter()?;
        match room::keep(&self.root) {
            Ok(()) => self.has_room.store(true, Ordering::Relaxed),
            Err(error) => {
                let path = self.root.path_of("");
                tracing::debug!("{}: no room can be kept: {error}", path.display());
            }
        }
        Ok(())
    }

    /// It has other files now, which may be smaller.
    pub(crate) fn room_was_used(&self) {
        self.has_room.store(false, Ordering::Relaxed);
    }

    /// Forgets a directory that was removed: one of that name is another.
    pub(crate) fn forget(&self, directory: &str) {
        let mut durability = self.durability();
        durability.named.retain(|(_, name)| name != directory);
    }

    /// Makes durable all that was acknowledged: it is, so this only looks for failed syncs.
    ///
    /// # Errors
    /// If the directory itself is gone.
    pub fn flush(&self) -> Result<()> {
        self.root.check_linked()
    }

    /// The last call.
    pub fn close(&self) {
        let Some(gate) = &self.gate else {
            return;
        };
        if let Ok(_held) = gate.enter() {
            room::give_back(&self.root);
        }
        temporary::tidy(&self.root);
    }
}

/// Reads a part of an opened object.
///
/// # Errors
/// [`Kind::Invalid`] for a range outside of it, and the system's.
pub fn read(
    host: Host,
    file: &File,
    key: &str,
    stat: &Stat,
    range: Range,
    flags: GetFlags,
) -> Result<Got> {
    let range = range.within(stat.st_size as u64)?;
    let (mut at, end) = (range.start as u64, range.end as u64);
    let mut pieces = Vec::new();
    while at < end {
        let len = (end - at).min(PIECE_BYTES);
        let mut buf = host.buf(len as usize);
        io::read_full(file, &mut buf, at)?;
        pieces.push(Piece::Bytes(buf.freeze()));
        at += len;
    }
    let data = match pieces.len() {
        0 => Bytes::from(Vec::new()).into(),
        1 => Data::One(pieces.remove(0)),
        _ => Data::Many(pieces.into()),
    };
    Ok(got(data, key, stat, flags))
}

fn got(data: Data, key: &str, stat: &Stat, flags: GetFlags) -> Got {
    let mut got = Got::new(data);
    if flags.has(GetFlags::WANT_META) {
        got.meta = ROption::RSome(meta(key, stat));
    }
    got
}

/// What the kernel says of a file, as an object's.
pub fn meta(key: &str, stat: &Stat) -> Meta {
    let millis = stat.st_mtime as i128 * 1000 + stat.st_mtime_nsec as i128 / 1_000_000;
    Meta {
        etag: etag(stat).into(),
        modified_ms: u64::try_from(millis).unwrap_or(0),
        ..Meta::new(key, stat.st_size as u64)
    }
}

/// Tells the contents of one name apart: the file's number, length and time of last change.
///
/// Every put makes a file of its own and stamps it with the clock's nanoseconds, so no two puts
/// share one where the file system keeps nanoseconds. Writes in place are stamped by the kernel,
/// which may give two within a tick of its clock (10 ms at most) the same.
pub fn etag(stat: &Stat) -> String {
    format!(
        "{:x}-{:x}-{:x}.{:09}",
        stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec
    )
}
