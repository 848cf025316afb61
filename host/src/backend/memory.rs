//! Objects in memory: the backend that is always there, for tests and fuzzing. Its failures can
//! be asked for.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_rs_plugin::abi::DynBackend;
use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    export_backend, Backend, Body, Bytes, Capabilities, CapabilityFlags, Condition, Data, Error,
    Extent, ExtentFlags, GetFlags, Got, Kind, Meta, Object, ObjectFlags, ObjectMode, Page, Put,
    Range, ReadFlags, Result, WriteFlags, ZeroFlags,
};

use super::chain::Chain;
use super::guard::guard;

/// Names in one page of a listing.
const PAGE_ITEMS: usize = 1000;

/// What can go wrong when asked to.
#[derive(Debug, Default)]
pub struct Faults {
    /// The next so many syncs and flushes fail.
    pub failing_syncs: AtomicU32,
    /// Every answer comes later instead of at once.
    pub slow: AtomicBool,
    /// Reads fail, of opened objects and by name.
    pub failing_reads: AtomicBool,
    /// The next so many puts fail, with nothing stored.
    pub failing_puts: AtomicU32,
    /// The next so many puts store the object and then say that they do not know.
    pub ambiguous_puts: AtomicU32,
}

/// Takes one off a count of failures to come; whether there was one.
fn is_due(failures: &AtomicU32) -> bool {
    let less_one = |left: u32| left.checked_sub(1);
    let taken = failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one);
    taken.is_ok()
}

/// One object: a put makes a new one, writes in place change it.
#[derive(Debug)]
struct Contents {
    bytes: Vec<u8>,
    /// Where its bytes stand in the order of all changes of the store; the ETag.
    version: u64,
    locked: bool,
}

type Shared = Arc<Mutex<Contents>>;

/// Objects in memory, by name. Clones share them, so that they outlive a chain that is closed.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<Mutex<BTreeMap<String, Shared>>>,
    changes: Arc<AtomicU64>,
    faults: Arc<Faults>,
    capabilities: CapabilityFlags,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guarded chain over a store in memory that holds one object, named by the empty string.
pub fn chain(contents: Vec<u8>) -> (Chain, Arc<Faults>) {
    let store = Store::default();
    store.insert("", contents);
    (store.chain(), store.faults())
}

const CAPABILITIES: CapabilityFlags = CapabilityFlags(
    CapabilityFlags::WRITABLE.0
        | CapabilityFlags::IN_PLACE.0
        | CapabilityFlags::IF_ABSENT.0
        | CapabilityFlags::IF_MATCH.0
        | CapabilityFlags::RANGED_GET.0
        | CapabilityFlags::STRONG_READ_AFTER_WRITE.0
        | CapabilityFlags::PUNCH_HOLE.0
        | CapabilityFlags::FAST_ZERO.0
        | CapabilityFlags::ALLOCATE.0
        | CapabilityFlags::PREFETCH.0
        | CapabilityFlags::EXTENTS.0,
);

impl Default for Store {
    fn default() -> Self {
        Self::with(CAPABILITIES)
    }
}

impl Store {
    /// An empty store that says it can do just this: without `IN_PLACE` it is like S3.
    pub fn with(capabilities: CapabilityFlags) -> Self {
        Self {
            objects: Arc::default(),
            changes: Arc::default(),
            faults: Arc::default(),
            capabilities,
        }
    }

    /// A guarded chain over this store.
    pub fn chain(&self) -> Chain {
        self.backend().into()
    }

    /// The guarded backend, for who speaks to it without a chain.
    pub fn backend(&self) -> DynBackend {
        guard(export_backend(self.clone()), "memory")
    }

    /// What goes wrong, in all clones.
    pub fn faults(&self) -> Arc<Faults> {
        self.faults.clone()
    }

    /// Puts an object in behind everybody's back.
    pub fn insert(&self, key: &str, bytes: Vec<u8>) {
        let contents = self.contents(bytes);
        lock(&self.objects).insert(key.to_owned(), contents);
    }

    /// Takes an object away behind everybody's back: what it held.
    pub fn remove(&self, key: &str) -> Option<Vec<u8>> {
        let object = lock(&self.objects).remove(key)?;
        let bytes = lock(&object).bytes.clone();
        Some(bytes)
    }

    /// What an object holds.
    pub fn peek(&self, key: &str) -> Option<Vec<u8>> {
        let object = self.object(key).ok()?;
        let bytes = lock(&object).bytes.clone();
        Some(bytes)
    }

