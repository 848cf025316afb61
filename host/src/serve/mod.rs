//! Sockets and threads: clients come in, are served, and leave; the server goes down in order.

pub mod budget;
mod connection;
mod guest_thread;
mod link;
pub mod listen;
pub mod shared;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::error::{Error, Kind, Result};
use crate::export::Export;
use crate::nbd::options::Exports;
use crate::runtime;
pub use guest_thread::spawn as admit;
use listen::Listener;
use shared::{Limits, Shared};
use wake::Waker;

/// Work in flight may take so long when the server goes down.
const DRAIN_TIME: Duration = Duration::from_secs(30);
/// And then to flush the volumes and give them back, all of them together: whoever sent the signal has
/// 90 seconds of patience (systemd).
const CLOSE_TIME: Duration = Duration::from_secs(50);

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    acceptor: std::thread::JoinHandle<()>,
}

/// How a server went down.
#[derive(Debug)]
pub struct Ending {
    /// Connections that did not come to their end in time.
    pub unfinished: usize,
    /// Whether everything acknowledged is durable.
    pub flushed: Result<()>,
}

impl Server {
    /// Lets clients in.
    ///
    /// # Errors
    /// When the system has no room for a thread more.
    pub fn start(listeners: Vec<Listener>, exports: Exports, limits: Limits) -> Result<Self> {
        let shared = Shared::new(exports, limits);
        let failed = |error| Error::os(&error, "starting the server");
        let waker = Arc::new(Waker::new().map_err(failed)?);
        let (guests, woken) = (shared.clone(), waker.clone());
        let acceptor = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || listen::accept_until_woken(&listeners, &guests, &woken))
            .map_err(failed)?;
        Ok(Self {
            shared,
            waker,
            acceptor,
        })
    }

    /// Stops accepting, finishes what is in flight, flushes and gives the volumes back.
    pub fn stop(self) -> Ending {
        self.shared.drain();
        self.waker.wake_thread();
        // The acceptor's end closes the listeners; a panic there has been printed.
        let _ = self.acceptor.join();
        let unfinished = self.shared.wait_empty(DRAIN_TIME);
        let flushed = runtime::block_on(close(&self.shared.exports.0));
        Ending {
            unfinished,
            flushed,
        }
    }
}

/// Flushes volumes and gives them back, all of them together, in time.
///
/// # Errors
/// If something acknowledged may not be durable.
pub async fn close(exports: &[Arc<Export>]) -> Result<()> {
    let closing = exports
        .iter()
        .map(|export| close_within(CLOSE_TIME, export));
    let closed = join_all(closing).await;
    closed.into_iter().fold(Ok(()), Result::and)
}

async fn close_within(most: Duration, export: &Export) -> Result<()> {
    let closed = runtime::timeout(most, export.close()).await;
    let late = |_| {
        Err(Error::new(
            Kind::Timeout,
            format!("it took longer than {most:?}"),
        ))
    };
    closed.unwrap_or_else(late).map_err(|error| {
        let name = crate::error::printable(&export.name, 80);
        tracing::error!("export {name:?}: the last flush failed: {error}");
        Error::new(Kind::Io, error.message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::Store;
    use crate::layout::sharded::tests::rig::LIKE_S3;
    use crate::layout::sharded::tests::{init, open, SIZE};
    use crate::layout::sharded::Way;

    /// Found by hand: a store that hung kept a server that was told to stop for minutes.
    #[test]
    fn c23_a_volume_that_is_not_given_back_in_time_does_not_keep_the_server() {
        runtime::block_on(async {
            let store = Store::with(LIKE_S3);
            init(&store, SIZE, Way::Whole).await;
            let (volume, rig) = open(&store).await;
            let export = Export::new("disk".to_owned(), String::new(), Arc::new(volume), false);
            let hangs = rig.hold("");
            let late = close_within(Duration::from_millis(100), &export).await;
            assert!(late.unwrap_err().message.contains("100ms"));
            drop(hangs);
        });
    }
}
