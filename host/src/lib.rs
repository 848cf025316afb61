//! nbd-rs: a Network Block Device server whose storage backends are plugins.
//!
//! The rooms in the order in which a request walks through them; imports go that way only.
//!
//! ```text
//! serve -> nbd -> export -> layout -> backend -> plugin
//! ```

pub mod cli;

/// Sockets, threads, memory, the end: who is served.
pub mod serve;

/// The protocol: bytes to requests, requests to replies.
pub mod nbd;

/// What a client sees of a volume, and the order of what is done to it.
pub mod export;

/// A volume over objects.
pub mod layout;

/// Objects, whoever keeps them; the guard before every hop.
pub mod backend;

/// Shared libraries: found, checked, loaded, called.
pub mod plugin;

// Known to all of them.
pub mod error;
pub mod location;
pub mod pool;
pub mod runtime;
