//! The worlds that are explored, and where each wrong rule shows.

use crate::config::{Config, Seen};
use crate::mutant::Mutant;

/// A world to explore.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// What it is about.
    pub name: &'static str,
    /// Its size.
    pub config: Config,
    /// What has to happen in it.
    pub sees: &'static [Seen],
}

const USUAL: &[Seen] = &[
    Seen::Ended,
    Seen::Adopted,
    Seen::Voided,
    Seen::Copied,
    Seen::TwoServed,
];

const fn sized(backends: usize, write: usize, owners: usize, records: u8) -> Config {
    Config {
        backends,
        write,
        owners,
        records,
        ..Config::SMALLEST
    }
}

/// Those that are explored with every change of the code: some seconds.
pub const SMALL: &[Named] = &[
    Named {
        name: "takeover",
        config: sized(3, 2, 2, 2),
        sees: USUAL,
    },
    Named {
        name: "takeover, reads step by step",
        config: Config {
            reads: true,
            ..sized(3, 2, 2, 1)
        },
        sees: USUAL,
    },
    Named {
        name: "lost and late answers, a death",
        config: Config {
            unanswered: 1,
            crashes: 1,
            ..sized(3, 2, 2, 1)
        },
        sees: &[Seen::Landed, Seen::LateSuccess, Seen::TwoServed],
    },
    Named {
        name: "a backend away for good",
        config: Config {
            down: 1,
            ..sized(3, 2, 3, 1)
        },
        sees: &[Seen::ThreeServed, Seen::Adopted],
    },
    Named {
        name: "a backend loses slots",
        config: Config {
            losses: 1,
            reads: true,
            ..sized(3, 2, 2, 0)
        },
        sees: &[Seen::Healed, Seen::TwoServed],
    },
    Named {
        name: "garbage is collected, a backend away",
        config: Config {
            checkpoints: 1,
            collects: true,
            unanswered: 1,
            down: 1,
            ..sized(3, 2, 2, 0)
        },
        sees: &[Seen::Collected, Seen::Landed, Seen::TwoServed],
    },
    Named {
        name: "one backend",
        config: sized(1, 1, 3, 3),
        sees: &[Seen::ThreeServed, Seen::Ended],
    },
    Named {
        name: "two backends, both to write",
        config: sized(2, 2, 2, 2),
        sees: USUAL,
    },
    Named {
        name: "three backends, all to write",
        config: sized(3, 3, 2, 2),
        sees: USUAL,
    },
    Named {
        name: "three backends, one to write",
        config: sized(3, 1, 2, 2),
        sees: &[Seen::TwoServed, Seen::Copied],
    },
    Named {
        name: "four backends",
        config: sized(4, 3, 2, 1),
        sees: USUAL,
    },
];

/// Those that take minutes to an hour, deep ways first.
pub const FULL: &[Named] = &[
    Named {
        name: "takeover, reads step by step, 2 records",
        config: Config {
            reads: true,
            ..sized(3, 2, 2, 2)
        },
        sees: USUAL,
    },
    Named {
        name: "lost and late answers, two deaths",
        config: Config {
            unanswered: 2,
            crashes: 2,
            ..sized(3, 2, 2, 2)
        },
        sees: &[Seen::Landed, Seen::LateSuccess, Seen::TwoServed],
    },
    Named {
        name: "a backend loses slots, 1 record",
        config: Config {
            losses: 1,
            reads: true,
            ..sized(3, 2, 2, 1)
        },
        sees: &[Seen::Healed, Seen::TwoServed],
    },
    Named {
        name: "backends lose slots twice",
        config: Config {
            losses: 2,
            ..sized(3, 2, 2, 1)
        },
        sees: &[Seen::Healed, Seen::TwoServed],
    },
    Named {
        name: "a backend loses slots, 3 owners",
        config: Config {
            losses: 1,
            ..sized(3, 2, 3, 0)
        },
        sees: &[Seen::Healed, Seen::ThreeServed],
    },
    Named {
        name: "garbage is collected, reads step by step",
        config: Config {
            checkpoints: 1,
            collects: true,
            reads: true,
            ..sized(3, 2, 2, 0)
        },
        sees: &[Seen::Collected, Seen::TwoServed],
    },
    Named {
        name: "garbage is collected, 1 record",
        config: Config {
            checkpoints: 1,
            collects: true,
            ..sized(3, 2, 2, 1)
        },
        sees: &[Seen::Collected, Seen::TwoServed],
    },
    Named {
        name: "five backends",
        config: sized(5, 3, 2, 2),
        sees: USUAL,
    },
    Named {
        name: "3 owners, 1 record",
        config: sized(3, 2, 3, 1),
        sees: &[Seen::ThreeServed, Seen::Adopted],
    },
    Named {
        name: "3 owners, 4 records",
        config: sized(3, 2, 3, 4),
        sees: &[Seen::ThreeServed, Seen::Adopted],
    },
];

/// A world in which each wrong rule does harm, and the number of the property that it breaks first.
pub const CAUGHT: &[(Mutant, Config, char)] = &[
    (Mutant::AcknowledgesEarly, sized(3, 2, 2, 1), '1'),
    (Mutant::IgnoresTaken, sized(3, 2, 2, 1), '1'),
    (Mutant::RanksByWrapper, sized(3, 2, 2, 1), '1'),
    (Mutant::SkipsStart, sized(3, 2, 2, 1), '3'),
    (Mutant::CollectsFences, GARBAGE, '2'),
    (Mutant::ServesEarly, sized(3, 2, 2, 1), '1'),
    (
        Mutant::CountsBehindFence,
        Config {
            checkpoints: 1,
            losses: 1,
            ..sized(3, 2, 2, 1)
        },
        '1',
    ),
    (Mutant::CopiesWithoutOrder, sized(3, 2, 2, 1), '1'),
    (Mutant::ChoosesEarly, sized(3, 2, 2, 1), '1'),
    (Mutant::OnlyStartsVoid, sized(2, 2, 3, 1), '1'),
    (Mutant::NoFloor, GARBAGE, '1'),
    (Mutant::TrustsOldFloor, GARBAGE, '1'),
];

const GARBAGE: Config = Config {
    checkpoints: 1,
    collects: true,
    ..sized(3, 2, 2, 0)
};
