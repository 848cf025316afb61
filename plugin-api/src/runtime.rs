//! A tokio runtime of the plugin's own. The host's runtime is invisible in a shared library, so
//! code that uses tokio's sockets or timers enters this one around every poll: no hop to another
//! thread, and what is at hand is answered at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use tokio::runtime::{Builder, Runtime};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Starts the runtime with so many worker threads; the first call decides.
///
/// # Errors
/// If the threads can't be started.
pub fn start(threads: usize) -> std::io::Result<()> {
    if RUNTIME.get().is_none() {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("plugin")
            .enable_all()
            .build()?;
        // A second starter at the same time loses its runtime again, which is harmless.
        if let Err(late) = RUNTIME.set(runtime) {
            late.shutdown_background();
        }
    }
    Ok(())
}

/// A future that runs with this plugin's runtime entered, also while it is dropped.
///
/// # Panics
/// When polled before [`start`].
pub fn within<F: Future>(future: F) -> Within<F> {
    Within(Some(future))
}

/// See [`within`].
#[derive(Debug)]
pub struct Within<F>(Option<F>);

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = RUNTIME.get().expect("runtime::start comes first").enter();
        // SAFETY: the inner future is pinned with us: never moved out, only dropped in place.
        let future = unsafe { self.map_unchecked_mut(|within| within.0.as_mut().expect("live")) };
        future.poll(cx)
    }
}

impl<F> Drop for Within<F> {
    fn drop(&mut self) {
        let _entered = RUNTIME.get().map(Runtime::enter);
        self.0 = None;
    }
}
