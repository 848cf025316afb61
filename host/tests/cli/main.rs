//! Everything that is typed, and everything that is said to it: commands, exit codes, messages.
//! The real binary in an empty directory, with the `raw` layout over the file store.

#[allow(dead_code)] // Each test crate uses what it needs of it.
#[path = "../common/disk.rs"]
mod disk;
#[allow(dead_code)]
#[path = "../common/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "../common/tools.rs"]
mod tools;

mod commands;
mod help;
mod images;
mod locations;
mod secrets;
mod serving;
mod stage;
