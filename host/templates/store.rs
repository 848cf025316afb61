//! A store for nbd-rs. This one keeps its objects in memory, which is enough to be served and to keep
//! every promise; put your own storage in the place of `Objects`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::options::Options;
use nbd_rs_plugin::{
    export_plugin, Backend, Body, Bytes, Capabilities, CapabilityFlags, Condition, Data,
    Description, Error, Extent, ExtentFlags, GetFlags, Got, Host, Kind, Meta, Object, ObjectFlags,
    ObjectMode, OpenFlags, OpenRequest, OptionKind, OptionSpec, Page, Put, Range, ReadFlags,
    Result, WriteFlags, ZeroFlags,
};

/// What `nbd-rs plugins` shows. The host checks options against it before anything is opened.
fn describe() -> Description {
    Description::store(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        .scheme(env!("CARGO_PKG_NAME"), "objects in memory")
        .option(OptionSpec::new("size", OptionKind::SIZE, "the volume's size").default("64MiB"))
}

export_plugin! {
    describe: describe,
    open: |_host: Host, request: OpenRequest| async move { Store::open(&request) },
}

/// One object: its bytes, and whether somebody has its lock.
#[derive(Default)]
struct Contents {
    bytes: Mutex<Vec<u8>>,
    locked: AtomicBool,
}

type Objects = BTreeMap<String, Arc<Contents>>;

struct Store {
    objects: Mutex<Objects>,
    writable: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn contents(bytes: Vec<u8>) -> Arc<Contents> {
    Arc::new(Contents {
        bytes: Mutex::new(bytes),
        locked: AtomicBool::new(false),
    })
}

/// Only what is true: the layouts rely on each of these.
fn capabilities(writable: bool) -> Capabilities {
    let flags = CapabilityFlags::IN_PLACE
        | CapabilityFlags::RANGED_GET
        | CapabilityFlags::STRONG_READ_AFTER_WRITE;
    Capabilities::new(match writable {
        true => flags | CapabilityFlags::WRITABLE,
        false => flags,
    })
}

impl Store {
    fn open(request: &OpenRequest) -> Result<Self> {
        let size = Options(&request.options).size("size", 64 << 20)?;
        let mut objects = Objects::new();
        // The `raw` layout serves one object, the one with the empty name.
        if request.flags.has(OpenFlags::SINGLE_OBJECT) {
            objects.insert(String::new(), contents(vec![0; size as usize]));
        }
        Ok(Self {
            objects: Mutex::new(objects),
            writable: request.flags.has(OpenFlags::WRITE),
        })
    }

    fn object(&self, key: &str) -> Result<Arc<Contents>> {
        let object = lock(&self.objects).get(key).cloned();
        object.ok_or_else(|| Error::new(Kind::NotFound, key))
    }

    fn may_change(&self, operation: &str) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(Error::read_only(operation)),
        }
    }
}

fn read(contents: &Contents, range: Range) -> Result<Data> {
    let bytes = lock(&contents.bytes);
    let range = range.within(bytes.len() as u64)?;
    Ok(Bytes::from(bytes[range].to_vec()).into())
}

fn meta(key: &str, contents: &Contents) -> Meta {
    Meta::new(key, lock(&contents.bytes).len() as u64)
}

impl Backend for Store {
    type Object = Opened;

    fn capabilities(&self) -> Capabilities {
        capabilities(self.writable)
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        let object = self.object(key)?;
        Ok(Got {
            data: read(&object, range)?,
            meta: match flags.has(GetFlags::WANT_META) {
                true => ROption::RSome(meta(key, &object)),
                false => ROption::RNone,
            },
        })
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        self.may_change("put")?;
        if condition != Condition::Always {
            return Err(Error::unsupported("a conditional put"));
        }
        let pieces = body.pieces().iter();
        let bytes = pieces.flat_map(|piece| piece.iter().copied()).collect();
        lock(&self.objects).insert(key.to_owned(), contents(bytes));
        Ok(Put::new(""))
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        Ok(meta(key, &*self.object(key)?))
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.may_change("delete")?;
        let mut objects = lock(&self.objects);
        for key in &keys {
            objects.remove(key);
        }
        Ok(keys.iter().map(|_| Ok(())).collect())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let objects = lock(&self.objects);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let found = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        Ok(Page::last(
            found.map(|(key, object)| meta(key, object)).collect(),
        ))
    }

