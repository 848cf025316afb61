//! Worlds by chance, each from a seed: owners start, die and meet, backends come and go, lose answers,
//! requests and slots. A judge compares what was acknowledged and what was served.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_rs_commit_log::{Epoch, Phase};

use super::rig::{body, lock, Faults, Server, Stage, Way};
use crate::error::Kind;
use crate::layout::distributed::environment::Environment;
use crate::layout::distributed::log::object::HEADER_BYTES;
use crate::layout::distributed::log::{self, Appended, Position, Quorum};

/// Worlds in one run; `NBD_RS_WORLDS` sets another number, `NBD_RS_TEST_SEED` the first.
const WORLDS: u64 = 150;

/// Says what may be, in the order in which it learns of it.
#[derive(Default)]
struct Judge {
    /// What can't be otherwise any more: acknowledged, or served at a start.
    truth: Vec<u64>,
    /// Who started, and when that was known.
    started: Vec<(Epoch, Duration)>,
    acknowledged: usize,
    ended: usize,
    refused: usize,
    next: u64,
    /// Of all that happened.
    digest: u32,
}

impl Judge {
    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let text = what.to_string();
        self.digest = crc32c::crc32c_append(self.digest, text.as_bytes());
    }

    fn has_started(&mut self, epoch: Epoch, log: &[u64], now: Duration) {
        self.note(format_args!("{now:?} start {epoch:?} {log:?}"));
        let newest = self.started.iter().map(|(it, _)| *it).max();
        if newest.is_none_or(|newest| newest < epoch) {
            assert!(
                log.starts_with(&self.truth),
                "{epoch:?}: {log:?}, not {:?}",
                self.truth
            );
            self.truth = log.to_vec();
        } else {
            assert!(
                self.truth.starts_with(log),
                "{epoch:?}: {log:?}, not {:?}",
                self.truth
            );
        }
        self.started.push((epoch, now));
    }

    fn is_acknowledged(&mut self, epoch: Epoch, log: &[u64], now: Duration) {
        self.note(format_args!("{now:?} ack {epoch:?} {:?}", log.last()));
        self.acknowledged += 1;
        let newest = self.started.iter().map(|(it, _)| *it).max();
        if newest == Some(epoch) && log.len() > self.truth.len() {
            assert!(
                log.starts_with(&self.truth),
                "{epoch:?}: {log:?}, not {:?}",
                self.truth
            );
            self.truth = log.to_vec();
        }
        assert!(
            self.truth.starts_with(log),
            "{epoch:?}: {log:?}, not {:?}",
            self.truth
        );
    }

    /// A read may be old by the lease at the most.
    fn reads(&self, epoch: Epoch, now: Duration, lease: Duration) {
        let newer = self.started.iter().filter(|(it, _)| *it > epoch);
        let late = newer.filter(|(_, since)| *since + lease <= now);
        assert_eq!(
            late.count(),
            0,
            "{epoch:?} reads at {now:?}, {:?}",
            self.started
        );
    }
}

struct Play {
    stage: Stage,
    /// Payloads are damaged; else slots may be lost.
    flips: bool,
    judge: Mutex<Judge>,
}

/// What a log amounts to: numbers, in order. A checkpoint has all of those before it.
fn numbers(server: &Server) -> Vec<u64> {
    let mut numbers = Vec::new();
    for text in server.texts() {
        match text.strip_prefix("all ") {
            Some(all) => {
                let parsed = all.split_whitespace().map(str::parse);
                numbers = parsed.collect::<Result<_, _>>().expect("as written");
            }
            None => numbers.push(text.parse().expect("as written")),
        }
    }
    numbers
}

/// One owner's life, until it dies or ends.
struct Life {
    play: Arc<Play>,
    server: Server,
    log: Vec<u64>,
    waits: VecDeque<(usize, bool, Appended)>,
    checkpoint: Option<Position>,
}

impl Life {
    async fn live(play: Arc<Play>, ways: Vec<Arc<Way>>) {
        let server = match play.stage.serve_by(ways).await {
            Ok(server) => server,
            Err(error) => {
                let mut judge = lock(&play.judge);
                judge.refused += 1;
                return judge.note(format_args!("{error}"));
            }
        };
        let log = numbers(&server);
        let now = play.stage.world.now();
        lock(&play.judge).has_started(server.log.epoch(), &log, now);
        let mut life = Life {
            play,
            server,
            log,
            waits: VecDeque::new(),
            checkpoint: None,
        };
        while life.act().await {}
        lock(&life.play.judge).ended += 1;
        assert!(!life.server.log.may_read());
        let late = life.server.say("late").await;
        assert_eq!(late.map_err(|error| error.kind), Err(Kind::Fenced));
    }

