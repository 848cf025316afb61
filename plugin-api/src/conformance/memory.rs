//! The smallest store that keeps every promise: objects in memory. What a link is tested before, and
//! what shows that a test's mistake is not the store's.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi_stable::std_types::ROption;

use crate::{
    Backend, Body, Bytes, Capabilities, CapabilityFlags, Condition, Data, Error, Extent,
    ExtentFlags, GetFlags, Got, Kind, Meta, Object, ObjectFlags, ObjectMode, Page, Put, Range,
    ReadFlags, Result, WriteFlags, ZeroFlags,
};

/// The most that one object may hold, in bytes: a test's mistake must not take all memory.
const MOST_BYTES: u64 = 1 << 30;
/// Names in one page of a listing.
const PAGE_ITEMS: usize = 1000;

const CAPABILITIES: CapabilityFlags = CapabilityFlags(
    CapabilityFlags::WRITABLE.0
        | CapabilityFlags::IN_PLACE.0
        | CapabilityFlags::IF_ABSENT.0
        | CapabilityFlags::IF_MATCH.0
        | CapabilityFlags::RANGED_GET.0
        | CapabilityFlags::STRONG_READ_AFTER_WRITE.0,
);

#[derive(Debug)]
struct Contents {
    bytes: Vec<u8>,
    /// Where these bytes stand in the order of all changes; the ETag.
    version: u64,
    locked: bool,
}

type Shared = Arc<Mutex<Contents>>;

#[derive(Debug, Default)]
struct Objects {
    by_name: Mutex<BTreeMap<String, Shared>>,
    changes: AtomicU64,
}

/// Objects in memory. Clones are the same store. Answers at once, unless it is [`slow`](Self::slow).
#[derive(Debug, Clone, Default)]
pub struct Memory {
    objects: Arc<Objects>,
    slow: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn joined(body: &Body) -> Vec<u8> {
    let pieces = body.pieces().iter();
    pieces.flat_map(|piece| piece.iter().copied()).collect()
}

fn zeros(size: u64) -> Result<Vec<u8>> {
    match size {
        0..=MOST_BYTES => Ok(vec![0; size as usize]),
        _ => Err(Error::new(Kind::NoSpace, "over 1 GiB in memory")),
    }
}

impl Contents {
    fn meta(&self, key: &str) -> Meta {
        Meta {
            etag: format!("{:x}", self.version).into(),
            ..Meta::new(key, self.bytes.len() as u64)
        }
    }

    fn read(&self, range: Range) -> Result<Data> {
        let range = range.within(self.bytes.len() as u64)?;
        Ok(Bytes::from(self.bytes[range].to_vec()).into())
    }
}

impl Memory {
    /// The same store, but every answer comes later: what is not at hand is another way through a link.
    #[must_use]
    pub fn slow(&self) -> Self {
        Self {
            slow: true,
            ..self.clone()
        }
    }

    /// Stores an object behind everybody's back.
    pub fn insert(&self, key: &str, bytes: Vec<u8>) {
        let contents = self.contents(bytes);
        lock(&self.objects.by_name).insert(key.to_owned(), contents);
    }

    /// What an object holds.
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        let object = self.object(key).ok()?;
        let bytes = lock(&object).bytes.clone();
        Some(bytes)
    }

    fn next_version(&self) -> u64 {
        self.objects.changes.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn contents(&self, bytes: Vec<u8>) -> Shared {
        Arc::new(Mutex::new(Contents {
            bytes,
            version: self.next_version(),
            locked: false,
        }))
    }

    fn object(&self, key: &str) -> Result<Shared> {
        let object = lock(&self.objects.by_name).get(key).cloned();
        object.ok_or_else(|| Error::new(Kind::NotFound, key))
    }

    fn get_now(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        let object = self.object(key)?;
        let object = lock(&object);
        let mut got = Got::new(object.read(range)?);
        if flags.has(GetFlags::WANT_META) {
            got.meta = ROption::RSome(object.meta(key));
        }
        Ok(got)
    }

    /// Lets others go first.
    async fn pause(&self) {
        let mut waits = self.slow;
        std::future::poll_fn(|cx| match std::mem::take(&mut waits) {
            true => {
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            }
            false => std::task::Poll::Ready(()),
        })
        .await;
    }
}

/// Whether a put may happen, given what is there.
fn holds(condition: &Condition, key: &str, there: Option<&Shared>) -> Result<()> {
    let etag = there.map(|object| lock(object).meta(key).etag);
    match (condition, etag) {
        (Condition::Always, _) | (Condition::IfAbsent, None) => Ok(()),
        (Condition::IfAbsent, Some(_)) => Err(Error::new(Kind::Exists, key)),
        (Condition::IfMatch(wanted), Some(etag)) if *wanted == etag => Ok(()),
        (Condition::IfMatch(_), _) => Err(Error::new(Kind::Precondition, key)),
    }
}

impl Backend for Memory {
    type Object = MemoryObject;

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(CAPABILITIES)
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        (!self.slow).then(|| self.get_now(key, range, flags))
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.pause().await;
        self.get_now(key, range, flags)
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        self.pause().await;
        let mut objects = lock(&self.objects.by_name);
        holds(&condition, key, objects.get(key))?;
        let contents = self.contents(joined(&body));
        let etag = lock(&contents).meta(key).etag;
        objects.insert(key.to_owned(), contents);
        Ok(Put::new(&etag))
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        self.pause().await;
        let object = self.object(key)?;
        let meta = lock(&object).meta(key);
        Ok(meta)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.pause().await;
        let mut objects = lock(&self.objects.by_name);
        for key in &keys {
            objects.remove(key);
        }
        Ok(keys.iter().map(|_| Ok(())).collect())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.pause().await;
        let objects = lock(&self.objects.by_name);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let items = found.by_ref().take(PAGE_ITEMS);
        let items = items.map(|(key, object)| lock(object).meta(key));
        let mut page = Page::last(items.collect());
        if found.next().is_some() {
            page.next = page.items.last().map(|item| item.key.clone()).into();
        }
        Ok(page)
    }

