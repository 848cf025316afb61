//! What is not in memory is sent for, each block once, for everybody who waits for it.

use std::collections::HashMap;
use std::ops::Range as Span;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{Bytes, GetFlags, Kind, Range, Result};

use crate::ahead::Admitted;
use crate::flight::{Fetched, Flight, Pilot};
use crate::index::{Object, Version};
use crate::read::Reader;
use crate::shared::{Counters, Shared};

/// The place of the first fetch of an object among its flights.
const OPENING: u64 = u64::MAX - 1;

/// The fetches of one object that are under way, by block.
pub(crate) type Flights = HashMap<u64, Arc<Flight>>;

/// Where a part of an answer comes from.
pub(crate) enum Part {
    Here(Bytes),
    Coming(Arc<Flight>),
}

/// A fetch that is to be sent.
pub(crate) struct Departure {
    /// The blocks that it brings.
    pub(crate) run: Span<u64>,
    pub(crate) flight: Arc<Flight>,
    /// The room that it was given, if it brings more than its readers asked for.
    pub(crate) admitted: Option<Arc<Admitted>>,
}

impl Departure {
    /// Of blocks that were asked for.
    pub(crate) fn narrow(run: Span<u64>) -> Self {
        Self {
            run,
            flight: Arc::default(),
            admitted: None,
        }
    }

    /// Of more than was asked for.
    pub(crate) fn wide(run: Span<u64>, admitted: &Arc<Admitted>) -> Self {
        Self {
            run,
            flight: Arc::new(Flight::wide()),
            admitted: Some(admitted.clone()),
        }
    }

    /// Whoever misses one of its blocks from now on waits for it, unless it is coming already.
    pub(crate) fn enter(&self, flights: &mut Flights) {
        for block in self.run.clone() {
            flights.entry(block).or_insert_with(|| self.flight.clone());
        }
    }
}

impl Shared {
    /// A block, held or coming, or neither.
    ///
    /// The flights are locked: a fetch that lands now is either still among them or in memory.
    pub(crate) fn find(
        &self,
        object: &Object,
        flights: &Flights,
        block: u64,
        passes: bool,
    ) -> Option<Part> {
        let held = self.held(object, block, passes).map(Part::Here);
        held.or_else(|| flights.get(&block).cloned().map(Part::Coming))
    }

    /// Every block: held, or coming. What is in neither state is sent for, in runs, or with all that
    /// is missing of the object.
    pub(crate) fn parts(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        blocks: Span<u64>,
        reader: Reader,
    ) -> Vec<(u64, Part)> {
        let mut parts: Vec<(u64, Part)> = Vec::new();
        let mut departures: Vec<Departure> = Vec::new();
        let mut flights = object.flights();
        for block in blocks.clone() {
            if let Some(part) = self.find(object, &flights, block, reader.passes) {
                parts.push((block, part));
                continue;
            }
            let is_first = departures.is_empty();
            let whole = is_first.then(|| self.whole(key, object, version, block, &blocks, reader));
            if let Some(whole) = whole.flatten() {
                whole.enter(&mut flights);
                parts.push((block, Part::Coming(whole.flight.clone())));
                departures.push(whole);
                continue;
            }
            let run = match departures.last_mut() {
                Some(last) if last.run.end == block && !last.flight.is_wide() => last,
                _ => {
                    departures.push(Departure::narrow(block..block));
                    departures.last_mut().expect("it was pushed")
                }
            };
            run.run.end = block + 1;
            flights.insert(block, run.flight.clone());
            parts.push((block, Part::Coming(run.flight.clone())));
        }
        drop(flights);
        for departure in departures {
            self.send(key, object, version, departure);
        }
        parts
    }

    /// Fetches blocks in a task of its own: nobody who stops waiting ends it for others.
    pub(crate) fn send(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        departure: Departure,
    ) {
        let version = version.clone();
        let (shared, key, object) = (self.clone(), key.to_owned(), object.clone());
        let Departure {
            run,
            flight,
            admitted,
        } = departure;
        let is_wide = flight.is_wide();
        let landing = Landing::new(&object, run.clone(), flight);
        self.host.spawn(async move {
            let loaded = shared.load(&key, &object, version, run).await;
            if is_wide && loaded.is_err() {
                object.failed_wide();
            }
            landing.land(loaded);
            // Not before: until now it was not in memory.
            drop(admitted);
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
                self.hold_new(object, block, bytes);
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

    /// Joins the first fetch of an object, or starts it; whether it is one for this range.
    pub(crate) fn join_opening(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        range: Range,
    ) -> (Arc<Flight>, bool) {
        let mut flights = object.flights();
        if let Some(flight) = flights.get(&OPENING) {
            return (flight.clone(), false);
        }
        let flight: Arc<Flight> = Arc::default();
        flights.insert(OPENING, flight.clone());
        drop(flights);
        let landing = Landing::new(object, OPENING..OPENING + 1, flight.clone());
        let (shared, key, object) = (self.clone(), key.to_owned(), object.clone());
        let is_on_disk = self.disk.as_ref().is_some_and(|disk| disk.knows(&key));
        self.host.spawn(async move {
            let fetched = match is_on_disk {
                true => shared.look(&key, &object).await,
                false => shared.first_fetch(&key, &object, range).await,
            };
            landing.land(fetched);
        });
        (flight, true)
    }

    /// Asks for all of the object, or for whole blocks, if it is likely to have them, else for just
    /// what is wanted.
    async fn first_fetch(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        range: Range,
    ) -> Result<Fetched> {
        if let Some(whole) = self.whole_at_once(range) {
            object.open_whole();
            Counters::add(&self.counters.ahead);
            match self.fetch(key, object, Range::new(0, whole.bytes)).await {
                // A smaller object than the last one.
                Err(error) if error.kind == Kind::Invalid => {}
                Err(error) if error.kind != Kind::NotFound => object.failed_wide(),
                fetched => return fetched,
            }
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
}

/// Ends a flight: takes it off the list, and wakes who waits; also when its task is dropped.
struct Landing {
    object: Arc<Object>,
    places: Span<u64>,
    flight: Arc<Flight>,
    pilot: Option<Pilot>,
}

impl Landing {
    fn new(object: &Arc<Object>, places: Span<u64>, flight: Arc<Flight>) -> Self {
        Self {
            object: object.clone(),
            places,
            pilot: Some(Pilot::new(flight.clone())),
            flight,
        }
    }

    fn land(mut self, fetched: Result<Fetched>) {
        self.object.landed(self.places.clone(), &self.flight);
        if let Some(pilot) = self.pilot.take() {
            pilot.land(fetched);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.pilot.is_some() {
            self.object.landed(self.places.clone(), &self.flight);
        }
    }
}

impl Object {
    pub(crate) fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a flight off the list, and no other that goes to the same places.
    fn landed(&self, places: Span<u64>, landed: &Arc<Flight>) {
        let mut flights = self.flights();
        for place in places {
            if flights
                .get(&place)
                .is_some_and(|flight| Arc::ptr_eq(flight, landed))
            {
                flights.remove(&place);
            }
        }
        if flights.is_empty() {
            // Thousands of objects are known; those at rest keep no table.
            *flights = HashMap::new();
        }
    }
}
