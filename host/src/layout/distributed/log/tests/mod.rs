//! The log over backends in memory that fail as told.

mod owners;
mod real;
mod replicas;
pub(super) mod rig;
mod simulation;
