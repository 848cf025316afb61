//! The commit protocol in every order of events, at small sizes.
//!
//! ```text
//! nbd-rs-commit-log        the owners, as they are in a server
//!   mutant                 ... or with one wrong decision
//!   config                 sizes and steps
//!   backend -> world       stores, late puts, deaths, losses; what is a step
//!   history                what clients were told; what is wrong
//!   explore                every state, each once
//!   worlds                 the sizes
//!   explain                a counterexample in words
//! ```

mod backend;
mod config;
mod explain;
mod explore;
mod hash;
mod history;
mod mutant;
mod world;
mod worlds;

pub use config::{Config, Move, Seen};
pub use explain::explain;
pub use explore::{breadth_first, depth_first, Counterexample, Figures, Model, Outcome};
pub use mutant::Mutant;
pub use world::{World, Worlds};
pub use worlds::{Named, CAUGHT, FULL, SMALL};
