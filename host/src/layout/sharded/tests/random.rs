//! Random scripts: reads, writes, zeroes, trims, flushes, some at once; and then the volume is
//! closed, or the server dies, in the middle of something or not.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::super::check::check;
use super::rng::Rng;
use super::*;
use crate::runtime::block_on;

pub(crate) const UNIT: u64 = 4096;

/// What a volume may hold.
pub(crate) struct Model {
    pub(crate) bytes: Vec<u8>,
    /// By unit: what else it may hold, since it is not known what became of a change.
    pub(crate) or: BTreeMap<u64, Vec<Vec<u8>>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write(u64, Vec<u8>, bool),
    Zero(u64, u64, ZeroFlags),
}

impl Op {
    fn range(&self) -> std::ops::Range<u64> {
        match self {
            Op::Write(offset, bytes, _) => *offset..*offset + bytes.len() as u64,
            Op::Zero(offset, len, _) => *offset..*offset + len,
        }
    }

    pub(crate) async fn run(&self, volume: &dyn Layout) -> Result<()> {
        match self {
            Op::Write(offset, bytes, fua) => {
                volume
                    .write(*offset, body(bytes.clone()), *fua)
                    .wait()
                    .await
            }
            Op::Zero(offset, len, flags) => zero(volume, *offset, *len, *flags).await,
        }
    }
}

fn unit_of(bytes: &[u8], unit: u64) -> Vec<u8> {
    let start = (unit * UNIT) as usize;
    bytes[start..(start + UNIT as usize).min(bytes.len())].to_vec()
}

impl Model {
    pub(crate) fn apply(bytes: &mut [u8], op: &Op) {
        let range = op.range();
        let range = range.start as usize..range.end as usize;
        match op {
            Op::Write(_, new, _) => bytes[range].copy_from_slice(new),
            Op::Zero(_, _, flags) if flags.has(ZeroFlags::TRIM) => {
                // What is covered in part keeps its data or is zero: whole units are asked for.
                assert!(range.start.is_multiple_of(UNIT as usize));
                bytes[range].fill(0);
            }
            Op::Zero(..) => bytes[range].fill(0),
        }
    }

    pub(crate) fn done(&mut self, op: &Op, result: &Result<()>) {
        let mut after = self.bytes.clone();
        Self::apply(&mut after, op);
        match result {
            Ok(()) => self.bytes = after,
            Err(_) => {
                let range = op.range();
                for unit in range.start / UNIT..range.end.div_ceil(UNIT) {
                    self.or.entry(unit).or_default().push(unit_of(&after, unit));
                }
            }
        }
    }

    /// Compares, and settles what was open.
    pub(crate) async fn compare(&mut self, volume: &dyn Layout, when: &str) {
        let mut all = Vec::new();
        let mut at = 0;
        while at < SIZE {
            let len = (5 * SHARD).min(SIZE - at);
            all.extend(read(volume, at, len).await.unwrap());
            at += len;
        }
        for unit in 0..SIZE.div_ceil(UNIT) {
            let (found, expected) = (unit_of(&all, unit), unit_of(&self.bytes, unit));
            let or = self.or.get(&unit).is_some_and(|or| or.contains(&found));
            assert!(
                found == expected || or,
                "{when}: unit {unit} holds {:?}.. instead of {:?}..",
                &found[..8],
                &expected[..8]
            );
        }
        self.bytes = all;
        self.or.clear();
    }
}

