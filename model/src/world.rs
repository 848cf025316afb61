//! All that there is at one moment: backends, owners, puts on their way, what clients were told.

use std::cell::Cell;
use std::sync::Arc;

use nbd_rs_commit_log::collect::{collectable, Collector};
use nbd_rs_commit_log::{
    choose, Action, Answer, Entry, Event, Kind, Owner, Phase, Quorum, Request, Stage,
};

use crate::backend::{Backend, Late};
use crate::config::{Config, Move, Seen};
use crate::explore::Model;
use crate::hash;
use crate::history::{self, epoch, Deeds, History};
use crate::mutant::Mutant;

#[derive(Debug, Clone)]
pub(crate) enum Seat {
    Empty,
    Alive(Arc<Owner<Mutant>>),
    Gone,
}

/// A moment.
#[derive(Debug, Clone)]
pub struct World {
    pub(crate) backends: Vec<Arc<Backend>>,
    pub(crate) seats: Vec<Seat>,
    history: History,
    records: u8,
    checkpoints: u8,
    unanswered: u8,
    crashes: u8,
    losses: u8,
    wrong: Option<Arc<str>>,
}

/// The world, and how its moments follow from each other.
#[derive(Debug)]
pub struct Worlds {
    config: Config,
    quorum: Quorum,
    seen: Cell<u32>,
}

impl Worlds {
    /// None if the quorum is impossible.
    #[must_use]
    pub fn new(config: Config) -> Option<Self> {
        Some(Self {
            config,
            quorum: Quorum::new(config.backends, config.write)?,
            seen: Cell::new(0),
        })
    }

    /// Whether it happened in what was explored.
    #[must_use]
    pub fn has_seen(&self, what: Seen) -> bool {
        self.seen.get() & (1 << what as u32) != 0
    }

    fn see(&self, what: Seen) {
        self.seen.set(self.seen.get() | (1 << what as u32));
    }

    /// Whether a slot that is taken may become empty.
    fn is_volatile(&self) -> bool {
        self.config.collects || self.config.losses > 0
    }

    fn give_up(&self, world: &mut World, backend: usize, asked: Option<Request>) {
        let Some(Request::Put { slot, entry }) = asked else {
            return;
        };
        let backend = Arc::make_mut(&mut world.backends[backend]);
        if self.is_volatile() || backend.get(slot).is_none() {
            backend.late.push(Late { slot, entry });
        }
    }

    /// The owner leaves; what it sent is on its way.
    fn leave(&self, world: &mut World, owner: usize) {
        let seat = std::mem::replace(&mut world.seats[owner], Seat::Gone);
        if let Seat::Alive(gone) = seat {
            for backend in 0..self.config.backends {
                self.give_up(world, backend, gone.asked(backend));
            }
        }
    }

    fn step(&self, world: &mut World, owner: usize, event: &Event) {
        let Seat::Alive(seat) = &mut world.seats[owner] else {
            return;
        };
        let alive = Arc::make_mut(seat);
        let mut actions = Vec::new();
        alive.step(event, &mut actions);
        self.told(world, owner, &actions);
        if !self.config.reads {
            self.read(world, owner);
        }
    }

    /// Answers what only reads, as far as it makes no difference when, until there is none left.
    fn read(&self, world: &mut World, owner: usize) {
        for at in 0..self.config.backends {
            while self.reads_at_once(world, owner, at) {
                self.answer(world, owner, at);
            }
        }
    }

    /// What would end the owner waits: before it reads that, it may do a lot elsewhere. So does what
    /// may be deleted, or may move. An empty slot need not wait, since a put follows and shows more.
    fn reads_at_once(&self, world: &World, owner: usize, at: usize) -> bool {
        let Seat::Alive(alive) = &world.seats[owner] else {
            return false;
        };
        let backend = &world.backends[at];
        let stays = match alive.asked(at) {
            Some(Request::GetFloor { .. }) => !self.config.collects,
            Some(Request::Get { slot }) => match backend.get(slot) {
                None => true,
                Some(entry) if entry.writer() > alive.epoch() => false,
                Some(Entry::Fence(_)) => world.losses == 0,
                Some(Entry::Record { .. }) => world.losses == 0 && !self.config.collects,
            },
            Some(Request::Put { .. }) | None => false,
        };
        stays && !backend.is_down
    }

    fn answer(&self, world: &mut World, owner: usize, backend: usize) {
        let Seat::Alive(alive) = &world.seats[owner] else {
            return;
        };
        let Some(request) = alive.asked(backend) else {
            return;
        };
        let answer = match request {
            Request::Put { slot, entry } => self.put(world, backend, slot, entry),
            Request::Get { slot } => Answer::Entry(world.backends[backend].get(slot)),
            Request::GetFloor { number } => Answer::Floor(world.backends[backend].floor(number)),
        };
        self.step(world, owner, &Event::Answered { backend, answer });
    }

