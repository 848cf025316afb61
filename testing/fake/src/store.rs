//! Objects in memory with ETags, and a list of the calls that came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    export_backend, Backend, Body, Bytes, Capabilities, CapabilityFlags, Condition, Error,
    GetFlags, Got, Kind, Meta, Next, ObjectFlags, ObjectMode, Page, Put, Range, Result,
};

use crate::{FakeObject, Fault, Faults};

/// What the store offers.
pub const STORE: CapabilityFlags = CapabilityFlags(
    CapabilityFlags::WRITABLE.0
        | CapabilityFlags::IN_PLACE.0
        | CapabilityFlags::IF_ABSENT.0
        | CapabilityFlags::IF_MATCH.0
        | CapabilityFlags::RANGED_GET.0
        | CapabilityFlags::DURABLE_ON_ACK.0
        | CapabilityFlags::STRONG_READ_AFTER_WRITE.0
        | CapabilityFlags::PUNCH_HOLE.0
        | CapabilityFlags::EXTENTS.0,
);

#[derive(Clone)]
struct Version {
    bytes: Bytes,
    etag: String,
}

impl Version {
    fn meta(&self, key: &str) -> Meta {
        Meta {
            etag: self.etag.as_str().into(),
            modified_ms: 1,
            ..Meta::new(key, self.bytes.len() as u64)
        }
    }
}

/// One fake store; clones are the same store.
#[derive(Clone, Default)]
pub struct Fake(Arc<Inner>);

#[derive(Default)]
struct Inner {
    objects: Mutex<BTreeMap<String, Vec<Version>>>,
    locked: Mutex<BTreeSet<String>>,
    calls: Mutex<Vec<String>>,
    faults: Faults,
    versions: AtomicU64,
    at_once: AtomicBool,
    no_etags: AtomicBool,
    extra_capabilities: AtomicU64,
    missing_capabilities: AtomicU64,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body of one piece.
pub fn body(bytes: impl Into<Vec<u8>>) -> Body {
    Bytes::from(bytes.into()).into()
}

/// All bytes of an answer.
pub fn bytes_of(data: &nbd_rs_plugin::Data) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in data.pieces() {
        match piece {
            nbd_rs_plugin::Piece::Bytes(bytes) => all.extend_from_slice(bytes),
            nbd_rs_plugin::Piece::Hole(len) => all.resize(all.len() + *len as usize, 0),
            nbd_rs_plugin::Piece::Mapped(_) => panic!("a mapped piece that nobody asked for"),
        }
    }
    all
}

impl Fake {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The store as a link sees it.
    pub fn next(&self) -> Next {
        export_backend(self.clone()).into()
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Whether gets are answered without a future from now on.
    pub fn answer_at_once(&self, at_once: bool) {
        self.0.at_once.store(at_once, Ordering::Relaxed);
    }

    /// From now on no object has an ETag.
    pub fn without_etags(&self) {
        self.0.no_etags.store(true, Ordering::Relaxed);
    }

    /// Offers more than it has: bits of later versions.
    pub fn claim(&self, flags: CapabilityFlags) {
        self.0.extra_capabilities.store(flags.0, Ordering::Relaxed);
    }

    /// From now on these are neither offered nor there.
    pub fn lacks(&self, flags: CapabilityFlags) {
        self.0
            .missing_capabilities
            .store(flags.0, Ordering::Relaxed);
    }

    /// What the store or an object of it offers, of `flags`.
    pub(crate) fn offered(&self, flags: CapabilityFlags) -> Capabilities {
        let missing = self.0.missing_capabilities.load(Ordering::Relaxed);
        Capabilities::new(flags.without(CapabilityFlags(missing)))
    }

    fn needs(&self, flag: CapabilityFlags, what: &str) -> Result<()> {
        match self.offered(flag).has(flag) {
            true => Ok(()),
            false => Err(Error::unsupported(what)),
        }
    }

    /// The calls so far, as `operation key ...`; the list is emptied.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0.calls))
    }

    /// Changes an object behind everybody's back.
    pub fn replace(&self, key: &str, bytes: impl Into<Vec<u8>>) -> String {
        self.store(key, Bytes::from(bytes.into()))
    }

