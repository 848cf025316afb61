//! A read: from memory, by joining a fetch, or by starting one.

use std::collections::HashMap;
use std::ops::Range as Span;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{Bytes, Data, GetFlags, Got, Kind, Meta, Piece, Range, Result};

use crate::flight::{Fetched, Flight, Pilot};
use crate::index::{Object, Version};
use crate::memory::BlockKey;
use crate::shared::{answer, check, joined, Counters, Shared};

/// The place of the first fetch of an object among its flights.
const OPENING: u64 = u64::MAX - 1;
/// An object that keeps changing is read past the cache after so many attempts.
const ROUNDS: usize = 4;
/// After so many misses a small object is fetched whole.
const WHOLE_AFTER: u32 = 8;

/// Where a part of an answer comes from.
enum Part {
    Here(Bytes),
    Coming(Arc<Flight>),
}

impl Shared {
    /// Answers from memory, or not at all.
    pub(crate) fn hit(self: &Arc<Self>, key: &str, range: Range, flags: GetFlags) -> Option<Got> {
        let object = self.index.lookup(key)?;
        let version = object.version.get()?;
        let bytes = span(range, version)?;
        // Nobody waits here: a read that meets another one is not noted.
        let mut pattern = object.pattern.try_lock().ok();
        let passes = pattern.as_ref().is_some_and(|known| known.passes(&bytes));
        let blocks = self.grid.blocks(&bytes);
        let data = match blocks.end - blocks.start {
            1 => {
                let held = self.held(&object, blocks.start, passes)?;
                Data::One(self.part(held, blocks.start, &bytes))
            }
            _ => {
                let part =
                    |block| Some(self.part(self.held(&object, block, passes)?, block, &bytes));
                joined(blocks.map(part).collect::<Option<_>>()?)
            }
        };
        let ahead = pattern.as_mut();
        let ahead = ahead.and_then(|known| known.note(&bytes, self.config.ahead()));
        drop(pattern);
        Counters::add(&self.counters.hits);
        if let Some(ahead) = ahead {
            self.read_ahead(key, &object, version, ahead);
        }
        let meta = wanted(flags, version, key).into();
        Some(Got { data, meta })
    }

    /// Answers as [`Backend::get`](nbd_rs_plugin::Backend::get) does.
    pub(crate) async fn read(
        self: &Arc<Self>,
        key: &str,
        range: Range,
        flags: GetFlags,
    ) -> Result<Got> {
        if let Some(got) = self.hit(key, range, flags) {
            return Ok(got);
        }
        if self.versionless() {
            return self.inner.get(key, range, flags).await;
        }
        Counters::add(&self.counters.misses);
        for _ in 0..ROUNDS {
            let Some(object) = self.index.current(key) else {
                break;
            };
            let got = match object.version.get() {
                None => self.open(key, &object, range, flags).await?,
                Some(version) => match span(range, version) {
                    Some(bytes) if bytes.end - bytes.start <= self.config.largest_fill() => {
                        self.gather(key, &object, version, bytes, flags).await?
                    }
                    _ => break,
                },
            };
            if let Some(got) = got {
                return Ok(got);
            }
            if self.versionless() {
                break;
            }
        }
        self.ask(key, range, flags).await
    }

    /// Asks the backend, whatever is held; what it answers is kept.
    pub(crate) async fn ask(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        Counters::add(&self.counters.passed);
        let Some(object) = self.index.current(key) else {
            return self.inner.get(key, range, flags).await;
        };
        let began = self.index.tick();
        let got = self.inner.get(key, range, flags | GetFlags::WANT_META);
        let mut got = self.noticed(key, &object, got.await)?;
        if let Some(version) = self.version_of(&got.meta) {
            check(range, &version, &got.data)?;
            self.keep(key, &object, version, range.offset, got.data.clone(), began);
        }
        if !flags.has(GetFlags::WANT_META) {
            got.meta = ROption::RNone;
        }
        Ok(got)
    }

