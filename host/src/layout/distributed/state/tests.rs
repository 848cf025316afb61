//! The state against a plain vector of units, with every object as bytes in between.

mod world;

use nbd_rs_commit_log::{Epoch, Position};
use proptest::prelude::*;

use super::super::format::changes::{Changes, Part, Table};
use super::super::format::Version;
use super::*;
use world::{World, SHARDS, UNITS};

/// A part of a record, as units of the volume.
#[derive(Debug, Clone)]
enum Change {
    Write(Range<u64>),
    /// The same, with the units in a pack.
    Pack(Range<u64>),
    Zero(Range<u64>),
    Trim(Range<u64>),
    Note(u8),
}

#[derive(Debug, Clone)]
enum Step {
    Record(Vec<Change>),
    /// An image is made of what a shard is now.
    Fold(u32),
    /// Its record is made, maybe much later.
    Folded(usize),
    /// A flush with so much of a shard that it puts an image.
    Image(u32, Range<u64>),
    /// Units are read for a pack, from here on.
    Pack(u64),
    /// The pack is there.
    Packed(usize),
    Page,
    PageStored(usize),
    Checkpoint,
    /// The owner dies, and another reads the log.
    Restart,
    /// Objects of earlier owners that nobody needs are deleted.
    Sweep,
}

fn ranges() -> impl Strategy<Value = Range<u64>> {
    // Whole shards and the volume's end more often than by chance.
    let exact = (0..u64::from(SHARDS), 1_u64..4)
        .prop_map(|(shard, count)| shard * 16..((shard + count) * 16).min(UNITS));
    let any = (0..UNITS, 1_u64..30).prop_map(|(at, len)| at..(at + len).min(UNITS));
    prop_oneof![2 => any, 1 => exact]
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => ranges().prop_map(Change::Write),
        1 => ranges().prop_map(Change::Pack),
        2 => ranges().prop_map(Change::Zero),
        2 => ranges().prop_map(Change::Trim),
        1 => any::<u8>().prop_map(Change::Note),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = prop::collection::vec(changes(), 1..4).prop_map(Step::Record);
    let image = (0..SHARDS, 0_u64..16, 1_u64..16)
        .prop_map(|(shard, at, len)| Step::Image(shard, at..(at + len).min(16)));
    let step = prop_oneof![
        8 => record,
        3 => (0..SHARDS).prop_map(Step::Fold),
        3 => any::<usize>().prop_map(Step::Folded),
        2 => image,
        2 => (0..UNITS).prop_map(Step::Pack),
        2 => any::<usize>().prop_map(Step::Packed),
        1 => Just(Step::Page),
        1 => any::<usize>().prop_map(Step::PageStored),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Restart),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..60)
}

