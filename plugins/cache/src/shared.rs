//! What all calls of one link share, and what they do to the copies.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    Body, Bytes, Data, Error, GetFlags, Got, Host, Kind, Meta, Next, Piece, Range, Result,
};

use crate::config::Config;
use crate::disk::Disk;
use crate::flight::Fetched;
use crate::grid::{Chunk, Grid};
use crate::habit::Habit;
use crate::index::{Index, Object, Outcome, Version};
use crate::memory::{BlockKey, Memory};

/// Blocks of one forgotten object that are removed at once; the others leave in their turn.
const REMOVED_AT_ONCE: u64 = 4096;

/// One opened link.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) inner: Next,
    pub(crate) config: Config,
    pub(crate) grid: Grid,
    pub(crate) index: Index,
    pub(crate) memory: Memory,
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) counters: Counters,
    /// Bytes that are being fetched ahead of readers.
    pub(crate) ahead: AtomicU64,
    /// Whether objects that are asked for once are asked for again.
    pub(crate) habit: Mutex<Habit>,
    /// The size of the object seen last: others are often as large.
    pub(crate) usual_size: AtomicU64,
    /// Whether `get` with a range fetches less than the whole object.
    pub(crate) ranged: bool,
    /// Whether an answer came without an ETag.
    versionless: AtomicBool,
}

/// Part of an object as a look at the store found it.
#[derive(Debug)]
pub(crate) struct Brought {
    /// When the look began; see [`Index::tick`].
    pub(crate) began: u64,
    /// Where in the object the bytes begin.
    pub(crate) start: u64,
    pub(crate) data: Data,
}

