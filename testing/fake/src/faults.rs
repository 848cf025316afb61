//! What goes wrong, call by call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use nbd_rs_plugin::{Error, Kind};

use crate::Rng;

/// What one call does instead of simply succeeding.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: it succeeds.
    None,
    /// It fails, and nothing has happened.
    Before(Kind, &'static str),
    /// It is carried out, and then fails.
    After(Kind, &'static str),
    /// It waits so many milliseconds, and is carried out then.
    SlowBefore(u64),
    /// It is carried out, and the answer takes so many milliseconds.
    SlowAfter(u64),
    /// A read answers the version before the current one.
    OldVersion,
    /// A read answers fewer bytes than it was asked for.
    Short,
}

impl Fault {
    pub(crate) fn error(kind: Kind, text: &str) -> Error {
        Error::new(kind, text)
    }
}

/// The script of each operation, and what happens when it is used up.
#[derive(Debug, Default)]
pub struct Faults {
    scripts: Mutex<HashMap<&'static str, VecDeque<Fault>>>,
    random: Mutex<Option<(Rng, u64)>>,
    spared: Mutex<Vec<&'static str>>,
}

impl Faults {
    /// The next calls of `operation` go like this, then all is well again.
    pub fn script(&self, operation: &'static str, faults: impl IntoIterator<Item = Fault>) {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        scripts.entry(operation).or_default().extend(faults);
    }

    /// From now on `percent` of all calls fail at random: half of them before they did anything,
    /// half after they were carried out.
    pub fn random(&self, rng: Rng, percent: u64) {
        *self.random.lock().unwrap_or_else(PoisonError::into_inner) = Some((rng, percent));
    }

    /// Calls of `operation` never fail at random.
    pub fn never(&self, operation: &'static str) {
        let mut spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner);
        spared.push(operation);
    }

    /// All is well from now on.
    pub fn heal(&self) {
        *self.random.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.scripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub(crate) fn next(&self, operation: &str) -> Fault {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = scripts.get_mut(operation).and_then(VecDeque::pop_front) {
            return fault;
        }
        let spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner);
        if spared.contains(&operation) {
            return Fault::None;
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((rng, percent)) = random.as_mut() else {
            return Fault::None;
        };
        if !rng.chance(*percent) {
            return Fault::None;
        }
        match rng.below(3) {
            0 => Fault::Before(Kind::Transient, "503 (random)"),
            1 => Fault::Before(Kind::Ambiguous, "no answer (random)"),
            _ => Fault::After(Kind::Ambiguous, "lost answer (random)"),
        }
    }
}