fn take(world: &mut World, step: Step) {
    match step {
        Step::Record(changes) => {
            let mut record = world.record();
            for change in changes {
                match change {
                    Change::Write(units) => record.write(world, units),
                    Change::Pack(units) => record.pack(world, units),
                    Change::Zero(units) => record.zero(world, units, Part::Zero),
                    Change::Trim(units) => record.zero(world, units, Part::Trim),
                    Change::Note(note) => record.parts.push(Part::Ledger(vec![note])),
                }
            }
            world.append(record);
        }
        Step::Fold(shard) => world.fold(shard),
        Step::Folded(which) => world.folded(which),
        Step::Image(shard, units) => world.flush_image(shard, units),
        Step::Pack(from) => world.pack(from),
        Step::Packed(which) => world.packed(which),
        Step::Page => world.page(),
        Step::PageStored(which) => world.page_stored(which),
        Step::Checkpoint => world.checkpoint(),
        Step::Restart => world.restart(),
        Step::Sweep => world.sweep(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn c01_c18_the_volume_reads_like_a_plain_vector_whatever_happens(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            take(&mut world, step);
            world.reads_like_the_model();
        }
        world.restart();
        world.reads_like_the_model();
        world.checkpoint();
        world.restart();
        world.reads_like_the_model();
    }
}

fn position(seq: u64) -> Position {
    let epoch = Epoch::default();
    Position { epoch, seq }
}

fn one(part: Part) -> Changes {
    Changes { parts: vec![part] }
}

fn table(unit: u64, units: usize) -> Table {
    let mut table = Table::default();
    table.push_summed(unit, &vec![9; units]).unwrap();
    table
}

#[test]
fn a_record_that_can_t_be_is_refused_and_changes_nothing() {
    let geometry = Geometry {
        size_bytes: (3 << 16) + 1,
        shard_bytes: 1 << 16,
    };
    let mut state = State::new(geometry);
    let pack = Version::default();
    let known = Part::Pack {
        pack,
        table: table(3, 1),
    };
    state.apply(position(1), &one(known.clone())).unwrap();
    let image = |shard, through| Part::Image {
        shard,
        image: Named::default(),
        through,
    };
    let twice = Part::Pack {
        pack: Version { seq: 1, ..pack },
        table: table(0, 1),
    };
    let before = state.plan(0..49);
    for (seq, parts) in [
        (1, vec![]),
        (3, vec![]),
        (2, vec![Part::Data(table(48, 2))]),
        (2, vec![Part::Trim(40..50)]),
        (2, vec![Part::Zero(3..3)]),
        (2, vec![image(4, None)]),
        (2, vec![image(0, Some(2))]),
        (2, vec![image(0, Some(0))]),
        (2, vec![Part::Trim(0..9), known]),
        (2, vec![Part::Trim(0..9), twice.clone(), twice]),
        (2, vec![Part::Root(Named::default())]),
    ] {
        let error = state.apply(position(seq), &Changes { parts }).unwrap_err();
        assert_eq!(error.kind, Kind::Corrupt, "{error}");
        assert_eq!(
            (state.last(), state.plan(0..49)),
            (Some(position(1)), before.clone())
        );
    }
    state
        .apply(position(2), &one(Part::Data(table(48, 1))))
        .unwrap();
    state.apply(position(3), &one(image(3, Some(1)))).unwrap();
}

/// A whole TRIM or WRITE_ZEROES is work for the shards that have something alone.
#[test]
fn a_trim_of_two_tebibytes_leaves_nothing_behind() {
    let geometry = Geometry {
        size_bytes: 2 << 40,
        shard_bytes: 4 << 20,
    };
    let mut state = State::new(geometry);
    for seq in 1..200 {
        let unit = (seq * 1_000_003) % (geometry.units() - 8);
        state
            .apply(position(seq), &one(Part::Data(table(unit, 8))))
            .unwrap();
    }
    assert_eq!(state.waiting().data_bytes, 199 * 8 * UNIT_BYTES);
    assert!(state.allocation(0..geometry.units(), usize::MAX).len() >= 199);
    let all = 0..geometry.units();
    state
        .apply(position(200), &one(Part::Trim(all.clone())))
        .unwrap();
    assert_eq!(state.waiting(), Waiting::default());
    assert_eq!(state.allocation(all.clone(), 9), [(all, Allocation::Hole)]);
    assert!(state.is_late(77, 199) && !state.is_late(77, 200));
}

/// An image that was begun before a TRIM of its shard does not bring the old data back.
#[test]
fn c08_an_image_from_before_a_trim_counts_for_nothing() {
    let mut world = World::new();
    let mut record = world.record();
    record.write(&mut world, 0..32);
    world.append(record);
    world.fold(0);
    world.fold(1);
    let mut record = world.record();
    record.zero(&mut world, 0..16, Part::Trim);
    record.zero(&mut world, 20..22, Part::Trim);
    world.append(record);
    assert!(world.state.is_late(0, 2) && !world.state.is_late(1, 2));
    world.folded(0);
    world.folded(0);
    world.reads_like_the_model();
    let allocation = world.state.allocation(0..32, 9);
    let expected = [
        (0..16, Allocation::Hole),
        (16..20, Allocation::Data),
        (20..22, Allocation::Hole),
        (22..32, Allocation::Data),
    ];
    assert_eq!(allocation, expected);
    world.restart();
    world.reads_like_the_model();
}

#[test]
fn a_checkpoint_waits_for_packs_and_pages() {
    let mut world = World::new();
    let version = Version::default();
    let mut record = world.record();
    record.write(&mut world, 0..3);
    record.zero(&mut world, 16..48, Part::Zero);
    world.append(record);
    let error = world.state.root(world::VOLUME, version).unwrap_err();
    assert!(error.message.contains("pages"), "{error}");
    world.page();
    world.page_stored(0);
    let error = world.state.root(world::VOLUME, version).unwrap_err();
    assert!(error.message.contains("records"), "{error}");
    world.pack(0);
    world.packed(0);
    let (_, root) = world.state.root(world::VOLUME, version).unwrap();
    // Something comes between: the checkpoint is not of the state any more.
    let record = world.record();
    world.append(record);
    let next = world.state.last().unwrap().seq + 1;
    let part = one(Part::Root(root));
    assert!(world.state.apply(position(next), &part).is_err());
}

#[test]
fn what_was_given_up_goes_two_checkpoints_later() {
    let mut world = World::new();
    world.flush_image(0, 0..16);
    world.checkpoint();
    world.flush_image(0, 0..16);
    let old = world.images_of(0)[0];
    world.checkpoint();
    assert!(world.images_of(0).contains(&old) && world.state.needs(&old));
    world.checkpoint();
    assert!(!world.images_of(0).contains(&old) && !world.state.needs(&old));
}

/// Flushes of a few units do not leave an object each for ever.
#[test]
fn small_packs_become_one() {
    let mut world = World::new();
    for unit in 0..20 {
        let mut record = world.record();
        record.write(&mut world, unit * 4..unit * 4 + 2);
        world.append(record);
        world.checkpoint();
        world.reads_like_the_model();
        assert_eq!(world.state.packs().count(), 1);
    }
    // A checkpoint of nothing new does not put them again.
    let pack = world.state.packs().next();
    world.checkpoint();
    assert_eq!(world.state.packs().next(), pack);
}

/// What the module says of its memory, by the sizes of what is in it.
#[test]
fn a_run_takes_sixteen_bytes() {
    assert_eq!(std::mem::size_of::<(u64, index::Run)>(), 16);
}