/// What becomes of a block that is held when it is fetched again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Copies {
    /// It stays, and being fetched with others does not make it more worth keeping.
    Add,
    /// It is replaced: who asks the store again may have found it damaged.
    Renew,
}

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) fetches: AtomicU64,
    pub(crate) ahead: AtomicU64,
    pub(crate) passed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(
        host: Host,
        config: Config,
        inner: Next,
        disk: Option<Arc<Disk>>,
    ) -> Arc<Self> {
        let grid = Grid::new(config.block);
        let for_index = config.for_index();
        let ranged = nbd_rs_plugin::CapabilityFlags::RANGED_GET;
        Arc::new(Self {
            host,
            grid,
            disk,
            index: Index::new(for_index),
            memory: Memory::new(config.size - for_index, grid),
            counters: Counters::default(),
            ahead: AtomicU64::new(0),
            habit: Mutex::default(),
            usual_size: AtomicU64::new(0),
            ranged: inner.capabilities().has(ranged),
            versionless: AtomicBool::new(false),
            inner,
            config,
        })
    }

    /// Asks the backend, and keeps what it answered: whole blocks, in memory of their own.
    pub(crate) async fn fetch(
        &self,
        key: &str,
        object: &Arc<Object>,
        range: Range,
    ) -> Result<Fetched> {
        let began = self.index.tick();
        Counters::add(&self.counters.fetches);
        let got = self.inner.get(key, range, GetFlags::WANT_META).await;
        let got = self.noticed(key, object, got)?;
        let Some(version) = self.version_of(&got.meta) else {
            return Ok(unknown_version(range, got.data));
        };
        check(range, &version, &got.data)?;
        self.usual_size.store(version.size, Ordering::Relaxed);
        let brought = Brought {
            began,
            start: range.offset,
            data: got.data,
        };
        Ok(self.keep(key, object, version, brought, Copies::Add))
    }

    /// Keeps what a look at the store brought.
    pub(crate) fn keep(
        &self,
        key: &str,
        object: &Arc<Object>,
        version: Version,
        brought: Brought,
        copies: Copies,
    ) -> Fetched {
        let Brought { began, start, data } = brought;
        let target = self.observe(key, object, &version, began);
        let target = target.filter(|_| data.len() <= self.config.largest_fill());
        let chunks = target.and_then(|target| {
            let chunks = self.grid.cut(start, &data, version.size)?;
            self.insert(key, &target, &chunks, copies);
            Some(chunks)
        });
        let pieces = match chunks {
            Some(chunks) => chunks.into_iter().map(|chunk| chunk.bytes).collect(),
            None => memory_pieces(data),
        };
        Fetched {
            version: Some(version),
            start,
            pieces,
        }
    }

    fn insert(&self, key: &str, object: &Object, chunks: &[Chunk], copies: Copies) {
        let disk = self.disk.as_ref().filter(|disk| disk.is_on());
        let disk = disk.zip(object.version.get());
        let disk = disk.map(|(disk, version)| (disk, disk.names(key, version), version.size));
        for chunk in chunks.iter().filter(|chunk| chunk.whole) {
            match copies {
                Copies::Add => self.hold_new(object, chunk.block, &chunk.bytes),
                Copies::Renew => self.hold(object, chunk.block, chunk.bytes.clone()),
            }
            if let Some((disk, names, size)) = &disk {
                disk.offer(names, chunk.block, *size, &chunk.bytes);
            }
        }
    }

    /// Keeps a block in memory.
    fn hold(&self, object: &Object, block: u64, bytes: Bytes) {
        let object = object.id;
        self.memory.insert(BlockKey { object, block }, bytes);
    }

    /// Keeps a block in memory if it is not there.
    pub(crate) fn hold_new(&self, object: &Object, block: u64, bytes: &Bytes) {
        let key = BlockKey {
            object: object.id,
            block,
        };
        if self.memory.pass(key).is_none() {
            self.memory.insert(key, bytes.clone());
        }
    }

    /// Notes which version was seen. Where its bytes may be kept.
    pub(crate) fn observe(
        &self,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        began: u64,
    ) -> Option<Arc<Object>> {
        let (target, replaced) = self.index.observe(key, object, version, began);
        if let Some(replaced) = replaced {
            self.bury(&replaced);
        }
        target
    }

    /// Passes an answer through. If there is no such object, or none with that range, then what is
    /// known of it is wrong.
    pub(crate) fn noticed<T>(
        &self,
        key: &str,
        object: &Arc<Object>,
        answer: Result<T>,
    ) -> Result<T> {
        let wrong = match &answer {
            Ok(_) => false,
            Err(error) if error.kind == Kind::Invalid => object.version.get().is_some(),
            Err(error) => error.kind == Kind::NotFound,
        };
        if wrong {
            self.index.forget(key, object);
            self.bury(object);
        }
        answer
    }

    /// The version in an answer. Without an ETag versions can't be told apart, so nothing is kept.
    pub(crate) fn version_of(&self, meta: &ROption<Meta>) -> Option<Version> {
        let version = match meta {
            ROption::RSome(meta) => Version::of(meta),
            ROption::RNone => None,
        };
        if version.is_none() && !self.versionless.swap(true, Ordering::Relaxed) {
            tracing::warn!("the backend behind the cache gives no ETags: nothing is kept");
        }
        version
    }

    /// Whether the backend gives no ETags, so that nothing can be kept.
    pub(crate) fn versionless(&self) -> bool {
        self.versionless.load(Ordering::Relaxed)
    }

    /// Gives back the memory of an object that left the index.
    pub(crate) fn bury(&self, object: &Object) {
        let Some(version) = object.version.get() else {
            return;
        };
        let blocks = self.grid.blocks(&(0..version.size));
        for block in blocks.take(REMOVED_AT_ONCE as usize) {
            let object = object.id;
            self.memory.remove(BlockKey { object, block });
        }
    }

    /// A change of this name begins; it ends when the value is dropped.
    pub(crate) fn change(self: &Arc<Self>, key: &str) -> Changing {
        if let Some(object) = self.index.begin(key) {
            self.bury(&object);
        }
        Changing {
            shared: self.clone(),
            key: key.to_owned(),
            outcome: Outcome::Unknown,
            body: None,
        }
    }

    pub(crate) fn log_summary(&self) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (hits, misses) = (count(&self.counters.hits), count(&self.counters.misses));
        let (fetches, ahead) = (count(&self.counters.fetches), count(&self.counters.ahead));
        let passed = count(&self.counters.passed);
        let disk = self.disk.as_ref();
        let (from_disk, damaged) = disk.map_or((0, 0), |disk| (count(&disk.hits), disk.damaged()));
        let used = (self.memory.used_bytes() + self.index.used_bytes()) >> 10;
        tracing::info!(
            "cache: {hits} hits, {misses} misses, {passed} passed through, {fetches} fetches ({ahead} ahead of readers), {from_disk} blocks from disk ({damaged} damaged there), {used} KiB in use"
        );
    }
}

