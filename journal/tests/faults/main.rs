//! Disks that fail, fill up and lie, and journals that are not the right one.

#[path = "../common/mod.rs"]
mod common;

mod disk;
mod killed;
mod room;
mod whose;
