//! Objects beside the log, each on its homes: put until most have it, read from whoever has it whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_rs_commit_log::{Epoch, Quorum};
use nbd_rs_plugin::{Body, Bytes, Range};
use tokio::sync::mpsc;

use super::super::environment::{within, Environment};
use super::super::format::names::{Names, Object};
use super::super::log::{Caller, LogStore};
use super::super::placement::{homes, Placed};
use crate::error::{Error, Kind, Result};
use crate::layout::uuid::Uuid;

/// How often a put is tried on one backend before it is left to the next checkpoint.
const TRIES: u32 = 3;
/// Names in one call.
const DELETES: usize = 500;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// One call.
    pub(super) call: Duration,
    /// Without an answer for so long, the next backend is asked as well.
    pub(super) hedge: Duration,
    /// Before a put is tried again.
    pub(super) retry: Duration,
}

/// All backends of a volume.
pub(super) struct Replicas {
    pub(super) volume: Uuid,
    names: Names,
    backends: Vec<Uuid>,
    copies: usize,
    quorum: Quorum,
    callers: Vec<Caller>,
    pace: Pace,
    environment: Arc<dyn Environment>,
    /// Known once the log is owned.
    owner: OnceLock<Epoch>,
    /// Objects of this owner and the homes that are not known to have them.
    missing: Mutex<BTreeMap<Object, BTreeSet<usize>>>,
    /// Backends whose last call failed are asked last.
    failing: Mutex<BTreeSet<usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replicas {
    pub(super) fn new(
        volume: Uuid,
        (backends, copies): (Vec<Uuid>, usize),
        quorum: Quorum,
        stores: &[Arc<dyn LogStore>],
        pace: Pace,
        environment: Arc<dyn Environment>,
    ) -> Arc<Self> {
        let caller =
            |store: &Arc<dyn LogStore>| Caller::new(store.clone(), environment.clone(), pace.call);
        Arc::new(Self {
            volume,
            names: Names::of(volume),
            backends,
            copies,
            quorum,
            callers: stores.iter().map(caller).collect(),
            pace,
            environment,
            owner: OnceLock::new(),
            missing: Mutex::default(),
            failing: Mutex::default(),
        })
    }

    /// The log is owned: what carries this epoch was put by this process.
    pub(super) fn owned_by(&self, owner: Epoch) {
        // There is one owner for each process that opens a volume.
        let _ = self.owner.set(owner);
    }

    pub(super) fn backends(&self) -> usize {
        self.callers.len()
    }

    /// A backend's name, for people.
    pub(super) fn name(&self, backend: usize) -> String {
        self.callers[backend].name()
    }

    /// Stores know names behind the volume's.
    pub(super) fn key(&self, object: &Object) -> String {
        let name = self.names.name(object);
        name[self.names.all().len()..].to_owned()
    }

    /// The backends that are to have it, best first.
    pub(super) fn homes(&self, object: &Object) -> Vec<usize> {
        let placed = match object {
            Object::Image { shard, .. } => Placed::shard(*shard),
            Object::Pack(version) => Placed::pack(*version),
            Object::Map { .. } | Object::Root(_) | Object::Identity { .. } => {
                return (0..self.backends.len()).collect()
            }
        };
        homes(&self.backends, self.copies, placed)
    }

    pub(super) fn is_home(&self, object: &Object, backend: usize) -> bool {
        self.homes(object).contains(&backend)
    }

    /// So many homes have to have it before it counts.
    fn most(&self, object: &Object) -> usize {
        match object {
            Object::Image { .. } | Object::Pack(_) => self.homes(object).len() / 2 + 1,
            Object::Map { .. } | Object::Root(_) | Object::Identity { .. } => self.quorum.write(),
        }
    }

    /// Puts an object of this owner. The others of its homes get it by themselves, or at the next
    /// checkpoint. Homes that fail are tried again, but not waited for.
    ///
    /// # Errors
    /// That of a home, if too few of them took it at once. It may be there all the same.
    pub(super) async fn put(self: &Arc<Self>, object: Object, body: Body) -> Result<()> {
        let homes = self.homes(&object);
        lock(&self.missing).insert(object, homes.iter().copied().collect());
        let (tell, mut told) = mpsc::unbounded_channel();
        for &backend in &homes {
            let (replicas, body, tell) = (self.clone(), body.clone(), tell.clone());
            self.environment.spawn(Box::pin(async move {
                for tries in 1..=TRIES {
                    let put = replicas.put_to(backend, object, body.clone()).await;
                    let is_over = put.is_ok();
                    // Whoever has enough of them does not want to know.
                    let _ = tell.send((backend, put));
                    if is_over {
                        return;
                    }
                    replicas.sleep(replicas.pace.retry * tries).await;
                }
            }));
        }
        drop(tell);
        let most = self.most(&object);
        let began = self.environment.now();
        let (mut silent, mut failed) = (homes.clone(), BTreeSet::new());
        // The first one to take it sets the pace of the others.
        let mut pace = None;
        loop {
            let answer = match pace {
                None => told.recv().await,
                Some(pace) => match within(&*self.environment, pace, told.recv()).await {
                    Some(answer) => answer,
                    None => return Err(self.too_slow(&silent)),
                },
            };
            match answer {
                Some((backend, Ok(()))) => {
                    failed.remove(&backend);
                    silent.retain(|home| *home != backend);
                }
                Some((backend, Err(error))) => {
                    failed.insert(backend);
                    if homes.len() - failed.len() < most {
                        return Err(error);
                    }
                    continue;
                }
                None => break,
            }
            if homes.len() - silent.len() >= most {
                return Ok(());
            }
            if pace.is_none() && self.is_elsewhere(&object, &silent) {
                let took = self.environment.now().saturating_sub(began);
                pace = Some(self.pace.hedge + took * 2);
            }
        }
        let text = format!("too few backends took {}", self.key(&object));
        Err(Error::new(Kind::Transient, text))
    }

    /// Whether its bytes may go somewhere else, if these of its homes do not take it: an image's into
    /// the record, a pack's to other homes.
    fn is_elsewhere(&self, object: &Object, silent: &[usize]) -> bool {
        let failing = lock(&self.failing);
        let others =
            (0..self.backends()).filter(|at| !silent.contains(at) && !failing.contains(at));
        match object {
            Object::Image { .. } => true,
            Object::Pack(_) => others.count() >= self.most(object),
            Object::Map { .. } | Object::Root(_) | Object::Identity { .. } => false,
        }
    }

    /// These do not keep pace. They are tried on, and avoided until they answer.
    fn too_slow(&self, silent: &[usize]) -> Error {
        let mut text = "slower than the others:".to_owned();
        for &backend in silent {
            self.note(backend, false);
            text += &format!(" {}", self.callers[backend].name());
        }
        Error::new(Kind::Transient, text)
    }

    /// Puts it to one backend. That it is there already says that an earlier attempt had come
    /// through: nobody else uses the name.
    pub(super) async fn put_to(&self, backend: usize, object: Object, body: Body) -> Result<()> {
        let caller = &self.callers[backend];
        let put = caller.put(self.key(&object), body).await;
        self.note(backend, put.is_ok());
        put.map_err(|error| error.context(caller.name()))?;
        self.has_it(backend, &object);
        Ok(())
    }

    async fn sleep(&self, time: Duration) {
        self.environment.sleep(time).await;
    }

    fn has_it(&self, backend: usize, object: &Object) {
        let mut missing = lock(&self.missing);
        if let Some(homes) = missing.get_mut(object) {
            homes.remove(&backend);
            if homes.is_empty() {
                missing.remove(object);
            }
        }
    }

    /// Whether a home has it, without asking if this owner put it there.
    pub(super) async fn is_at(&self, backend: usize, object: &Object) -> Result<bool> {
        let is_own = object.version().map(|it| it.epoch) == self.owner.get().copied();
        let lacks = |homes: &BTreeSet<usize>| homes.contains(&backend);
        if is_own && !lock(&self.missing).get(object).is_some_and(lacks) {
            return Ok(true);
        }
        self.asked(backend, object).await
    }

    /// Whether a backend has it by what it says itself.
    pub(super) async fn asked(&self, backend: usize, object: &Object) -> Result<bool> {
        let caller = &self.callers[backend];
        let first = Range::new(0, 1);
        let found = caller.range(self.key(object), first, true).await;
        self.note(backend, found.is_ok());
        let found = found.map_err(|error| error.context(caller.name()))?;
        if found.is_some() {
            self.has_it(backend, object);
        }
        Ok(found.is_some())
    }

    fn note(&self, backend: usize, answers: bool) {
        let mut failing = lock(&self.failing);
        match answers {
            true => failing.remove(&backend),
            false => failing.insert(backend),
        };
    }

    /// Its homes, those first that are known to have it and that answer; then all others, which may have
    /// been its homes before a backend was replaced.
    fn order(&self, object: &Object) -> Vec<usize> {
        let mut homes = self.homes(object);
        let missing = lock(&self.missing).get(object).cloned();
        let missing = missing.unwrap_or_default();
        let failing = lock(&self.failing).clone();
        homes.sort_by_key(|at| (missing.contains(at), failing.contains(at)));
        let others = (0..self.backends()).filter(|at| !homes.contains(at));
        let others: Vec<usize> = others.collect();
        homes.extend(others);
        homes
    }

    /// A part of an object, decoded by whoever knows what it should be, from the first home whose copy
    /// is so. A slow one is not waited for alone.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no home has it, [`Kind::Corrupt`] if those that have it have it damaged;
    /// else that of a home that may have it.
    pub(super) async fn read<T: Send>(
        &self,
        object: &Object,
        range: Range,
        decode: &(dyn Fn(Bytes) -> Result<T> + Sync),
    ) -> Result<T> {
        let mut calls = self.order(object).into_iter().map(|backend| {
            let read = self.read_from(backend, object, range, decode);
            read.boxed() as BoxFuture<'_, Result<T>>
        });
        let mut running = FuturesUnordered::new();
        let mut worst: Option<Error> = None;
        loop {
            let is_last = calls.next().map(|call| running.push(call)).is_none();
            let answer = match is_last {
                true => running.next().await,
                false => match within(&*self.environment, self.pace.hedge, running.next()).await {
                    Some(answer) => answer,
                    None => continue,
                },
            };
            match answer {
                Some(Ok(found)) => return Ok(found),
                Some(Err(error)) => worst = Some(worse(worst, error)),
                None => break,
            }
        }
        let nowhere = || Error::new(Kind::NotFound, "no backend is its home");
        Err(worst.unwrap_or_else(nowhere))
    }

    /// A part of the copy on one backend, as [`read`](Self::read) does.
    ///
    /// # Errors
    /// [`Kind::NotFound`] or [`Kind::Corrupt`] of that copy; else that of the backend.
    pub(super) async fn read_from<T>(
        &self,
        backend: usize,
        object: &Object,
        range: Range,
        decode: &(dyn Fn(Bytes) -> Result<T> + Sync),
    ) -> Result<T> {
        let caller = &self.callers[backend];
        let mut fresh = false;
        loop {
            let read = caller.range(self.key(object), range, fresh).await;
            self.note(backend, read.is_ok());
            let context = |error: Error| error.context(caller.name());
            let found = read.map_err(context)?;
            let absent =
                || Error::new(Kind::NotFound, format!("{} is not there", self.key(object)));
            match decode(found.ok_or_else(absent).map_err(context)?) {
                // It may be a copy on the way that is damaged.
                Err(error) if error.kind == Kind::Corrupt && !fresh => fresh = true,
                decoded => return decoded.map_err(context),
            }
        }
    }

    /// Deletes objects from all their homes. The backends where that failed: there they are left.
    pub(super) async fn delete(&self, objects: Vec<Object>) -> Vec<usize> {
        let mut homes: Vec<Vec<Object>> = vec![Vec::new(); self.backends()];
        for object in objects {
            lock(&self.missing).remove(&object);
            for backend in self.homes(&object) {
                homes[backend].push(object);
            }
        }
        let deletes = homes
            .iter()
            .enumerate()
            .map(|(backend, objects)| async move {
                let deleted = self.delete_from(backend, objects).await;
                deleted.err().map(|error| {
                    tracing::debug!("garbage is left: {error}");
                    backend
                })
            });
        let failed = futures_util::future::join_all(deletes).await;
        failed.into_iter().flatten().collect()
    }

    /// Deletes objects from one backend.
    pub(super) async fn delete_from(&self, backend: usize, objects: &[Object]) -> Result<()> {
        let caller = &self.callers[backend];
        for objects in objects.chunks(DELETES) {
            let keys = objects.iter().map(|object| self.key(object)).collect();
            let deleted = caller.delete(keys).await;
            deleted.map_err(|error| error.context(caller.name()))?;
        }
        Ok(())
    }

    /// Some of the volume's objects on a backend whose names begin so, and where the next ones start.
    pub(super) async fn list(
        &self,
        backend: usize,
        prefix: &str,
        after: Option<String>,
    ) -> Result<(Vec<Object>, Option<String>)> {
        let caller = &self.callers[backend];
        let listed = caller.list(prefix.to_owned(), after).await;
        self.note(backend, listed.is_ok());
        let listed = listed.map_err(|error| error.context(caller.name()))?;
        let all = self.names.all();
        let objects = listed.keys.iter();
        let objects = objects.filter_map(|key| self.names.parse(&format!("{all}{key}")));
        Ok((objects.collect(), listed.next))
    }

    /// Whether its last call failed.
    pub(super) fn is_failing(&self, backend: usize) -> bool {
        lock(&self.failing).contains(&backend)
    }

    /// Whether so many of its homes answered last time that it can be put.
    pub(super) fn can_take(&self, object: &Object) -> bool {
        let failing = lock(&self.failing);
        let homes = self.homes(object);
        let answering = homes.iter().filter(|&home| !failing.contains(home));
        answering.count() >= self.most(object)
    }

    /// Asks backends that failed whether they are back.
    pub(super) async fn look_again(&self) {
        let failing = lock(&self.failing).clone();
        // Any name will do.
        let object = Object::Identity { revision: 1 };
        let looks = failing.into_iter().map(|backend| async move {
            let look = self.asked(backend, &object);
            // What came of it is noted.
            let _ = within(&*self.environment, self.pace.hedge, look).await;
        });
        futures_util::future::join_all(looks).await;
    }

    /// Waits a little before something is tried again.
    pub(super) async fn pause(&self) {
        self.sleep(self.pace.retry).await;
    }
}

/// The one that says less about the object: that a copy is away is no proof that it is lost.
fn worse(known: Option<Error>, error: Error) -> Error {
    let rank = |error: &Error| match error.kind {
        Kind::NotFound => 0,
        Kind::Corrupt => 1,
        _ => 2,
    };
    match known {
        Some(known) if rank(&known) >= rank(&error) => known,
        _ => error,
    }
}
