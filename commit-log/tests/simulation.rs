//! Long random runs: more backends, owners and records than can be explored in every order. The
//! driver does what `Action::Send` says and nothing else, as the layout does.

use std::collections::{BTreeMap, BTreeSet};

use nbd_rs_commit_log::collect::{self, collectable, Collector};
use nbd_rs_commit_log::{
    Action, Answer, Entry, Epoch, Event, Floor, Kind, Owner, Position, Protocol, Quorum, Record,
    Request, Stage,
};
use proptest::prelude::*;

#[derive(Default)]
struct Store {
    slots: BTreeMap<u64, Entry>,
    floors: Vec<Floor>,
    /// Slots of fences that were put in front of a floor, and stop nobody.
    vain: BTreeSet<u64>,
    /// Puts that nobody waits for.
    late: Vec<(u64, Entry)>,
    collectors: Vec<Collector>,
}

impl Store {
    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::GetFloor { number } => Answer::Floor(self.floor(number)),
            Request::Get { slot } => Answer::Entry(self.slots.get(&slot).copied()),
            Request::Put { slot, entry } => self.put(slot, entry),
        }
    }

    fn floor(&self, number: u64) -> Option<Floor> {
        self.floors.get(number as usize).copied()
    }

    fn put(&mut self, slot: u64, entry: Entry) -> Answer {
        if self.slots.contains_key(&slot) {
            return Answer::Exists;
        }
        self.slots.insert(slot, entry);
        if self.floors.last().is_some_and(|floor| slot < floor.slot) {
            self.vain.insert(slot);
        }
        Answer::Stored
    }

    fn sweep(&mut self, which: usize) {
        let mut collector = self.collectors.swap_remove(which);
        let Some(request) = collector.request() else {
            return;
        };
        let answer = match request {
            collect::Request::GetFloor { number } => collect::Answer::Floor(self.floor(number)),
            collect::Request::PutFloor { number, floor } => self.put_floor(number, floor),
            collect::Request::Delete { slots } => self.delete(&slots),
        };
        collector.answered(&answer);
        self.collectors.push(collector);
    }

    fn put_floor(&mut self, number: u64, floor: Floor) -> collect::Answer {
        if number < self.floors.len() as u64 {
            return collect::Answer::Exists;
        }
        assert_eq!(number, self.floors.len() as u64, "a floor was left out");
        let last = self.floors.last().copied().unwrap_or_default();
        assert!(last.slot < floor.slot, "{last:?}, then {floor:?}");
        self.floors.push(floor);
        collect::Answer::Stored
    }

    fn delete(&mut self, slots: &[u64]) -> collect::Answer {
        let floor = self.floors.last().expect("a floor before a deletion").slot;
        for slot in slots {
            assert!(*slot < floor, "slot {slot} is not below {floor}");
            let gone = self.slots.remove(slot);
            let is_fence = matches!(gone, Some(Entry::Fence(_)));
            assert!(!is_fence || self.vain.contains(slot), "a fence is gone");
        }
        collect::Answer::Deleted
    }
}

struct Seat {
    owner: Owner<Protocol>,
    sent: Vec<Option<Request>>,
    /// The newest that had started when the last record was appended.
    newest: Option<Epoch>,
}

struct World {
    quorum: Quorum,
    stores: Vec<Store>,
    seats: Vec<Seat>,
    /// Every record that was ever made.
    made: BTreeMap<Position, Record>,
    acknowledged: BTreeSet<Position>,
    /// Each that started, and the log that it served first.
    served: BTreeMap<Epoch, Vec<Position>>,
    started: u64,
    random: u64,
}