    /// All names, in order.
    pub fn keys(&self) -> Vec<String> {
        lock(&self.objects).keys().cloned().collect()
    }

    fn contents(&self, bytes: Vec<u8>) -> Shared {
        let version = next(&self.changes);
        Arc::new(Mutex::new(Contents {
            bytes,
            version,
            locked: false,
        }))
    }

    fn object(&self, key: &str) -> Result<Shared> {
        let object = lock(&self.objects).get(key).cloned();
        object.ok_or_else(|| Error::new(Kind::NotFound, key))
    }

    fn get_now(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.readable()?;
        let object = self.object(key)?;
        let object = lock(&object);
        let range = range.within(object.bytes.len() as u64)?;
        let mut got = Got::new(Bytes::from(object.bytes[range].to_vec()).into());
        if flags.has(GetFlags::WANT_META) {
            got.meta = ROption::RSome(object.meta(key));
        }
        Ok(got)
    }

    fn readable(&self) -> Result<()> {
        match self.faults.failing_reads.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Io, "a read that was told to fail")),
            false => Ok(()),
        }
    }

    fn put_now(&self, key: &str, body: &Body, condition: &Condition) -> Result<Put> {
        let bytes = body.pieces().iter().flat_map(|p| p.iter().copied());
        let bytes: Vec<u8> = bytes.collect();
        let mut objects = lock(&self.objects);
        holds(condition, key, objects.get(key))?;
        let contents = self.contents(bytes);
        let etag = lock(&contents).etag();
        objects.insert(key.to_owned(), contents);
        Ok(Put::new(&etag))
    }

    /// Finds the object that a mode asks for, or makes it.
    fn open_now(&self, key: &str, mode: ObjectMode) -> Result<Shared> {
        let has = |flag| mode.flags.has(flag);
        let mut objects = lock(&self.objects);
        if has(ObjectFlags::CREATE) && !objects.contains_key(key) {
            objects.insert(key.to_owned(), self.contents(zeros(mode.size)?));
        } else if has(ObjectFlags::CREATE | ObjectFlags::CREATE_NEW) {
            return Err(Error::new(Kind::Exists, key));
        }
        let object = objects.get(key).cloned();
        object.ok_or_else(|| Error::new(Kind::NotFound, key))
    }

    fn synced(&self) -> Result<()> {
        match is_due(&self.faults.failing_syncs) {
            true => Err(Error::new(Kind::Io, "a sync that was told to fail")),
            false => Ok(()),
        }
    }
}

fn next(changes: &AtomicU64) -> u64 {
    changes.fetch_add(1, Ordering::Relaxed) + 1
}

/// A test's mistake must not take the machine's memory.
fn zeros(size: u64) -> Result<Vec<u8>> {
    if size > 1 << 30 {
        return Err(Error::new(Kind::NoSpace, "over 1 GiB in memory"));
    }
    Ok(vec![0; size as usize])
}

/// Whether a put may happen, given what is there.
fn holds(condition: &Condition, key: &str, there: Option<&Shared>) -> Result<()> {
    match (condition, there) {
        (Condition::Always, _) | (Condition::IfAbsent, None) => Ok(()),
        (Condition::IfAbsent, Some(_)) => Err(Error::new(Kind::Exists, key)),
        (Condition::IfMatch(etag), Some(object)) if lock(object).etag() == etag.as_str() => Ok(()),
        (Condition::IfMatch(_), _) => Err(Error::new(Kind::Precondition, key)),
    }
}

impl Contents {
    fn etag(&self) -> String {
        format!("{:x}", self.version)
    }

    fn meta(&self, key: &str) -> Meta {
        Meta {
            etag: self.etag().into(),
            ..Meta::new(key, self.bytes.len() as u64)
        }
    }
}

