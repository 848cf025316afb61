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