    /// The first read of an object: what comes tells its version too.
    async fn open(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        range: Range,
        flags: GetFlags,
    ) -> Result<Option<Got>> {
        let flight = self.join_opening(key, object, range);
        let fetched = flight.wait().await?;
        let Some(version) = &fetched.version else {
            return Ok(None);
        };
        let bytes = match span(range, version) {
            Some(bytes) if bytes.start >= fetched.start && bytes.end <= fetched.end() => bytes,
            _ => return Ok(None),
        };
        let mut pieces = Vec::new();
        fetched.append(&bytes, &mut pieces);
        Ok(Some(answer(pieces, wanted(flags, version, key))))
    }

    /// Asks for whole blocks if the object is likely to have them, else for just what is wanted.
    async fn first_fetch(&self, key: &str, object: &Arc<Object>, range: Range) -> Result<Fetched> {
        if self.disk.as_ref().is_some_and(|disk| disk.knows(key)) {
            return self.look(key, object).await;
        }
        if let Some(guess) = self.guess(range).filter(|guess| *guess != range) {
            match self.fetch(key, object, guess).await {
                // A smaller object than the last one. Only the range that was asked for counts.
                Err(error) if error.kind == Kind::Invalid => {}
                fetched => return fetched,
            }
        }
        self.fetch(key, object, range).await
    }

    /// Asks the store which version is current: copies of it may be on disk.
    async fn look(&self, key: &str, object: &Arc<Object>) -> Result<Fetched> {
        let began = self.index.tick();
        let meta = self.inner.head(key, GetFlags::FRESH).await;
        let meta = ROption::RSome(self.noticed(key, object, meta)?);
        let version = self.version_of(&meta);
        if let Some(version) = &version {
            self.observe(key, object, version, began);
        }
        Ok(Fetched {
            version,
            start: 0,
            pieces: Vec::new(),
        })
    }

    fn guess(&self, range: Range) -> Option<Range> {
        if !self.ranged {
            return Some(Range::ALL);
        }
        if range.len == Range::TO_END {
            return None;
        }
        let size = self.usual_size.load(Ordering::Relaxed);
        let asked = range.within(size).ok()?;
        let blocks = self.grid.blocks(&(asked.start as u64..asked.end as u64));
        let bytes = self.grid.bytes(&blocks, size);
        (!bytes.is_empty()).then(|| Range::new(bytes.start, bytes.end - bytes.start))
    }

    /// Puts an answer together from blocks. Nothing if the object is not of that version any more.
    async fn gather(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        bytes: Span<u64>,
        flags: GetFlags,
    ) -> Result<Option<Got>> {
        let passes = object.pattern().passes(&bytes);
        let blocks = self.grid.blocks(&bytes);
        let reach = match self.ranged || version.size > self.config.largest_fill() {
            true => blocks.clone(),
            // The backend fetches it all anyway.
            false => self.grid.blocks(&(0..version.size)),
        };
        let parts = self.parts(key, object, version, reach, passes);
        let mut pieces = Vec::with_capacity(parts.len());
        let wanted_parts = parts
            .into_iter()
            .filter(|(block, _)| blocks.contains(block));
        for (block, part) in wanted_parts {
            match part {
                Part::Here(held) => pieces.push(self.part(held, block, &bytes)),
                Part::Coming(flight) => {
                    let fetched = match flight.wait().await {
                        // The object became shorter: the caller's own range may still be inside.
                        Err(error) if error.kind == Kind::Invalid => return Ok(None),
                        fetched => fetched?,
                    };
                    let all = self.grid.bytes(&(block..block + 1), version.size);
                    let wanted = all.start.max(bytes.start)..all.end.min(bytes.end);
                    let other = fetched.version.as_ref() != Some(version);
                    if other || wanted.start < fetched.start || wanted.end > fetched.end() {
                        return Ok(None);
                    }
                    fetched.append(&wanted, &mut pieces);
                }
            }
        }
        let ahead = object.pattern().note(&bytes, self.config.ahead());
        if let Some(ahead) = ahead {
            self.read_ahead(key, object, version, ahead);
        }
        self.consider_whole(key, object, version);
        Ok(Some(answer(pieces, wanted(flags, version, key))))
    }

