//! Shards that are written inside: opened objects, the last ones used kept open.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard, Weak};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_plugin::{
    Body, Data, Extent, ExtentFlags, ObjectFlags, ObjectMode, ReadFlags, WriteFlags, ZeroFlags,
};
use rustix::process::{getrlimit, Resource};
use tokio::sync::OnceCell;

use super::fetch::gone;
use super::frame::corrupt;
use super::pages::Pages;
use super::state::State;
use super::{driven, one_extent, zeros};
use crate::backend::{Answer, Object};
use crate::error::{Error, Kind, Result};
use crate::layout::durability::Durability;
use crate::layout::split::Part;

/// Objects that are kept open, not counting those in use, where there are descriptors enough.
pub(super) const MOST_OPEN: usize = 256;
/// Those of all volumes take this part of the process's descriptors at the most: clients need some,
/// and puts.
const PART_OF_DESCRIPTORS: u64 = 4;
/// Volumes of this process that keep shards open.
static VOLUMES: AtomicU64 = AtomicU64::new(0);
/// Objects that are synced at the same time.
const AT_ONCE: usize = 16;

/// The shards of a volume.
pub(super) struct InPlace {
    pages: Arc<Pages>,
    slots: RwLock<BTreeMap<u64, Slot>>,
    uses: AtomicU64,
    /// Is told of syncs that fail outside a flush.
    durability: OnceLock<Weak<Durability>>,
}

#[derive(Default)]
struct Slot {
    opened: Arc<OnceCell<Arc<Opened>>>,
    used: AtomicU64,
}

/// An opened shard.
struct Opened {
    object: Object,
    /// Written since the last sync began.
    dirty: AtomicBool,
    /// One sync at a time: nobody may take it for clean while its sync runs.
    syncing: tokio::sync::Mutex<()>,
}

impl Opened {
    async fn sync(&self, failed: impl Fn()) -> Result<()> {
        let _alone = self.syncing.lock().await;
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let synced = self.object.sync().await;
        if synced.is_err() {
            self.dirty.store(true, Ordering::Release);
            failed();
        }
        synced
    }
}

/// What one volume may keep open, by the number of those that do so now.
fn most_open() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let part = descriptors.map_or(u64::MAX, |most| most / PART_OF_DESCRIPTORS);
    let share = part / VOLUMES.load(Ordering::Relaxed).max(1);
    share.clamp(1, MOST_OPEN as u64) as usize
}

impl Drop for InPlace {
    fn drop(&mut self) {
        VOLUMES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InPlace {
    pub(super) fn new(pages: Arc<Pages>) -> Arc<Self> {
        VOLUMES.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            pages,
            slots: RwLock::default(),
            uses: AtomicU64::new(0),
            durability: OnceLock::new(),
        })
    }

    /// Who is told of syncs that fail outside a flush.
    pub(super) fn report_to(&self, durability: &Arc<Durability>) {
        let _ = self.durability.set(Arc::downgrade(durability));
    }

