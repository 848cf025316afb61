//! nbd-rs: a Network Block Device server whose storage backends are plugins.
//!
//! The rooms in the order in which a request walks through them; imports go that way only.
//!
//! ```text
//! serve -> nbd -> export -> journal -> layout -> backend -> plugin
//! ```
//!
//! - [`cli`]: what was typed, what is meant, what is done.
//! - [`serve`]: sockets, threads, memory, the end: who is served.
//! - [`nbd`]: the protocol: bytes to requests, requests to replies.
//! - [`export`]: what a client sees of a volume, and the order of what is done to it.
//! - [`journal`]: acknowledged changes that wait for the store, safe from a crash.
//! - [`layout`]: a volume over objects.
//! - [`backend`]: objects, whoever keeps them; the guard before every hop.
//! - [`plugin`]: shared libraries: found, checked, loaded, called.
//!
//! Known to all of them: [`error`], [`location`], [`pool`], [`runtime`], [`secrets`].

pub mod cli;

pub mod serve;

pub mod nbd;

pub mod export;

pub mod journal;

pub mod layout;

pub mod backend;

pub mod plugin;

pub mod error;
pub mod location;
pub mod pool;
pub mod runtime;
pub mod secrets;
