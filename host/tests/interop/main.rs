//! Other people's clients against the real server: libnbd's tools, QEMU's, fio, and the Linux
//! kernel's own client in a virtual machine.
//!
//! Needs (Debian packages): libnbd-bin, qemu-utils, fio, nbd-client, e2fsprogs, and for the guest
//! what `scripts/fetch-guest.sh` brings. What is missing is skipped with a word, or fails where
//! `CI` is set.

#[path = "../common/disk.rs"]
mod disk;
#[path = "../common/rng.rs"]
mod rng;
#[path = "../common/server.rs"]
mod server;
#[path = "../common/tools.rs"]
mod tools;
#[path = "../common/virtual_machine.rs"]
mod virtual_machine;

mod fio;
mod guest;
mod images;
mod libnbd;
mod locks;
mod qemu;
mod stage;