    async fn flush(&self) -> Result<()> {
        // Answer only when all that was acknowledged is durable. Memory has nothing to wait for.
        Ok(())
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<Opened> {
        let has = |flag| mode.flags.has(flag);
        let mut objects = lock(&self.objects);
        let object = match objects.get(key) {
            Some(_) if has(ObjectFlags::CREATE_NEW) => return Err(Error::new(Kind::Exists, key)),
            Some(there) => there.clone(),
            None if has(ObjectFlags::CREATE) => {
                self.may_change("making an object")?;
                let new = contents(vec![0; mode.size as usize]);
                objects.insert(key.to_owned(), new.clone());
                new
            }
            None => return Err(Error::new(Kind::NotFound, key)),
        };
        if has(ObjectFlags::LOCK) && object.locked.swap(true, Ordering::AcqRel) {
            return Err(Error::new(Kind::Busy, "somebody else uses it"));
        }
        if has(ObjectFlags::TRUNCATE) {
            *lock(&object.bytes) = vec![0; mode.size as usize];
        }
        Ok(Opened {
            object,
            writable: has(ObjectFlags::WRITE) && self.writable,
            locks: AtomicBool::new(has(ObjectFlags::LOCK)),
        })
    }
}

/// One object, opened to be read and written inside. The host has checked all ranges.
struct Opened {
    object: Arc<Contents>,
    writable: bool,
    locks: AtomicBool,
}

impl Opened {
    fn change(&self) -> Result<MutexGuard<'_, Vec<u8>>> {
        match self.writable {
            true => Ok(lock(&self.object.bytes)),
            false => Err(Error::read_only("a change")),
        }
    }

    fn unlock(&self) {
        if self.locks.swap(false, Ordering::AcqRel) {
            self.object.locked.store(false, Ordering::Release);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl Object for Opened {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.writable)
    }

    async fn size(&self) -> Result<u64> {
        Ok(lock(&self.object.bytes).len() as u64)
    }

    /// What is at hand is answered here: no future is made, no thread is changed.
    fn try_read(&self, offset: u64, len: u64, _: ReadFlags) -> Option<Result<Data>> {
        Some(read(&self.object, Range::new(offset, len)))
    }

    async fn read(&self, offset: u64, len: u64, _: ReadFlags) -> Result<Data> {
        read(&self.object, Range::new(offset, len))
    }

    async fn write(&self, offset: u64, body: Body, _: WriteFlags) -> Result<()> {
        let mut bytes = self.change()?;
        let mut range = Range::new(offset, body.len()).within(bytes.len() as u64)?;
        for piece in body.pieces() {
            let end = range.start + piece.len();
            bytes[range.start..end].copy_from_slice(piece);
            range.start = end;
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if flags.has(ZeroFlags::FAST) {
            return Err(Error::unsupported("fast zeroing"));
        }
        let mut bytes = self.change()?;
        let range = Range::new(offset, len).within(bytes.len() as u64)?;
        bytes[range].fill(0);
        Ok(())
    }

    async fn extents(&self, _: u64, len: u64, _: u32) -> Result<Vec<Extent>> {
        let flags = ExtentFlags::NONE;
        Ok(vec![Extent { len, flags }])
    }

    async fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.change()?.resize(size as usize, 0);
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.unlock();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::conformance::{host::block_on, run, Options};
    use nbd_rs_plugin::export_backend;

    use super::*;

    fn store(single: bool) -> Store {
        let objects = match single {
            true => [(String::new(), contents(vec![0; 1 << 20]))].into(),
            false => Objects::new(),
        };
        Store {
            objects: Mutex::new(objects),
            writable: true,
        }
    }

    #[test]
    fn it_conforms() {
        let next = export_backend(store(false)).into();
        let report = block_on(run(next, &Options::named("test/", 1)));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn one_volume_conforms() {
        let next = export_backend(store(true)).into();
        let report = block_on(run(next, &Options::single(1)));
        assert!(report.passed(), "{report}");
    }
}
