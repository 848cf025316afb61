//! Worlds by chance, each from a seed, with whole volumes: servers start, die, meet and are shut out, backends
//! come and go, lose answers, requests and what they had. Every unit says which operation wrote it, and a
//! judge knows what each server did in which order.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_rs_commit_log::Epoch;
use nbd_rs_plugin::ZeroFlags;

use super::rig::{Rig, Served, SHARD_BYTES, SIZE_BYTES};
use crate::error::Kind;
use crate::layout::distributed::environment::Environment;
use crate::layout::distributed::log::tests::rig::{lock, Faults, Way, VOLUME};
use crate::layout::Layout;

/// Worlds in one run; `NBD_RS_WORLDS` sets another number, `NBD_RS_TEST_SEED` the first.
const WORLDS: u64 = 40;
const UNIT: u64 = 4096;
const UNITS: u64 = SIZE_BYTES.div_ceil(UNIT);

/// The operation that each unit is of; 0 for zeros.
type Image = Vec<u64>;

/// A unit of an operation: the volume, the unit's number and the operation, over and over.
fn stamped(unit: u64, operation: u64) -> Vec<u8> {
    let words = [unit, operation].map(u64::to_le_bytes).concat();
    let mut bytes = [&VOLUME.0[..], &words].concat().repeat(UNIT as usize / 32);
    if (unit + 1) * UNIT > SIZE_BYTES {
        bytes.truncate((SIZE_BYTES - unit * UNIT) as usize);
    }
    bytes
}

/// Which operation a unit is of.
fn operation_of(unit: u64, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let operation = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
    assert!(
        bytes == stamped(unit, operation),
        "unit {unit} is torn, or of another place"
    );
    operation
}

/// A change of whole units.
#[derive(Debug, Clone)]
struct Change {
    units: Range<u64>,
    /// 0 for zeros.
    operation: u64,
}

/// What one server did.
struct Reign {
    epoch: Epoch,
    since: Duration,
    began_with: Image,
    /// In its order. The last one may not have been made.
    changes: Vec<Change>,
    /// So many of them were durable by a flush that succeeded.
    flushed: usize,
    /// So many of them the next one found.
    found: Option<usize>,
}

impl Reign {
    /// The volume after so many changes.
    fn after(&self, count: usize) -> Image {
        let mut image = self.began_with.clone();
        for change in &self.changes[..count] {
            image[change.units.start as usize..change.units.end as usize].fill(change.operation);
        }
        image
    }
}

/// Says what may be.
#[derive(Default)]
struct Judge {
    /// By epoch.
    reigns: Vec<Reign>,
    next: u64,
    flushes: u64,
    refused: u64,
    shut_out: u64,
    reads: u64,
}

impl Judge {
    /// A server began, and all of the volume reads so.
    fn began(&mut self, epoch: Epoch, since: Duration, image: Image) {
        let place = self.reigns.partition_point(|reign| reign.epoch < epoch);
        if let Some(before) = place.checked_sub(1).map(|at| &mut self.reigns[at]) {
            let all = 0..=before.changes.len();
            let found = all.rev().find(|&count| before.after(count) == image);
            let found = found.unwrap_or_else(|| {
                panic!(
                    "{epoch:?} begins with what was at no moment of {:?}",
                    before.epoch
                )
            });
            before.found = Some(found);
        } else {
            assert!(image.iter().all(|operation| *operation == 0));
        }
        // Of one that has been followed already nothing counts any more.
        let is_over = place < self.reigns.len();
        self.reigns.insert(
            place,
            Reign {
                epoch,
                since,
                began_with: image,
                changes: Vec::new(),
                flushed: 0,
                found: is_over.then_some(0),
            },
        );
    }

    fn reign(&mut self, epoch: Epoch) -> &mut Reign {
        let found = self.reigns.iter_mut().find(|reign| reign.epoch == epoch);
        found.expect("it began")
    }