    fn put(&self, world: &mut World, backend: usize, slot: u64, entry: Entry) -> Answer {
        let backend = Arc::make_mut(&mut world.backends[backend]);
        let had_lost = backend.lost.is_some();
        let is_new = backend.put(slot, entry);
        if had_lost && backend.lost.is_none() {
            self.see(Seen::Healed);
        }
        if matches!(entry, Entry::Record { writer, record } if writer != record.position.epoch) {
            self.see(Seen::Copied);
        }
        if !self.is_volatile() {
            backend.late.retain(|late| late.slot != slot);
        }
        match is_new {
            true => Answer::Stored,
            false => Answer::Exists,
        }
    }

    /// Notes what an owner did, and judges it.
    fn told(&self, world: &mut World, owner: usize, actions: &[Action]) {
        let Seat::Alive(alive) = &world.seats[owner] else {
            return;
        };
        let alive = Arc::clone(alive);
        let deeds = &mut world.history.0[owner];
        if alive.stage() != Stage::Fencing && !deeds.has_chosen {
            deeds.has_chosen = true;
            deeds.base = alive.base();
            if deeds
                .base
                .is_some_and(|base| world.history.is_unacknowledged(base))
            {
                self.see(Seen::Adopted);
            }
            if self.config.losses > 0 {
                self.chose(world, owner, &alive);
            }
        }
        for action in actions {
            match action {
                Action::Send { .. } => {}
                Action::Started => self.started(world, owner, &alive),
                Action::Acknowledged(record) => {
                    world.history.0[owner].acknowledged = Some(*record);
                    world.accuse(world.history.check_acknowledged(*record));
                }
                Action::Ended { .. } => {
                    self.see(Seen::Ended);
                    self.leave(world, owner);
                }
            }
        }
    }

    fn started(&self, world: &mut World, owner: usize, alive: &Owner<Mutant>) {
        let deeds = &mut world.history.0[owner];
        deeds.has_started = true;
        let last = alive.log().last().map(|record| record.position);
        let first = last.filter(|last| last.epoch == alive.epoch());
        deeds.acknowledged = first;
        let base = deeds.base;
        let history = &world.history;
        let wrong = history.check_newest(alive.epoch(), base);
        let wrong = wrong.or_else(|| history.check_acknowledged(first?));
        let served = history.0.iter().filter(|deeds| deeds.has_started).count();
        if served > 1 {
            self.see(Seen::TwoServed);
        }
        if served > 2 {
            self.see(Seen::ThreeServed);
        }
        if history.has_newer_start(owner) {
            self.see(Seen::LateSuccess);
        }
        let mut records = world.backends.iter().flat_map(|it| it.records());
        if records.any(|it| history.is_void(base, it.record.position, alive.epoch())) {
            self.see(Seen::Voided);
        }
        drop(records);
        world.accuse(wrong);
    }

    /// An owner that starts here and now, with any backends that are enough: what it would choose.
    fn observe(&self, world: &World) -> Option<String> {
        let replicas: Vec<_> = world
            .backends
            .iter()
            .map(|backend| backend.replica_by(&self.config.rules))
            .collect();
        let me = epoch(self.config.owners);
        (1..1_usize << self.config.backends).find_map(|set| {
            let is_in = |at: &usize| set & (1 << at) != 0;
            let members = || (0..self.config.backends).filter(is_in);
            let good = members()
                .filter(|&at| world.backends[at].lost.is_none())
                .count();
            if good < self.quorum.fence() {
                return None;
            }
            let chosen = choose(&self.config.rules, members().map(|at| &replicas[at]))?;
            let base = chosen.log().last().map(|held| held.record.position);
            world.history.check_newest(me, base)
        })
    }

    /// Whether somebody could believe, having looked, that nobody newer serves.
    fn lease_is_wrong(&self, world: &World) -> Option<String> {
        let wrong = world.alive().find(|alive| {
            let is_empty = |(at, slot): &(usize, u64)| world.backends[*at].get(*slot).is_none();
            let me = history::owner(alive.epoch());
            alive.stage() == Stage::Serving
                && world.history.has_newer_start(me)
                && alive.watched().filter(is_empty).count() >= self.quorum.fence()
        });
        let epoch = wrong?.epoch();
        Some(format!(
            "6: {epoch:?} has a lease, and somebody newer serves"
        ))
    }

