//! The state pages of a volume: loaded when needed, put under conditions, many changes at once.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_plugin::Meta;
use tokio::sync::OnceCell;

use super::changes::Changes;
use super::directory::Directory;
use super::frame::corrupt;
use super::lease::Lease;
use super::names::Names;
use super::page::{GivenUp, Page, States};
use super::ranges::Ranges;
use super::reaper::Reaper;
use super::state::{State, StatePage, PAGE_SHARDS};
use super::store::{read_as, Store, Swapped};
use super::trailer::trailer_bytes;
use super::unlisted;
use super::volume::{VolumeRecord, Way};
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// Pages kept in memory beyond those in use: 48 KiB each at the most.
const MAX_LOADED: usize = 512;
/// Pages that are put at the same time.
const AT_ONCE: usize = 16;

/// What a writer needs beyond the pages.
pub(super) struct Writer {
    pub(super) lease: Arc<Lease>,
    pub(super) reaper: Arc<Reaper>,
    pub(super) changes: Arc<Changes>,
}

/// A shard that may be put.
pub(super) struct Intended {
    /// Stays in memory until what became of the put is noted.
    page: Arc<Page>,
    at: u64,
    /// Its state before.
    pub(super) before: State,
}

impl Intended {
    /// A put is about to start: from now on nobody knows that there is no object.
    ///
    /// # Errors
    /// If the shard became never meanwhile, as a volume that is closed says of all that was only
    /// reserved: what is put there would be found by a later owner.
    pub(super) fn putting(&self) -> Result<()> {
        let mut states = self.page.write();
        if states.target.get(self.at) == State::Never {
            return Err(super::given_up());
        }
        states.putting(self.at);
        Ok(())
    }
}