impl Backend for Store {
    type Object = MemoryObject;

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.capabilities)
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        let slow = self.faults.slow.load(Ordering::Relaxed);
        (!slow).then(|| self.get_now(key, range, flags))
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        yield_once().await;
        self.get_now(key, range, flags)
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        yield_once().await;
        if is_due(&self.faults.failing_puts) {
            return Err(Error::new(Kind::Io, "a put that was told to fail"));
        }
        let put = self.put_now(key, &body, &condition)?;
        match is_due(&self.faults.ambiguous_puts) {
            true => Err(Error::new(Kind::Ambiguous, "a put that was told to be")),
            false => Ok(put),
        }
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        yield_once().await;
        self.readable()?;
        let object = self.object(key)?;
        let meta = lock(&object).meta(key);
        Ok(meta)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        yield_once().await;
        let mut objects = lock(&self.objects);
        let delete = |key: &String| {
            objects.remove(key);
            Ok(())
        };
        Ok(keys.iter().map(delete).collect())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        yield_once().await;
        let objects = lock(&self.objects);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let items = found.by_ref().take(PAGE_ITEMS);
        let items: Vec<Meta> = items.map(|(key, o)| lock(o).meta(key)).collect();
        let mut page = Page::last(items);
        if found.next().is_some() {
            page.next = page.items.last().map(|item| item.key.clone()).into();
        }
        Ok(page)
    }

    async fn flush(&self) -> Result<()> {
        yield_once().await;
        self.synced()
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<MemoryObject> {
        let contents = self.open_now(key, mode)?;
        let mut object = MemoryObject {
            contents,
            store: self.clone(),
            writable: mode.flags.has(ObjectFlags::WRITE),
            holds_lock: AtomicBool::new(false),
        };
        if mode.flags.has(ObjectFlags::LOCK) {
            object.acquire(key)?;
        }
        if mode.flags.has(ObjectFlags::TRUNCATE) {
            let zeros = zeros(mode.size)?;
            object.change().bytes = zeros;
        }
        Ok(object)
    }
}

/// An opened object. Its lock goes with it.
#[derive(Debug)]
pub struct MemoryObject {
    contents: Shared,
    store: Store,
    writable: bool,
    holds_lock: AtomicBool,
}

impl MemoryObject {
    fn slow(&self) -> bool {
        self.store.faults.slow.load(Ordering::Relaxed)
    }

    fn acquire(&mut self, key: &str) -> Result<()> {
        if std::mem::replace(&mut lock(&self.contents).locked, true) {
            let text = format!("{key:?} is in use");
            return Err(Error::new(Kind::Busy, text));
        }
        self.holds_lock.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self) {
        if self.holds_lock.swap(false, Ordering::Relaxed) {
            lock(&self.contents).locked = false;
        }
    }

    /// The contents, to be changed now: with a new ETag.
    fn change(&self) -> MutexGuard<'_, Contents> {
        let mut contents = lock(&self.contents);
        contents.version = next(&self.store.changes);
        contents
    }

    fn read_now(&self, offset: u64, len: u64) -> Result<Data> {
        self.store.readable()?;
        let contents = &lock(&self.contents).bytes;
        let range = Range::new(offset, len).within(contents.len() as u64)?;
        Ok(Bytes::from(contents[range].to_vec()).into())
    }

    fn write_now(&self, offset: u64, body: &Body) -> Result<()> {
        let contents = &mut self.change().bytes;
        let mut at = Range::new(offset, body.len())
            .within(contents.len() as u64)?
            .start;
        for piece in body.pieces() {
            contents[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        Ok(())
    }
}

impl Drop for MemoryObject {
    fn drop(&mut self) {
        self.release();
    }
}

impl Object for MemoryObject {
    fn capabilities(&self) -> Capabilities {
        let flags = match self.writable {
            true => self.store.capabilities,
            false => self.store.capabilities.without(CapabilityFlags::WRITABLE),
        };
        Capabilities::new(flags)
    }

    async fn size(&self) -> Result<u64> {
        Ok(lock(&self.contents).bytes.len() as u64)
    }

    fn try_read(&self, offset: u64, len: u64, _: ReadFlags) -> Option<Result<Data>> {
        (!self.slow()).then(|| self.read_now(offset, len))
    }

    async fn read(&self, offset: u64, len: u64, _: ReadFlags) -> Result<Data> {
        yield_once().await;
        self.read_now(offset, len)
    }

    fn try_write(&self, offset: u64, body: &Body, _: WriteFlags) -> Option<Result<()>> {
        (!self.slow()).then(|| self.write_now(offset, body))
    }

    async fn write(&self, offset: u64, body: Body, _: WriteFlags) -> Result<()> {
        yield_once().await;
        self.write_now(offset, &body)
    }

    async fn zero(&self, offset: u64, len: u64, _: ZeroFlags) -> Result<()> {
        yield_once().await;
        let contents = &mut self.change().bytes;
        let range = Range::new(offset, len).within(contents.len() as u64)?;
        contents[range].fill(0);
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let contents = &lock(&self.contents).bytes;
        let range = Range::new(offset, len).within(contents.len() as u64)?;
        let state = |unit: &[u8]| match unit.iter().all(|&byte| byte == 0) {
            true => ExtentFlags::HOLE | ExtentFlags::ZERO,
            false => ExtentFlags::NONE,
        };
        let mut extents: Vec<Extent> = Vec::new();
        for unit in contents[range].chunks(512) {
            let (len, flags) = (unit.len() as u64, state(unit));
            let full = extents.len() == limit as usize;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len += len,
                _ if full => break,
                _ => extents.push(Extent { len, flags }),
            }
        }
        Ok(extents)
    }

    async fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        if size > 1 << 30 {
            return Err(Error::new(Kind::NoSpace, "over 1 GiB in memory"));
        }
        self.change().bytes.resize(size as usize, 0);
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        yield_once().await;
        self.store.synced()
    }

    async fn close(&self) -> Result<()> {
        self.release();
        Ok(())
    }
}