    /// As many losses as the protocol bears: of the backends that a log was chosen from, enough
    /// have never lost a slot.
    fn is_promised(&self, world: &World) -> bool {
        let chosen = world.history.0.iter().enumerate();
        let mut chosen = chosen.filter(|(_, deeds)| deeds.has_chosen);
        chosen.all(|(owner, _)| {
            let holds = |backend: &&Arc<Backend>| {
                let was_asked = backend.chosen_from & (1 << owner) != 0;
                was_asked && !backend.has_lost && backend.fence() >= epoch(owner)
            };
            world.backends.iter().filter(holds).count() >= self.quorum.fence()
        })
    }

    /// Notes on the backends that a log was chosen from them.
    fn chose(&self, world: &mut World, owner: usize, alive: &Owner<Mutant>) {
        let asked = alive.lanes().iter().zip(&mut world.backends);
        for (_, backend) in asked.filter(|(lane, _)| lane.phase() == Phase::Joined) {
            Arc::make_mut(backend).chosen_from |= 1 << owner;
        }
    }

    fn moves_of_owner(&self, world: &World, owner: usize, moves: &mut Vec<Move>) {
        let alive = match &world.seats[owner] {
            Seat::Empty => return moves.push(Move::Begin(owner)),
            Seat::Gone => return,
            Seat::Alive(alive) => alive,
        };
        if alive.may_decide() {
            moves.push(Move::Decide(owner));
        }
        if alive.is_idle() && world.records > 0 {
            moves.push(Move::Append(owner, Kind::Data));
        }
        if alive.is_idle() && world.checkpoints > 0 {
            moves.push(Move::Append(owner, Kind::Checkpoint));
        }
        if world.crashes > 0 {
            moves.push(Move::Crash(owner));
        }
        for (at, backend) in world.backends.iter().enumerate() {
            let Some(asked) = alive.asked(at) else {
                continue;
            };
            if !backend.is_down {
                moves.push(Move::Answer(owner, at));
            }
            if world.unanswered > 0 && matches!(asked, Request::Put { .. }) {
                moves.push(Move::Unanswered(owner, at));
            }
        }
        if self.config.collects {
            let wanted =
                (0..self.config.backends).filter(|&at| self.collection(world, owner, at).is_some());
            moves.extend(wanted.map(|at| Move::Collect(owner, at)));
        }
    }

    fn collection(&self, world: &World, owner: usize, at: usize) -> Option<Collector> {
        let Seat::Alive(alive) = &world.seats[owner] else {
            return None;
        };
        let first = alive
            .log()
            .first()
            .filter(|it| it.kind == Kind::Checkpoint)?;
        let lane = &alive.lanes()[at];
        let backend = &world.backends[at];
        let is_busy = backend.collectors.iter().any(|(whose, _)| *whose == owner);
        let is_durable = alive.stage() == Stage::Serving && lane.held() >= first.position.seq;
        if is_busy || !is_durable {
            return None;
        }
        let entries: Vec<_> = backend.entries().collect();
        let collection = collectable(&self.config.rules, &entries, first.position)?;
        let is_new = collection.floor.slot > backend.last_floor().slot;
        is_new.then(|| Collector::new(collection, lane.floors()))
    }

    fn moves_of_backend(&self, world: &World, at: usize, moves: &mut Vec<Move>) {
        let backend = &world.backends[at];
        if !backend.is_down {
            moves.extend((0..backend.late.len()).map(|put| Move::Land(at, put)));
            moves.extend((0..backend.collectors.len()).map(|which| Move::Sweep(at, which)));
        }
        if world.losses > 0 {
            let runs = (0..backend.len())
                .flat_map(|from| (from + 1..=backend.len()).map(move |to| (from, to)));
            moves.extend(runs.map(|(from, to)| Move::Lose(at, from, to)));
        }
    }

    fn play(&self, world: &mut World, chosen: &Move) {
        match *chosen {
            Move::Begin(owner) => {
                let (alive, _) = Owner::new(self.config.rules, self.quorum, epoch(owner));
                world.seats[owner] = Seat::Alive(Arc::new(alive));
                if !self.config.reads {
                    self.read(world, owner);
                }
            }
            Move::Answer(owner, backend) => self.answer(world, owner, backend),
            Move::Decide(owner) => self.step(world, owner, &Event::Decide),
            Move::Append(owner, kind) => {
                match kind {
                    Kind::Checkpoint => world.checkpoints -= 1,
                    _ => world.records -= 1,
                }
                self.step(world, owner, &Event::Append(kind));
            }
            Move::Unanswered(owner, backend) => {
                world.unanswered -= 1;
                if let Seat::Alive(alive) = &world.seats[owner] {
                    let asked = alive.asked(backend);
                    self.give_up(world, backend, asked);
                }
                self.step(world, owner, &Event::Unanswered { backend });
            }
            Move::Crash(owner) => {
                world.crashes -= 1;
                self.leave(world, owner);
            }
            Move::Land(at, put) => {
                self.see(Seen::Landed);
                let late = Arc::make_mut(&mut world.backends[at]).late.remove(put);
                self.put(world, at, late.slot, late.entry);
            }
            Move::Lose(at, from, to) => {
                world.losses -= 1;
                let begun = |seat: &Seat| !matches!(seat, Seat::Empty);
                let newest = world.seats.iter().rposition(begun);
                let newest = newest.map(epoch).unwrap_or_default();
                Arc::make_mut(&mut world.backends[at]).lose(from..to, newest);
            }
            Move::Collect(owner, at) => {
                let collector = self.collection(world, owner, at);
                let backend = Arc::make_mut(&mut world.backends[at]);
                let collectors = &mut backend.collectors;
                collectors.extend(collector.map(|collector| (owner, collector)));
                collectors.sort_by_key(|(owner, _)| *owner);
            }
            Move::Sweep(at, which) => self.sweep(world, at, which),
        }
    }

