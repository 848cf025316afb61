//! Sends a fixed number of requests of one kind through the host's own code, for `cargo xtask
//! count` to count instructions: `count_requests (memory | file) KIND NUMBER`.

use std::process::ExitCode;

#[path = "../benches/support/mod.rs"]
mod support;

use support::{in_memory, InFile, RequestPath, KINDS};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [store, kind, number] = &words[..] else {
        eprintln!("usage: count_requests (memory | file) KIND NUMBER");
        return ExitCode::FAILURE;
    };
    let kind = KINDS.into_iter().find(|known| known.name == kind);
    let (kind, number) = (kind.expect("a known kind"), number.parse::<u32>());
    // Held to the end: it removes its file then.
    let file = (store == "file").then(|| InFile::open().expect("the plugin was built"));
    let layout = file
        .as_ref()
        .map_or_else(in_memory, |file| file.layout.clone());
    let mut path = RequestPath::new(layout, kind);
    path.warm_up();
    for _ in 0..number.expect("a number") {
        path.request();
    }
    // What waits is done by other threads, when they come to it: no two counts would be the same.
    assert_eq!(path.waited, 0, "requests that were not answered at once");
    ExitCode::SUCCESS
}
