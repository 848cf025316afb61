//! What the contract promises when something dies: the server is killed, told to stop, its disk
//! fills, fails, shrinks or turns read-only, its limits are hit, its clients vanish.
//!
//! The server is the real binary, the disks are real file systems. Tests carry the clause (c..) or
//! the fault (f..) that they hold in their name. Needs root and the Debian packages strace,
//! e2fsprogs, nbdkit and nbdfuse; what is missing is skipped with a word, or fails where `CI` is
//! set.

#[path = "../common/client/mod.rs"]
mod client;
#[path = "../common/disk.rs"]
mod disk;
#[path = "../common/load.rs"]
mod load;
#[path = "../common/model.rs"]
mod model;
#[path = "../common/rng.rs"]
mod rng;
#[path = "../common/server.rs"]
mod server;
#[path = "../common/tools.rs"]
mod tools;
#[path = "../common/trace.rs"]
mod trace;

mod disks;
mod failing_disk;
mod failing_sync;
mod full_disk;
mod kill;
mod limits;
mod lost_image;
mod odd_calls;
mod resend;
mod shards;
mod stop;