    fn sweep(&self, world: &mut World, at: usize, which: usize) {
        let backend = Arc::make_mut(&mut world.backends[at]);
        let (owner, mut collector) = backend.collectors.remove(which);
        if let Some(request) = collector.request() {
            collector.answered(&backend.collect(&request));
            self.see(Seen::Collected);
        }
        if collector.request().is_some() {
            backend.collectors.insert(which, (owner, collector));
        }
    }
}

impl World {
    fn accuse(&mut self, wrong: Option<String>) {
        if let (None, Some(wrong)) = (&self.wrong, wrong) {
            self.wrong = Some(wrong.into());
        }
    }

    fn alive(&self) -> impl Iterator<Item = &Owner<Mutant>> {
        self.seats.iter().filter_map(|seat| match seat {
            Seat::Alive(alive) => Some(&**alive),
            _ => None,
        })
    }
}

impl Model for Worlds {
    type State = World;
    type Move = Move;

    fn first(&self) -> World {
        let Config { down, .. } = self.config;
        let backend = |at: usize| {
            Arc::new(Backend {
                is_down: at < down,
                ..Backend::default()
            })
        };
        World {
            backends: (0..self.config.backends).map(backend).collect(),
            seats: vec![Seat::Empty; self.config.owners],
            history: History(vec![Deeds::default(); self.config.owners]),
            records: self.config.records,
            checkpoints: self.config.checkpoints,
            unanswered: self.config.unanswered,
            crashes: self.config.crashes,
            losses: self.config.losses,
            wrong: None,
        }
    }

    fn moves(&self, world: &World, moves: &mut Vec<Move>) {
        for owner in 0..self.config.owners {
            self.moves_of_owner(world, owner, moves);
        }
        for backend in 0..self.config.backends {
            self.moves_of_backend(world, backend, moves);
        }
    }

    fn next(&self, world: &World, chosen: &Move) -> Option<World> {
        let mut next = world.clone();
        self.play(&mut next, chosen);
        if self.config.losses > 0 && !self.is_promised(&next) {
            return None;
        }
        Some(next)
    }

    /// The same for worlds that differ only in the numbers of their backends.
    fn fingerprint(&self, world: &World) -> u64 {
        let mut backends: Vec<u64> = (0..self.config.backends)
            .map(|at| {
                let lanes = world.alive().map(|alive| &alive.lanes()[at]);
                let lanes: u64 = lanes.fold(0, |sum, lane| hash::of(&(sum, lane)));
                hash::of(&(world.backends[at].fingerprint(), lanes))
            })
            .collect();
        backends.sort_unstable();
        let seats = world.seats.iter().map(|seat| match seat {
            Seat::Empty => 1,
            Seat::Gone => 2,
            Seat::Alive(alive) => hash::of(&(
                alive.stage(),
                alive.base(),
                alive.acknowledged(),
                alive.log(),
            )),
        });
        let seats: Vec<u64> = seats.collect();
        let left = [
            world.records,
            world.checkpoints,
            world.unanswered,
            world.crashes,
            world.losses,
        ];
        hash::of(&(backends, seats, &world.history, left))
    }

    fn wrong(&self, world: &World) -> Option<String> {
        let told = world.wrong.as_deref().map(str::to_owned);
        told.or_else(|| self.observe(world))
            .or_else(|| self.lease_is_wrong(world))
    }

    /// 5: with enough backends up, whoever came last serves, and all its records are acknowledged.
    fn wrong_at_end(&self, world: &World) -> Option<String> {
        let newest = world.alive().last()?;
        let enough = self.config.backends - self.config.down >= self.config.write;
        let is_done = newest.is_idle() && world.records == 0;
        let may_die = self.config.crashes > 0 || self.config.losses > 0;
        (enough && !is_done && !may_die).then(|| {
            let stage = newest.stage();
            format!(
                "5: nothing more happens, and {:?} is {stage:?}",
                newest.epoch()
            )
        })
    }
}