    /// Deletes an object behind everybody's back.
    pub fn remove(&self, key: &str) {
        lock(&self.0.objects).remove(key);
    }

    /// The bytes of an object now.
    pub fn contents(&self, key: &str) -> Option<Vec<u8>> {
        self.current(key).map(|version| version.bytes.to_vec())
    }

    pub(crate) fn call(&self, call: String) {
        lock(&self.0.calls).push(call);
    }

    fn current(&self, key: &str) -> Option<Version> {
        lock(&self.0.objects).get(key)?.last().cloned()
    }

    fn store(&self, key: &str, bytes: Bytes) -> String {
        let version = self.0.versions.fetch_add(1, Ordering::Relaxed);
        let etag = match self.0.no_etags.load(Ordering::Relaxed) {
            true => String::new(),
            false => format!("v{version}"),
        };
        let versions = &mut *lock(&self.0.objects);
        let versions = versions.entry(key.to_owned()).or_default();
        versions.push(Version {
            bytes,
            etag: etag.clone(),
        });
        // The current one, and the one before it for faults.
        let old = versions.len().saturating_sub(2);
        versions.drain(..old);
        etag
    }

    /// Looks at the bytes of an object.
    pub(crate) fn bytes(&self, key: &str) -> Result<Bytes> {
        let current = self.current(key);
        let bytes = current.map(|version| version.bytes);
        bytes.ok_or_else(|| Error::new(Kind::NotFound, key))
    }

    /// Changes the bytes of an object in place.
    pub(crate) fn edit(&self, key: &str, edit: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut bytes = self.bytes(key)?.to_vec();
        edit(&mut bytes);
        self.store(key, bytes.into());
        Ok(())
    }

    pub(crate) fn unlock(&self, key: &str) {
        lock(&self.0.locked).remove(key);
    }

    /// Whether the object is kept from others from now on.
    fn open_now(&self, key: &str, mode: ObjectMode) -> Result<bool> {
        self.needs(CapabilityFlags::IN_PLACE, "in place")?;
        let flags = mode.flags;
        let exists = self.current(key).is_some();
        if exists && flags.has(ObjectFlags::CREATE_NEW) {
            return Err(Error::new(Kind::Exists, key));
        }
        if !exists && !flags.has(ObjectFlags::CREATE) {
            return Err(Error::new(Kind::NotFound, key));
        }
        let locks = flags.has(ObjectFlags::LOCK);
        if locks && !lock(&self.0.locked).insert(key.to_owned()) {
            return Err(Error::new(Kind::Busy, key));
        }
        if !exists || flags.has(ObjectFlags::TRUNCATE) {
            self.store(key, vec![0; mode.size as usize].into());
        }
        Ok(locks)
    }

    /// Waits and fails as the script says; whether the fault comes after the deed.
    pub(crate) async fn before(&self, operation: &'static str) -> Result<Fault> {
        match self.0.faults.next(operation) {
            Fault::Before(kind, text) => Err(Fault::error(kind, text)),
            Fault::SlowBefore(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok(Fault::None)
            }
            fault => Ok(fault),
        }
    }

    pub(crate) async fn after<T>(&self, fault: Fault, answer: Result<T>) -> Result<T> {
        match fault {
            Fault::After(kind, text) => answer.and(Err(Fault::error(kind, text))),
            Fault::SlowAfter(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                answer
            }
            _ => answer,
        }
    }

    fn get_now(&self, key: &str, range: Range, flags: GetFlags, fault: &Fault) -> Result<Got> {
        let objects = lock(&self.0.objects);
        let versions = objects.get(key);
        let versions = versions.ok_or_else(|| Error::new(Kind::NotFound, key))?;
        let old = matches!(fault, Fault::OldVersion) as usize;
        let at = versions.len().saturating_sub(1 + old);
        let version = &versions[at];
        let mut bytes = range.within(version.bytes.len() as u64)?;
        if matches!(fault, Fault::Short) {
            bytes.end -= 1;
        }
        Ok(Got {
            data: version.bytes.clone().slice(bytes).into(),
            meta: match flags.has(GetFlags::WANT_META) {
                true => ROption::RSome(version.meta(key)),
                false => ROption::RNone,
            },
        })
    }

