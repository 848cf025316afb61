//! The log over backends in memory that fail as told.

mod owners;
mod real;
mod replicas;
pub(in crate::layout::distributed) mod rig;
mod simulation;
