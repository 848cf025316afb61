//! The cache link: copies of what was read, in memory and, if asked, in a directory.
//!
//! It only ever holds copies. What is written goes through, and is durable when the backend behind
//! says so; losing every copy at any moment loses nothing.
//!
//! ```text
//!   get ── index: is the object's version known? ── memory: are the blocks there? ── answer
//!              │ no                                     │ no
//!              └──────── flight (one for all who wait) ─┴─ disk, else the backend ── fill, answer
//!   put, delete ── index: forget the object ── backend ── forget it again, or keep what was put
//! ```

mod ahead;
pub mod backend;
pub mod config;
pub mod disk;
mod fetch;
pub mod flight;
pub mod grid;
pub mod habit;
pub mod index;
pub mod memory;
pub mod object;
pub mod pattern;
mod read;
mod shared;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest};

/// What the plugin says of itself.
pub fn describe() -> Description {
    let description = Description::link("cache", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme("cache", "keeps copies of what is read; writes go through");
    config::options()
        .into_iter()
        .fold(description, Description::option)
}

export_plugin! {
    describe: describe,
    check: |request: &OpenRequest| config::Config::new(&request.options).map(drop),
    open: |host: Host, request: OpenRequest| backend::Cache::open(host, request),
}