    fn put_now(&self, key: &str, body: &Body, condition: &Condition) -> Result<Put> {
        match condition {
            Condition::IfAbsent => self.needs(CapabilityFlags::IF_ABSENT, "IfAbsent")?,
            Condition::IfMatch(_) => self.needs(CapabilityFlags::IF_MATCH, "IfMatch")?,
            _ => {}
        }
        let current = self.current(key).map(|version| version.etag);
        match (condition, current) {
            (Condition::IfAbsent, Some(_)) => return Err(Error::new(Kind::Exists, key)),
            (Condition::IfMatch(etag), current) if current.as_deref() != Some(etag.as_str()) => {
                return Err(Error::new(Kind::Precondition, key));
            }
            _ => {}
        }
        let bytes: Vec<u8> = body
            .pieces()
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect();
        Ok(Put::new(&self.store(key, bytes.into())))
    }
}

fn about(range: Range) -> String {
    match range.len {
        Range::TO_END => format!("{}..", range.offset),
        len => format!("{}+{len}", range.offset),
    }
}

impl Backend for Fake {
    type Object = FakeObject;

    fn capabilities(&self) -> Capabilities {
        let extra = self.0.extra_capabilities.load(Ordering::Relaxed);
        self.offered(STORE | CapabilityFlags(extra))
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        if !self.0.at_once.load(Ordering::Relaxed) {
            return None;
        }
        Some(match self.0.faults.next("try_get") {
            Fault::Before(kind, text) => Err(Fault::error(kind, text)),
            fault => self.get_now(key, range, flags, &fault),
        })
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        let fresh = if flags.has(GetFlags::FRESH) {
            " fresh"
        } else {
            ""
        };
        self.call(format!("get {key} {}{fresh}", about(range)));
        let fault = self.before("get").await?;
        let got = self.get_now(key, range, flags, &fault);
        self.after(fault, got).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        self.call(format!("put {key} {}", body.len()));
        let fault = self.before("put").await?;
        let put = self.put_now(key, &body, &condition);
        self.after(fault, put).await
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        let fresh = if flags.has(GetFlags::FRESH) {
            " fresh"
        } else {
            ""
        };
        self.call(format!("head {key}{fresh}"));
        let fault = self.before("head").await?;
        let current = self.current(key);
        let meta = current.map(|version| version.meta(key));
        let meta = meta.ok_or_else(|| Error::new(Kind::NotFound, key));
        self.after(fault, meta).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.call(format!("delete {}", keys.join(" ")));
        let fault = self.before("delete").await?;
        let mut results = Vec::new();
        for key in &keys {
            let fault = self.before("delete key").await;
            results.push(match fault {
                Ok(fault) => {
                    lock(&self.0.objects).remove(key);
                    self.after(fault, Ok(())).await
                }
                Err(error) => Err(error),
            });
        }
        self.after(fault, Ok(results)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.call(format!("list {prefix} {}", after.unwrap_or("")));
        let fault = self.before("list").await?;
        let page = {
            let objects = lock(&self.0.objects);
            let found = objects.iter().filter(|(key, _)| {
                key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
            });
            let metas = found.filter_map(|(key, versions)| Some(versions.last()?.meta(key)));
            Page::last(metas.collect())
        };
        self.after(fault, Ok(page)).await
    }

    async fn flush(&self) -> Result<()> {
        self.call("flush".to_owned());
        let fault = self.before("flush").await?;
        self.after(fault, Ok(())).await
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<FakeObject> {
        self.call(format!("open {key}"));
        let fault = self.before("open").await?;
        let opened = self.open_now(key, mode).map(|locks| {
            let writable = mode.flags.has(ObjectFlags::WRITE);
            let at_once = self.0.at_once.load(Ordering::Relaxed);
            FakeObject::new(self.clone(), key, writable, locks, at_once)
        });
        self.after(fault, opened).await
    }

    async fn close(&self) -> Result<()> {
        self.call("close".to_owned());
        Ok(())
    }
}
