//! A disk that keeps every write and every sync, fails when told to, and can say what a loss of
//! power would have left at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use nbd_rs_journal::disk::{Disk, DiskFile};
use nbd_rs_journal::format::superblock::FileIdentity;

/// What every disk writes whole or not at all.
const SECTOR: usize = 512;

/// A source of random numbers; the same ones make the same losses.
pub type Random<'a> = &'a mut dyn FnMut() -> u64;

type FileId = u64;

#[derive(Clone)]
enum Op {
    Create {
        name: String,
        file: FileId,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    SyncNames,
    Write {
        file: FileId,
        offset: u64,
        bytes: Vec<u8>,
    },
    Sync {
        file: FileId,
    },
    /// What was pending may have reached the disk or not, and no later sync will tell.
    FailedSync {
        file: FileId,
    },
}

/// The calls of a kind that fail next.
#[derive(Debug, Default, Clone, Copy)]
pub struct Faults {
    /// Syncs of a file.
    pub syncs: u32,
    /// Writes.
    pub writes: u32,
    /// New files.
    pub creates: u32,
    /// Syncs of the directory.
    pub name_syncs: u32,
    /// The errno of the failing calls; 0 is EIO.
    pub errno: i32,
    /// Syncs that say they did it, and did not.
    pub lies: u32,
}

type Hook = Box<dyn FnMut() + Send>;

/// What is on the disk when nobody runs.
#[derive(Clone, Default)]
pub struct Image {
    /// Which file has which name.
    pub names: BTreeMap<String, FileId>,
    files: BTreeMap<FileId, Arc<Vec<u8>>>,
}

impl Image {
    /// The bytes of the file of that name.
    pub fn file(&mut self, name: &str) -> &mut Vec<u8> {
        let file = self.files.get_mut(&self.names[name]);
        Arc::make_mut(file.expect("a file"))
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let content = Arc::make_mut(self.files.entry(file).or_default());
        let start = offset as usize;
        if content.len() < start + bytes.len() {
            content.resize(start + bytes.len(), 0);
        }
        content[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write {
                file,
                offset,
                bytes,
            } => self.write(*file, *offset, bytes),
            Op::Create { name, file } => {
                self.names.insert(name.clone(), *file);
                self.files.entry(*file).or_default();
            }
            Op::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Op::Remove { name } => drop(self.names.remove(name)),
            _ => {}
        }
    }
}

#[derive(Default)]
struct Inner {
    base: Image,
    ops: Vec<Op>,
    /// What a process sees: the page cache.
    now: Image,
    next_file: FileId,
    locks: BTreeSet<String>,
    faults: Faults,
    syncs: u64,
    /// Reads that still work, if not all do.
    reads_left: Option<u32>,
    /// Called once, in the middle of the next sync.
    in_next_sync: Option<Hook>,
    /// The same when a file is made.
    in_next_create: Option<Hook>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Inner>>);

impl Recorder {
    /// A machine that starts with this disk.
    pub fn start(image: Image) -> Self {
        let next_file = image.files.keys().max().map_or(1, |last| last + 1);
        Self(Arc::new(Mutex::new(Inner {
            now: image.clone(),
            base: image,
            next_file,
            ..Inner::default()
        })))
    }

    /// It, as the journal sees it.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// How many calls were kept so far: a moment to crash at.
    pub fn moment(&self) -> usize {
        self.inner().ops.len()
    }

