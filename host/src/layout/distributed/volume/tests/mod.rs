//! Volumes over backends in memory that fail as told, in time that passes by itself.

mod history;
mod promises;
mod random;
mod rig;