impl World {
    fn new(quorum: Quorum, seed: u64) -> Self {
        Self {
            quorum,
            stores: (0..quorum.backends()).map(|_| Store::default()).collect(),
            seats: Vec::new(),
            made: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            served: BTreeMap::new(),
            started: 0,
            random: seed | 1,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % bound
    }

    fn begin(&mut self) {
        self.started += 1;
        let epoch = Epoch {
            // Two that saw the same.
            counter: self.started / 2 + 1,
            owner: self.below(1 << 20) as u64 * 64 + self.started,
        };
        let (owner, actions) = Owner::new(Protocol, self.quorum, epoch);
        let sent = vec![None; self.quorum.backends()];
        let newest = None;
        self.seats.push(Seat {
            owner,
            sent,
            newest,
        });
        self.play(self.seats.len() - 1, &actions);
    }

    fn step(&mut self, seat: usize, event: &Event) {
        if matches!(event, Event::Append(_)) && self.seats[seat].owner.is_idle() {
            self.seats[seat].newest = self.served.keys().next_back().copied();
        }
        let mut actions = Vec::new();
        self.seats[seat].owner.step(event, &mut actions);
        for record in self.seats[seat].owner.log() {
            self.made.insert(record.position, *record);
        }
        self.play(seat, &actions);
    }

    fn play(&mut self, seat: usize, actions: &[Action]) {
        for action in actions {
            match *action {
                Action::Send { backend, request } => {
                    self.seats[seat].sent[backend] = Some(request);
                }
                Action::Started => self.has_started(seat),
                Action::Acknowledged(position) => self.is_acknowledged(seat, position),
                Action::Ended { by } => {
                    assert!(by > self.seats[seat].owner.epoch());
                    assert_eq!(self.seats[seat].owner.stage(), Stage::Ended);
                }
            }
        }
    }

    /// A log, its first record first.
    fn log(&self, last: Option<Position>) -> Vec<Position> {
        let before = |position: &Position| self.made[position].prev;
        let mut log: Vec<_> = std::iter::successors(last, before).collect();
        log.reverse();
        log
    }

    fn has_started(&mut self, seat: usize) {
        let owner = &self.seats[seat].owner;
        let me = owner.epoch();
        let log = self.log(owner.log().last().map(|record| record.position));
        let newer = self.served.range(me..).next();
        if let Some((newer, theirs)) = newer {
            assert!(theirs.starts_with(&log), "{me:?} started after {newer:?}");
        } else {
            for record in &self.acknowledged {
                assert!(log.contains(record), "{record:?} is lost in {log:?}");
            }
            for (older, theirs) in &self.served {
                assert!(log.starts_with(theirs), "{older:?} served {theirs:?}");
                let mut behind = log[theirs.len()..].iter();
                assert!(behind.all(|it| it.epoch >= *older), "back: {log:?}");
            }
        }
        self.acknowledged.extend(log.last());
        self.served.insert(me, log);
    }

    fn is_acknowledged(&mut self, seat: usize, position: Position) {
        // As good as a look at that moment.
        let newest = self.seats[seat].newest;
        assert!(newest <= Some(position.epoch), "{newest:?} had started");
        let mut newer = self.served.iter().filter(|(it, _)| **it > position.epoch);
        let without = newer.find(|(_, log)| !log.contains(&position));
        assert_eq!(without, None, "{position:?} is acknowledged late");
        self.acknowledged.insert(position);
    }

    /// A look at enough slots that are empty proves that nobody newer serves.
    fn watch(&mut self, seat: usize) {
        let owner = &self.seats[seat].owner;
        let me = owner.epoch();
        let watched: Vec<_> = owner.watched().collect();
        let look = |&(at, slot): &(usize, u64)| self.stores[at].slots.get(&slot).copied();
        let found: Vec<_> = watched.iter().map(look).collect();
        let empty = found.iter().filter(|entry| entry.is_none()).count();
        if owner.stage() == Stage::Serving && empty >= self.quorum.fence() {
            let newer = self.served.keys().find(|newer| **newer > me);
            assert_eq!(newer, None, "{me:?} has a lease");
        }
        for ((backend, slot), entry) in watched.into_iter().zip(found) {
            let Some(entry) = entry else {
                continue;
            };
            let event = Event::Watched {
                backend,
                slot,
                entry,
            };
            self.step(seat, &event);
            let has_ended = self.seats[seat].owner.stage() == Stage::Ended;
            assert_eq!(has_ended, entry.writer() > me, "{entry:?}");
            if has_ended {
                break;
            }
        }
    }

    fn act(&mut self, seat: usize) {
        let event = match self.below(40) {
            10 => return self.watch(seat),
            0 => Event::Decide,
            1 => return self.collect(seat),
            2 => return self.die(seat),
            3..=8 => Event::Append(Kind::Data),
            9 => Event::Append(Kind::Checkpoint),
            _ => return self.answer(seat),
        };
        self.step(seat, &event);
    }

    fn answer(&mut self, seat: usize) {
        let backend = self.below(self.quorum.backends());
        let Some(request) = self.seats[seat].sent[backend] else {
            return;
        };
        let is_lost = self.below(8) == 0;
        if is_lost {
            if let Request::Put { slot, entry } = request {
                self.stores[backend].late.push((slot, entry));
            }
            return self.step(seat, &Event::Unanswered { backend });
        }
        self.seats[seat].sent[backend] = None;
        let answer = self.stores[backend].answer(request);
        self.step(seat, &Event::Answered { backend, answer });
    }

    fn collect(&mut self, seat: usize) {
        let owner = &self.seats[seat].owner;
        let backend = (self.random >> 9) as usize % self.quorum.backends();
        let first = owner.log().first().copied();
        let first = first.filter(|it| it.kind == Kind::Checkpoint);
        let is_there = |record: &Record| {
            owner.lanes()[backend].held() >= record.position.seq && owner.stage() == Stage::Serving
        };
        let Some(checkpoint) = first.filter(is_there) else {
            return;
        };
        let store = &mut self.stores[backend];
        let entries: Vec<_> = store
            .slots
            .iter()
            .map(|(slot, entry)| (*slot, *entry))
            .collect();
        let collection = collectable(&Protocol, &entries, checkpoint.position);
        let seen = owner.lanes()[backend].floors();
        let collector = collection.map(|collection| Collector::new(collection, seen));
        store.collectors.extend(collector);
    }

    fn die(&mut self, seat: usize) {
        if self.below(4) != 0 {
            return;
        }
        let dead = self.seats.swap_remove(seat);
        for (store, request) in self.stores.iter_mut().zip(dead.sent) {
            if let Some(Request::Put { slot, entry }) = request {
                store.late.push((slot, entry));
            }
        }
    }

    fn happen(&mut self) {
        let backend = self.below(self.quorum.backends());
        let which = self.below(1 << 20);
        let store = &mut self.stores[backend];
        match (store.late.len(), store.collectors.len()) {
            (late, _) if late > 0 && which.is_multiple_of(2) => {
                let (slot, entry) = store.late.swap_remove(which % late);
                store.put(slot, entry);
            }
            (_, collectors) if collectors > 0 => store.sweep(which % collectors),
            _ => {}
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.below(100) {
                0 => self.begin(),
                1..=5 => self.happen(),
                _ if self.seats.is_empty() => self.begin(),
                _ => {
                    let seat = self.below(self.seats.len());
                    self.act(seat);
                }
            }
        }
    }

    /// Everybody else is dead, and all backends answer.
    fn settle(&mut self) {
        self.seats.clear();
        self.started += 1000;
        self.begin();
        for _ in 0..100_000 {
            if self.seats[0].owner.is_idle() {
                return;
            }
            for backend in 0..self.quorum.backends() {
                if let Some(request) = self.seats[0].sent[backend].take() {
                    let answer = self.stores[backend].answer(request);
                    self.step(0, &Event::Answered { backend, answer });
                }
            }
        }
        panic!("a start with all backends does not end");
    }
}

fn quorums() -> impl Strategy<Value = Quorum> {
    let sizes = (1_usize..=5).prop_flat_map(|backends| (Just(backends), 1..=backends));
    sizes.prop_map(|(backends, write)| Quorum::new(backends, write).expect("possible"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn c17_c20_f58_f67_no_run_loses_what_was_acknowledged(
        quorum in quorums(),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(quorum, seed);
        world.run(3000);
        world.settle();
    }

    /// Where one of the backends never answers, the others are enough if they are W.
    #[test]
    fn c15_with_enough_backends_a_start_ends(seed in any::<u64>(), away in 0_usize..3) {
        let quorum = Quorum::majority(3).expect("possible");
        let mut world = World::new(quorum, seed);
        world.run(1000);
        world.seats.clear();
        world.started += 1000;
        world.begin();
        for _ in 0..100_000 {
            if world.seats[0].owner.is_idle() {
                break;
            }
            for backend in (0..3).filter(|backend| *backend != away) {
                if let Some(request) = world.seats[0].sent[backend].take() {
                    let answer = world.stores[backend].answer(request);
                    world.step(0, &Event::Answered { backend, answer });
                }
            }
            world.step(0, &Event::Decide);
        }
        prop_assert!(world.seats[0].owner.is_idle());
    }
}

/// The runs get somewhere: owners start, records are acknowledged, floors move.
#[test]
fn runs_are_no_idle_talk() {
    let (mut acknowledged, mut served, mut floors) = (0, 0, 0);
    for seed in 1..50 {
        let quorum = Quorum::majority(3).expect("possible");
        let mut world = World::new(quorum, seed * 0x9e37_79b9);
        world.run(3000);
        acknowledged += world.acknowledged.len();
        served += world.served.len();
        floors += world
            .stores
            .iter()
            .map(|store| store.floors.len())
            .sum::<usize>();
    }
    println!("{acknowledged} records, {served} owners, {floors} floors");
    assert!(acknowledged > 500 && served > 100 && floors > 100);
}
