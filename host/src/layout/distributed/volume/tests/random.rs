//! Changes by chance, with owners and backends that come and go: the volume reads as a plain vector.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nbd_rs_plugin::{ExtentFlags, ZeroFlags};

use super::rig::{Rig, Served, SHARD_BYTES, SIZE_BYTES};
use crate::layout::distributed::environment::Environment;
use crate::layout::distributed::log::tests::rig::World;
use crate::layout::distributed::volume::Work;
use crate::layout::Layout;

const WORLDS: u64 = 12;
const STEPS: u32 = 120;

struct Play {
    rig: Rig,
    served: Served,
    model: Vec<u8>,
    /// As it was at the last flush, and after each change since.
    since: Vec<Vec<u8>>,
    away: Option<usize>,
    /// What owners that are gone have done.
    work: Work,
}

fn range(world: &World) -> Range<usize> {
    let most = match world.below(4) {
        0 => 3 * SHARD_BYTES,
        1 => 100,
        2 => 5000,
        _ => 20_000,
    };
    let start = world.below(SIZE_BYTES);
    let len = 1 + world.below(most.min(SIZE_BYTES - start));
    // Whole units as often as not.
    let (start, end) = match most {
        100 | 5000 => (start, start + len),
        _ => (start / 4096 * 4096, (start + len).next_multiple_of(4096)),
    };
    start as usize..end.min(SIZE_BYTES) as usize
}

/// A trim leaves alone what it covers in part.
fn zeroed(part: Range<usize>, flags: ZeroFlags) -> Range<usize> {
    if !flags.has(ZeroFlags::TRIM) {
        return part;
    }
    let start = part.start.next_multiple_of(4096);
    let end = match part.end as u64 == SIZE_BYTES {
        true => part.end,
        false => part.end / 4096 * 4096,
    };
    start..end.max(start)
}

impl Play {
    async fn new(seed: u64) -> Self {
        let (backends, copies) = [(3, 3), (3, 2), (4, 2), (1, 1)][seed as usize % 4];
        let rig = Rig::new(backends, copies, seed);
        let served = rig.open().await;
        let model = vec![0; SIZE_BYTES as usize];
        Self {
            rig,
            served,
            since: vec![model.clone()],
            model,
            away: None,
            work: Work::default(),
        }
    }

    /// Counts what the owner has done, before it goes.
    fn count(&mut self) {
        let done = self.served.volume.status().work;
        let all = &mut self.work;
        all.folds += done.folds;
        all.packs += done.packs;
        all.checkpoints += done.checkpoints;
        all.collected_records += done.collected_records;
        all.deleted_objects += done.deleted_objects;
        all.swept_objects += done.swept_objects;
        assert_eq!(done.lost_units, 0, "a unit was given up");
    }

    fn world(&self) -> Arc<World> {
        self.rig.stage.world.clone()
    }

    async fn step(&mut self) {
        let world = self.world();
        let part = range(&world);
        let (offset, len) = (part.start as u64, part.len() as u64);
        match world.below(20) {
            0..=7 => {
                let bytes: Vec<u8> = part.clone().map(|_| world.random() as u8).collect();
                self.served.write(offset, bytes.clone()).await.unwrap();
                self.model[part].copy_from_slice(&bytes);
                self.since.push(self.model.clone());
            }
            8..=9 => {
                let flags = [ZeroFlags::NONE, ZeroFlags::TRIM, ZeroFlags::NO_HOLE];
                let flags = flags[world.below(3) as usize];
                self.served.zero(offset, len, flags).await.unwrap();
                self.model[zeroed(part, flags)].fill(0);
                self.since.push(self.model.clone());
            }
            10..=12 => self.flush().await,
            13..=15 => {
                let found = self.served.read(offset, len).await.unwrap();
                assert!(found == self.model[part], "at {offset}, {len} bytes");
            }
            16 => self.extents(offset, len).await,
            17 => {
                let time = Duration::from_millis(world.below(20_000));
                tokio::time::sleep(time).await;
            }
            18 => self.come_and_go(),
            _ => self.again().await,
        }
    }