/// Lets others go first, so that slow paths really are taken apart.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::Next;

    use super::*;

    fn body(text: &str) -> Body {
        Bytes::from(text.as_bytes().to_vec()).into()
    }

    async fn kind(put: impl std::future::Future<Output = Result<Put>>) -> Kind {
        put.await.unwrap_err().kind
    }

    #[tokio::test]
    async fn conditions_are_obeyed_and_every_change_has_its_own_etag() {
        let store = Store::default();
        let next = Next::from(store.backend());
        let first = next.put("a", body("one"), Condition::IfAbsent).await;
        let first = first.unwrap().etag;
        let again = next.put("a", body("two"), Condition::IfAbsent);
        assert_eq!(kind(again).await, Kind::Exists);
        let matching = Condition::IfMatch(first.clone());
        let second = next.put("a", body("one"), matching.clone()).await.unwrap();
        assert_ne!(first, second.etag);
        let stale = next.put("a", body("three"), matching.clone());
        assert_eq!(kind(stale).await, Kind::Precondition);
        let missing = next.put("b", body("three"), matching);
        assert_eq!(kind(missing).await, Kind::Precondition);
        assert_eq!(
            (store.peek("a"), store.peek("b")),
            (Some(b"one".into()), None)
        );

        let mode = ObjectMode::new(ObjectFlags::WRITE);
        let object = next.open_object("a", mode).await.unwrap();
        object.write(0, body("x"), WriteFlags::NONE).await.unwrap();
        let head = next.head("a", GetFlags::NONE).await.unwrap();
        assert_ne!(head.etag, second.etag);
    }

    #[tokio::test]
    async fn listings_are_in_order_and_paged() {
        let store = Store::default();
        for n in 0..2 * PAGE_ITEMS {
            store.insert(&format!("p/{n:05}"), vec![]);
        }
        store.insert("o", vec![]);
        store.insert("q", vec![]);
        let next = Next::from(store.backend());
        let first = next.list("p/", None).await.unwrap();
        let after = first.next.as_ref().unwrap();
        let second = next.list("p/", Some(after)).await.unwrap();
        assert_eq!((first.items.len(), second.items.len()), (1000, 1000));
        assert_eq!(second.items[0].key, "p/01000");
        assert!(second.next.is_none());
        assert!(next.list("p/", Some("q")).await.unwrap().items.is_empty());
        assert_eq!(next.list("", Some("p/01998")).await.unwrap().items.len(), 2);
    }

    #[tokio::test]
    async fn failures_that_were_asked_for_happen_as_often_as_asked() {
        let store = Store::default();
        let next = Next::from(store.backend());
        let faults = store.faults();
        faults.failing_puts.store(1, Ordering::Relaxed);
        let put = || next.put("a", body("one"), Condition::Always);
        assert_eq!(kind(put()).await, Kind::Io);
        assert_eq!(store.keys(), Vec::<String>::new());
        faults.ambiguous_puts.store(1, Ordering::Relaxed);
        assert_eq!(kind(put()).await, Kind::Ambiguous);
        assert_eq!(store.keys(), ["a"]);
        put().await.unwrap();
        faults.failing_syncs.store(1, Ordering::Relaxed);
        assert_eq!(next.flush().await.unwrap_err().kind, Kind::Io);
        next.flush().await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_keeps_others_out_until_it_is_given_back() {
        let store = Store::default();
        let next = Next::from(store.backend());
        let flags = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::LOCK;
        let mode = ObjectMode::create(flags, 512);
        let first = next.open_object("a", mode).await.unwrap();
        let second = next.open_object("a", mode).await.unwrap_err();
        assert_eq!(second.kind, Kind::Busy);
        first.close().await.unwrap();
        next.open_object("a", mode).await.unwrap();
    }
}