/// All state pages of one volume.
pub(super) struct Pages {
    pub(super) store: Store,
    pub(super) names: Names,
    pub(super) record: VolumeRecord,
    pub(super) directory: Directory,
    /// Nobody writes through a read-only volume.
    pub(super) writer: Option<Writer>,
    loaded: RwLock<HashMap<u64, Arc<OnceCell<Arc<Page>>>>>,
    /// Pages with puts that are not recorded, or whose put has failed.
    dirty: Mutex<BTreeSet<u64>>,
    /// Pages that are not settled on the store, by this owner's doing.
    unsettled: Mutex<BTreeSet<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Page and number inside it.
fn place(shard: u64) -> (u64, u64) {
    (shard / PAGE_SHARDS, shard % PAGE_SHARDS)
}

impl Pages {
    pub(super) fn new(
        store: Store,
        names: Names,
        record: VolumeRecord,
        directory: Directory,
        writer: Option<Writer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            names,
            record,
            directory,
            writer,
            loaded: RwLock::default(),
            dirty: Mutex::default(),
            unsettled: Mutex::default(),
        })
    }

    pub(super) fn writer(&self) -> Result<&Writer> {
        let read_only = || Error::read_only("the volume is open read-only, and a change");
        self.writer.as_ref().ok_or_else(read_only)
    }

    /// A page that is in memory.
    fn at_hand(&self, page: u64) -> Option<Arc<Page>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(&page)?.get().cloned()
    }

    /// The state of a shard, if its page is in memory or there is none.
    pub(super) fn peek(&self, shard: u64) -> Option<State> {
        let (page, at) = place(shard);
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        match loaded.get(&page).and_then(|cell| cell.get()) {
            Some(page) => Some(page.read().view(at)),
            None => (!self.directory.contains(page)).then_some(State::Never),
        }
    }

    /// Whether a shard was written, and the store knows enough of it for another change.
    pub(super) fn may_change(&self, shard: u64) -> bool {
        let (page, at) = place(shard);
        self.at_hand(page).is_some_and(|page| {
            let states = page.read();
            states.view(at) == State::Written && states.is_intended(at)
        })
    }

    /// The state of a shard.
    pub(super) async fn state(&self, shard: u64) -> Result<State> {
        match self.peek(shard) {
            Some(state) => Ok(state),
            None => {
                let (page, at) = place(shard);
                Ok(self.load(page).await?.read().view(at))
            }
        }
    }

    /// The page, from memory or the store.
    pub(super) async fn load(&self, page: u64) -> Result<Arc<Page>> {
        let cell = self.cell(page);
        let loaded = cell.get_or_try_init(|| self.fetch(page)).await?;
        Ok(loaded.clone())
    }

    fn cell(&self, page: u64) -> Arc<OnceCell<Arc<Page>>> {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = loaded.get(&page) {
            return cell.clone();
        }
        if loaded.len() >= MAX_LOADED {
            let mut spare = MAX_LOADED / 4;
            loaded.retain(|_, cell| {
                let keep = spare == 0 || !self.may_go(cell);
                spare -= usize::from(!keep);
                keep
            });
        }
        loaded.entry(page).or_default().clone()
    }

    /// Whether nothing is lost when the page is read again.
    fn may_go(&self, cell: &Arc<OnceCell<Arc<Page>>>) -> bool {
        let Some(page) = cell.get() else {
            return false;
        };
        let first = page.volume_shard(0);
        let lingers = |writer: &Writer| writer.reaper.any_lingers(first..first + page.shards);
        Arc::strong_count(cell) == 1
            && Arc::strong_count(page) == 1
            && !page.read().is_dirty()
            && !lock(&self.dirty).contains(&page.number)
            && !self.writer.as_ref().is_some_and(lingers)
    }

    fn shards_of(&self, page: u64) -> u64 {
        (self.record.shards() - page * PAGE_SHARDS).min(PAGE_SHARDS)
    }

    async fn fetch(&self, number: u64) -> Result<Arc<Page>> {
        let mut states = States::default();
        if self.directory.contains(number) {
            let found = self.store.read(self.names.page(number)).await?;
            let Some((bytes, etag)) = found else {
                return Err(corrupt(format!(
                    "{}: the state page is gone, so nothing can be said of its {} shards",
                    self.names.page(number),
                    self.shards_of(number)
                )));
            };
            let decoded = StatePage::decode(self.record.uuid, number, &bytes);
            let (page, stamp, settled) = read_as(&self.names.page(number), decoded)?;
            states.base = page.clone();
            states.target = page;
            (states.stamp, states.settled) = (stamp, settled);
            states.etag = Some(etag);
        }
        let page = Page::new(number, self.shards_of(number), states);
        if let Some(writer) = &self.writer {
            self.take_over(writer, &page).await?;
        }
        Ok(page)
    }

    /// Makes a page of an earlier owner ours: what it left open is found out, and it can't change
    /// the page any more.
    async fn take_over(&self, writer: &Writer, page: &Arc<Page>) -> Result<()> {
        let (open, foreign) = {
            let states = page.read();
            if states.etag.is_none() || states.stamp.epoch >= writer.lease.epoch() {
                return Ok(());
            }
            (!states.settled, states.stamp.epoch <= writer.lease.unclean)
        };
        if open {
            let objects = self.objects_of(page).await?;
            self.sort_out(writer, page, &objects);
        }
        if open || foreign {
            page.write().unsure = true;
            self.commit(page).await?;
        }
        if !page.read().unlisted.is_empty() {
            let (store, names) = (self.store.clone(), self.names.clone());
            let (lease, page) = (writer.lease.clone(), page.clone());
            let asked = unlisted::ask(store, names, lease, page, self.object_bytes());
            runtime::handle().spawn(asked);
        }
        Ok(())
    }

    /// The store itself has no object for this shard, and nobody is putting it.
    pub(super) fn is_absent(&self, shard: u64) {
        let (page, at) = place(shard);
        if let Some(page) = self.at_hand(page) {
            page.write().is_absent(at);
        }
    }

    /// The sizes of a page's objects, by their numbers inside the page.
    async fn objects_of(&self, page: &Page) -> Result<HashMap<u64, u64>> {
        let (first, end) = (page.volume_shard(0), page.volume_shard(page.shards));
        let after = first.checked_sub(1).map(|before| self.names.shard(before));
        let mut objects = HashMap::new();
        let each = |meta: &Meta| {
            let shard = self.names.shard_of(&meta.key);
            if let Some(shard) = shard.filter(|&shard| shard >= first && shard < end) {
                objects.insert(shard - first, meta.size);
            }
            shard.is_none_or(|shard| shard < end)
        };
        self.store.list(&self.names.shards(), after, each).await?;
        Ok(objects)
    }

    /// Compares a page with the objects that are listed. Those of shards that are never are
    /// leftovers, and go; intended shards that have one were put.
    fn sort_out(&self, writer: &Writer, page: &Page, objects: &HashMap<u64, u64>) {
        let mut states = page.write();
        let mut leftovers = Ranges::default();
        for at in 0..page.shards {
            let object = objects.get(&at);
            match (states.target.get(at), object) {
                (State::Never, Some(_)) => {
                    let shard = page.volume_shard(at);
                    leftovers.insert(shard..shard + 1);
                }
                (State::Intended, None) => states.unlisted.insert(at),
                (State::Intended, Some(&size)) if size == self.object_bytes() => {
                    states.target.set(at, State::Written);
                }
                (State::Written, None) => {
                    let shard = page.volume_shard(at);
                    tracing::error!("shard {shard} was written and is gone");
                }
                _ => {}
            }
        }
        if !leftovers.is_empty() {
            writer.reaper.inherit(leftovers);
        }
    }

    /// The size of each shard's object.
    pub(super) fn object_bytes(&self) -> u64 {
        match self.record.way {
            Way::InPlace => self.record.shard_bytes,
            Way::Whole => self.record.shard_bytes + trailer_bytes(self.record.shard_bytes),
        }
    }

    /// Makes sure that no old object lies there, nor a delete of one is on its way.
    pub(super) async fn clear(&self, shard: u64) -> Result<()> {
        let (number, _) = place(shard);
        // First: a page that a dead owner left may bring leftovers to light when it is loaded.
        self.load(number).await?;
        self.writer()?.reaper.clear(shard).await
    }

    /// Makes durable that a shard may be put from now on. No old object lies there any more.
    pub(super) async fn intend(self: &Arc<Self>, shard: u64) -> Result<Intended> {
        let (number, at) = place(shard);
        let page = self.load(number).await?;
        self.clear(shard).await?;
        let reaper = self.writer()?.reaper.clone();
        let before = {
            let mut states = page.write();
            let before = states.view(at);
            if states.is_intended(at) && self.directory.contains(number) {
                drop(states);
                return Ok(Intended { page, at, before });
            }
            let lingers = |near| reaper.lingers(page.volume_shard(near));
            states.intend(at, page.shards, lingers);
            before
        };
        self.commit(&page).await?;
        Ok(Intended { page, at, before })
    }

    /// A put of the shard has succeeded.
    pub(super) fn was_put(&self, intended: &Intended) {
        let Intended { page, at, .. } = intended;
        if page.read().target.get(*at) == State::Intended {
            page.write().was_put(*at);
            lock(&self.dirty).insert(page.number);
        }
    }

    /// The pages of all puts until now, to be recorded when those are durable. They stay in memory
    /// meanwhile.
    pub(super) fn puts(&self) -> Vec<Arc<Page>> {
        let dirty: Vec<u64> = lock(&self.dirty).iter().copied().collect();
        let pages = dirty.into_iter().filter_map(|number| self.at_hand(number));
        pages.inspect(|page| page.write().sync_begins()).collect()
    }

    /// Records those puts, durably.
    pub(super) async fn record(&self, puts: Vec<Arc<Page>>) -> Result<()> {
        let record = |page: Arc<Page>| async move {
            {
                let mut states = page.write();
                states.record_puts();
                if !states.has_puts() {
                    lock(&self.dirty).remove(&page.number);
                }
            }
            let recorded = self.commit(&page).await;
            if recorded.is_err() {
                lock(&self.dirty).insert(page.number);
            }
            recorded
        };
        // Every page is tried, whatever becomes of the others.
        let results: Vec<Result<()>> = stream::iter(puts)
            .map(record)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        results.into_iter().collect()
    }

    /// Makes shards never, durably, and has their objects deleted.
    pub(super) async fn give_up(self: &Arc<Self>, shards: Range<u64>) -> Result<()> {
        let pages = shards.start / PAGE_SHARDS..(shards.end - 1) / PAGE_SHARDS + 1;
        let touched: Vec<u64> = pages.filter(|&page| self.may_exist(page)).collect();
        // None is left half done, whatever becomes of the others.
        let results: Vec<Result<()>> = stream::iter(touched)
            .map(|number| self.give_up_in(number, &shards))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        results.into_iter().collect()
    }

    /// How many shards from this one on are never because their page does not exist.
    pub(super) fn never_from(&self, shard: u64) -> u64 {
        let (page, at) = place(shard);
        match self.may_exist(page) {
            true => 0,
            false => self.shards_of(page) - at,
        }
    }

    /// Whether any shard of the page can be anything but never.
    fn may_exist(&self, page: u64) -> bool {
        self.directory.contains(page) || self.at_hand(page).is_some()
    }

    async fn give_up_in(self: &Arc<Self>, number: u64, shards: &Range<u64>) -> Result<()> {
        let page = self.load(number).await?;
        let reaper = &self.writer()?.reaper;
        let first = page.volume_shard(0);
        let start = shards.start.max(first) - first;
        let end = shards.end.min(first + page.shards) - first;
        let objects = |given_up: &GivenUp| -> Vec<Range<u64>> {
            let runs = given_up.objects.iter();
            runs.map(|run| first + run.start..first + run.end).collect()
        };
        let given_up = {
            let mut states = page.write();
            let given_up = states.give_up(start..end);
            for run in objects(&given_up) {
                reaper.announce(run);
            }
            given_up
        };
        if given_up.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.commit(&page).await {
            page.write().restore(&given_up);
            lock(&self.dirty).insert(number);
            for run in objects(&given_up) {
                reaper.withdraw(run);
            }
            return Err(error);
        }
        for run in objects(&given_up) {
            reaper.release(run);
        }
        Ok(())
    }

    /// Puts the page as it should be; many who wait share one put.
    async fn commit(&self, page: &Arc<Page>) -> Result<()> {
        let writer = self.writer()?;
        let put = PagePut {
            store: self.store.clone(),
            key: self.names.page(page.number),
            record: self.record,
            lease: writer.lease.clone(),
            reaper: writer.reaper.clone(),
            directory: self.directory.clone(),
            page: page.clone(),
        };
        let put = Arc::new(put);
        lock(&self.unsettled).insert(page.number);
        page.gather
            .join(move || {
                let put = put.clone();
                Box::pin(async move { put.run().await })
            })
            .await
    }

    /// Before the volume is given back: what was reserved and not used is never again, and pages
    /// on which nothing is open say so, so that the next owner need not look.
    pub(super) async fn settle(&self) -> Result<()> {
        let numbers: Vec<u64> = lock(&self.unsettled).iter().copied().collect();
        stream::iter(numbers.into_iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |number| async move {
                let Some(page) = self.at_hand(number) else {
                    return Ok(());
                };
                {
                    let mut states = page.write();
                    states.settle();
                    states.unsure = true;
                }
                match self.commit(&page).await {
                    // A page that was to be new: none of its shards was put. The others lie there
                    // unsettled, and the next owner looks.
                    Err(error) if error.kind == Kind::NoSpace => {
                        tracing::warn!("state page {number} is left as it is: {error}");
                        Ok(())
                    }
                    committed => committed,
                }
            })
            .await
    }
}

