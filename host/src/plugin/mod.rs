//! Plugins: found, checked, loaded, and never unloaded.
//!
//! ```text
//!   search ──▶ permissions ──▶ elf ──▶ load ──▶ describe ──▶ registry ──▶ Plugin::open
//!   which      who may write   whole   dlopen,  what it      who serves   a backend, with
//!   dirs       there           file?   layout   offers       a scheme     host_table lent
//! ```
//!
//! Everything that can go wrong with one file is a [`LoadError`], kept beside the file's path; it
//! never stops the others. The files are checked in the order of the risk: nothing of a library
//! runs before its place and owner are trusted, its ELF file is whole and made for this machine,
//! and the symbol of the plugin interface is there.
//!
//! `unsafe` lives in `load` and `call` alone.

mod answer;
pub mod call;
mod describe;
mod elf;
mod error;
mod host_table;
mod load;
mod open;
mod permissions;
mod registry;
mod render;
mod scan;
mod search;
mod text;

pub use answer::{Answer, Later};
pub use error::LoadError;
pub use host_table::start;
pub use registry::{Plugin, Refused, Registry, Shadowed};
pub use search::{Origin, Places, PluginDir, SearchPath};

/// Whether these bytes are a whole library for this machine that exports the plugin interface:
/// what is asked of a file before the system's loader may see it.
///
/// # Errors
/// Why they are not.
pub fn check_library(bytes: &[u8]) -> Result<(), LoadError> {
    elf::check(bytes)
}
