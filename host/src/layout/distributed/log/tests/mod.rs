//! The log over backends in memory that fail as told.

mod owners;
mod replicas;
mod rig;
mod simulation;