    fn slots(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_number(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// The shard if it is open. Those that are never are not.
    fn at_hand(&self, shard: u64) -> Option<Arc<Opened>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(&shard)?;
        slot.used.store(self.use_number(), Ordering::Relaxed);
        slot.opened.get().cloned()
    }

    /// Opens the shard; `known` is its state, and only with `create` one that is missing is made.
    async fn open(&self, shard: u64, known: State, create: bool) -> Result<Arc<Opened>> {
        self.make_room().await;
        let used = self.use_number();
        let cell = {
            let mut slots = self.slots();
            let slot = slots.entry(shard).or_default();
            slot.used.store(used, Ordering::Relaxed);
            slot.opened.clone()
        };
        let opened = cell.get_or_try_init(|| self.open_object(shard, known, create));
        let opened = opened.await.cloned();
        if opened.is_err() {
            self.forget_unopened(shard, &cell);
        }
        opened
    }

    /// Gives up the place of a shard that could not be opened, unless others are at it.
    fn forget_unopened(&self, shard: u64, cell: &Arc<OnceCell<Arc<Opened>>>) {
        let mut slots = self.slots();
        let unopened = slots.get(&shard).is_some_and(|slot| {
            // The slot has it, and our caller.
            Arc::ptr_eq(&slot.opened, cell) && !cell.initialized() && Arc::strong_count(cell) == 2
        });
        if unopened {
            slots.remove(&shard);
        }
    }

    /// The object of a shard that is only looked at; `None` if there is none. It takes no place
    /// among the open ones: who looks holds no range, so the shard may be trimmed meanwhile, and
    /// whoever found its deleted object there would write to it.
    async fn look(&self, shard: u64, state: State) -> Result<Option<Object>> {
        if let Some(opened) = self.at_hand(shard) {
            return Ok(Some(opened.object.clone()));
        }
        match self.open_object(shard, state, false).await {
            Ok(opened) => Ok(Some(opened.object.clone())),
            Err(error) if state == State::Intended && is_unmade(&error) => Ok(None),
            Err(_) if self.pages.state(shard).await? == State::Never => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn open_object(&self, shard: u64, known: State, create: bool) -> Result<Arc<Opened>> {
        let size = self.pages.record.shard_bytes;
        let mut flags = ObjectFlags::NONE;
        if self.pages.writer.is_some() {
            flags = flags | ObjectFlags::WRITE;
        }
        if create {
            flags = flags | ObjectFlags::CREATE;
        }
        let key = self.pages.names.shard(shard);
        let mode = ObjectMode::create(flags, size);
        let opened = self.pages.store.chain.open_object(&key, mode).await;
        let object = opened.map_err(|error| match (error.kind, known) {
            (Kind::NotFound, State::Written) => gone(shard),
            // Somebody put something else in its place; nothing that a client asked is invalid.
            (Kind::Invalid, _) => Error::new(Kind::Io, format!("shard {shard}: {error}")),
            _ => error,
        })?;
        let found = object.size().await?;
        if found != size {
            // The server died while it made the object: nothing in it was ever acknowledged.
            if known == State::Written || !create {
                let text = format!("shard {shard} has {found} bytes instead of {size}");
                return Err(corrupt(text));
            }
            object.resize(0).await?;
            object.resize(size).await?;
        }
        Ok(Arc::new(Opened {
            object,
            dirty: AtomicBool::new(false),
            syncing: tokio::sync::Mutex::default(),
        }))
    }

    /// Closes those used least lately.
    async fn make_room(&self) {
        while let Some((shard, opened)) = self.one_too_many() {
            let synced = opened.sync(|| self.sync_failed()).await;
            if let Err(error) = synced {
                tracing::error!("shard {shard} could not be synced: {error}");
            }
            if !self.forget_unused(shard, &opened) {
                return;
            }
            if let Err(error) = opened.object.close().await {
                tracing::error!("shard {shard} could not be closed: {error}");
                self.sync_failed();
            }
        }
    }

    /// Takes a shard out, unless somebody has come meanwhile.
    fn forget_unused(&self, shard: u64, opened: &Arc<Opened>) -> bool {
        let mut slots = self.slots();
        // The slot has it, and our caller.
        let unused = slots.get(&shard).is_some_and(|slot| {
            Arc::strong_count(&slot.opened) == 1
                && Arc::strong_count(opened) == 2
                && !opened.dirty.load(Ordering::Acquire)
        });
        if unused {
            slots.remove(&shard);
        }
        unused
    }

    fn one_too_many(&self) -> Option<(u64, Arc<Opened>)> {
        let slots = self.slots();
        if slots.len() < most_open() {
            return None;
        }
        let unused = slots.iter().filter_map(|(&shard, slot)| {
            let opened = slot.opened.get()?;
            let unused = Arc::strong_count(&slot.opened) == 1 && Arc::strong_count(opened) == 1;
            unused.then(|| (slot.used.load(Ordering::Relaxed), shard, opened.clone()))
        });
        let oldest = unused.min_by_key(|(used, ..)| *used);
        oldest.map(|(_, shard, opened)| (shard, opened))
    }

    fn sync_failed(&self) {
        if let Some(durability) = self.durability.get().and_then(Weak::upgrade) {
            durability.sync_failed();
        }
    }

    /// Reads a part of a shard.
    pub(super) fn read(self: &Arc<Self>, part: Part, flags: ReadFlags) -> Answer<Data> {
        if let Some(opened) = self.at_hand(part.shard) {
            return opened.object.read(part.offset, part.len, flags);
        }
        if self.pages.peek(part.shard) == Some(State::Never) {
            return Answer::Ready(Ok(zeros(part.len, flags)));
        }
        // What is lent must be at hand.
        let flags = flags.without(ReadFlags::LEND_MAPPED);
        let in_place = self.clone();
        Answer::later(async move {
            let state = in_place.pages.state(part.shard).await?;
            if state == State::Never {
                return Ok(zeros(part.len, flags));
            }
            match in_place.open(part.shard, state, false).await {
                Ok(opened) => {
                    opened
                        .object
                        .read(part.offset, part.len, flags)
                        .wait()
                        .await
                }
                Err(error) if state == State::Intended && is_unmade(&error) => {
                    Ok(zeros(part.len, flags))
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Writes a part of a shard.
    pub(super) fn write(self: &Arc<Self>, part: Part, body: Body) -> Answer<()> {
        self.change(part, move |object| {
            object.write(part.offset, body, WriteFlags::NONE)
        })
    }

    /// Zeroes a part of a shard.
    pub(super) fn zero(self: &Arc<Self>, part: Part, flags: ZeroFlags) -> Answer<()> {
        let may_stay = !flags.has(ZeroFlags::NO_HOLE);
        if may_stay && self.pages.peek(part.shard) == Some(State::Never) {
            return Answer::Ready(Ok(()));
        }
        self.change(part, move |object| {
            object.zero(part.offset, part.len, flags)
        })
    }

    fn change(
        self: &Arc<Self>,
        part: Part,
        start: impl FnOnce(&Object) -> Answer<()> + Send + 'static,
    ) -> Answer<()> {
        if self.pages.may_change(part.shard) {
            if let Some(opened) = self.at_hand(part.shard) {
                opened.dirty.store(true, Ordering::Release);
                return match start(&opened.object) {
                    // A sync may have begun and ended meanwhile.
                    Answer::Ready(result) => {
                        opened.dirty.store(true, Ordering::Release);
                        Answer::Ready(result)
                    }
                    Answer::Later(later) => {
                        let in_place = self.clone();
                        Answer::later(async move {
                            let _under_way = in_place.pages.writer()?.changes.begin()?;
                            let result = later.await;
                            opened.dirty.store(true, Ordering::Release);
                            result
                        })
                    }
                };
            }
        }
        let in_place = self.clone();
        driven(&self.pages, async move {
            let shard = part.shard;
            let writer = in_place.pages.writer()?;
            writer.lease.held().await?;
            let intended = in_place.pages.intend(shard).await?;
            intended.putting()?;
            let create = intended.before != State::Written;
            let opened = in_place.open(shard, intended.before, create).await?;
            opened.dirty.store(true, Ordering::Release);
            let result = start(&opened.object).wait().await;
            opened.dirty.store(true, Ordering::Release);
            in_place.pages.was_put(&intended);
            result?;
            writer.lease.held().await
        })
    }

    /// What is allocated of a shard that is not never. One that is lost counts as data: whoever reads
    /// it is told, and whoever only asks can go on.
    pub(super) async fn extents(
        &self,
        part: Part,
        state: State,
        limit: u32,
    ) -> Result<Vec<Extent>> {
        let flags = match self.look(part.shard, state).await {
            Ok(Some(object)) => {
                let extents = object.extents(part.offset, part.len, limit);
                return extents.wait().await;
            }
            Ok(None) => ExtentFlags::HOLE | ExtentFlags::ZERO,
            Err(error) => {
                tracing::debug!("shard {} is told as data: {error}", part.shard);
                ExtentFlags::NONE
            }
        };
        Ok(one_extent(part.len, flags))
    }

    /// Reads ahead.
    pub(super) async fn prefetch(&self, part: Part) -> Result<()> {
        let state = self.pages.state(part.shard).await?;
        if state == State::Never {
            return Ok(());
        }
        match self.look(part.shard, state).await? {
            Some(object) => object.prefetch(part.offset, part.len).wait().await,
            None => Ok(()),
        }
    }

    /// Syncs every shard that was written since its last sync.
    pub(super) async fn sync(&self) -> Result<()> {
        let all: Vec<Arc<Opened>> = {
            let slots = self.slots();
            slots
                .values()
                .filter_map(|slot| slot.opened.get().cloned())
                .collect()
        };
        // Each is tried, whatever becomes of the others; the caller remembers what failed.
        let results: Vec<Result<()>> = stream::iter(all)
            .map(|opened| async move { opened.sync(|| ()).await })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        results.into_iter().collect()
    }

    /// Those of these shards that are never have no objects any more.
    pub(super) fn forget(&self, shards: Range<u64>) {
        let mut slots = self.slots();
        let open = slots.range(shards).map(|(&shard, _)| shard);
        let never = open.filter(|&shard| self.pages.peek(shard) == Some(State::Never));
        for shard in never.collect::<Vec<u64>>() {
            slots.remove(&shard);
        }
    }

    #[cfg(test)]
    pub(super) fn open_objects(&self) -> usize {
        self.slots().len()
    }

    /// Closes every shard.
    pub(super) async fn close(&self) -> Result<()> {
        let slots = std::mem::take(&mut *self.slots());
        let opened = slots
            .into_values()
            .filter_map(|slot| slot.opened.get().cloned());
        let opened: Vec<Result<Arc<Opened>>> = opened.map(Ok).collect();
        stream::iter(opened)
            .try_for_each_concurrent(AT_ONCE, |opened| async move { opened.object.close().await })
            .await
    }
}

/// Whether an intended shard has no object, or half of one that was being made.
fn is_unmade(error: &Error) -> bool {
    matches!(error.kind, Kind::NotFound | Kind::Corrupt)
}
