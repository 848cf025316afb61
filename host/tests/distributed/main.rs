//! Distributed volumes: the real binary, the real plugins, real NBD clients, and backends that come and
//! go, hang, and lose what they had.
//!
//! Tests carry the clause (c..) or the fault (f..) that they hold in their name.

#[path = "../common/client/mod.rs"]
mod client;
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

mod away;
mod cluster;
mod damage;
mod faults;
mod kill;
mod mission;
mod owners;
mod prefix;
mod random;
mod repair;
