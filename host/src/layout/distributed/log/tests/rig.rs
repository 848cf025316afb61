//! Backends in memory whose failures can be planned or left to chance, in time that only passes when
//! nobody has anything to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_rs_plugin::{Body, Bytes};
use tokio::time::Instant;

use crate::backend::Later;
use crate::error::{Error, Kind, Result};
use crate::layout::distributed::environment::{Environment, Task};
use crate::layout::distributed::log::{
    Config, Created, Entries, Log, LogStore, Position, Prepare, Quorum, Timing,
};
use crate::layout::sharded::Uuid;

pub(super) const VOLUME: Uuid = Uuid([9; 16]);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chance and time of one world.
pub(in crate::layout::distributed::log) struct World {
    began: Instant,
    random: Mutex<u64>,
}

impl World {
    pub(in crate::layout::distributed::log) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            random: Mutex::new(seed),
        })
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        self.random() % bound.max(1)
    }

    /// Whether something happens that does so `per_mille` times of a thousand.
    pub(super) fn happens(&self, per_mille: u64) -> bool {
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
pub(super) struct Disk {
    pub(super) objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Disk {
    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = lock(&self.objects);
        let keys = objects.keys().filter(|key| key.starts_with(prefix));
        keys.cloned().collect()
    }

    pub(super) fn copy(&self) -> BTreeMap<String, Vec<u8>> {
        lock(&self.objects).clone()
    }

    /// Changes one byte behind everybody's back.
    pub(super) fn damage(&self, key: &str, at: usize) {
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
pub(super) struct Faults {
    /// Nothing comes through.
    pub(super) away: bool,
    /// A read fails.
    pub(super) failed_reads: u64,
    /// Each call takes up to so much longer.
    pub(super) latency: Duration,
    /// A change is lost on its way.
    pub(super) lost: u64,
    /// A change has effect, and its answer is lost.
    pub(super) unknown: u64,
    /// A change has effect a long time after it was given up.
    pub(super) late: u64,
    /// An answer takes long.
    pub(super) late_answer: u64,
    /// A call hangs for ever.
    pub(super) hangs: u64,
}

/// One owner's way to one backend.
pub(super) struct Way {
    pub(super) disk: Arc<Disk>,
    pub(super) faults: Mutex<Faults>,
    /// How many calls were made.
    pub(super) calls: Mutex<u64>,
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
    pub(super) fn new(world: &Arc<World>, disk: &Arc<Disk>, name: String) -> Arc<Self> {
        Arc::new(Self {
            disk: disk.clone(),
            faults: Mutex::default(),
            calls: Mutex::new(0),
            world: world.clone(),
            name,
        })
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.faults));
    }

    pub(super) fn is_away(&self, away: bool) {
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
struct Held(Arc<Way>);

impl LogStore for Held {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn read(&self, key: String, len: u64, _: bool) -> Later<Option<Bytes>> {
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
            let start = bytes.get(..len as usize);
            let short = || Error::new(Kind::Invalid, "the object is shorter");
            Ok(Some(Bytes::from(start.ok_or_else(short)?.to_vec())))
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
}

/// Checkpoints of these tests name nothing.
pub(super) struct NothingNamed;

impl Prepare for NothingNamed {
    fn checkpoint(&self, _: usize, _: Position, _: Bytes) -> Later<()> {
        Box::pin(async { Ok(()) })
    }
}

/// Backends, and owners that come and go.
pub(super) struct Stage {
    pub(super) world: Arc<World>,
    pub(super) disks: Vec<Arc<Disk>>,
    pub(super) quorum: Quorum,
    pub(super) timing: Timing,
    pub(super) backlog_bytes: u64,
    pub(super) prepare: Arc<dyn Prepare>,
    owners: Mutex<u64>,
}

/// One owner.
pub(super) struct Server {
    pub(super) log: Log,
    pub(super) ways: Vec<Arc<Way>>,
    /// What was there when it started.
    pub(super) found: Vec<(Position, Vec<u8>)>,
}

impl Stage {
    pub(super) fn new(backends: usize, seed: u64) -> Self {
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
    pub(super) fn ways(&self) -> Vec<Arc<Way>> {
        let disks = self.disks.iter().enumerate();
        let way = |(at, disk)| Way::new(&self.world, disk, format!("node{at}"));
        disks.map(way).collect()
    }

    pub(super) fn config(&self) -> Config {
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

    pub(super) async fn open(&self, ways: Vec<Arc<Way>>) -> Result<(Log, Entries)> {
        let store = |way: &Arc<Way>| -> Arc<dyn LogStore> { Arc::new(Held(way.clone())) };
        Log::open(self.config(), ways.iter().map(store).collect()).await
    }

    /// A new owner, with what it read.
    pub(super) async fn serve_by(&self, ways: Vec<Arc<Way>>) -> Result<Server> {
        let (log, mut entries) = self.open(ways.clone()).await?;
        let mut found = Vec::new();
        while let Some(entry) = entries.next().await? {
            found.push((entry.position, entry.payload.to_vec()));
        }
        Ok(Server { log, ways, found })
    }

    pub(super) async fn serve(&self) -> Server {
        self.serve_by(self.ways()).await.expect("a start")
    }
}

impl Server {
    /// The payloads that were there, as text.
    pub(super) fn texts(&self) -> Vec<String> {
        let text = |(_, payload): &(Position, Vec<u8>)| String::from_utf8_lossy(payload).into();
        self.found.iter().map(text).collect()
    }

    pub(super) async fn say(&self, text: &str) -> Result<Position> {
        let mut appended = self.log.append(super::super::Kind::Data, body(text));
        appended.within(Duration::from_secs(60)).await
    }

    /// Waits until a backend is as told.
    pub(super) async fn until(
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

pub(super) fn body(text: &str) -> Body {
    Body::One(Bytes::from(text.as_bytes().to_vec()))
}

pub(super) async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