    async fn flush(&mut self) {
        self.served.flush().await.unwrap();
        self.since = vec![self.model.clone()];
    }

    /// What is said to be zeros is; what is told covers the range from its start without a gap.
    async fn extents(&self, offset: u64, len: u64) {
        let extents = self.served.volume.extents(offset, len, 5);
        let mut at = offset as usize;
        for extent in extents.wait().await.unwrap() {
            let part = at..at + extent.len as usize;
            at = part.end;
            let zeros = self.model[part].iter().all(|byte| *byte == 0);
            assert!(zeros || !extent.flags.has(ExtentFlags::ZERO));
        }
        assert!(at > offset as usize && at as u64 <= offset + len);
    }

    /// One backend at a time is away, where the others are enough.
    fn come_and_go(&mut self) {
        let ways = &self.served.ways;
        if let Some(away) = self.away.take() {
            ways[away].is_away(false);
        } else if ways.len() > 2 {
            let away = self.world().below(ways.len() as u64) as usize;
            ways[away].is_away(true);
            self.away = Some(away);
        }
    }

    /// Another owner, after a close or a crash. What was not flushed may be as before or as after.
    async fn again(&mut self) {
        self.count();
        let is_closed = self.world().happens(500);
        if is_closed {
            self.served.volume.close().await.unwrap();
            self.since = vec![self.model.clone()];
        }
        let ways = self.rig.stage.ways();
        if let Some(away) = self.away {
            ways[away].is_away(true);
        }
        // The old one, if it was not closed, is as after a crash.
        self.served = self.rig.open_by(ways).await.unwrap();
        let found = self.served.all().await;
        for (at, byte) in found.iter().enumerate() {
            let may_be = self.since.iter().any(|model| model[at] == *byte);
            assert!(may_be, "byte {at} is {byte}");
        }
        self.model.clone_from(&found);
        self.since.push(found);
        self.flush().await;
    }
}

#[tokio::test(start_paused = true)]
async fn c01_c04_c20_a_volume_reads_as_a_vector_with_owners_and_backends_coming_and_going() {
    let first = number("NBD_RS_TEST_SEED").unwrap_or(0);
    let worlds = number("NBD_RS_WORLDS").unwrap_or(WORLDS);
    let mut work = Vec::new();
    for seed in first..first + worlds {
        println!("NBD_RS_TEST_SEED={seed}");
        let mut play = Play::new(seed).await;
        for _ in 0..STEPS {
            play.step().await;
        }
        play.flush().await;
        let found = play.served.all().await;
        assert!(found == play.model);
        play.count();
        work.push(play.work);
    }
    let all = |count: fn(&Work) -> u64| work.iter().map(count).sum::<u64>();
    let folds = all(|it| it.folds);
    let packs = all(|it| it.packs);
    let checkpoints = all(|it| it.checkpoints);
    let collected = all(|it| it.collected_records);
    let deleted = all(|it| it.deleted_objects);
    let swept = all(|it| it.swept_objects);
    println!(
        "{worlds} worlds: {folds} folds, {packs} packs, {checkpoints} checkpoints, {collected} \
         records collected, {deleted} objects deleted, {swept} swept"
    );
    for count in [folds, packs, checkpoints, collected, deleted] {
        assert!(count > worlds, "they do not get there");
    }
}

pub(super) fn number(name: &str) -> Option<u64> {
    let given = std::env::var(name).ok()?;
    Some(given.parse().expect("a number"))
}

#[tokio::test(start_paused = true)]
async fn f53_f54_answers_that_are_lost_or_late_change_nothing() {
    for seed in 0..4 {
        println!("seed {seed}");
        let mut play = Play::new(seed * 4).await;
        for _ in 0..STEPS {
            for way in &play.served.ways {
                way.set(|faults| {
                    faults.latency = Duration::from_millis(20);
                    (faults.lost, faults.unknown, faults.failed_reads) = (10, 10, 10);
                });
            }
            play.step().await;
        }
        let found = play.served.all().await;
        assert!(found == play.model);
    }
}