    /// Somebody was answered by that server at that time.
    fn answers(&self, epoch: Epoch, now: Duration, lease: Duration) {
        let newer = self.reigns.iter().filter(|reign| reign.epoch > epoch);
        let late = newer.filter(|reign| reign.since + lease <= now).count();
        assert_eq!(
            late, 0,
            "{epoch:?} answers at {now:?}, though another serves"
        );
    }

    /// Contract C4, C13: nothing that a flush covered is missing later.
    fn verdict(&self) {
        for reign in &self.reigns {
            if let Some(found) = reign.found {
                assert!(
                    reign.flushed <= found,
                    "{:?} flushed {} changes, and the next one found {found}",
                    reign.epoch,
                    reign.flushed
                );
            }
        }
    }
}

struct Play {
    rig: Rig,
    judge: Mutex<Judge>,
}

/// One server until it dies or is shut out.
struct Life {
    play: Arc<Play>,
    served: Served,
    epoch: Epoch,
    now: Image,
}

impl Life {
    async fn live(play: Arc<Play>, ways: Vec<Arc<Way>>) {
        let opened = play.rig.open_by(ways).await;
        let Ok(served) = opened else {
            lock(&play.judge).refused += 1;
            return;
        };
        let epoch = served.volume.status().log.epoch;
        // It serves nobody before it could read all of it.
        let found = loop {
            let read = served.read(0, SIZE_BYTES).await;
            match read {
                Ok(bytes) => break bytes,
                Err(error) if error.kind == Kind::Fenced => return,
                Err(_) => play.pause(2000).await,
            }
        };
        let units = found.chunks(UNIT as usize).zip(0..);
        let now: Image = units
            .map(|(bytes, unit)| operation_of(unit, bytes))
            .collect();
        let since = play.world().now();
        lock(&play.judge).began(epoch, since, now.clone());
        let mut life = Self {
            play,
            served,
            epoch,
            now,
        };
        while life.act().await {}
        lock(&life.play.judge).shut_out += 1;
    }

    fn below(&self, bound: u64) -> u64 {
        self.play.world().below(bound)
    }

    fn answers(&self) {
        let (now, lease) = (self.play.world().now(), self.play.rig.stage.timing.lease);
        lock(&self.play.judge).answers(self.epoch, now, lease);
    }

    /// False when it has ended.
    async fn act(&mut self) -> bool {
        let outcome = match self.below(16) {
            0..=6 => self.change().await,
            7..=9 => self.flush().await,
            10..=12 => self.read().await,
            _ => {
                self.play.pause(3000).await;
                Ok(())
            }
        };
        !matches!(outcome, Err(Kind::Fenced))
    }

