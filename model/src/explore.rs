//! Every state that can be reached, each once.
//!
//! A state is remembered by 64 bits, so two that share them would be taken for one: with n states the
//! chance is about n²/2⁶⁵.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Debug;

use crate::hash::BuildAlready;

/// What is explored.
pub trait Model {
    /// Everything at one moment.
    type State: Clone;
    /// What leads to the next.
    type Move: Debug + Clone;

    /// The beginning.
    fn first(&self) -> Self::State;
    /// All that may happen.
    fn moves(&self, state: &Self::State, moves: &mut Vec<Self::Move>);
    /// What comes of it; none if it is outside of what is promised.
    fn next(&self, state: &Self::State, chosen: &Self::Move) -> Option<Self::State>;
    /// Equal for states that need not be told apart.
    fn fingerprint(&self, state: &Self::State) -> u64;
    /// What must never be.
    fn wrong(&self, state: &Self::State) -> Option<String>;
    /// What must not be where nothing more can happen.
    fn wrong_at_end(&self, state: &Self::State) -> Option<String>;
}

/// How far it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// States that differ.
    pub states: usize,
    /// Steps from a state to another.
    pub steps: u64,
    /// The longest way that was walked.
    pub depth: usize,
    /// States where nothing more can happen.
    pub ends: usize,
    /// Whether that is all there is.
    pub is_complete: bool,
}

/// A way to something that must not be.
#[derive(Debug, Clone)]
pub struct Counterexample<M> {
    /// What is wrong.
    pub wrong: String,
    /// The steps to it.
    pub moves: Vec<M>,
}

/// What came of an exploration.
pub type Outcome<M> = (Figures, Option<Counterexample<M>>);

/// Nearest states first, so a counterexample is a shortest one. Holds the states of a whole level.
pub fn breadth_first<M: Model>(model: &M, most_states: usize) -> Outcome<M::Move> {
    let first = model.first();
    let mut figures = Figures::default();
    let mut parents: HashMap<u64, u64, BuildAlready> = HashMap::default();
    let mark = model.fingerprint(&first);
    parents.insert(mark, mark);
    let mut waiting = VecDeque::from([(first, mark, 0)]);
    let mut moves = Vec::new();
    while let Some((state, mark, depth)) = waiting.pop_front() {
        figures.depth = figures.depth.max(depth);
        moves.clear();
        model.moves(&state, &mut moves);
        let mut is_end = true;
        for chosen in &moves {
            let Some(next) = model.next(&state, chosen) else {
                continue;
            };
            is_end = false;
            figures.steps += 1;
            let next_mark = model.fingerprint(&next);
            if parents.contains_key(&next_mark) {
                continue;
            }
            parents.insert(next_mark, mark);
            if let Some(wrong) = model.wrong(&next) {
                figures.states = parents.len();
                return (figures, Some(way(model, &parents, next_mark, wrong)));
            }
            waiting.push_back((next, next_mark, depth + 1));
        }
        if is_end {
            figures.ends += 1;
            if let Some(wrong) = model.wrong_at_end(&state) {
                figures.states = parents.len();
                return (figures, Some(way(model, &parents, mark, wrong)));
            }
        }
        if parents.len() >= most_states {
            figures.states = parents.len();
            return (figures, None);
        }
    }
    figures.states = parents.len();
    figures.is_complete = true;
    (figures, None)
}

/// The moves to a state, found again from the fingerprints on the way.
fn way<M: Model>(
    model: &M,
    parents: &HashMap<u64, u64, BuildAlready>,
    end: u64,
    wrong: String,
) -> Counterexample<M::Move> {
    let parent = |&mark: &u64| parents.get(&mark).copied().filter(|&up| up != mark);
    let mut marks: Vec<u64> = std::iter::successors(Some(end), parent).collect();
    marks.reverse();
    let mut state = model.first();
    let mut taken = Vec::new();
    let mut moves = Vec::new();
    for mark in marks.into_iter().skip(1) {
        moves.clear();
        model.moves(&state, &mut moves);
        let found = moves.iter().find_map(|chosen| {
            let next = model.next(&state, chosen)?;
            (model.fingerprint(&next) == mark).then(|| (chosen.clone(), next))
        });
        let Some((chosen, next)) = found else {
            break;
        };
        taken.push(chosen);
        state = next;
    }
    Counterexample {
        wrong,
        moves: taken,
    }
}

/// Deep ways first: holds one way and eight bytes for each state. Also finds ways that lead back to
/// themselves, on which nothing need ever end.
pub fn depth_first<M: Model>(model: &M, most_states: usize) -> Outcome<M::Move> {
    let mut way = Way {
        model,
        known: HashSet::default(),
        on_way: HashSet::default(),
        places: Vec::new(),
    };
    let mut figures = Figures::default();
    let first = model.first();
    let mark = model.fingerprint(&first);
    way.known.insert(mark);
    way.enter(first, mark, None);
    while let Some(top) = way.places.last_mut() {
        let found = match top.moves.pop() {
            None => {
                figures.ends += usize::from(top.is_end);
                way.leave()
            }
            Some(chosen) => way.follow(chosen, &mut figures),
        };
        figures.depth = figures.depth.max(way.places.len().saturating_sub(1));
        figures.states = way.known.len();
        if found.is_some() || figures.states >= most_states {
            return (figures, found);
        }
    }
    figures.is_complete = true;
    (figures, None)
}

struct Place<M: Model> {
    state: M::State,
    mark: u64,
    /// Not followed yet.
    moves: Vec<M::Move>,
    is_end: bool,
    came_by: Option<M::Move>,
}

struct Way<'a, M: Model> {
    model: &'a M,
    known: HashSet<u64, BuildAlready>,
    on_way: HashSet<u64, BuildAlready>,
    places: Vec<Place<M>>,
}

impl<M: Model> Way<'_, M> {
    fn enter(&mut self, state: M::State, mark: u64, came_by: Option<M::Move>) {
        let mut moves = Vec::new();
        self.model.moves(&state, &mut moves);
        self.on_way.insert(mark);
        self.places.push(Place {
            state,
            mark,
            moves,
            is_end: true,
            came_by,
        });
    }

    /// Goes back from a place where nothing is left to follow.
    fn leave(&mut self) -> Option<Counterexample<M::Move>> {
        let top = self.places.last()?;
        let wrong = self.model.wrong_at_end(&top.state);
        if let Some(wrong) = wrong.filter(|_| top.is_end) {
            return Some(self.counterexample(wrong, None));
        }
        self.on_way.remove(&top.mark);
        self.places.pop();
        None
    }

    fn follow(
        &mut self,
        chosen: M::Move,
        figures: &mut Figures,
    ) -> Option<Counterexample<M::Move>> {
        let top = self.places.last_mut()?;
        let next = self.model.next(&top.state, &chosen)?;
        top.is_end = false;
        figures.steps += 1;
        let mark = self.model.fingerprint(&next);
        let wrong = match self.known.insert(mark) {
            true => self.model.wrong(&next),
            false if self.on_way.contains(&mark) => {
                Some("5: this goes round in a circle".to_owned())
            }
            false => return None,
        };
        if let Some(wrong) = wrong {
            return Some(self.counterexample(wrong, Some(chosen)));
        }
        self.enter(next, mark, Some(chosen));
        None
    }

    fn counterexample(&self, wrong: String, last: Option<M::Move>) -> Counterexample<M::Move> {
        let taken = self.places.iter().filter_map(|place| place.came_by.clone());
        let moves = taken.chain(last).collect();
        Counterexample { wrong, moves }
    }
}
