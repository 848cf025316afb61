//! The log link: what passes through it, at what size, and how long it took.

pub mod backend;
pub mod config;
pub mod meter;
pub mod object;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest, OptionKind, OptionSpec};

/// What the plugin says of itself.
pub fn describe() -> Description {
    Description::link("log", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme(
            "log",
            "writes down what passes through, its size and its time",
        )
        .option(
            OptionSpec::choice(
                "each",
                &["debug", "info", "off"],
                "the level at which each call is logged",
            )
            .default("debug"),
        )
        .option(OptionSpec::new(
            "slow",
            OptionKind::DURATION,
            "warn of calls that take so long or longer",
        ))
}

export_plugin! {
    describe: describe,
    open: |_: Host, request: OpenRequest| async move { backend::Log::open(request) },
}
