//! A store whose failures can be planned call by call: it fails, forgets to answer, dies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_rs_plugin::{
    export_backend, Backend, Body, Capabilities, CapabilityFlags, Condition, Data, Error, Extent,
    GetFlags, Got, Kind, Meta, Next, NextObject, Object, ObjectMode, Page, Put, Range, ReadFlags,
    Result, WriteFlags, ZeroFlags,
};

use crate::backend::chain::Chain;
use crate::backend::guard::guard;
use crate::backend::memory::Store;

pub(crate) const LIKE_S3: CapabilityFlags = CapabilityFlags(
    CapabilityFlags::WRITABLE.0
        | CapabilityFlags::IF_ABSENT.0
        | CapabilityFlags::IF_MATCH.0
        | CapabilityFlags::RANGED_GET.0
        | CapabilityFlags::STRONG_READ_AFTER_WRITE.0
        | CapabilityFlags::DURABLE_ON_ACK.0,
);

/// What goes wrong with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails with this kind, and nothing happens.
    Fails(Kind),
    /// It happens, and the answer is lost.
    Unknown,
    /// It does not happen, and nobody can tell.
    UnknownNot,
    /// It does not happen, and the plugin panics.
    Panics,
    /// It happens, and the plugin panics then.
    PanicsThen,
}

/// One server's way to the store. The objects outlive it.
#[derive(Clone)]
pub(crate) struct Rig {
    pub(crate) store: Store,
    next: Next,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    dead: AtomicBool,
    /// Nothing can be put until something was deleted.
    full: AtomicBool,
    /// Changes until death; the last one happens or not by its lowest bit.
    life: AtomicI64,
    last_happens: AtomicBool,
    calls: AtomicU64,
    listings: AtomicU64,
    changes: AtomicU64,
    /// What goes wrong, by a part of the key.
    faults: Mutex<Vec<(String, Fault)>>,
    /// How many wait at gates.
    waiting: AtomicU64,
    /// What waits, by a part of the key, until its gate is open.
    gates: Mutex<Vec<(String, Arc<tokio::sync::Mutex<()>>)>>,
    /// What listings do not have, by a part of the key.
    hidden: Mutex<Vec<String>>,
    /// Objects as they were at their last sync, if they were written since.
    unsynced: Mutex<BTreeMap<String, Option<Vec<u8>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dead() -> Error {
    Error::new(Kind::Io, "the server is dead")
}

impl Rig {
    pub(crate) fn new(store: &Store) -> Self {
        let shared = Shared::default();
        shared.life.store(i64::MAX, Ordering::Relaxed);
        Self {
            store: store.clone(),
            next: store.backend().into(),
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn chain(&self) -> Chain {
        guard(export_backend(self.clone()), "rig").into()
    }

    /// From now on nothing this server does has an effect.
    pub(crate) fn kill(&self) {
        self.shared.dead.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::SeqCst)
    }

    /// It dies at its so-manieth change from now, which happens or not.
    pub(crate) fn die_at(&self, change: i64, last_happens: bool) {
        self.shared
            .last_happens
            .store(last_happens, Ordering::SeqCst);
        self.shared.life.store(change, Ordering::SeqCst);
    }

    /// The next change of an object with this in its name goes wrong.
    pub(crate) fn fault(&self, name: &str, fault: Fault) {
        lock(&self.shared.faults).push((name.to_owned(), fault));
    }

    /// No put finds room, not even of an object in the place of another, until one was deleted.
    pub(crate) fn fill(&self) {
        self.shared.full.store(true, Ordering::SeqCst);
    }

    /// Nothing goes wrong any more.
    pub(crate) fn no_faults(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Changes of objects with this in their names are on their way until the guard is dropped, and
    /// reads of `get NAME` or `head NAME`, where the name is the last part of a key, or of
    /// `list`.
    pub(crate) fn hold(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        let guard = gate.clone().try_lock_owned().unwrap();
        lock(&self.shared.gates).push((name.to_owned(), gate));
        guard
    }

    /// Listings lag behind: they do not have what has this in its name.
    pub(crate) fn hide(&self, name: &str) {
        lock(&self.shared.hidden).push(name.to_owned());
    }

    async fn pass(&self, key: &str) {
        let gate = {
            let gates = lock(&self.shared.gates);
            let gate = gates.iter().find(|(name, _)| key.contains(name.as_str()));
            gate.map(|(_, gate)| gate.clone())
        };
        if let Some(gate) = gate {
            self.shared.waiting.fetch_add(1, Ordering::SeqCst);
            drop(gate.lock().await);
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// How many calls are on their way for that reason.
    pub(crate) fn waiting(&self) -> u64 {
        self.shared.waiting.load(Ordering::SeqCst)
    }

    async fn pass_as(&self, call: &str, key: &str) {
        let name = key.rsplit('/').next().unwrap_or_default();
        self.pass(&format!("{call} {name}")).await;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn listings(&self) -> u64 {
        self.shared.listings.load(Ordering::Relaxed)
    }

    pub(crate) fn changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Relaxed)
    }

    /// What was not synced is lost.
    pub(crate) fn lose_power(&self) {
        self.kill();
        for (key, was) in std::mem::take(&mut *lock(&self.shared.unsynced)) {
            match was {
                Some(bytes) => self.store.insert(&key, bytes),
                None => drop(self.store.remove(&key)),
            }
        }
    }

    async fn look(&self) -> Result<()> {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        match self.is_dead() {
            true => Err(dead()),
            false => Ok(()),
        }
    }

    /// Makes a change, if it is to happen, and gives its answer, if it is to be known.
    async fn change<T>(
        &self,
        key: &str,
        change: impl std::future::Future<Output = Result<T>>,
    ) -> Result<T> {
        self.look().await?;
        self.pass(key).await;
        // Heartbeats come when they come.
        let counts = u64::from(!key.ends_with("/owner"));
        self.shared.changes.fetch_add(counts, Ordering::Relaxed);
        let left = self.shared.life.fetch_sub(1, Ordering::SeqCst) - 1;
        if left <= 0 {
            self.kill();
            if left == 0 && self.shared.last_happens.load(Ordering::SeqCst) {
                let _ = change.await;
            }
            return Err(dead());
        }
        let fault = {
            let mut faults = lock(&self.shared.faults);
            let at = faults
                .iter()
                .position(|(name, _)| key.contains(name.as_str()));
            at.map(|at| faults.remove(at).1)
        };
        match fault {
            None => change.await,
            Some(Fault::Fails(kind)) => Err(Error::new(kind, "told to fail")),
            Some(Fault::Unknown) => {
                let _ = change.await;
                Err(Error::new(Kind::Ambiguous, "the answer was lost"))
            }
            Some(Fault::Panics) => panic!("told to panic"),
            Some(Fault::PanicsThen) => {
                let _ = change.await;
                panic!("told to panic")
            }
            Some(Fault::UnknownNot) => Err(Error::new(Kind::Ambiguous, "the call was lost")),
        }
    }
}

impl Backend for Rig {
    type Object = RigObject;

    fn capabilities(&self) -> Capabilities {
        self.next.capabilities()
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.look().await?;
        self.pass_as("get", key).await;
        self.next.get(key, range, flags).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        if self.shared.full.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::NoSpace, "told to be full"));
        }
        self.change(key, self.next.put(key, body, condition)).await
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        self.look().await?;
        self.pass_as("head", key).await;
        self.next.head(key, flags).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let first = keys.first().cloned().unwrap_or_default();
        let frees = keys.iter().any(|key| self.store.peek(key).is_some());
        let deleted = self.change(&first, self.next.delete(keys)).await;
        if frees && deleted.is_ok() {
            self.shared.full.store(false, Ordering::SeqCst);
        }
        deleted
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.look().await?;
        self.shared.listings.fetch_add(1, Ordering::Relaxed);
        self.pass("list").await;
        let mut page = self.next.list(prefix, after).await?;
        let hidden = lock(&self.shared.hidden);
        let is_seen = |meta: &Meta| !hidden.iter().any(|name| meta.key.contains(name.as_str()));
        page.items.retain(is_seen);
        Ok(page)
    }

