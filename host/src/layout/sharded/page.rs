//! One state page in memory: what is on the store, what should be, and what is known besides.
//! Pure but for its lock.

use std::ops::Range;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::frame::Stamp;
use super::state::{ShardSet, State, StatePage, PAGE_SHARDS};
use crate::layout::gather::Gather;

/// Neighbours that become intended together: a sequential fill then costs one page put in 64.
const GROUP: u64 = 64;

/// A loaded page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) number: u64,
    /// How many of its shards the volume has.
    pub(super) shards: u64,
    states: RwLock<States>,
    pub(super) gather: Arc<Gather>,
}

/// What is known of the shards of a page. Numbers are those inside the page.
#[derive(Debug, Default)]
pub(super) struct States {
    /// As on the store, as far as is known.
    pub(super) base: StatePage,
    /// As it should be.
    pub(super) target: StatePage,
    /// Of the page on the store; `None` if it was never put.
    pub(super) etag: Option<String>,
    pub(super) stamp: Stamp,
    /// Whether the page on the store says that all is final.
    pub(super) settled: bool,
    /// The store may hold something else than `base`.
    pub(super) unsure: bool,
    /// Perhaps never on the store, whatever `base` says: a trim of them failed, and its page may
    /// have got there.
    doubtful: ShardSet,
    /// Intended, but known to have had no put: never, for everybody but the store.
    pub(super) fresh: ShardSet,
    /// Intended by an earlier owner, and not in the listing of its objects: nobody knows.
    pub(super) unlisted: ShardSet,
    /// Put since it became intended: written, for everybody but the store.
    put: ShardSet,
    /// Those of them that are covered by the sync that is going on.
    syncing: ShardSet,
}

/// What a page put holds.
pub(super) struct Snapshot {
    pub(super) states: StatePage,
    pub(super) etag: Option<String>,
}

impl States {
    /// The state that counts.
    pub(super) fn view(&self, at: u64) -> State {
        match self.target.get(at) {
            State::Intended if self.was_put_before(at) => State::Written,
            State::Intended if self.fresh.contains(at) => State::Never,
            state => state,
        }
    }

    /// Whether the store knows that the shard may have been put.
    pub(super) fn is_intended(&self, at: u64) -> bool {
        self.base.get(at) != State::Never
            && self.target.get(at) != State::Never
            && !self.doubtful.contains(at)
    }

    /// Marks a shard intended, and its neighbours that are certainly empty along with it.
    pub(super) fn intend(&mut self, at: u64, shards: u64, lingers: impl Fn(u64) -> bool) {
        let start = at / GROUP * GROUP;
        for near in start..(start + GROUP).min(shards) {
            let never = self.target.get(near) == State::Never;
            let empty = never && self.base.get(near) == State::Never && !lingers(near);
            if empty || never && near == at {
                self.target.set(near, State::Intended);
                self.fresh.insert(near);
            }
        }
    }

    /// A put of the shard is about to start: from now on nobody knows that there is no object.
    pub(super) fn putting(&mut self, at: u64) {
        self.fresh.remove(at);
        self.unlisted.remove(at);
    }

    /// The store itself has no object for an unlisted shard, and nobody has put it since.
    pub(super) fn is_absent(&mut self, at: u64) {
        if self.unlisted.contains(at) {
            self.unlisted.remove(at);
            self.fresh.insert(at);
        }
    }

    /// It has one, as an earlier owner put it.
    pub(super) fn is_there(&mut self, at: u64) {
        if self.unlisted.contains(at) {
            self.unlisted.remove(at);
            self.target.set(at, State::Written);
        }
    }

    /// A put of the shard has succeeded.
    pub(super) fn was_put(&mut self, at: u64) {
        self.fresh.remove(at);
        if self.target.get(at) == State::Intended {
            self.put.insert(at);
        }
    }

    fn was_put_before(&self, at: u64) -> bool {
        self.put.contains(at) || self.syncing.contains(at)
    }

    /// Whether there are puts that no sync has begun to cover.
    pub(super) fn has_puts(&self) -> bool {
        !self.put.is_empty()
    }

    /// A sync begins, that covers all puts until now.
    pub(super) fn sync_begins(&mut self) {
        for at in std::mem::take(&mut self.put).iter() {
            self.syncing.insert(at);
        }
    }

    /// What it covered is durable, and becomes written. Of what was put meanwhile nobody knows: if
    /// the power fails, there may be no object.
    pub(super) fn record_puts(&mut self) {
        for at in std::mem::take(&mut self.syncing).iter() {
            self.target.set(at, State::Written);
        }
    }

