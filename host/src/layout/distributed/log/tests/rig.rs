//! Backends in memory whose failures can be planned or left to chance, in time that only passes when
//! nobody has anything to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_rs_plugin::{Body, Bytes, Range};
use tokio::time::Instant;

use crate::backend::Later;
use crate::error::{Error, Kind, Result};
use crate::layout::distributed::environment::{Environment, Task};
use crate::layout::distributed::log::{
    Config, Created, Entries, Listed, Log, LogStore, Position, Prepare, Quorum, Timing,
};
use crate::layout::sharded::Uuid;

pub(in crate::layout::distributed) const VOLUME: Uuid = Uuid([9; 16]);

pub(in crate::layout::distributed) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names in one part of a list.
const LISTED: usize = 7;

/// Chance and time of one world.
pub(in crate::layout::distributed) struct World {
    began: Instant,
    random: Mutex<u64>,
}

impl World {
    pub(in crate::layout::distributed) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            random: Mutex::new(seed),
        })
    }

    pub(in crate::layout::distributed) fn below(&self, bound: u64) -> u64 {
        self.random() % bound.max(1)
    }

    /// Whether something happens that does so `per_mille` times of a thousand.
    pub(in crate::layout::distributed) fn happens(&self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

impl Environment for World {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn sleep(&self, time: Duration) -> Task {
        Box::pin(tokio::time::sleep(time))
    }

    fn spawn(&self, task: Task) {
        drop(tokio::spawn(task));
    }

    /// splitmix64.
    fn random(&self) -> u64 {
        let mut state = lock(&self.random);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The objects of one backend. They outlive everybody.
#[derive(Default)]
pub(in crate::layout::distributed) struct Disk {
    pub(in crate::layout::distributed) objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Disk {
    pub(in crate::layout::distributed) fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = lock(&self.objects);
        let keys = objects.keys().filter(|key| key.starts_with(prefix));
        keys.cloned().collect()
    }

    pub(in crate::layout::distributed) fn copy(&self) -> BTreeMap<String, Vec<u8>> {
        lock(&self.objects).clone()
    }

    /// Changes one byte behind everybody's back.
    pub(in crate::layout::distributed) fn damage(&self, key: &str, at: usize) {
        let mut objects = lock(&self.objects);
        objects.get_mut(key).expect("it is there")[at] ^= 0x40;
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Created {
        let mut objects = lock(&self.objects);
        if objects.contains_key(key) {
            return Created::Exists;
        }
        objects.insert(key.to_owned(), bytes.to_vec());
        Created::Stored
    }
}

/// What goes wrong on one owner's way to one backend. Chances are of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::layout::distributed) struct Faults {
    /// Nothing comes through.
    pub(in crate::layout::distributed) away: bool,
    /// A read fails.
    pub(in crate::layout::distributed) failed_reads: u64,
    /// Each call takes up to so much longer.
    pub(in crate::layout::distributed) latency: Duration,
    /// A change is lost on its way.
    pub(in crate::layout::distributed) lost: u64,
    /// A change has effect, and its answer is lost.
    pub(in crate::layout::distributed) unknown: u64,
    /// A change has effect a long time after it was given up.
    pub(in crate::layout::distributed) late: u64,
    /// An answer takes long.
    pub(in crate::layout::distributed) late_answer: u64,
    /// A call hangs for ever.
    pub(in crate::layout::distributed) hangs: u64,
    /// A name is missing in a list, or one is there twice.
    pub(in crate::layout::distributed) lists_lie: u64,
}

/// One owner's way to one backend.
pub(in crate::layout::distributed) struct Way {
    pub(in crate::layout::distributed) disk: Arc<Disk>,
    pub(in crate::layout::distributed) faults: Mutex<Faults>,
    /// How many calls were made.
    pub(in crate::layout::distributed) calls: Mutex<u64>,
    world: Arc<World>,
    name: String,
}

fn away() -> Error {
    Error::new(Kind::Transient, "the backend is away")
}

fn unknown() -> Error {
    Error::new(Kind::Ambiguous, "the answer was lost")
}

impl Way {
    pub(in crate::layout::distributed) fn new(
        world: &Arc<World>,
        disk: &Arc<Disk>,
        name: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            disk: disk.clone(),
            faults: Mutex::default(),
            calls: Mutex::new(0),
            world: world.clone(),
            name,
        })
    }

    pub(in crate::layout::distributed) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.faults));
    }

    pub(in crate::layout::distributed) fn is_away(&self, away: bool) {
        self.set(|faults| faults.away = away);
    }

    fn faults(&self) -> Faults {
        *lock(&self.faults)
    }

    /// The way there.
    async fn there(&self) -> Result<()> {
        *lock(&self.calls) += 1;
        let faults = self.faults();
        let micros = 1 + self.world.below(faults.latency.as_micros() as u64);
        self.world.sleep(Duration::from_micros(micros)).await;
        if self.world.happens(faults.hangs) {
            std::future::pending::<()>().await;
        }
        match self.faults().away {
            true => Err(away()),
            false => Ok(()),
        }
    }

    /// The way back.
    async fn back(&self) -> Result<()> {
        if self.world.happens(self.faults().late_answer) {
            let seconds = self.world.below(40);
            self.world.sleep(Duration::from_secs(seconds)).await;
        }
        match self.faults().away {
            true => Err(unknown()),
            false => Ok(()),
        }
    }

    async fn change<T: Send + 'static>(
        self: Arc<Self>,
        change: impl FnOnce(&Disk) -> T + Send + 'static,
    ) -> Result<T> {
        self.there().await?;
        let faults = self.faults();
        if self.world.happens(faults.lost) {
            return Err(unknown());
        }
        if self.world.happens(faults.late) {
            let (disk, world) = (self.disk.clone(), self.world.clone());
            let seconds = world.below(100);
            let late = async move {
                world.sleep(Duration::from_secs(seconds)).await;
                change(&disk);
            };
            self.world.spawn(Box::pin(late));
            return Err(unknown());
        }
        let answer = change(&self.disk);
        if self.world.happens(faults.unknown) {
            return Err(unknown());
        }
        self.back().await.map(|()| answer)
    }
}

