//! How plugins are found and loaded, with real libraries: good ones, bad ones, and files that only
//! look like libraries. Whatever a file is, it costs one line, never the process.

mod broken;
mod chain;
mod check;
mod interface;
mod kept;
mod links;
mod new;
mod panics;
mod places;
#[path = "../common/rng.rs"]
mod rng;
mod support;
#[path = "../common/tools.rs"]
#[allow(dead_code)]
mod tools;
