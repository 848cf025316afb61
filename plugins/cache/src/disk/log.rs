//! Segments in a directory: appended to, read, and dropped from the oldest on. Blocks: to be called
//! on threads that may.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_rs_plugin::{Error, Kind, Result};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::places::{headers, Place, Places};
use super::record::{self, Names, HEADER};

/// A sixteenth of the room is one segment, within these bounds.
const SEGMENT_MIN: u64 = 1 << 20;
const SEGMENT_MAX: u64 = 256 << 20;
/// And never less than this part of it: every segment is an open file.
const SEGMENT_SHARE_MIN: u64 = 256;

/// The directory and what is known of it.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    limit: u64,
    state: Mutex<State>,
    damaged: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// The lock is held until the last copy of this is dropped.
    lock: Option<Arc<File>>,
    places: Places,
}

fn segment_name(number: u64) -> String {
    format!("segment-{number:016x}")
}

/// The number of one of our files; nothing for a foreign one.
fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

impl Log {
    /// Makes the directory if it is missing, and keeps other processes out of it.
    ///
    /// # Errors
    /// [`Kind::Busy`] if another process has it; [`Kind::Denied`] if others may write it.
    pub fn open(dir: &Path, limit: u64) -> Result<Self> {
        let doing = |what| move |error: io::Error| Error::os(&error, format!("{what} {dir:?}"));
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(dir)
            .map_err(doing("making the cache's directory"))?;
        let meta = dir
            .metadata()
            .map_err(doing("looking at the cache's directory"))?;
        check_owner(dir, &meta)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options
            .open(dir.join("lock"))
            .map_err(doing("opening the lock in"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(busy(dir)),
            Err(error) => return Err(doing("locking")(error.into())),
        }
        Ok(Self {
            dir: dir.to_owned(),
            limit,
            state: Mutex::new(State {
                lock: Some(Arc::new(lock)),
                places: Places::default(),
            }),
            damaged: AtomicU64::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the directory ours for as long as the answer lives; nothing once it is closed.
    fn hold(&self) -> Option<Arc<File>> {
        self.state().lock.clone()
    }

    /// Reads the headers of what is there: one small read for each block. What is torn or foreign
    /// is left out; the last file is cut where it is torn, and appended to.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn scan(&self) -> io::Result<()> {
        let Some(_held) = self.hold() else {
            return Ok(());
        };
        let numbers = self.numbers()?;
        for number in &numbers {
            let is_last = Some(number) == numbers.last();
            if !self.take_in(*number, is_last)? {
                return Ok(());
            }
        }
        self.make_room(0)
    }

    /// The numbers of the files that are ours.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(segment_number);
            let is_file = entry.file_type()?.is_file();
            numbers.extend(number.filter(|_| is_file));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Notes what is in a file of an earlier run. Whether the log is still open.
    fn take_in(&self, number: u64, is_last: bool) -> io::Result<bool> {
        let path = self.dir.join(segment_name(number));
        let file = OpenOptions::new().read(true).write(is_last).open(path)?;
        let mut len = file.metadata()?.len();
        let (found, end) = headers(&file, number, len)?;
        if end < len {
            self.count_damage(&format!("{} from byte {end} on", segment_name(number)));
        }
        if is_last && end < len {
            file.set_len(end)?;
            len = end;
        }
        let mut state = self.state();
        if state.lock.is_none() {
            return Ok(false);
        }
        state.places.add(number, Arc::new(file), len, &found);
        if is_last {
            state.places.active = Some(number);
        }
        Ok(true)
    }

    /// Whether a block is here.
    pub fn holds(&self, version: u64, block: u64) -> bool {
        self.state().places.holds((version, block))
    }

    /// Whether anything of an object is here, of whatever version.
    pub fn knows(&self, object: u64) -> bool {
        self.state().places.knows(object)
    }

    /// Blocks and bytes.
    pub fn usage(&self) -> (usize, u64) {
        let places = &self.state().places;
        (places.len(), places.bytes)
    }

    /// Records so far that were not as they were written.
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    fn count_damage(&self, what: &str) {
        if self.damaged.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("cache: {what} is damaged or torn; it is fetched again");
        } else {
            tracing::debug!("cache: {what} is damaged or torn");
        }
    }

    /// Reads block `block` of an object of `size` bytes; nothing if it is not here, or is not what
    /// it was when it was written.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn read(&self, names: &Names, block: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
        let slot = (names.version, block);
        let found = self.state().places.find(slot);
        let Some((place, file)) = found else {
            return Ok(None);
        };
        let mut record = vec![0; place.len as usize];
        match file.read_exact_at(&mut record, place.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => record.clear(),
            read => read?,
        }
        let bytes = record::verify(&record, names, place.segment, block, size);
        let Some(bytes) = bytes else {
            let name = segment_name(place.segment);
            self.count_damage(&format!("{name} at byte {}", place.offset));
            self.state().places.forget(slot);
            return Ok(None);
        };
        let behind_head = record.len() - bytes.len();
        record.drain(..behind_head);
        Ok(Some(record))
    }

    /// Appends a block, and drops the oldest segments where room is needed.
    ///
    /// # Errors
    /// If the disk is full or fails. Nothing of the block is known then.
    pub fn append(&self, names: &Names, block: u64, size: u64, bytes: &[u8]) -> io::Result<()> {
        let most = (HEADER + names.encoded.len() + bytes.len()) as u64;
        let Some(_held) = self.hold() else {
            return Ok(());
        };
        if self.holds(names.version, block) || most > self.limit / 4 {
            return Ok(());
        }
        let (segment, offset, file) = self.segment_for(most)?;
        let encoded = record::encode(names, segment, block, size, bytes);
        let Some((header, record)) = encoded else {
            return Ok(());
        };
        // Not under the lock: readers go on. There is one writer, so the place is still free.
        file.write_all_at(&record, offset)?;
        let place = Place {
            segment,
            offset,
            len: record.len() as u32,
            object: header.object,
        };
        self.state().places.appended((names.version, block), place);
        Ok(())
    }

    fn segment_bytes(&self) -> u64 {
        let share = (self.limit / 16).clamp(SEGMENT_MIN, SEGMENT_MAX);
        share.max(self.limit / SEGMENT_SHARE_MIN)
    }

    /// The segment that takes `more` bytes, and where in it. A record longer than a segment has one
    /// to itself. Files are made and removed while readers go on; there is one writer.
    fn segment_for(&self, more: u64) -> io::Result<(u64, u64, Arc<File>)> {
        self.make_room(more)?;
        let number = {
            let places = &self.state().places;
            match places.appended_to(more, self.segment_bytes()) {
                Some(found) => return Ok(found),
                None => places.next_number(),
            }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = Arc::new(options.open(self.dir.join(segment_name(number)))?);
        let places = &mut self.state().places;
        places.add(number, file.clone(), 0, &[]);
        places.active = Some(number);
        Ok((number, 0, file))
    }

    /// Drops the oldest segments until `more` bytes fit. The one that is appended to may be it.
    fn make_room(&self, more: u64) -> io::Result<()> {
        let dropped = self.state().places.drop_oldest(self.limit, more);
        for number in dropped {
            match std::fs::remove_file(self.dir.join(segment_name(number))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets other processes in, once what is under way is done. What was appended stays.
    pub fn close(&self) {
        let mut state = self.state();
        state.lock = None;
        state.places = Places::default();
    }
}

fn busy(dir: &Path) -> Error {
    let text = format!("the cache's directory {dir:?} is in use: each cache needs its own");
    Error::new(Kind::Busy, text)
}

/// Sums tell damage, not malice: nobody else may write there.
fn check_owner(dir: &Path, meta: &Metadata) -> Result<()> {
    let text = if meta.uid() != geteuid().as_raw() {
        format!("the cache's directory {dir:?} belongs to another user")
    } else if meta.mode() & 0o022 != 0 {
        format!("others may write to the cache's directory {dir:?}: chmod 700 it")
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Denied, text))
}

#[cfg(test)]
impl Log {
    /// From now on all that is known lies in that file, and is appended there.
    pub(super) fn swap_files(&self, path: &Path) {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = Arc::new(file.unwrap());
        let places = &mut self.state().places;
        for segment in places.segments.values_mut() {
            segment.file = file.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(at: u64) -> Names {
        Names::new("store", &format!("key{at}"), "etag", 4096)
    }

    fn bytes(at: u64, len: usize) -> Vec<u8> {
        (0..len).map(|i| (at as usize + i * 31) as u8).collect()
    }

    fn fill(log: &Log, from: u64, to: u64, len: usize) {
        for at in from..to {
            log.append(&names(at), 0, 9, &bytes(at, len)).unwrap();
        }
    }

    fn readable(log: &Log, to: u64, len: usize) -> Vec<u64> {
        let is_there = |at: &u64| match log.read(&names(*at), 0, 9).unwrap() {
            Some(read) => {
                assert_eq!(read, bytes(*at, len));
                true
            }
            None => false,
        };
        (0..to).filter(is_there).collect()
    }

    #[test]
    fn what_was_appended_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it");
        for round in 0..3u64 {
            let log = Log::open(&path, 64 << 20).unwrap();
            log.scan().unwrap();
            assert_eq!(
                readable(&log, 100, 3000),
                (0..round * 20).collect::<Vec<_>>()
            );
            fill(&log, round * 20, round * 20 + 20, 3000);
            assert!(log.knows(names(round * 20).object) && !log.knows(names(99).object));
            log.close();
        }
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_oldest_make_room_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 4 << 20;
        let log = Log::open(&dir.path().join("d"), limit).unwrap();
        for at in 0..2000 {
            fill(&log, at, at + 1, 8000);
            assert!(log.usage().1 <= limit);
        }
        let on_disk: u64 = fs::read_dir(dir.path().join("d"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(on_disk <= limit && on_disk > limit / 2, "{on_disk}");
        let left = readable(&log, 2000, 8000);
        assert!(left.len() > 250 && left.contains(&1999) && !left.contains(&0));
        // A smaller bound holds from the next start on.
        log.close();
        let log = Log::open(&dir.path().join("d"), 1 << 20).unwrap();
        log.scan().unwrap();
        assert!(log.usage().1 <= 1 << 20);
    }

    #[test]
    fn damage_anywhere_is_a_block_that_is_not_here_never_wrong_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let mut log = Log::open(&path, 64 << 20).unwrap();
        fill(&log, 0, 2, 40);
        let file = path.join(segment_name(0));
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&file, &bad).unwrap();
            // With places from before the damage, and with those found by a scan after it.
            let before = log.damaged();
            assert_eq!(readable(&log, 2, 40).len(), 1, "byte {at}");
            assert_eq!(log.damaged(), before + 1);
            log.close();
            let other = Log::open(&path, 64 << 20).unwrap();
            other.scan().unwrap();
            assert!(readable(&other, 2, 40).len() <= 1);
            assert_eq!(other.damaged(), 1);
            other.close();
            fs::write(&file, &good).unwrap();
            log = Log::open(&path, 64 << 20).unwrap();
            log.scan().unwrap();
        }
    }

    #[test]
    fn after_a_crash_in_the_middle_of_a_record_those_before_it_are_there_and_more_follow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let log = Log::open(&path, 64 << 20).unwrap();
        fill(&log, 0, 2, 40);
        log.close();
        let file = path.join(segment_name(0));
        let good = fs::read(&file).unwrap();
        for cut in 0..good.len() {
            fs::write(&file, &good[..cut]).unwrap();
            let log = Log::open(&path, 64 << 20).unwrap();
            log.scan().unwrap();
            let whole = u64::from(cut >= good.len() / 2);
            assert_eq!(readable(&log, 2, 40), (0..whole).collect::<Vec<_>>());
            fill(&log, 1, 2, 40);
            assert_eq!(readable(&log, 2, 40), (1 - whole..2).collect::<Vec<_>>());
            log.close();
            // However often that happens, it is one file.
            assert!(!path.join(segment_name(1)).exists());
        }
    }

    #[test]
    fn a_record_as_long_as_a_segment_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("d"), 16 << 20).unwrap();
        fill(&log, 0, 8, 3 << 20);
        let left = readable(&log, 8, 3 << 20);
        assert!(left.len() >= 4 && left.contains(&7), "{left:?}");
        assert!(log.usage().1 <= 16 << 20);
    }

    #[test]
    fn large_caches_have_a_bounded_number_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("d"), 1 << 50).unwrap();
        assert!((1_u64 << 50) / log.segment_bytes() <= 256);
        log.close();
        for number in 0..600 {
            fs::write(dir.path().join("d").join(segment_name(number)), "").unwrap();
        }
        let log = Log::open(&dir.path().join("d"), 1 << 50).unwrap();
        log.scan().unwrap();
        assert!(fs::read_dir(dir.path().join("d")).unwrap().count() <= 513);
    }

    #[test]
    fn foreign_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let log = Log::open(&path, 1 << 20).unwrap();
        fill(&log, 0, 5, 100);
        log.close();
        fs::copy(path.join(segment_name(0)), path.join("segment-7")).unwrap();
        fs::copy(path.join(segment_name(0)), path.join(segment_name(7))).unwrap();
        fs::write(path.join("notes"), b"mine").unwrap();
        fs::create_dir(path.join(segment_name(9))).unwrap();
        let log = Log::open(&path, 1 << 20).unwrap();
        log.scan().unwrap();
        assert_eq!(readable(&log, 9, 100).len(), 5);
        fill(&log, 100, 400, 8000);
        assert_eq!(fs::read(path.join("notes")).unwrap(), b"mine");
        assert!(path.join("segment-7").exists());
    }

    #[test]
    fn one_directory_is_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let log = Log::open(&path, 1 << 20).unwrap();
        assert_eq!(Log::open(&path, 1 << 20).unwrap_err().kind, Kind::Busy);
        log.close();
        assert!(Log::open(&path, 1 << 20).is_ok());
        let open: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&path, open).unwrap();
        assert_eq!(Log::open(&path, 1 << 20).unwrap_err().kind, Kind::Denied);
        if geteuid().is_root() {
            let open: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(&path, open).unwrap();
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert_eq!(Log::open(&path, 1 << 20).unwrap_err().kind, Kind::Denied);
        }
    }
}