/// What the log holds of a way.
pub(in crate::layout::distributed) struct Held(pub(in crate::layout::distributed) Arc<Way>);

impl LogStore for Held {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn read(&self, key: String, range: Range, _: bool) -> Later<Option<Bytes>> {
        let way = self.0.clone();
        Box::pin(async move {
            way.there().await?;
            if way.world.happens(way.faults().failed_reads) {
                return Err(away());
            }
            let found = lock(&way.disk.objects).get(&key).cloned();
            way.back().await?;
            let Some(bytes) = found else {
                return Ok(None);
            };
            let (start, end) = (range.offset as usize, (range.offset + range.len) as usize);
            let short = || Error::new(Kind::Invalid, "the object is shorter");
            let part = bytes.get(start..end).ok_or_else(short)?;
            Ok(Some(Bytes::from(part.to_vec())))
        })
    }

    fn put(&self, key: String, body: Body) -> Later<Created> {
        let bytes = body.pieces().iter().flat_map(|piece| piece.iter().copied());
        let bytes: Vec<u8> = bytes.collect();
        let way = self.0.clone();
        Box::pin(way.change(move |disk| disk.put(&key, &bytes)))
    }

    fn delete(&self, keys: Vec<String>) -> Later<()> {
        let way = self.0.clone();
        let delete = move |disk: &Disk| {
            let mut objects = lock(&disk.objects);
            for key in keys {
                objects.remove(&key);
            }
        };
        Box::pin(way.change(delete))
    }

    /// Few at a time, so that there is a next part.
    fn list(&self, prefix: String, after: Option<String>) -> Later<Listed> {
        let way = self.0.clone();
        Box::pin(async move {
            way.there().await?;
            let mut keys = way.disk.keys(&prefix);
            let lies = way.faults().lists_lie;
            keys.retain(|_| !way.world.happens(lies));
            if let Some(first) = keys.first().filter(|_| way.world.happens(lies)) {
                keys.insert(0, first.clone());
            }
            keys.retain(|key| after.as_ref().is_none_or(|after| key > after));
            way.back().await?;
            let next = keys.get(LISTED).map(|_| keys[LISTED - 1].clone());
            keys.truncate(LISTED);
            Ok(Listed { keys, next })
        })
    }
}

/// Checkpoints of these tests name nothing.
pub(in crate::layout::distributed) struct NothingNamed;

