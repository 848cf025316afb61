//! Write-back for nbd-rs: acknowledged changes wait here, in a file that survives a crash, until
//! the store has them.
//!
//! ```text
//! format -> ring -> scan -> claim     bytes; room; what a crash left; whose it is    pure
//! index                               what is read before the store has it           pure
//! disk -> segment -> journal          a directory; a file; the files of a volume
//! ```
//!
//! [`Journal`] is the page to begin with; `docs/journal-format.md` has the bytes, and decision 0007
//! the reasons.

pub mod change;
pub mod data;
pub mod format;

pub mod claim;
pub mod ring;
pub mod scan;

pub mod index;

pub mod disk;
mod segment;

mod journal;

pub mod error;
pub mod uuid;

pub use journal::{
    discard, inspect, volumes, Inspection, Journal, Opened, Options, Recovered, Usage,
};