    fn below(&self, bound: u64) -> u64 {
        self.play.stage.world.below(bound)
    }

    /// False when it has ended.
    async fn act(&mut self) -> bool {
        let lease = self.play.stage.timing.lease;
        match self.below(12) {
            0..=5 => self.append(),
            6 => self.append_checkpoint(),
            7 => {
                let pause = Duration::from_millis(self.below(8000));
                self.play.stage.world.sleep(pause).await;
            }
            8 => {
                if let Some(checkpoint) = self.checkpoint {
                    let _ = self.server.log.collect(checkpoint).await;
                }
            }
            _ => {
                let pause = Duration::from_millis(self.below(300));
                self.play.stage.world.sleep(pause).await;
            }
        }
        if self.server.log.may_read() {
            let now = self.play.stage.world.now();
            lock(&self.play.judge).reads(self.server.log.epoch(), now, lease);
        }
        let most = self.below(4) as usize;
        while self.waits.len() > most {
            if !self.wait().await {
                return false;
            }
        }
        true
    }

    fn append(&mut self) {
        let number = {
            let mut judge = lock(&self.play.judge);
            judge.next += 1;
            judge.next
        };
        self.log.push(number);
        let appended = self
            .server
            .log
            .append(log::Kind::Data, body(&number.to_string()));
        self.waits.push_back((self.log.len(), false, appended));
    }

    fn append_checkpoint(&mut self) {
        let numbers: Vec<String> = self.log.iter().map(u64::to_string).collect();
        let text = format!("all {}", numbers.join(" "));
        let appended = self.server.log.append(log::Kind::Checkpoint, body(&text));
        self.waits.push_back((self.log.len(), true, appended));
    }

    async fn wait(&mut self) -> bool {
        let Some((len, is_checkpoint, mut appended)) = self.waits.pop_front() else {
            return true;
        };
        match appended.within(Duration::from_secs(20)).await {
            Ok(position) => {
                let now = self.play.stage.world.now();
                let log = &self.log[..len];
                lock(&self.play.judge).is_acknowledged(self.server.log.epoch(), log, now);
                if is_checkpoint {
                    self.checkpoint = Some(position);
                }
                true
            }
            Err(error) if error.kind == Kind::Timeout => {
                self.waits.push_front((len, is_checkpoint, appended));
                true
            }
            Err(error) => {
                assert_eq!(error.kind, Kind::Fenced);
                false
            }
        }
    }
}

/// One owner that may die at any time.
struct Seat {
    task: tokio::task::JoinHandle<()>,
    ways: Vec<Arc<Way>>,
}

impl Play {
    fn below(&self, bound: u64) -> u64 {
        self.stage.world.below(bound)
    }

    fn seat(self: &Arc<Self>) -> Seat {
        let ways = self.stage.ways();
        for way in &ways {
            self.spoil(way);
        }
        let task = tokio::spawn(Life::live(self.clone(), ways.clone()));
        Seat { task, ways }
    }

    fn spoil(&self, way: &Way) {
        let calm = self.below(3) > 0;
        let chance = |most: u64| if calm { 0 } else { self.below(most) };
        let faults = Faults {
            away: self.below(6) == 0,
            failed_reads: chance(100),
            latency: Duration::from_millis(1 + self.below(200)),
            lost: chance(100),
            unknown: chance(100),
            late: chance(60),
            late_answer: chance(40),
            hangs: chance(5),
            lists_lie: 0,
        };
        way.set(|now| *now = faults);
    }

