//! The replicated commit log's decisions, without the replicas: no socket, file, clock or waiting.
//!
//! ```text
//! record  -> rules -> replica -> lane -> owner     an owner of the log: events in, actions out
//!                             -> collect           deleting what a checkpoint stands for
//! ```
//!
//! [`Owner`] is the page to begin with, and `docs/commit-protocol.md` has the protocol in words. The
//! layout drives this code with real stores, the simulation with faulty ones, and `model/` with every
//! order of events there is, at small sizes.
//!
//! A driver does what it is told to, and tells what came of it:
//!
//! ```
//! use std::collections::{BTreeMap, VecDeque};
//! use nbd_rs_commit_log::{Action, Answer, Epoch, Event, Kind, Owner, Protocol, Quorum, Request, Stage};
//!
//! let quorum = Quorum::majority(3).expect("three backends");
//! let epoch = Epoch { counter: 1, owner: 0x5eed };
//! let mut stores = vec![BTreeMap::new(); 3];
//! let (mut owner, actions) = Owner::new(Protocol, quorum, epoch);
//! let mut actions = VecDeque::from(actions);
//! let mut acknowledged = Vec::new();
//! while let Some(action) = actions.pop_front() {
//!     let event = match action {
//!         Action::Send { backend, request } => {
//!             let store = &mut stores[backend];
//!             let answer = match request {
//!                 Request::GetFloor { .. } => Answer::Floor(None),
//!                 Request::Get { slot } => Answer::Entry(store.get(&slot).copied()),
//!                 Request::Put { slot, .. } if store.contains_key(&slot) => Answer::Exists,
//!                 Request::Put { slot, entry } => {
//!                     store.insert(slot, entry);
//!                     Answer::Stored
//!                 }
//!             };
//!             Event::Answered { backend, answer }
//!         }
//!         Action::Started => Event::Append(Kind::Data),
//!         Action::Acknowledged(position) => {
//!             acknowledged.push(position.seq);
//!             continue;
//!         }
//!         Action::Ended { .. } => break,
//!     };
//!     let mut more = Vec::new();
//!     owner.step(&event, &mut more);
//!     actions.extend(more);
//! }
//! assert_eq!(owner.stage(), Stage::Serving);
//! assert_eq!(acknowledged, [2]);
//! ```

pub mod collect;
mod lane;
mod owner;
mod record;
mod replica;
mod rules;

pub use lane::{Lane, Phase};
pub use owner::{Action, Answer, Event, Owner, Request, Stage};
pub use record::{Entry, Epoch, Floor, Kind, Position, Record};
pub use replica::{choose, common, Held, Replica};
pub use rules::{Occupied, Protocol, Quorum, Rules};
