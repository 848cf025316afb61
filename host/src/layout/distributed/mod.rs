//! A volume over several backends, with a commit log on each of them.
//! `docs/distributed-format.md` shows the bytes, `docs/commit-protocol.md` says how the log works.
//!
//! - pure: `placement`: which backends have a shard; `format`: names and bytes of all objects but
//!   those of the log; `state`: the volume as its log says it is.

pub mod format;
pub mod placement;
pub mod state;