    async fn flush(&self) -> Result<()> {
        self.pause().await;
        Ok(())
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<MemoryObject> {
        self.pause().await;
        let has = |flag| mode.flags.has(flag);
        let mut objects = lock(&self.objects.by_name);
        let contents = match objects.get(key) {
            Some(_) if has(ObjectFlags::CREATE_NEW) => return Err(Error::new(Kind::Exists, key)),
            Some(there) => there.clone(),
            None if has(ObjectFlags::CREATE) => {
                let contents = self.contents(zeros(mode.size)?);
                objects.insert(key.to_owned(), contents.clone());
                contents
            }
            None => return Err(Error::new(Kind::NotFound, key)),
        };
        drop(objects);
        let mut state = lock(&contents);
        if has(ObjectFlags::LOCK) && std::mem::replace(&mut state.locked, true) {
            return Err(Error::new(Kind::Busy, format!("{key:?} is in use")));
        }
        if has(ObjectFlags::TRUNCATE) {
            state.bytes = zeros(mode.size)?;
            state.version = self.next_version();
        }
        drop(state);
        Ok(MemoryObject {
            contents,
            store: self.clone(),
            writable: has(ObjectFlags::WRITE),
            locks: AtomicBool::new(has(ObjectFlags::LOCK)),
        })
    }
}

/// An opened object. Its lock goes with it.
#[derive(Debug)]
pub struct MemoryObject {
    contents: Shared,
    store: Memory,
    writable: bool,
    locks: AtomicBool,
}

impl MemoryObject {
    fn change(&self, change: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
        if !self.writable {
            return Err(Error::read_only("a change"));
        }
        let mut contents = lock(&self.contents);
        contents.version = self.store.next_version();
        change(&mut contents.bytes)
    }

    fn write_now(&self, offset: u64, body: &Body) -> Result<()> {
        self.change(|bytes| {
            let range = Range::new(offset, body.len()).within(bytes.len() as u64)?;
            bytes[range].copy_from_slice(&joined(body));
            Ok(())
        })
    }

    fn release(&self) {
        if self.locks.swap(false, Ordering::Relaxed) {
            lock(&self.contents).locked = false;
        }
    }
}

impl Drop for MemoryObject {
    fn drop(&mut self) {
        self.release();
    }
}

impl Object for MemoryObject {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(match self.writable {
            true => CAPABILITIES,
            false => CAPABILITIES.without(CapabilityFlags::WRITABLE),
        })
    }

    async fn size(&self) -> Result<u64> {
        Ok(lock(&self.contents).bytes.len() as u64)
    }

    fn try_read(&self, offset: u64, len: u64, _: ReadFlags) -> Option<Result<Data>> {
        (!self.store.slow).then(|| lock(&self.contents).read(Range::new(offset, len)))
    }

    async fn read(&self, offset: u64, len: u64, _: ReadFlags) -> Result<Data> {
        self.store.pause().await;
        lock(&self.contents).read(Range::new(offset, len))
    }

    fn try_write(&self, offset: u64, body: &Body, _: WriteFlags) -> Option<Result<()>> {
        (!self.store.slow).then(|| self.write_now(offset, body))
    }

    async fn write(&self, offset: u64, body: Body, _: WriteFlags) -> Result<()> {
        self.store.pause().await;
        self.write_now(offset, &body)
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.store.pause().await;
        if flags.has(ZeroFlags::FAST) {
            return Err(Error::unsupported("fast zeroing"));
        }
        self.change(|bytes| {
            let range = Range::new(offset, len).within(bytes.len() as u64)?;
            bytes[range].fill(0);
            Ok(())
        })
    }

    async fn extents(&self, _: u64, len: u64, _: u32) -> Result<Vec<Extent>> {
        let flags = ExtentFlags::NONE;
        Ok(vec![Extent { len, flags }])
    }

    async fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.change(|bytes| {
            zeros(size)?;
            bytes.resize(size as usize, 0);
            Ok(())
        })
    }

    async fn sync(&self) -> Result<()> {
        self.store.pause().await;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.release();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::block_on;
    use super::super::{run, Options, CHECKS};
    use super::*;
    use crate::export_backend;

    #[test]
    fn the_store_conforms_at_once_and_slowly() {
        let memory = Memory::default();
        for memory in [memory.clone(), memory.slow()] {
            let next = export_backend(memory).into();
            let report = block_on(run(next, &Options::named("c/", 1)));
            assert!(
                report.passed() && report.passes() == CHECKS.len() - 2,
                "{report}"
            );
        }
        assert!(lock(&memory.objects.by_name).is_empty(), "left behind");
    }

    #[test]
    fn one_check_can_be_run_alone_and_names_are_unique() {
        let only = Options {
            only: vec!["ranges".to_owned()],
            ..Options::named("c/", 1)
        };
        let report = block_on(run(export_backend(Memory::default()).into(), &only));
        assert_eq!((report.checks.len(), report.passes()), (1, 1), "{report}");
        let names: std::collections::BTreeSet<_> = CHECKS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
