//! The wire protocol, byte by byte, against the real binary: every row of what a bad client may
//! send (w.. in the test's name), the faults of connections (f..), and the normal case in all three
//! framings. Rules are those of the NBD specification, doc/proto.md, and of its branch
//! extension-ext-header.
//!
//! Rows that are alike stand in tables; each table says how many cases it ran. Some tests make the
//! disk slow with strace; where that is missing they are skipped with a word, or fail where `CI` is
//! set.

#[path = "../common/client/mod.rs"]
mod client;
#[path = "../common/rng.rs"]
mod rng;
#[path = "../common/script.rs"]
mod script;
// Other suites use more of these.
#[path = "../common/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "../common/tools.rs"]
#[allow(dead_code)]
mod tools;
#[path = "../common/trace.rs"]
#[allow(dead_code)]
mod trace;

mod commands;
mod disconnects;
mod extended;
mod greeting;
mod linear;
mod options;
mod options_bad;
mod read_only;
mod refused;
mod resources;
mod script_on_raw;
mod shutdown;
mod sizes;
mod slow;
mod slow_disk;
mod stage;
mod status;
