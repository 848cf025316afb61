use std::collections::BTreeSet;

use nbd_rs_commit_log::Epoch;
use proptest::prelude::*;

use super::*;

const SHARD_UNITS: u64 = 16;
const UNITS: u64 = 100;

fn log(seq: u64, units: u64) -> Source {
    let epoch = Epoch {
        counter: 1,
        owner: 2,
    };
    let sums = (0..units).map(|at| (seq * 1000 + at) as u32).collect();
    Source::new(Place::Log(Position { epoch, seq }), seq, 0, sums)
}

/// What the model knows of a unit: who wrote it, and its checksum there; none for zeros.
type Unit = Option<(u64, Option<u32>)>;

fn seen(index: &Index) -> Vec<Unit> {
    let mut all = vec![None; UNITS as usize];
    for (range, held) in index.within(0..UNITS) {
        for unit in range.clone() {
            all[unit as usize] = Some(match &held {
                Held::Empty(_) => (0, None),
                Held::Data {
                    source, ordinal, ..
                } => {
                    let skip = (unit - range.start) as u16;
                    (source.seq, Some(source.sums_of(ordinal + skip, 1)[0]))
                }
            });
        }
    }
    all
}

/// The counters are what a look at everything says.
fn is_consistent(index: &Index) {
    let (mut data, mut empty) = (0, 0);
    let mut used = BTreeSet::new();
    let mut end = 0;
    for (unit, run) in &index.runs {
        let behind = unit + u64::from(run.units);
        assert!(*unit >= end && run.units > 0, "in order and apart");
        assert_eq!(unit / SHARD_UNITS, (behind - 1) / SHARD_UNITS, "one shard");
        end = behind;
        used.insert(run.source);
        match run.empty() {
            Some(_) => empty += 1,
            None => data += u64::from(run.units),
        }
    }
    assert_eq!(index.counts(), (data, empty));
    let kept = index.sources.iter().flatten().count();
    assert_eq!(kept, used.len(), "a source that nothing refers to is gone");
    let by_shard = index.by_shard();
    assert_eq!(by_shard.iter().map(|shard| shard.1).sum::<u64>(), data);
    assert_eq!(by_shard.iter().map(|shard| shard.2).sum::<u64>(), empty);
}

proptest! {
    #[test]
    fn the_newest_run_of_each_unit_is_found(
        steps in prop::collection::vec((0_u64..UNITS, 1_u64..40, 0_u8..5, 0_u64..30), 1..60),
    ) {
        let mut index = Index::new(SHARD_UNITS);
        let mut model: Vec<Unit> = vec![None; UNITS as usize];
        let mut made = vec![0; UNITS as usize];
        for (seq, (unit, units, kind, back)) in (1..).zip(steps) {
            let range = unit..(unit + units).min(UNITS);
            let id = index.add(log(seq, UNITS));
            match kind {
                0 => {
                    let through = seq.saturating_sub(back);
                    index.cut(range.clone(), through);
                    for unit in range.clone() {
                        if made[unit as usize] <= through {
                            model[unit as usize] = None;
                        }
                    }
                }
                1 => {
                    let end = range.end.min((range.start / SHARD_UNITS + 1) * SHARD_UNITS);
                    let range = range.start..end;
                    index.cut(range.clone(), u64::MAX);
                    let merged = index.put_empty(range.clone(), id, Empty::Trim);
                    prop_assert!(merged.start <= range.start && merged.end >= range.end);
                    // Zeros before it are as good as new.
                    for unit in merged {
                        (model[unit as usize], made[unit as usize]) = (Some((0, None)), seq);
                    }
                }
                _ => {
                    index.cut(range.clone(), u64::MAX);
                    index.put(range.start, range.end - range.start, id, 3);
                    for (ordinal, unit) in (3..).zip(range) {
                        model[unit as usize] = Some((seq, Some((seq * 1000 + ordinal) as u32)));
                        made[unit as usize] = seq;
                    }
                }
            }
            index.unpin(id);
            prop_assert_eq!(&seen(&index), &model);
            is_consistent(&index);
        }
        index.cut(0..UNITS, u64::MAX);
        prop_assert_eq!(index.counts(), (0, 0));
        is_consistent(&index);
    }
}

#[test]
fn a_pack_is_freed_with_its_last_run_and_not_before() {
    let mut index = Index::new(SHARD_UNITS);
    let pack = Version::default();
    let id = index.add(Source::new(Place::Pack(pack), 1, 0, vec![1; 4]));
    index.put(0, 4, id, 0);
    index.unpin(id);
    index.cut(0..3, u64::MAX);
    assert!(index.take_freed().is_empty() && index.has_pack(&pack));
    index.cut(1..4, u64::MAX);
    assert_eq!(index.take_freed(), [pack]);
    assert!(!index.has_pack(&pack));
    // One that nothing ever referred to, likewise.
    let id = index.add(Source::new(Place::Pack(pack), 1, 0, vec![1; 4]));
    index.unpin(id);
    assert_eq!(index.take_freed(), [pack]);
}

#[test]
fn checksums_of_a_record_go_with_its_last_unit_of_data() {
    let mut index = Index::new(SHARD_UNITS);
    let id = index.add(log(1, 2000));
    index.put(0, 1, id, 0);
    index.put_empty(20..21, id, Empty::Zero);
    index.unpin(id);
    assert_eq!(index.source(id).unwrap().sums.len(), 2000);
    index.cut(0..1, u64::MAX);
    assert!(index.source(id).unwrap().sums.is_empty());
}