    /// Every block: held, or coming. What is in neither state is sent for, in runs.
    fn parts(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        blocks: Span<u64>,
        passes: bool,
    ) -> Vec<(u64, Part)> {
        let mut parts: Vec<(u64, Part)> = Vec::new();
        let mut missing: Option<(Span<u64>, Arc<Flight>)> = None;
        let mut runs = Vec::new();
        let mut flights = object.flights();
        for block in blocks {
            // Under the lock: a fetch that lands now is either still in the list or in memory.
            let found = match (flights.get(&block), self.held(object, block, passes)) {
                (_, Some(held)) => Some(Part::Here(held)),
                (Some(flight), None) => Some(Part::Coming(flight.clone())),
                (None, None) => None,
            };
            let part = match found {
                Some(part) => {
                    runs.extend(missing.take());
                    part
                }
                None => {
                    let (run, flight) =
                        missing.get_or_insert_with(|| (block..block, Arc::default()));
                    run.end = block + 1;
                    flights.insert(block, flight.clone());
                    Part::Coming(flight.clone())
                }
            };
            parts.push((block, part));
        }
        drop(flights);
        runs.extend(missing);
        for (run, flight) in runs {
            self.send(key, object, version, run, flight);
        }
        parts
    }

    /// Fetches a run of blocks in a task of its own: nobody who stops waiting ends it for others.
    fn send(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        run: Span<u64>,
        flight: Arc<Flight>,
    ) {
        let version = version.clone();
        let (shared, key, object) = (self.clone(), key.to_owned(), object.clone());
        let landing = Landing::new(&object, run.clone(), flight);
        self.host.spawn(async move {
            landing.land(shared.load(&key, &object, version, run).await);
        });
    }

    /// Brings a run of blocks, from disk as far as they are there.
    async fn load(
        &self,
        key: &str,
        object: &Arc<Object>,
        version: Version,
        run: Span<u64>,
    ) -> Result<Fetched> {
        let Some(disk) = self.disk.as_ref().filter(|disk| disk.is_on()) else {
            return self.fetch_blocks(key, object, &version, &run).await;
        };
        let names = disk.names(key, &version);
        let mut held = disk.read(names, run.clone(), version.size).await;
        for (block, bytes) in run.clone().zip(&held) {
            if let Some(bytes) = bytes {
                self.hold(object, block, bytes.clone());
            }
        }
        let start = self.grid.bytes(&run, version.size).start;
        let first = held.iter().position(Option::is_none);
        let last = held.iter().rposition(Option::is_none);
        let (Some(first), Some(last)) = (first, last) else {
            return Ok(Fetched {
                version: Some(version),
                start,
                pieces: held.into_iter().flatten().collect(),
            });
        };
        // One request for all that is missing, and for what may lie between.
        let missing = run.start + first as u64..run.start + last as u64 + 1;
        let fetched = self.fetch_blocks(key, object, &version, &missing).await?;
        if fetched.version.as_ref() != Some(&version) {
            return Ok(fetched);
        }
        let behind = held.split_off(last + 1);
        held.truncate(first);
        let pieces = held.into_iter().flatten().chain(fetched.pieces);
        Ok(Fetched {
            version: Some(version),
            start,
            pieces: pieces.chain(behind.into_iter().flatten()).collect(),
        })
    }

    async fn fetch_blocks(
        &self,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        run: &Span<u64>,
    ) -> Result<Fetched> {
        let bytes = self.grid.bytes(run, version.size);
        let range = Range::new(bytes.start, bytes.end - bytes.start);
        self.fetch(key, object, range).await
    }

    /// Joins the first fetch of an object, or starts it.
    fn join_opening(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        range: Range,
    ) -> Arc<Flight> {
        let mut flights = object.flights();
        if let Some(flight) = flights.get(&OPENING) {
            return flight.clone();
        }
        let flight: Arc<Flight> = Arc::default();
        flights.insert(OPENING, flight.clone());
        drop(flights);
        let landing = Landing::new(object, OPENING..OPENING + 1, flight.clone());
        let (shared, key, object) = (self.clone(), key.to_owned(), object.clone());
        self.host.spawn(async move {
            landing.land(shared.first_fetch(&key, &object, range).await);
        });
        flight
    }

