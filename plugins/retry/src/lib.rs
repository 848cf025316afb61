//! The retry link: a call that failed for a passing reason is made again, if it may be.

pub mod backend;
pub mod config;
pub mod link;
pub mod object;
pub mod policy;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest, OptionKind, OptionSpec};

/// What the plugin says of itself.
pub fn describe() -> Description {
    let option = |name, kind, default, help| OptionSpec::new(name, kind, help).default(default);
    Description::link("retry", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme(
            "retry",
            "asks the backend behind it again after passing failures",
        )
        .option(option(
            "attempts",
            OptionKind::COUNT,
            "8",
            "how often a call is made in all; 1 never repeats",
        ))
        .option(option(
            "time",
            OptionKind::DURATION,
            "30s",
            "no attempt begins later than this after the first",
        ))
        .option(option(
            "base",
            OptionKind::DURATION,
            "100ms",
            "the longest first pause; each further one may be twice as long",
        ))
        .option(option(
            "max",
            OptionKind::DURATION,
            "5s",
            "the longest pause that is not asked for by the store",
        ))
}

export_plugin! {
    describe: describe,
    check: |request: &OpenRequest| config::policy(&request.options).map(drop),
    open: |host: Host, request: OpenRequest| backend::Retry::open(host, request),
}
