//! A counterexample, for people.

use nbd_rs_commit_log::Request;

use crate::config::Move;
use crate::explore::{Counterexample, Model};
use crate::history::epoch;
use crate::world::{Seat, World, Worlds};

/// The steps in words, what the backends hold at the end, and what is wrong.
#[must_use]
pub fn explain(worlds: &Worlds, found: &Counterexample<Move>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut world = worlds.first();
    for step in &found.moves {
        lines.push(sentence(&world, step));
        let Some(next) = worlds.next(&world, step) else {
            break;
        };
        world = next;
    }
    for (at, backend) in world.backends.iter().enumerate() {
        let slots = backend
            .entries()
            .map(|(slot, entry)| format!("{slot}: {entry:?}"));
        let slots: Vec<_> = slots.collect();
        lines.push(format!("backend {at} holds [{}]", slots.join(", ")));
    }
    lines.push(found.wrong.clone());
    lines
}

fn sentence(world: &World, step: &Move) -> String {
    match *step {
        Move::Begin(owner) => format!("{:?} begins", epoch(owner)),
        Move::Answer(owner, at) => {
            let what = asked(world, owner, at);
            format!("backend {at} answers {:?}: {what}", epoch(owner))
        }
        Move::Decide(owner) => format!("{:?} waits no longer and chooses", epoch(owner)),
        Move::Append(owner, kind) => format!("{:?} is given a record: {kind:?}", epoch(owner)),
        Move::Unanswered(owner, at) => {
            let what = asked(world, owner, at);
            format!("{:?} has no answer from backend {at}: {what}", epoch(owner))
        }
        Move::Crash(owner) => format!("{:?} dies", epoch(owner)),
        Move::Land(at, put) => {
            let late = world.backends[at].late[put];
            let (slot, entry) = (late.slot, late.entry);
            format!("late, backend {at} is asked to put {entry:?} into slot {slot}")
        }
        Move::Lose(at, from, to) => format!("backend {at} loses slots {from} to {}", to - 1),
        Move::Collect(owner, at) => format!("{:?} collects on backend {at}", epoch(owner)),
        Move::Sweep(at, which) => {
            let (owner, collector) = &world.backends[at].collectors[which];
            let what = collector.request().map(|request| format!("{request:?}"));
            let what = what.unwrap_or_default();
            format!("backend {at} collects for {:?}: {what}", epoch(*owner))
        }
    }
}

fn asked(world: &World, owner: usize, at: usize) -> String {
    let Seat::Alive(alive) = &world.seats[owner] else {
        return String::new();
    };
    match alive.asked(at) {
        Some(Request::Put { slot, entry }) => match world.backends[at].get(slot) {
            None => format!("{entry:?} is put into slot {slot}"),
            Some(_) => format!("{entry:?} is not put into slot {slot}, which is taken"),
        },
        Some(Request::Get { slot }) => match world.backends[at].get(slot) {
            None => format!("slot {slot} is empty"),
            Some(entry) => format!("{entry:?} is in slot {slot}"),
        },
        Some(Request::GetFloor { number }) => match world.backends[at].floor(number) {
            None => format!("there is no floor {number}"),
            Some(floor) => format!("floor {number} is slot {}", floor.slot),
        },
        None => String::new(),
    }
}