    /// Some minutes in which anything happens.
    async fn chaos(self: &Arc<Self>) {
        let mut seats: Vec<Seat> = vec![self.seat()];
        for _ in 0..60 {
            self.stage
                .world
                .sleep(Duration::from_millis(self.below(8000)))
                .await;
            let which = self.below(64) as usize;
            match self.below(12) {
                0 if seats.len() < 3 => seats.push(self.seat()),
                1 if !seats.is_empty() => {
                    let seat = seats.swap_remove(which % seats.len());
                    finish(seat).await;
                }
                2 => self.all_ways(&seats, which, true),
                3 => self.all_ways(&seats, which, false),
                4 if self.flips => self.flip(),
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

    /// One byte of a payload on the first backend. There are others that have it, if W is not 1.
    fn flip(&self) {
        let disk = &self.stage.disks[0];
        let is_long = |key: &String| lock(&disk.objects)[key].len() > HEADER_BYTES;
        let slots: Vec<String> = disk.keys("log/").into_iter().filter(is_long).collect();
        if slots.is_empty() {
            return;
        }
        let key = &slots[self.below(slots.len() as u64) as usize];
        disk.damage(key, HEADER_BYTES);
    }

    /// All that was under way has arrived, and the newest slots of one backend are lost.
    async fn power_cut(&self) {
        self.stage.world.sleep(Duration::from_secs(300)).await;
        let disk = &self.stage.disks[self.below(self.stage.disks.len() as u64) as usize];
        let slots = disk.keys("log/");
        let lost = self.below(6) as usize;
        for key in slots.iter().rev().take(lost) {
            lock(&disk.objects).remove(key);
        }
    }

    /// With all backends there, somebody starts, and brings all of them up to date.
    async fn settle(self: &Arc<Self>) {
        let server = self.stage.serve().await;
        let mut log = numbers(&server);
        let (epoch, now) = (server.log.epoch(), self.stage.world.now());
        lock(&self.judge).has_started(epoch, &log, now);
        let number = 1_000_000 + now.as_millis() as u64;
        server.say(&number.to_string()).await.expect("all is well");
        log.push(number);
        lock(&self.judge).is_acknowledged(epoch, &log, now);
        for backend in 0..self.stage.disks.len() {
            server
                .until(backend, |it| {
                    it.phase == Phase::Joined && it.behind_records == 0
                })
                .await;
        }
        server
            .log
            .close(Duration::from_secs(60))
            .await
            .expect("all is well");
        // Whichever of them are away then, the others have it all.
        let away = self.below(self.stage.disks.len() as u64) as usize;
        let ways = self.stage.ways();
        let may_be_away = self.stage.disks.len() - self.stage.quorum.write();
        let fenced_without = self.stage.quorum.fence() <= self.stage.disks.len() - may_be_away;
        for backend in 0..may_be_away.min(usize::from(fenced_without)) {
            ways[(away + backend) % ways.len()].is_away(true);
        }
        let next = self.stage.serve_by(ways).await.expect("enough are there");
        assert_eq!(numbers(&next), log);
        lock(&self.judge).has_started(next.log.epoch(), &log, self.stage.world.now());
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
        (3, 2),
        (3, 2),
        (3, 2),
        (1, 1),
        (2, 2),
        (5, 3),
        (4, 3),
        (3, 3),
        (2, 1),
    ];
    let (backends, write) = sizes[(seed % sizes.len() as u64) as usize];
    let mut stage = Stage::new(backends, seed);
    stage.quorum = Quorum::new(backends, write).expect("possible");
    stage.backlog_bytes = 200;
    let bears_loss = write > 1;
    let flips = bears_loss && seed.is_multiple_of(4);
    let judge = Mutex::default();
    let play = Arc::new(Play {
        stage,
        flips,
        judge,
    });
    for _ in 0..2 {
        play.chaos().await;
        if bears_loss && !flips && play.below(2) == 0 {
            play.power_cut().await;
        }
        play.settle().await;
    }
    let judge = std::mem::take(&mut *lock(&play.judge));
    judge
}

/// The whole world in one thread, with time that jumps.
fn run(seed: u64) -> Judge {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(world(seed))
}

fn number(name: &str) -> Option<u64> {
    let given = std::env::var(name).ok()?;
    Some(given.parse().expect("a number"))
}

#[test]
fn c17_c20_f58_f59_f67_f69_no_world_loses_or_changes_what_was_acknowledged() {
    let first = number("NBD_RS_TEST_SEED").unwrap_or(1);
    let worlds = number("NBD_RS_WORLDS").unwrap_or(WORLDS);
    let (mut acknowledged, mut started, mut ended, mut refused) = (0, 0, 0, 0);
    for seed in first..first + worlds {
        let Ok(judge) = std::panic::catch_unwind(|| run(seed)) else {
            panic!("to replay, set NBD_RS_TEST_SEED={seed} and NBD_RS_WORLDS=1");
        };
        acknowledged += judge.acknowledged;
        started += judge.started.len();
        ended += judge.ended;
        refused += judge.refused;
    }
    println!("{worlds} worlds: {acknowledged} records, {started} starts, {refused} without success, {ended} ended");
    // They get somewhere, and into trouble.
    let worlds = worlds as usize;
    assert!(
        acknowledged > 20 * worlds && started > 3 * worlds,
        "idle talk"
    );
}

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in [3, 5, 8] {
        let (one, two) = (run(seed), run(seed));
        assert_eq!((one.digest, one.truth), (two.digest, two.truth));
    }
}
