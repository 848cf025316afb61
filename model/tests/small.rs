//! The small worlds, and that wrong rules are found.

use nbd_rs_model::{
    breadth_first, depth_first, explain, Config, Model, Move, Mutant, Worlds, CAUGHT, SMALL,
};

/// More than any of the worlds here has.
const MOST_STATES: usize = 5_000_000;

fn worlds(config: Config) -> Worlds {
    Worlds::new(config).expect("a quorum that is possible")
}

#[test]
fn c15_c17_f59_f67_every_order_of_events_keeps_what_was_promised() {
    for named in SMALL {
        let worlds = worlds(named.config);
        let (figures, found) = breadth_first(&worlds, MOST_STATES);
        let found = found.map(|found| explain(&worlds, &found).join("\n"));
        assert_eq!(found, None, "{}", named.name);
        assert!(figures.is_complete, "{}: {figures:?}", named.name);
        let unseen = named.sees.iter().find(|what| !worlds.has_seen(**what));
        assert_eq!(unseen, None, "{}: never happened", named.name);
    }
}

/// Every rule that the design names, and those that the model showed to be needed.
#[test]
fn every_wrong_rule_is_found_out() {
    for &(rules, config, property) in CAUGHT {
        let right = Config {
            rules: Mutant::None,
            ..config
        };
        assert_ne!(rules, right.rules);
        let worlds = worlds(Config { rules, ..config });
        let (figures, found) = breadth_first(&worlds, MOST_STATES);
        let found = found.unwrap_or_else(|| panic!("{rules:?} was not found: {figures:?}"));
        assert!(
            found.wrong.starts_with(property),
            "{rules:?}: {}",
            found.wrong
        );
        let lines = explain(&worlds, &found);
        assert!(lines.len() > found.moves.len(), "{rules:?}: {lines:#?}");
    }
}

/// Breadth and depth agree, so neither leaves anything out that the other sees; and reads that are
/// made at once end where reads of their own do.
#[test]
fn both_ways_to_explore_see_the_same() {
    let config = SMALL[0].config;
    let (wide, _) = breadth_first(&worlds(config), MOST_STATES);
    let (deep, _) = depth_first(&worlds(config), MOST_STATES);
    assert_eq!(
        (wide.states, wide.steps, wide.ends),
        (deep.states, deep.steps, deep.ends)
    );
    assert!(deep.depth >= wide.depth);
    let reads = Config {
        reads: true,
        ..config
    };
    let (stepwise, _) = breadth_first(&worlds(reads), MOST_STATES);
    assert!(stepwise.states > wide.states);
    assert_eq!(stepwise.ends, wide.ends);
}

/// Worlds that differ in the numbers of their backends alone are one.
#[test]
fn backends_have_no_names() {
    let worlds = worlds(SMALL[0].config);
    let play = |moves: &[Move]| {
        let next = |world, step| worlds.next(&world, step).expect("a world like any");
        let world = moves.iter().fold(worlds.first(), next);
        worlds.fingerprint(&world)
    };
    let begin = Move::Begin(0);
    let fence = |at| Move::Answer(0, at);
    assert_eq!(play(&[begin, fence(0)]), play(&[begin, fence(2)]));
    let two = [begin, fence(0), fence(1)];
    assert_eq!(play(&two), play(&[begin, fence(2), fence(0)]));
    assert_ne!(play(&two), play(&[begin, fence(0)]));
}