/// The put of one page.
struct PagePut {
    store: Store,
    key: String,
    record: VolumeRecord,
    lease: Arc<Lease>,
    reaper: Arc<Reaper>,
    directory: Directory,
    page: Arc<Page>,
}

impl PagePut {
    async fn run(&self) -> Result<()> {
        for _ in 0..super::store::ATTEMPTS {
            self.lease.held().await?;
            let number = self.page.number;
            let Some(snapshot) = self.page.snapshot() else {
                let exists = self.page.read().etag.is_some();
                return match exists {
                    // Its bit may have failed after its put.
                    true => self.directory.insert(&self.lease, number).await,
                    false => Ok(()),
                };
            };
            let stamp = self.lease.stamp();
            let settled = self.is_settled(&snapshot.states);
            let bytes = snapshot
                .states
                .encode(self.record.uuid, number, stamp, settled);
            let condition = match &snapshot.etag {
                Some(etag) => self.store.if_match(etag),
                None => self.store.if_absent(),
            };
            self.page.write().unsure = true;
            match self.store.swap(&self.key, bytes, condition).await? {
                Swapped::Done(etag) => {
                    self.page
                        .write()
                        .stored(snapshot.states, etag, stamp, settled);
                    return self.directory.insert(&self.lease, number).await;
                }
                Swapped::Other(Some((bytes, etag))) => self.found(&bytes, etag)?,
                // Never put, and a moment ago it was there: look again.
                Swapped::Other(None) if snapshot.etag.is_none() => {}
                Swapped::Other(None) => {
                    return Err(corrupt(format!("state page {number} is gone")));
                }
            }
        }
        let text = format!("state page {} keeps changing", self.page.number);
        Err(Error::new(Kind::Transient, text))
    }

    /// Nothing is open: no shard is intended, and no object lies where none should.
    fn is_settled(&self, states: &StatePage) -> bool {
        let first = self.page.volume_shard(0);
        let intended = states.counts(PAGE_SHARDS)[State::Intended as usize];
        intended == 0 && !self.reaper.any_lingers(first..first + self.page.shards)
    }

    /// Another page lies there than the one known: a late put of an earlier owner, or one of ours
    /// whose outcome was not known.
    fn found(&self, bytes: &[u8], etag: String) -> Result<()> {
        let number = self.page.number;
        let (theirs, stamp, _) = StatePage::decode(self.record.uuid, number, bytes)?;
        if stamp.epoch > self.lease.epoch() {
            let text = format!("state page {number} was put by epoch {}", stamp.epoch);
            return Err(self.lease.lose(text));
        }
        let mut states = self.page.write();
        if stamp.epoch < self.lease.epoch() {
            let base = states.base.clone();
            states.target.rebase(&base, &theirs);
        }
        states.found(theirs, etag);
        Ok(())
    }
}
