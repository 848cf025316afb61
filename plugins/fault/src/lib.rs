//! The fault link: calls that fail, wait or lie, so that others can show what they do then. Which
//! ones is decided by a seed, and is the same again with the same seed.

pub mod backend;
pub mod config;
pub mod faults;
pub mod object;
pub mod plan;
pub mod versions;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest, OptionKind, OptionSpec};

/// What the plugin says of itself.
pub fn describe() -> Description {
    let text = |name, default, help| OptionSpec::new(name, OptionKind::TEXT, help).default(default);
    let count = |name, help| OptionSpec::new(name, OptionKind::COUNT, help);
    Description::link("fault", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme("fault", "makes calls fail, wait or lie, by seed; for tests")
        .option(count(
            "seed",
            "the same seed is the same faults; else one of the clock, which is logged",
        ))
        .option(text(
            "rate",
            "5",
            "how many calls in a hundred, such as 0.1",
        ))
        .option(text(
            "ops",
            config::DEFAULT_OPS,
            "which calls, with commas between; flush, sync, open; or all",
        ))
        .option(text(
            "kind",
            config::DEFAULT_KINDS,
            "what happens: before, after, unsure, lost, delay, hang, short, flip, stale, nospace",
        ))
        .option(
            OptionSpec::choice(
                "error",
                &["transient", "timeout", "io", "denied", "corrupt"],
                "the error of a call that fails before anything was done",
            )
            .default("transient"),
        )
        .option(
            OptionSpec::new("delay", OptionKind::DURATION, "the longest delay").default("100ms"),
        )
        .option(count("skip", "so many calls of each sort go well first").default("0"))
        .option(count("most", "no more faults than this"))
}

export_plugin! {
    describe: describe,
    open: |host: Host, request: OpenRequest| async move { backend::FaultLink::open(host, request) },
}
