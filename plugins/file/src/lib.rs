//! The file store: one file or block device that is read and written in place, or objects in a
//! directory.

pub mod backend;
pub mod config;
pub mod delete;
pub mod directory;
pub mod gate;
pub mod io;
pub mod list;
pub mod lock;
pub mod mapping;
pub mod names;
pub mod object;
pub mod put;
pub mod room;
pub mod root;
pub mod single;
pub mod temporary;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest, OptionKind, OptionSpec};

/// What the plugin says of itself.
pub fn describe() -> Description {
    Description::store("file", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme("file", "a file, a block device, or a directory of objects")
        .option(
            OptionSpec::new(
                "lend",
                OptionKind::BOOL,
                "hand large reads and writes to the kernel through a mapping of the file",
            )
            .default("true"),
        )
}

export_plugin! {
    describe: describe,
    check: |request: &OpenRequest| config::Config::new(request).map(drop),
    open: |host: Host, request: OpenRequest| backend::FileBackend::open(host, request),
}