    /// Syncs of files that were asked for.
    pub fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    /// Has calls fail from now on.
    pub fn fail(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// Reads fail from now on, but for that many.
    pub fn fail_reads_after(&self, reads: u32) {
        self.inner().reads_left = Some(reads);
    }

    /// Does this in the middle of the next sync.
    pub fn in_next_sync(&self, hook: impl FnMut() + Send + 'static) {
        self.inner().in_next_sync = Some(Box::new(hook));
    }

    /// Does this when the next file is made.
    pub fn in_next_create(&self, hook: impl FnMut() + Send + 'static) {
        self.inner().in_next_create = Some(Box::new(hook));
    }

    /// What is there after the process died at that moment: everything that it did.
    pub fn killed(&self, moment: usize) -> Image {
        let inner = self.inner();
        let mut image = inner.base.clone();
        for op in &inner.ops[..moment] {
            image.apply(op);
        }
        image
    }

    /// The same machine after the process died at that moment. What was not synced may still be
    /// lost with the power; that a sync failed is not told again.
    pub fn after_kill(&self, moment: usize) -> Self {
        let now = self.killed(moment);
        let inner = self.inner();
        Self(Arc::new(Mutex::new(Inner {
            base: inner.base.clone(),
            ops: inner.ops[..moment].to_vec(),
            next_file: now.files.keys().max().map_or(1, |last| last + 1),
            now,
            ..Inner::default()
        })))
    }

    /// What is there after the machine lost power at that moment: what was synced, and of the
    /// rest any part.
    pub fn power_cut(&self, moment: usize, rng: Random<'_>) -> Image {
        self.cut(moment, How::any, rng)
    }

    /// The same now, and nothing is kept that was not synced.
    pub fn power_cut_at_its_worst(&self) -> Image {
        self.cut(self.moment(), |_| How::NOTHING, &mut || 0)
    }

    fn cut(&self, moment: usize, how: fn(Random<'_>) -> How, rng: Random<'_>) -> Image {
        let inner = self.inner();
        let mut cut = Cut {
            image: inner.base.clone(),
            writes: Vec::new(),
            names: Vec::new(),
            how,
        };
        for op in &inner.ops[..moment] {
            cut.follow(op, rng);
        }
        let how = how(rng);
        for op in std::mem::take(&mut cut.writes) {
            cut.keep_some(&op, how, rng);
        }
        for op in &cut.names {
            if how.keeps(rng) {
                cut.image.apply(op);
            }
        }
        cut.image
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn keep(&self, op: Op) {
        let mut inner = self.inner();
        inner.now.apply(&op);
        inner.ops.push(op);
    }

    fn fails(&self, which: impl Fn(&mut Faults) -> &mut u32) -> io::Result<()> {
        let mut inner = self.inner();
        let left = which(&mut inner.faults);
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        let errno = inner.faults.errno;
        Err(io::Error::from_raw_os_error(if errno == 0 {
            5
        } else {
            errno
        }))
    }
}

/// How much of what was not synced is kept, of 4.
#[derive(Clone, Copy)]
struct How {
    kept: u64,
    /// A sector that is not kept may be spoilt: the power went while it was written.
    spoils: bool,
}

impl How {
    const EVERYTHING: How = How {
        kept: 4,
        spoils: false,
    };
    const NOTHING: How = How {
        kept: 0,
        spoils: false,
    };

    fn any(rng: Random<'_>) -> Self {
        Self {
            kept: rng() % 5,
            spoils: true,
        }
    }

    fn keeps(self, rng: Random<'_>) -> bool {
        rng() % 4 < self.kept
    }

    fn spoils(self, rng: Random<'_>) -> bool {
        self.spoils && rng().is_multiple_of(16)
    }
}

/// The disk while the calls are gone over.
struct Cut {
    image: Image,
    writes: Vec<Op>,
    names: Vec<Op>,
    how: fn(Random<'_>) -> How,
}

impl Cut {
    fn follow(&mut self, op: &Op, rng: Random<'_>) {
        match op {
            Op::Write { .. } => self.writes.push(op.clone()),
            Op::Sync { file } => {
                for op in self.take_writes(*file) {
                    self.keep_some(&op, How::EVERYTHING, rng);
                }
            }
            Op::FailedSync { file } => {
                let how = (self.how)(rng);
                for op in self.take_writes(*file) {
                    self.keep_some(&op, how, rng);
                }
            }
            Op::SyncNames => {
                for op in std::mem::take(&mut self.names) {
                    self.image.apply(&op);
                }
            }
            names => self.names.push(names.clone()),
        }
    }

    fn take_writes(&mut self, of: FileId) -> Vec<Op> {
        let all = std::mem::take(&mut self.writes);
        let (taken, left) = all
            .into_iter()
            .partition(|op| matches!(op, Op::Write { file, .. } if *file == of));
        self.writes = left;
        taken
    }

    /// Keeps a write, or loses it, or tears it between sectors.
    fn keep_some(&mut self, op: &Op, how: How, rng: Random<'_>) {
        let Op::Write {
            file,
            offset,
            bytes,
        } = op
        else {
            return;
        };
        let whole = rng().is_multiple_of(2);
        if whole {
            if how.keeps(rng) {
                self.image.write(*file, *offset, bytes);
            }
            return;
        }
        let mut at = 0;
        while at < bytes.len() {
            let sector = SECTOR - (*offset as usize + at) % SECTOR;
            let end = bytes.len().min(at + sector);
            let place = *offset + at as u64;
            if how.keeps(rng) {
                self.image.write(*file, place, &bytes[at..end]);
            } else if how.spoils(rng) {
                let noise: Vec<u8> = (at..end).map(|_| rng() as u8).collect();
                self.image.write(*file, place, &noise);
            }
            at = end;
        }
    }
}

struct Lock(Recorder, String);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.inner().locks.remove(&self.1);
    }
}

impl Disk for Recorder {
    fn lock(&self, name: &str) -> io::Result<Box<dyn Send + Sync>> {
        match self.inner().locks.insert(name.to_owned()) {
            true => Ok(Box::new(Lock(self.clone(), name.to_owned()))),
            false => Err(io::Error::new(ErrorKind::WouldBlock, "another process")),
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().now.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let hook = self.inner().in_next_create.take();
        if let Some(mut hook) = hook {
            hook();
        }
        self.fails(|faults| &mut faults.creates)?;
        if self.inner().now.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let file = self.inner().next_file;
        self.inner().next_file += 1;
        let name = name.to_owned();
        self.keep(Op::Create { name, file });
        Ok(Arc::new(Recorded(self.clone(), file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.inner().now.names.get(name) {
            Some(file) => Ok(Arc::new(Recorded(self.clone(), *file))),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.keep(Op::Rename { from, to });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let name = name.to_owned();
        if !self.inner().now.names.contains_key(&name) {
            return Err(ErrorKind::NotFound.into());
        }
        self.keep(Op::Remove { name });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.fails(|faults| &mut faults.name_syncs)?;
        self.keep(Op::SyncNames);
        Ok(())
    }
}

struct Recorded(Recorder, FileId);

impl DiskFile for Recorded {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.0.inner();
        match &mut inner.reads_left {
            Some(0) => return Err(io::Error::from_raw_os_error(5)),
            Some(left) => *left -= 1,
            None => {}
        }
        let content = &inner.now.files[&self.1];
        let range = offset as usize..offset as usize + buffer.len();
        let bytes = content.get(range).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let file = self.1;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let failed = self.0.fails(|faults| &mut faults.writes);
        // One that fails may have written a part.
        let len = if failed.is_err() {
            bytes.len() / 2
        } else {
            bytes.len()
        };
        let bytes = bytes[..len].to_vec();
        self.0.keep(Op::Write {
            file,
            offset,
            bytes,
        });
        failed
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        self.write_at(0, &[IoSlice::new(&vec![0; bytes as usize])])
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.inner().syncs += 1;
        let file = self.1;
        let hook = self.0.inner().in_next_sync.take();
        // What comes while it runs is not covered.
        let moment = self.0.moment();
        if let Some(mut hook) = hook {
            hook();
        }
        if self.0.fails(|faults| &mut faults.lies).is_err() {
            return Ok(());
        }
        let failed = self.0.fails(|faults| &mut faults.syncs);
        let op = match failed {
            Ok(()) => Op::Sync { file },
            Err(_) => Op::FailedSync { file },
        };
        self.0.inner().ops.insert(moment, op);
        failed
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.inner().now.files[&self.1].len() as u64)
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        Ok(FileIdentity {
            inode: self.1,
            born_ns: 1,
        })
    }
}
