//! What a world is made of: its size, what may happen in it, and what has to.

use nbd_rs_commit_log::Kind;

use crate::mutant::Mutant;

/// A world to explore: its size, and what may go wrong in it.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// N.
    pub backends: usize,
    /// W.
    pub write: usize,
    /// How many owners may start, in any order; the one that is last in it has the greatest epoch.
    pub owners: usize,
    /// Records of changes, over all owners.
    pub records: u8,
    /// Checkpoints, over all owners.
    pub checkpoints: u8,
    /// Whether owners collect what their checkpoints stand for.
    pub collects: bool,
    /// Puts that are not answered in time, and may have effect whenever.
    pub unanswered: u8,
    /// Owners that die. One that is paused for ever needs no budget.
    pub crashes: u8,
    /// Times that a backend loses a run of slots that it had acknowledged.
    pub losses: u8,
    /// Backends that never answer.
    pub down: usize,
    /// Whether all reads are steps of their own. If not, those happen as soon as they are asked for
    /// that would say the same later, or nothing that matters.
    pub reads: bool,
    /// The rules.
    pub rules: Mutant,
}

impl Config {
    /// One backend, and nobody to use it.
    pub const SMALLEST: Self = Self {
        backends: 1,
        write: 1,
        owners: 0,
        records: 0,
        checkpoints: 0,
        collects: false,
        unanswered: 0,
        crashes: 0,
        losses: 0,
        down: 0,
        reads: false,
        rules: Mutant::None,
    };
}

/// One step of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// An owner starts.
    Begin(usize),
    /// A backend does what an owner asked, and the owner hears of it.
    Answer(usize, usize),
    /// An owner waits for no more backends.
    Decide(usize),
    /// An owner is given a record.
    Append(usize, Kind),
    /// An owner gives up a put to a backend, and sends it again.
    Unanswered(usize, usize),
    /// An owner dies.
    Crash(usize),
    /// A put that was given up has effect: backend, and its number among those.
    Land(usize, usize),
    /// A backend loses slots, from and before.
    Lose(usize, u64, u64),
    /// An owner begins to collect on a backend.
    Collect(usize, usize),
    /// The next step of a collection: backend, and its number among those.
    Sweep(usize, usize),
}

/// Things that have to happen somewhere, or the exploration says little. One bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A newer owner was met.
    Ended,
    /// An owner chose a log whose last record was never acknowledged.
    Adopted,
    /// An owner served without a record that lies on a backend.
    Voided,
    /// A record was copied.
    Copied,
    /// Two owners have served.
    TwoServed,
    /// Three have.
    ThreeServed,
    /// A put that was given up had effect.
    Landed,
    /// A floor was put.
    Collected,
    /// A backend that lost slots was completed.
    Healed,
    /// An older owner was told of a success after a newer one had started.
    LateSuccess,
}
