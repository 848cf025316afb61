//! Runs that are shared: those who come while one is going on wait for the next, together.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::backend::Later;
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// The queue before something that is done for many at once: a sync, the put of a record.
#[derive(Debug, Default)]
pub(super) struct Gather {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    running: bool,
    /// They came after the current run began, so it does not cover them.
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

impl Gather {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a run that begins after the first poll. Runs go on without those who wait.
    pub(super) fn join(
        self: &Arc<Self>,
        run: impl Fn() -> Later<()> + Send + Sync + 'static,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let gather = self.clone();
        async move {
            let (sender, receiver) = oneshot::channel();
            let start = {
                let mut queue = gather.queue();
                queue.waiting.push(sender);
                !std::mem::replace(&mut queue.running, true)
            };
            if start {
                runtime::handle().spawn(gather.serve_waiting(run));
            }
            let lost = || Error::new(Kind::Io, "the flush was given up");
            receiver.await.unwrap_or_else(|_| Err(lost()))
        }
    }

    async fn serve_waiting(self: Arc<Self>, run: impl Fn() -> Later<()> + Send + 'static) {
        loop {
            let waiting = {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let result = run().await;
            for sender in waiting {
                // A receiver that went away does not want to know.
                let _ = sender.send(result.clone());
            }
        }
    }
}
