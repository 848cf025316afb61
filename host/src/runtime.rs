//! The host's one tokio runtime: timers, blocking work of plugins, and what goes on in the
//! background. Requests do not run here; see `docs/decisions/0002-a-thread-per-connection.md`.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that may block at the same time (cold reads, syncs, allocations).
const BLOCKING_THREADS: usize = 128;

/// The runtime, started at first use.
///
/// # Panics
/// If the process can't start a single thread: then there is nothing to serve with.
pub fn handle() -> &'static Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(1)
                .max_blocking_threads(BLOCKING_THREADS)
                .thread_name("background")
                .enable_all()
                .build()
                .expect("starting the background thread")
        })
        .handle()
}

/// Waits for a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    handle().block_on(future)
}

/// Waits for a future, so long at the most, on any thread.
///
/// # Errors
/// If it took longer.
pub async fn timeout<T>(
    most: std::time::Duration,
    future: impl Future<Output = T>,
) -> Result<T, tokio::time::error::Elapsed> {
    let timeout = {
        let _entered = handle().enter();
        tokio::time::timeout(most, future)
    };
    timeout.await
}