/// An answer must be all that was asked for, of an object of the size that it came with: a short
/// one would stay and be lent again and again.
pub(crate) fn check(range: Range, version: &Version, data: &Data) -> Result<()> {
    let expected = range.within(version.size).map(|bytes| bytes.len() as u64);
    match expected {
        Ok(expected) if expected == data.len() => Ok(()),
        _ => Err(Error::new(
            Kind::Corrupt,
            format!(
                "{} bytes came for {range:?} of an object of {} bytes",
                data.len(),
                version.size
            ),
        )),
    }
}

/// What came from a store that does not say which version it is.
pub(crate) fn unknown_version(range: Range, data: Data) -> Fetched {
    Fetched {
        version: None,
        start: range.offset,
        pieces: memory_pieces(data),
    }
}

/// Nothing but memory comes by name; anything else is left out, and missed by whoever needs it.
fn memory_pieces(data: Data) -> Vec<Bytes> {
    let pieces = match data {
        Data::One(piece) => vec![piece],
        Data::Many(pieces) => pieces.into(),
    };
    let memory = |piece| match piece {
        Piece::Bytes(bytes) => Some(bytes),
        Piece::Hole(_) | Piece::Mapped(_) => None,
    };
    pieces.into_iter().map_while(memory).collect()
}

/// The answer that is made of these pieces.
pub(crate) fn answer(pieces: Vec<Piece>, meta: Option<Meta>) -> Got {
    Got {
        data: joined(pieces),
        meta: meta.into(),
    }
}

pub(crate) fn joined(mut pieces: Vec<Piece>) -> Data {
    match pieces.len() {
        1 => Data::One(pieces.remove(0)),
        0 => Bytes::from(Vec::new()).into(),
        _ => Data::Many(pieces.into()),
    }
}

/// A change under way. Dropped without an outcome it is one of unknown outcome.
#[derive(Debug)]
pub(crate) struct Changing {
    shared: Arc<Shared>,
    key: String,
    outcome: Outcome,
    body: Option<Body>,
}

impl Changing {
    /// It ended with `result`.
    pub(crate) fn ended<T>(mut self, result: &Result<T>) {
        self.outcome = match result {
            Ok(_) => Outcome::Done(None),
            Err(error) => Outcome::of_error(error.kind),
        };
    }

    /// These bytes were stored under this ETag.
    pub(crate) fn stored(mut self, etag: &str, body: Body) {
        let size = body.len();
        let keep = self.shared.config.put && size <= self.shared.config.largest_fill();
        let version = (!etag.is_empty() && keep).then(|| Version {
            etag: etag.into(),
            size,
            modified_ms: 0,
        });
        self.outcome = Outcome::Done(version);
        self.body = Some(body);
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Outcome::Unknown);
        let object = self.shared.index.end(&self.key, outcome);
        let (Some(object), Some(body)) = (object, self.body.take()) else {
            return;
        };
        let size = body.len();
        let pieces = body.pieces().iter().cloned().map(Piece::Bytes);
        let data = Data::Many(pieces.collect());
        let chunks = self.shared.grid.cut(0, &data, size).unwrap_or_default();
        let shared = &self.shared;
        shared.insert(&self.key, &object, &chunks, Copies::Renew);
    }
}
