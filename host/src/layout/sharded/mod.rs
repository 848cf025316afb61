//! A volume cut into shards of one size, an object each. What is on the store is described in
//! `docs/volume-format.md`.

mod frame;
mod index;
mod names;
mod owner;
mod state;
mod trailer;
mod uuid;
mod volume;

pub use uuid::Uuid;
pub use volume::{VolumeRecord, Way};
