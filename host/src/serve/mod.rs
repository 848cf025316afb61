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

use crate::error::{Error, Kind, Result};
use crate::nbd::options::Exports;
use crate::runtime;
pub use guest_thread::spawn as admit;
use listen::Listener;
use shared::{Limits, Shared};
use wake::Waker;

/// Work in flight may take so long when the server goes down.
const DRAIN_TIME: Duration = Duration::from_secs(30);

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
        let mut flushed = Ok(());
        for export in &self.shared.exports.0 {
            let closed = runtime::block_on(export.close());
            if let Err(error) = closed {
                let name = crate::error::printable(&export.name, 80);
                tracing::error!("export {name:?}: the last flush failed: {error}");
                flushed = flushed.and(Err(Error::new(Kind::Io, error.message)));
            }
        }
        Ending {
            unfinished,
            flushed,
        }
    }
}
