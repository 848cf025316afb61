//! Objects in memory: the backend that is always there, for tests and fuzzing. Its failures can
//! be asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_rs_plugin::{
    export_backend, Backend, Body, Bytes, Capabilities, CapabilityFlags, Condition, Data, Error,
    Extent, ExtentFlags, GetFlags, Got, Kind, Meta, Object, ObjectFlags, ObjectMode, Page, Put,
    Range, ReadFlags, Result, WriteFlags, ZeroFlags,
};

use super::chain::Chain;
use super::guard::guard;

/// What can go wrong when asked to.
#[derive(Debug, Default)]
pub struct Faults {
    /// The next so many syncs fail.
    pub failing_syncs: AtomicU32,
    /// Every answer comes later instead of at once.
    pub slow: AtomicBool,
    /// Reads fail.
    pub failing_reads: AtomicBool,
}

type Contents = Arc<Mutex<Vec<u8>>>;

/// Objects in memory.
#[derive(Debug, Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Contents>>,
    faults: Arc<Faults>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guarded chain over a store in memory that holds one object, named by the empty string.
pub fn chain(contents: Vec<u8>) -> (Chain, Arc<Faults>) {
    let memory = Memory::default();
    let faults = memory.faults.clone();
    lock(&memory.objects).insert(String::new(), Arc::new(Mutex::new(contents)));
    (guard(export_backend(memory), "memory").into(), faults)
}

const CAPABILITIES: CapabilityFlags = CapabilityFlags(
    CapabilityFlags::WRITABLE.0
        | CapabilityFlags::IN_PLACE.0
        | CapabilityFlags::IF_ABSENT.0
        | CapabilityFlags::RANGED_GET.0
        | CapabilityFlags::STRONG_READ_AFTER_WRITE.0
        | CapabilityFlags::PUNCH_HOLE.0
        | CapabilityFlags::FAST_ZERO.0
        | CapabilityFlags::ALLOCATE.0
        | CapabilityFlags::PREFETCH.0
        | CapabilityFlags::EXTENTS.0,
);

impl Memory {
    fn object(&self, key: &str) -> Result<Contents> {
        let object = lock(&self.objects).get(key).cloned();
        object.ok_or_else(|| Error::new(Kind::NotFound, key))
    }
}

impl Backend for Memory {
    type Object = MemoryObject;

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(CAPABILITIES)
    }

    async fn get(&self, key: &str, range: Range, _: GetFlags) -> Result<Got> {
        let object = self.object(key)?;
        let object = lock(&object);
        let range = range.within(object.len() as u64)?;
        Ok(Got::new(Bytes::from(object[range].to_vec()).into()))
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        let mut objects = lock(&self.objects);
        if condition != Condition::Always && objects.contains_key(key) {
            return Err(Error::new(Kind::Exists, key));
        }
        let contents = body.pieces().iter().flat_map(|p| p.iter().copied());
        let contents = Arc::new(Mutex::new(contents.collect()));
        objects.insert(key.to_owned(), contents);
        Ok(Put::new(""))
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        let object = self.object(key)?;
        let size = lock(&object).len() as u64;
        Ok(Meta::new(key, size))
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let mut objects = lock(&self.objects);
        let delete = |key: &String| {
            objects.remove(key);
            Ok(())
        };
        Ok(keys.iter().map(delete).collect())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let objects = lock(&self.objects);
        let wanted =
            |key: &&String| key.starts_with(prefix) && after.is_none_or(|a| key.as_str() > a);
        let keys = objects.keys().filter(wanted);
        let metas = keys.map(|key| Meta::new(key, lock(&objects[key]).len() as u64));
        Ok(Page::last(metas.collect()))
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<MemoryObject> {
        if mode.flags.has(ObjectFlags::CREATE) {
            let contents = Arc::new(Mutex::new(vec![0; mode.size as usize]));
            lock(&self.objects)
                .entry(key.to_owned())
                .or_insert(contents);
        }
        Ok(MemoryObject {
            contents: self.object(key)?,
            faults: self.faults.clone(),
            writable: mode.flags.has(ObjectFlags::WRITE),
        })
    }
}

struct MemoryObject {
    contents: Contents,
    faults: Arc<Faults>,
    writable: bool,
}

impl MemoryObject {
    fn slow(&self) -> bool {
        self.faults.slow.load(Ordering::Relaxed)
    }

    fn read_now(&self, offset: u64, len: u64) -> Result<Data> {
        if self.faults.failing_reads.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Io, "a read that was told to fail"));
        }
        let contents = lock(&self.contents);
        let range = Range::new(offset, len).within(contents.len() as u64)?;
        Ok(Bytes::from(contents[range].to_vec()).into())
    }

    fn write_now(&self, offset: u64, body: &Body) -> Result<()> {
        let mut contents = lock(&self.contents);
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

impl Object for MemoryObject {
    fn capabilities(&self) -> Capabilities {
        let flags = match self.writable {
            true => CAPABILITIES,
            false => CAPABILITIES.without(CapabilityFlags::WRITABLE),
        };
        Capabilities::new(flags)
    }

    async fn size(&self) -> Result<u64> {
        Ok(lock(&self.contents).len() as u64)
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
        let mut contents = lock(&self.contents);
        let range = Range::new(offset, len).within(contents.len() as u64)?;
        contents[range].fill(0);
        Ok(())
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let contents = lock(&self.contents);
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
        lock(&self.contents).resize(size as usize, 0);
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        yield_once().await;
        let failing = &self.faults.failing_syncs;
        let less_one = |left: u32| left.checked_sub(1);
        match failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one) {
            Ok(_) => Err(Error::new(Kind::Io, "a sync that was told to fail")),
            Err(_) => Ok(()),
        }
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