    /// Fetches what a sequential reader will want next.
    fn read_ahead(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        ahead: Span<u64>,
    ) {
        let ahead = ahead.start.min(version.size)..ahead.end.min(version.size);
        if !ahead.is_empty() {
            self.fetch_in_background(key, object, version, self.grid.blocks(&ahead));
        }
    }

    /// A small object that is missed again and again is wanted whole.
    fn consider_whole(self: &Arc<Self>, key: &str, object: &Arc<Object>, version: &Version) {
        let misses = object.misses.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = self.config.whole.min(self.config.largest_fill());
        if self.ranged && misses.is_multiple_of(WHOLE_AFTER) && version.size <= limit {
            let all = self.grid.blocks(&(0..version.size));
            self.fetch_in_background(key, object, version, all);
        }
    }

    /// Sends for the blocks that are neither held nor coming, if not too much is under way.
    fn fetch_in_background(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        blocks: Span<u64>,
    ) {
        let bytes = self.grid.bytes(&blocks, version.size);
        let bytes = bytes.end - bytes.start;
        let before = self.background.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.config.background() {
            self.background.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let parts = self.parts(key, object, version, blocks, true);
        let mut coming: Vec<Arc<Flight>> = Vec::new();
        for (_, part) in parts {
            if let Part::Coming(flight) = part {
                if !coming.iter().any(|known| Arc::ptr_eq(known, &flight)) {
                    coming.push(flight);
                }
            }
        }
        if coming.is_empty() {
            self.background.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        self.counters
            .ahead
            .fetch_add(coming.len() as u64, Ordering::Relaxed);
        let shared = self.clone();
        self.host.spawn(async move {
            for flight in coming {
                let _ = flight.wait().await;
            }
            shared.background.fetch_sub(bytes, Ordering::Relaxed);
        });
    }

    fn held(&self, object: &Object, block: u64, passes: bool) -> Option<Bytes> {
        let key = BlockKey {
            object: object.id,
            block,
        };
        match passes {
            true => self.memory.pass(key),
            false => self.memory.get(key),
        }
    }

    /// What `bytes` wants of a held block: lent, not copied.
    fn part(&self, held: Bytes, block: u64, bytes: &Span<u64>) -> Piece {
        let start = block * self.grid.block_bytes();
        let from = bytes.start.saturating_sub(start) as usize;
        let to = (bytes.end - start).min(held.len() as u64) as usize;
        Piece::Bytes(held.slice(from..to))
    }
}

/// Ends a flight: takes it off the list, and wakes who waits; also when its task is dropped.
struct Landing {
    object: Arc<Object>,
    places: Span<u64>,
    pilot: Option<Pilot>,
}

impl Landing {
    fn new(object: &Arc<Object>, places: Span<u64>, flight: Arc<Flight>) -> Self {
        let object = object.clone();
        let pilot = Some(Pilot::new(flight));
        Self {
            object,
            places,
            pilot,
        }
    }

    fn land(mut self, fetched: Result<Fetched>) {
        self.object.landed(self.places.clone());
        if let Some(pilot) = self.pilot.take() {
            pilot.land(fetched);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.pilot.is_some() {
            self.object.landed(self.places.clone());
        }
    }
}

impl Object {
    fn pattern(&self) -> MutexGuard<'_, crate::pattern::Pattern> {
        self.pattern.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<u64, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a flight off the list.
    fn landed(&self, places: Span<u64>) {
        let mut flights = self.flights();
        for place in places {
            flights.remove(&place);
        }
        if flights.is_empty() {
            // Thousands of objects are known; those at rest keep no table.
            *flights = HashMap::new();
        }
    }
}

/// The bytes that `range` means in that version, if they are inside.
fn span(range: Range, version: &Version) -> Option<Span<u64>> {
    let inside = range.within(version.size).ok()?;
    Some(inside.start as u64..inside.end as u64)
}

fn wanted(flags: GetFlags, version: &Version, key: &str) -> Option<Meta> {
    flags.has(GetFlags::WANT_META).then(|| version.meta(key))
}
