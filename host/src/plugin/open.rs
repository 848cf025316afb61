//! Opening a backend through a plugin's table, so that nothing it does can hurt but an error.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use nbd_rs_plugin::abi::DynBackend;
use nbd_rs_plugin::{Error, Kind, OpenRequest, Result};

use super::{host_table, Plugin};

impl Plugin {
    /// Whether it could be opened with this target and these options, as far as they tell; nothing
    /// is opened, and nobody is asked.
    ///
    /// # Errors
    /// The plugin's own: what of them can't be meant.
    pub fn check(&self, request: OpenRequest) -> Result<()> {
        (self.table.check())(request).into_result()
    }

    /// Opens a backend: a store, or a link before `request.inner`. Nothing happens before the
    /// first poll.
    ///
    /// # Errors
    /// The plugin's own; [`Kind::Panic`] if it panicked.
    pub async fn open(&self, request: OpenRequest) -> Result<DynBackend> {
        let host = host_table::lend()?;
        let open = self.table.open();
        let opening = AssertUnwindSafe(async move { open(host, request).wait().await });
        opening.catch_unwind().await.unwrap_or_else(|payload| {
            std::mem::forget(payload);
            let name = &self.description.name;
            Err(Error::new(
                Kind::Panic,
                format!("plugin {name} panicked while it opened"),
            ))
        })
    }
}
