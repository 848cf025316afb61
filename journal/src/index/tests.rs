use proptest::prelude::*;

use super::*;

const VOLUME_BYTES: u64 = 300;

#[derive(Debug, Clone)]
enum Step {
    Record(Vec<Change>),
    Ship,
    Merge,
    Read(Range<u64>),
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0..VOLUME_BYTES, 1..80u64).prop_map(|(start, len)| start..(start + len).min(VOLUME_BYTES))
}

fn change() -> impl Strategy<Value = Change> {
    (range(), 0u8..6).prop_map(|(range, what)| Change {
        offset: range.start,
        len: range.end - range.start,
        what: match what {
            0 => What::Zero,
            1 => What::Trim,
            // `apply` sees to it that no two changes write the same bytes.
            _ => What::Data(Data::new(vec![0; (range.end - range.start) as usize])),
        },
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = prop::collection::vec(change(), 0..4).prop_map(Step::Record);
    let step = prop_oneof![6 => record, 2 => Just(Step::Ship), 1 => Just(Step::Merge), 2 => range().prop_map(Step::Read)];
    prop::collection::vec(step, 1..80)
}

fn apply(volume: &mut [u8], change: &Change) {
    let at = change.offset as usize..change.end() as usize;
    match change.data() {
        Some(data) => volume[at].copy_from_slice(data),
        None => volume[at].fill(0),
    }
}

/// What a reader of the index and the store sees.
fn read(index: &Index, store: &[u8], range: Range<u64>) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut at = range.start;
    for piece in index.read(range.clone()) {
        assert_eq!(piece.range.start, at, "in order and without a gap");
        at = piece.range.end;
        let bytes = piece.range.start as usize..piece.range.end as usize;
        match piece.source {
            Source::Store => seen.extend_from_slice(&store[bytes]),
            Source::Zeros => seen.extend(bytes.map(|_| 0)),
            Source::Data(data) => seen.extend_from_slice(&data),
        }
    }
    assert_eq!(at, range.end);
    seen
}

fn ship(index: &mut Index, store: &mut [u8], shard_bytes: u64) -> Option<u64> {
    let batch = index.batch_behind(0, true)?;
    assert_eq!(
        index.batch_behind(0, true),
        Some(batch.clone()),
        "the same until it is shipped"
    );
    let mut last = None;
    for group in batch.by_shard(shard_bytes) {
        assert!(last < Some(group.shards.start), "each shard once, in order");
        last = Some(group.shards.end - 1);
        for change in &group.changes {
            assert!(group.shards.start * shard_bytes <= change.offset);
            assert!(change.end() <= group.shards.end * shard_bytes);
            apply(store, change);
        }
    }
    Some(batch.seq)
}

proptest! {
    #[test]
    fn c01_reads_see_what_was_written_and_the_store_is_always_a_state_that_was(
        steps in steps(), layer_bytes in 0u64..2000, shard_bytes in 1u64..100, first in 0u64..5,
    ) {
        let mut index = Index::new(first, layer_bytes);
        // The volume after each record.
        let mut states = vec![vec![0xff; VOLUME_BYTES as usize]];
        let mut store = states[0].clone();
        let mut fill = 0;
        for step in steps {
            let now = states.last().unwrap().clone();
            match step {
                Step::Record(mut changes) => {
                    let mut next = now;
                    for change in &mut changes {
                        if let What::Data(data) = &mut change.what {
                            fill = (fill + 1) % 250;
                            *data = Data::new(vec![fill + 1; data.len()]);
                        }
                        apply(&mut next, change);
                    }
                    index.insert(index.last_seq() + 1, &changes).unwrap();
                    states.push(next);
                }
                Step::Ship => {
                    let Some(seq) = ship(&mut index, &mut store, shard_bytes) else { continue };
                    prop_assert_eq!(&store, &states[(seq - first) as usize]);
                    prop_assert_eq!(&read(&index, &store, 0..VOLUME_BYTES), &now);
                    index.shipped(seq);
                }
                Step::Merge => {
                    index.merge();
                    if let Some(batch) = index.batch_behind(0, true) {
                        prop_assert_eq!(batch.seq, index.last_seq());
                    }
                }
                Step::Read(range) => {
                    let expected = &now[range.start as usize..range.end as usize];
                    prop_assert_eq!(read(&index, &store, range.clone()), expected);
                    if index.is_shipped(&range) {
                        prop_assert_eq!(&store[range.start as usize..range.end as usize], expected);
                    }
                }
            }
        }
        while let Some(seq) = ship(&mut index, &mut store, shard_bytes) {
            index.shipped(seq);
        }
        prop_assert_eq!(&store, states.last().unwrap());
        prop_assert_eq!(index.memory_bytes(), 0);
        prop_assert!(index.is_shipped(&(0..VOLUME_BYTES)));
    }
}

#[test]
fn overwritten_data_gives_its_memory_back_and_a_rest_keeps_all_of_it() {
    let mut index = Index::new(0, 1 << 30);
    let write = |offset, len| Change::write(offset, Data::new(vec![1; len]));
    index.insert(1, &[write(0, 1000)]).unwrap();
    let alone = index.memory_bytes();
    assert!((1000..1300).contains(&alone), "{alone}");
    index.insert(2, &[write(0, 999)]).unwrap();
    assert!(index.memory_bytes() >= 1999);
    index.insert(3, &[write(0, 1000)]).unwrap();
    assert_eq!(index.memory_bytes(), alone);
    for seq in 4..1000 {
        index.insert(seq, &[write(0, 1000)]).unwrap();
    }
    assert_eq!(index.memory_bytes(), alone);
}

/// Found by reading: of what was merged the parts that are left counted, and not the buffers that
/// they keep.
#[test]
fn what_is_merged_counts_with_all_the_memory_that_it_keeps() {
    const BUFFER: usize = 1 << 20;
    let mut index = Index::new(0, 1);
    let write = |offset, len| Change::write(offset, Data::new(vec![1; len]));
    for seq in 1..=10 {
        let at = seq * 2 * BUFFER as u64;
        // Of each buffer the first and the last byte are left.
        let changes = [write(at, BUFFER), write(at + 1, BUFFER - 2)];
        index.insert(2 * seq - 1, &changes).unwrap();
        let zero = Change {
            offset: at + 1,
            len: BUFFER as u64 - 2,
            what: What::Zero,
        };
        index.insert(2 * seq, &[zero]).unwrap();
    }
    index.merge();
    let kept = index.memory_bytes();
    assert!((10 << 20..11 << 20).contains(&kept), "{kept}");
}

#[test]
fn parts_of_one_buffer_count_as_that_buffer_until_the_last_is_gone() {
    let mut index = Index::new(0, 1 << 30);
    let all = Data::new(vec![1; 1000]);
    let parts = [0, 500].map(|at| Change::write(at as u64, all.slice(at..at + 100)));
    index.insert(1, &parts).unwrap();
    let both = index.memory_bytes();
    assert!((1000..1400).contains(&both), "{both}");
    let zero = |offset| Change {
        offset,
        len: 100,
        what: What::Zero,
    };
    index.insert(2, &[zero(0)]).unwrap();
    assert!(index.memory_bytes() >= 1000);
    index.insert(3, &[zero(500)]).unwrap();
    assert!(index.memory_bytes() < 400);
}

#[test]
fn batches_can_be_on_their_way_one_behind_the_other() {
    let mut index = Index::new(0, 1);
    let write = |byte| [Change::write(0, Data::new(vec![byte]))];
    index.insert(1, &write(1)).unwrap();
    index.insert(2, &write(2)).unwrap();
    let first = index.batch_behind(0, true).unwrap();
    assert_eq!(index.batch_behind(first.seq, false), None, "it may grow");
    let second = index.batch_behind(first.seq, true).unwrap();
    assert_eq!((first.seq, second.seq), (1, 2));
    assert_eq!(index.batch_behind(second.seq, true), None);
    // What comes later is in neither.
    index.insert(3, &write(3)).unwrap();
    assert_eq!(index.batch_behind(first.seq, false), Some(second.clone()));
    index.shipped(first.seq);
    assert_eq!(index.batch_behind(0, true), Some(second));
}

#[test]
fn a_record_that_came_late_is_refused() {
    let mut index = Index::new(7, 0);
    assert_eq!(index.insert(9, &[]), Err(OutOfOrder { expected_seq: 8 }));
    index.insert(8, &[]).unwrap();
    assert_eq!(index.insert(8, &[]), Err(OutOfOrder { expected_seq: 9 }));
}

#[test]
fn a_trim_of_a_large_volume_is_one_group_and_its_edges() {
    let mut index = Index::new(0, 1 << 20);
    let (shard, len) = (4 << 20, 2 << 40);
    let trim = Change {
        offset: 4096,
        len,
        what: What::Trim,
    };
    index.insert(1, &[trim]).unwrap();
    let groups = index.batch_behind(0, true).unwrap().by_shard(shard);
    let shards: Vec<_> = groups.iter().map(|group| group.shards.clone()).collect();
    assert_eq!(shards, [0..1, 1..524_288, 524_288..524_289]);
}

#[test]
fn c04_a_batch_has_the_number_of_its_last_record_even_if_that_changed_nothing() {
    let mut index = Index::new(0, 1 << 20);
    index
        .insert(1, &[Change::write(0, Data::new(vec![1]))])
        .unwrap();
    index.insert(2, &[]).unwrap();
    assert_eq!(index.batch_behind(0, true).unwrap().seq, 2);
    index.shipped(2);
    // A record without changes alone is nothing to ship, and nothing waits for it.
    index.insert(3, &[]).unwrap();
    assert_eq!(index.batch_behind(0, true), None);
}