    /// Shards become never; what they were, to restore it. Those that are only reserved have no
    /// object and stay what they are.
    pub(super) fn give_up(&mut self, range: Range<u64>) -> GivenUp {
        let mut given_up = GivenUp::default();
        for at in range {
            if self.view(at) == State::Never {
                continue;
            }
            let known = (self.target.get(at), self.was_put_before(at));
            given_up.shards.push((at, known));
            match given_up.objects.last_mut() {
                Some(last) if last.end == at => last.end = at + 1,
                _ => given_up.objects.push(at..at + 1),
            }
            self.target.set(at, State::Never);
            self.put.remove(at);
            self.syncing.remove(at);
            self.unlisted.remove(at);
        }
        given_up
    }

    /// They stay what they were.
    pub(super) fn restore(&mut self, given_up: &GivenUp) {
        for &(at, (was, put)) in &given_up.shards {
            self.target.set(at, was);
            self.doubtful.insert(at);
            if put {
                self.put.insert(at);
            }
        }
        self.unsure = true;
    }

    /// Before the volume is given back: what was only reserved is not any more.
    pub(super) fn settle(&mut self) {
        self.sync_begins();
        self.record_puts();
        for at in std::mem::take(&mut self.fresh).iter() {
            if self.target.get(at) == State::Intended {
                self.target.set(at, State::Never);
            }
        }
    }

    /// The store has these states now.
    pub(super) fn stored(&mut self, states: StatePage, etag: String, stamp: Stamp, settled: bool) {
        self.found(states, etag);
        (self.stamp, self.settled, self.unsure) = (stamp, settled, false);
    }

    /// These states lie on the store.
    pub(super) fn found(&mut self, states: StatePage, etag: String) {
        self.base = states;
        self.etag = Some(etag);
        self.doubtful = ShardSet::default();
    }

    /// Whether a put of the page would change anything.
    pub(super) fn is_dirty(&self) -> bool {
        self.unsure || self.target != self.base
    }
}

/// What shards were before they were given up.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    shards: Vec<(u64, (State, bool))>,
    /// Shards whose objects may exist, in runs.
    pub(super) objects: Vec<Range<u64>>,
}

impl GivenUp {
    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }
}

impl Page {
    pub(super) fn new(number: u64, shards: u64, states: States) -> Arc<Self> {
        Arc::new(Self {
            number,
            shards,
            states: RwLock::new(states),
            gather: Arc::default(),
        })
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, States> {
        self.states
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, States> {
        self.states
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The number in the volume of a shard of this page.
    pub(super) fn volume_shard(&self, at: u64) -> u64 {
        self.number * PAGE_SHARDS + at
    }

    /// What should be put now, if anything.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let states = self.read();
        states.is_dirty().then(|| Snapshot {
            states: states.target.clone(),
            etag: states.etag.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_becomes_intended_but_not_what_lingers() {
        let mut states = States::default();
        states.intend(70, 100, |near| near == 71);
        for at in 0..128 {
            let expected = match at {
                64..100 if at != 71 => State::Intended,
                _ => State::Never,
            };
            assert_eq!(states.target.get(at), expected, "{at}");
            assert_eq!(states.view(at), State::Never);
        }
        states.was_put(70);
        assert_eq!(states.view(70), State::Written);
        assert_eq!(states.target.get(70), State::Intended);
        states.sync_begins();
        states.was_put(72);
        states.record_puts();
        assert_eq!(states.target.get(70), State::Written);
        assert_eq!(states.target.get(72), State::Intended);
        assert_eq!(states.view(72), State::Written);
        assert!(states.has_puts());
        states.settle();
        assert_eq!(
            states.target.counts(PAGE_SHARDS)[State::Intended as usize],
            0
        );
        assert_eq!(states.target.get(64), State::Never);
    }

    #[test]
    fn a_neighbour_that_is_being_given_up_is_not_reserved() {
        let mut states = States::default();
        states.base.set(1, State::Written);
        states.target = states.base.clone();
        let given_up = states.give_up(0..64);
        assert_eq!(given_up.objects.len(), 1);
        assert_eq!(given_up.objects[0], 1..2);
        states.intend(0, 64, |_| false);
        assert_eq!(states.target.get(1), State::Never);
        states.restore(&given_up);
        assert_eq!(states.view(1), State::Written);
        assert!(states.is_dirty());
        // The page that failed may have got there: a put must wait for the next one.
        assert!(!states.is_intended(1));
        let target = states.target.clone();
        states.stored(target, String::new(), Stamp::default(), false);
        assert!(states.is_intended(1) && !states.is_dirty());
    }
}