    async fn change(&mut self) -> Result<(), Kind> {
        let start = self.below(UNITS);
        let most = match self.below(3) {
            0 => 2 * SHARD_BYTES / UNIT,
            _ => 3,
        };
        let units = start..(start + 1 + self.below(most)).min(UNITS);
        let is_zero = self.below(5) == 0;
        let operation = {
            let mut judge = lock(&self.play.judge);
            judge.next += 1;
            let operation = if is_zero { 0 } else { judge.next };
            let units = units.clone();
            let change = Change { units, operation };
            judge.reign(self.epoch).changes.push(change);
            operation
        };
        let offset = units.start * UNIT;
        let len = (units.end * UNIT).min(SIZE_BYTES) - offset;
        let made = match is_zero {
            true => self.served.zero(offset, len, ZeroFlags::NONE).await,
            false => {
                let bytes = units.clone().flat_map(|unit| stamped(unit, operation));
                self.served.write(offset, bytes.collect()).await
            }
        };
        match made {
            Ok(()) => {
                self.now[units.start as usize..units.end as usize].fill(operation);
                Ok(())
            }
            Err(error) => {
                // Whole units are taken in at once or not at all.
                lock(&self.play.judge).reign(self.epoch).changes.pop();
                Err(error.kind)
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Kind> {
        let count = lock(&self.play.judge).reign(self.epoch).changes.len();
        let flushed = self.served.flush().await;
        if flushed.is_ok() {
            {
                let mut judge = lock(&self.play.judge);
                judge.flushes += 1;
                judge.reign(self.epoch).flushed = count;
            }
            self.answers();
        }
        flushed.map_err(|error| error.kind)
    }

    async fn read(&mut self) -> Result<(), Kind> {
        let start = self.below(UNITS);
        let units = start..(start + 1 + self.below(20)).min(UNITS);
        let offset = units.start * UNIT;
        let len = (units.end * UNIT).min(SIZE_BYTES) - offset;
        let read = self.served.read(offset, len).await;
        let bytes = read.map_err(|error| error.kind)?;
        self.answers();
        for (bytes, unit) in bytes.chunks(UNIT as usize).zip(units) {
            let operation = operation_of(unit, bytes);
            assert_eq!(
                operation, self.now[unit as usize],
                "unit {unit} of {:?}",
                self.epoch
            );
        }
        lock(&self.play.judge).reads += 1;
        Ok(())
    }
}

/// One server that may die at any time.
struct Seat {
    task: tokio::task::JoinHandle<()>,
    ways: Vec<Arc<Way>>,
}

impl Play {
    fn world(&self) -> &crate::layout::distributed::log::tests::rig::World {
        &self.rig.stage.world
    }

    fn below(&self, bound: u64) -> u64 {
        self.world().below(bound)
    }

    async fn pause(&self, most_ms: u64) {
        let time = Duration::from_millis(self.below(most_ms));
        self.world().sleep(time).await;
    }

    fn seat(self: &Arc<Self>) -> Seat {
        let ways = self.rig.stage.ways();
        ways.iter().for_each(|way| self.spoil(way));
        let task = tokio::spawn(Life::live(self.clone(), ways.clone()));
        Seat { task, ways }
    }

    fn spoil(&self, way: &Way) {
        let calm = self.below(3) > 0;
        let chance = |most: u64| if calm { 0 } else { self.below(most) };
        let faults = Faults {
            away: self.below(8) == 0,
            failed_reads: chance(100),
            latency: Duration::from_millis(1 + self.below(100)),
            lost: chance(100),
            unknown: chance(100),
            late: chance(60),
            late_answer: chance(30),
            hangs: chance(5),
            lists_lie: chance(200),
        };
        way.set(|now| *now = faults);
    }

    /// Some minutes in which anything happens.
    async fn chaos(self: &Arc<Self>) {
        let mut seats = vec![self.seat()];
        for _ in 0..25 {
            self.pause(8000).await;
            let which = self.below(64) as usize;
            match self.below(12) {
                0..=1 if seats.len() < 3 => seats.push(self.seat()),
                2 if !seats.is_empty() => finish(seats.swap_remove(which % seats.len())).await,
                3 => self.all_ways(&seats, which, true),
                4 => self.all_ways(&seats, which, false),
                _ if seats.is_empty() => seats.push(self.seat()),
                _ => {
                    let seat = &seats[which % seats.len()];
                    self.spoil(&seat.ways[which / 8 % seat.ways.len()]);
                }
            }
        }
        for seat in seats {
            finish(seat).await;
        }
    }

    /// A backend goes or comes for everybody.
    fn all_ways(&self, seats: &[Seat], which: usize, away: bool) {
        for seat in seats {
            seat.ways[which % seat.ways.len()].is_away(away);
        }
    }

    /// All that was under way has arrived, and one backend loses what it got last, or some of it.
    async fn power_cut(&self) {
        self.world().sleep(Duration::from_secs(300)).await;
        let disk = &self.rig.stage.disks[self.below(self.rig.stage.disks.len() as u64) as usize];
        let slots = disk.keys("log/");
        let lost = self.below(6) as usize;
        let mut gone: Vec<String> = slots.into_iter().rev().take(lost).collect();
        for prefix in ["s/", "b/", "m/", "root/"] {
            let mut keys = disk.keys(prefix);
            keys.retain(|_| self.below(10) == 0);
            gone.extend(keys);
        }
        let mut objects = lock(&disk.objects);
        for key in gone {
            objects.remove(&key);
        }
    }

    fn decide(&self, epoch: Epoch, image: Image) {
        let mut judge = lock(&self.judge);
        judge.began(epoch, self.world().now(), image);
        judge.verdict();
    }

    /// With all backends there somebody starts, and finds what has to be there.
    async fn settle(self: &Arc<Self>) {
        let served = self.rig.open().await;
        let found = served.all().await;
        let units = found.chunks(UNIT as usize).zip(0..);
        let image: Image = units
            .map(|(bytes, unit)| operation_of(unit, bytes))
            .collect();
        let epoch = served.volume.status().log.epoch;
        self.decide(epoch, image);
        served
            .until(|| {
                let status = served.volume.status().log;
                let level = |it: &crate::layout::distributed::log::BackendStatus| {
                    it.is_in_use() && it.behind_records == 0
                };
                status.backends.iter().all(level)
            })
            .await;
        served.volume.close().await.expect("all is well");
    }
}

/// It dies; what the judge said in its task counts.
async fn finish(seat: Seat) {
    seat.task.abort();
    if let Err(error) = seat.task.await {
        assert!(error.is_cancelled(), "{error}");
    }
}

async fn world(seed: u64) -> Judge {
    let sizes = [
        (3, 3),
        (3, 2),
        (3, 3),
        (4, 2),
        (5, 3),
        (1, 1),
        (2, 2),
        (3, 1),
    ];
    let (backends, copies) = sizes[(seed % sizes.len() as u64) as usize];
    let rig = Rig::new(backends, copies, seed);
    // Where nothing else has what one backend loses, none may lose anything.
    let bears_loss = copies > 1 && backends > 1;
    let play = Arc::new(Play {
        rig,
        judge: Mutex::default(),
    });
    for _ in 0..2 {
        play.chaos().await;
        if bears_loss && play.below(2) == 0 {
            play.power_cut().await;
        }
        play.settle().await;
    }
    let judge = std::mem::take(&mut *lock(&play.judge));
    judge.verdict();
    judge
}

/// The whole world in one thread, with time that jumps.
fn run(seed: u64) -> Judge {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(world(seed))
}

/// Those of all seeds, on as many threads as there are processors.
fn judges(seeds: Range<u64>) -> Vec<Judge> {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut judges = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return judges;
            }
            let Ok(judge) = std::panic::catch_unwind(|| run(seed)) else {
                panic!("to replay, set NBD_RS_TEST_SEED={seed} and NBD_RS_WORLDS=1");
            };
            judges.push(judge);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = all
            .into_iter()
            .map(|one| one.join().expect("a world went wrong"));
        ended.flatten().collect()
    })
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let told = |judge: Judge| {
        let reigns = judge.reigns.into_iter();
        let reigns = reigns.map(|it| (it.epoch, it.since, it.began_with, it.flushed, it.found));
        (judge.next, judge.reads, reigns.collect::<Vec<_>>())
    };
    for seed in [3, 6] {
        assert_eq!(told(run(seed)), told(run(seed)));
    }
}

#[test]
fn c01_c04_c13_c17_f58_f59_f65_f67_f69_no_world_loses_or_changes_what_was_flushed() {
    let first = super::random::number("NBD_RS_TEST_SEED").unwrap_or(1);
    let worlds = super::random::number("NBD_RS_WORLDS").unwrap_or(WORLDS);
    let mut all = Judge::default();
    let mut reigns = 0;
    for judge in judges(first..first + worlds) {
        reigns += judge.reigns.len() as u64;
        all.next += judge.next;
        all.flushes += judge.flushes;
        all.reads += judge.reads;
        all.refused += judge.refused;
        all.shut_out += judge.shut_out;
    }
    let Judge {
        next,
        flushes,
        reads,
        refused,
        shut_out,
        ..
    } = all;
    println!(
        "{worlds} worlds: {reigns} servers, {next} changes, {flushes} flushes, {reads} reads, {refused} \
         starts without success, {shut_out} shut out"
    );
    // They get somewhere, and into trouble.
    assert!(
        flushes > 5 * worlds && reads > 5 * worlds && reigns > 3 * worlds,
        "idle talk"
    );
    assert!(
        worlds < WORLDS || (shut_out > 0 && refused > 0),
        "nobody met"
    );
}