pub(crate) fn random_op(rng: &mut Rng, within: std::ops::Range<u64>) -> Op {
    let room = within.end - within.start;
    let most = [600, 5000, 70_000, 300_000][(rng.next() % 4) as usize];
    let len = (1 + rng.next() % most).min(room);
    let offset = within.start + rng.next() % (room - len + 1);
    let flags = match rng.next() % 8 {
        0 => ZeroFlags::NO_HOLE,
        1 => ZeroFlags::FUA,
        _ => ZeroFlags::NONE,
    };
    match rng.next() % 10 {
        0..6 => Op::Write(
            offset,
            rng.bytes(len as usize),
            rng.next().is_multiple_of(12),
        ),
        6..8 => Op::Zero(offset, len, flags),
        8 => {
            // All shards inside, exactly.
            let first = within.start.div_ceil(SHARD) * SHARD;
            let count = (within.end.saturating_sub(first)) / SHARD;
            match count {
                0 => Op::Zero(offset, len, flags),
                count => Op::Zero(first, (1 + rng.next() % count) * SHARD, ZeroFlags::NONE),
            }
        }
        _ => {
            let start = offset.div_ceil(UNIT) * UNIT;
            let end = match within.end == SIZE && rng.next().is_multiple_of(2) {
                // With the last unit, which is short.
                true => SIZE,
                false => (offset + len) / UNIT * UNIT,
            };
            match start < end {
                true => Op::Zero(start, end - start, ZeroFlags::TRIM),
                false => Op::Zero(offset, len, ZeroFlags::NONE),
            }
        }
    }
}

/// Cuts the volume at random places; between units if what fails must be told apart.
pub(crate) fn cuts(rng: &mut Rng, count: u64, grain: u64) -> Vec<std::ops::Range<u64>> {
    let cut = |_| rng.next() % SIZE / grain * grain;
    let mut cuts: Vec<u64> = (0..count - 1).map(cut).collect();
    cuts.extend([0, SIZE]);
    cuts.sort_unstable();
    cuts.windows(2)
        .map(|two| two[0]..two[1])
        .filter(|range| !range.is_empty())
        .collect()
}

async fn script(name: &str, way: Way, rounds: u64) {
    let mut rng = Rng::for_test(name);
    let (store, mut volume, mut rig) = fresh(way).await;
    let mut model = Model {
        bytes: vec![0; SIZE as usize],
        or: BTreeMap::new(),
    };
    for round in 0..rounds {
        let mortal = rng.next().is_multiple_of(3);
        if mortal {
            rig.die_at(1 + (rng.next() % 30) as i64, rng.next().is_multiple_of(2));
        }
        for _ in 0..1 + rng.next() % 12 {
            let count = 1 + rng.next() % 5;
            let ops: Vec<Op> = cuts(&mut rng, count, if mortal { UNIT } else { 1 })
                .into_iter()
                .map(|within| random_op(&mut rng, within))
                .collect();
            let results = join_all(ops.iter().map(|op| op.run(&volume))).await;
            for (op, result) in ops.iter().zip(&results) {
                model.done(op, result);
                assert!(result.is_ok() || rig.is_dead(), "{op:?}: {result:?}");
            }
            if rig.is_dead() {
                break;
            }
            match rng.next() % 4 {
                0 => assert!(volume.flush().await.is_ok() || rig.is_dead()),
                1 => {
                    let offset = rng.next() % SIZE;
                    let len = (1 + rng.next() % 100_000).min(SIZE - offset);
                    let found = read(&volume, offset, len).await.unwrap();
                    let range = offset as usize..(offset + len) as usize;
                    assert_eq!(found, model.bytes[range], "{len} bytes at {offset}");
                }
                _ => {}
            }
        }
        let when = format!("{name}, round {round}");
        match rng.next() % 3 {
            _ if rig.is_dead() => {}
            0 => {
                model.compare(&volume, &when).await;
                assert!(volume.close().await.is_ok() || rig.is_dead());
            }
            1 => assert!(volume.flush().await.is_ok() || rig.is_dead()),
            _ => {}
        }
        rig.kill();
        drop(volume);
        (volume, rig) = open(&store).await;
        model.compare(&volume, &when).await;
    }
    volume.flush().await.unwrap();
    volume.close().await.unwrap();
    let chain = Rig::new(&store).chain();
    let report = check(&chain, true, &mut |_, _| ()).await.unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
}

#[test]
fn c12_whole_shards_agree_with_a_plain_vector_whenever_the_server_dies() {
    block_on(script("whole", Way::Whole, 60));
}

#[test]
fn c12_shards_in_place_agree_with_a_plain_vector_whenever_the_server_dies() {
    block_on(script("in place", Way::InPlace, 60));
}
