//! A volume over several backends, with a commit log on each of them.
//! `docs/distributed-format.md` shows the bytes, `docs/commit-protocol.md` says how the log works.
//!
//! - pure: `placement`: which backends have a shard; `roster`: which backend is which; `format`:
//!   names and bytes of all objects but those of the log; `state`: the volume as its log says it is;
//! - `environment`: time, tasks and chance, so that a simulation can have its own; `news`: who waits hears
//!   of changes in order;
//! - `log`: the replicated log over stores;
//! - `volume`: the volume itself, over the log and the objects beside it;
//! - `manage`: making, opening, growing and removing volumes.

pub mod environment;
pub mod format;
pub mod log;
pub mod manage;
mod news;
pub mod placement;
pub mod roster;
pub mod state;
pub mod volume;
