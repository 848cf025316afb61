//! The host's plugin room, built against the next minor version of the interface: it loads the
//! plugins of a folder and says on one line what came of it. Built and run by `interface.rs`.

#![allow(dead_code, unused_imports)]

mod plugin;

/// The host's buffers, which nothing here asks for.
mod pool {
    pub fn buf(_: usize) -> nbd_rs_plugin::Buf {
        unreachable!()
    }
}

/// The host's secrets, of which there are none here.
mod secrets {
    pub fn masked(text: &str) -> std::borrow::Cow<'_, str> {
        text.into()
    }
}

use nbd_rs_plugin::{GetFlags, Next, OpenFlags, OpenRequest, Range};

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    plugin::start(runtime.handle().clone());
    let places = plugin::Places {
        explicit: vec![std::env::args_os().nth(1).unwrap().into()],
        ..plugin::Places::default()
    };
    let registry = plugin::Registry::load(&plugin::SearchPath::new(&places), true);
    let plugin = registry.get("panic").unwrap();
    let request = OpenRequest {
        scheme: "panic".into(),
        target: "never".into(),
        options: Vec::new().into(),
        flags: OpenFlags::NONE,
        inner: None.into(),
        reserved: [0; 4],
    };
    let backend = runtime.block_on(plugin.open(request)).unwrap();
    let later = nbd_rs_plugin::abi::RawBackend_TO::later(&backend);
    let backend = Next::from(backend);
    let got = runtime.block_on(backend.get("x", Range::new(0, 9), GetFlags::NONE));
    println!(
        "interface {} later {later} got {}",
        plugin.abi_version,
        got.unwrap().data.len()
    );
}