    async fn flush(&self) -> Result<()> {
        self.change("flush", self.next.flush()).await
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<RigObject> {
        self.look().await?;
        let was = self.store.peek(key);
        let object = self.next.open_object(key, mode).await?;
        if was.is_none() {
            lock(&self.shared.unsynced)
                .entry(key.to_owned())
                .or_insert(None);
        }
        Ok(RigObject {
            rig: self.clone(),
            key: key.to_owned(),
            object,
        })
    }
}

pub(crate) struct RigObject {
    rig: Rig,
    key: String,
    object: NextObject,
}

impl RigObject {
    fn writing(&self) {
        let mut unsynced = lock(&self.rig.shared.unsynced);
        unsynced
            .entry(self.key.clone())
            .or_insert_with(|| self.rig.store.peek(&self.key));
    }
}

impl Object for RigObject {
    fn capabilities(&self) -> Capabilities {
        self.object.capabilities()
    }

    async fn size(&self) -> Result<u64> {
        self.object.size().await
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        self.rig.look().await?;
        self.rig.pass_as("get", &self.key).await;
        self.object.read(offset, len, flags).await
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        self.writing();
        self.rig
            .change(&self.key, self.object.write(offset, body, flags))
            .await
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.writing();
        self.rig
            .change(&self.key, self.object.zero(offset, len, flags))
            .await
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        self.rig.look().await?;
        self.object.extents(offset, len, limit).await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.object.prefetch(offset, len).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.writing();
        self.rig.change(&self.key, self.object.resize(size)).await
    }

    async fn sync(&self) -> Result<()> {
        self.rig
            .change(&format!("sync {}", self.key), self.object.sync())
            .await?;
        lock(&self.rig.shared.unsynced).remove(&self.key);
        Ok(())
    }
}

/// A store that says it obeys conditions.
pub(crate) struct Liar {
    next: Next,
    /// It looks, and puts a moment later whatever came in between; else it does not look at all.
    looks: bool,
}

impl Liar {
    pub(crate) fn over(store: &Store, looks: bool) -> Chain {
        let next = store.backend().into();
        guard(export_backend(Self { next, looks }), "liar").into()
    }

    async fn look(&self, key: &str, condition: &Condition) -> Result<()> {
        let found = self.next.head(key, GetFlags::FRESH).await.ok();
        let refused = match condition {
            Condition::IfAbsent if found.is_some() => Some(Kind::Exists),
            Condition::IfMatch(etag) if found.is_none_or(|meta| meta.etag != *etag) => {
                Some(Kind::Precondition)
            }
            _ => None,
        };
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        refused.map_or(Ok(()), |kind| Err(Error::new(kind, key)))
    }
}

impl Backend for Liar {
    type Object = nbd_rs_plugin::NoObject;

    fn capabilities(&self) -> Capabilities {
        self.next.capabilities()
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.next.get(key, range, flags).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        if self.looks {
            self.look(key, &condition).await?;
        }
        self.next.put(key, body, Condition::Always).await
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        self.next.head(key, flags).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.next.delete(keys).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.next.list(prefix, after).await
    }

    async fn flush(&self) -> Result<()> {
        self.next.flush().await
    }

    async fn open_object(&self, _: &str, _: ObjectMode) -> Result<Self::Object> {
        Err(Error::unsupported("opening"))
    }
}