impl Prepare for NothingNamed {
    fn checkpoint(&self, _: usize, _: Position, _: Bytes) -> Later<()> {
        Box::pin(async { Ok(()) })
    }
}

/// Backends, and owners that come and go.
pub(in crate::layout::distributed) struct Stage {
    pub(in crate::layout::distributed) world: Arc<World>,
    pub(in crate::layout::distributed) disks: Vec<Arc<Disk>>,
    pub(in crate::layout::distributed) quorum: Quorum,
    pub(in crate::layout::distributed) timing: Timing,
    pub(in crate::layout::distributed) backlog_bytes: u64,
    pub(in crate::layout::distributed) prepare: Arc<dyn Prepare>,
    owners: Mutex<u64>,
}

/// One owner.
pub(in crate::layout::distributed) struct Server {
    pub(in crate::layout::distributed) log: Log,
    pub(in crate::layout::distributed) ways: Vec<Arc<Way>>,
    /// What was there when it started.
    pub(in crate::layout::distributed) found: Vec<(Position, Vec<u8>)>,
}

impl Stage {
    pub(in crate::layout::distributed) fn new(backends: usize, seed: u64) -> Self {
        Self {
            world: World::new(seed),
            disks: (0..backends).map(|_| Arc::default()).collect(),
            quorum: Quorum::majority(backends).expect("at least one"),
            timing: Timing::default(),
            backlog_bytes: 1 << 20,
            prepare: Arc::new(NothingNamed),
            owners: Mutex::new(0),
        }
    }

    /// A new owner's ways to all backends.
    pub(in crate::layout::distributed) fn ways(&self) -> Vec<Arc<Way>> {
        let disks = self.disks.iter().enumerate();
        let way = |(at, disk)| Way::new(&self.world, disk, format!("node{at}"));
        disks.map(way).collect()
    }

    pub(in crate::layout::distributed) fn config(&self) -> Config {
        let mut owners = lock(&self.owners);
        *owners += 1;
        Config {
            volume: VOLUME,
            owner: *owners,
            counter_seen: 0,
            quorum: self.quorum,
            timing: self.timing,
            backlog_bytes: self.backlog_bytes,
            environment: self.world.clone(),
            prepare: self.prepare.clone(),
        }
    }

    pub(in crate::layout::distributed) async fn open(
        &self,
        ways: Vec<Arc<Way>>,
    ) -> Result<(Log, Entries)> {
        let store = |way: &Arc<Way>| -> Arc<dyn LogStore> { Arc::new(Held(way.clone())) };
        Log::open(self.config(), ways.iter().map(store).collect()).await
    }

    /// A new owner, with what it read.
    pub(in crate::layout::distributed) async fn serve_by(
        &self,
        ways: Vec<Arc<Way>>,
    ) -> Result<Server> {
        let (log, mut entries) = self.open(ways.clone()).await?;
        let mut found = Vec::new();
        while let Some(entry) = entries.next().await? {
            found.push((entry.position, entry.payload.to_vec()));
        }
        Ok(Server { log, ways, found })
    }

    pub(in crate::layout::distributed) async fn serve(&self) -> Server {
        self.serve_by(self.ways()).await.expect("a start")
    }
}

impl Server {
    /// The payloads that were there, as text.
    pub(in crate::layout::distributed) fn texts(&self) -> Vec<String> {
        let text = |(_, payload): &(Position, Vec<u8>)| String::from_utf8_lossy(payload).into();
        self.found.iter().map(text).collect()
    }

    pub(in crate::layout::distributed) async fn say(&self, text: &str) -> Result<Position> {
        let mut appended = self.log.append(super::super::Kind::Data, body(text));
        appended.within(Duration::from_secs(60)).await
    }

    /// Waits until a backend is as told.
    pub(in crate::layout::distributed) async fn until(
        &self,
        backend: usize,
        is_so: impl Fn(&super::super::BackendStatus) -> bool,
    ) {
        for _ in 0..10_000 {
            if is_so(&self.log.status().backends[backend]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it does not come to that: {:#?}", self.log.status());
    }
}

pub(in crate::layout::distributed) fn body(text: &str) -> Body {
    Body::One(Bytes::from(text.as_bytes().to_vec()))
}

pub(in crate::layout::distributed) async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
