//! The memory store: objects, or one volume, that end with the process. For tests and for scratch.

pub mod backend;
pub mod config;
pub mod contents;
pub mod object;
pub mod page;
pub mod store;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest, OptionKind, OptionSpec};

/// What the plugin says of itself.
pub fn describe() -> Description {
    Description::store("mem", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme("mem", "memory of this process: lost when it ends")
        .option(OptionSpec::new(
            "size",
            OptionKind::SIZE,
            "a volume of so many zeros is there from the start",
        ))
        .option(
            OptionSpec::new(
                "limit",
                OptionKind::SIZE,
                "memory that all contents together may take",
            )
            .default("1GiB"),
        )
}

export_plugin! {
    describe: describe,
    open: |_: Host, request: OpenRequest| async move { backend::Mem::open(&request) },
}
