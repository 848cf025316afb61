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
        let mut serving = Serving {
            gather: &self,
            covered: Vec::new(),
            over: false,
        };
        loop {
            {
                let mut queue = self.queue();
                if queue.waiting.is_empty() {
                    queue.running = false;
                    serving.over = true;
                    return;
                }
                serving.covered = std::mem::take(&mut queue.waiting);
            }
            let result = run().await;
            for sender in std::mem::take(&mut serving.covered) {
                // A receiver that went away does not want to know.
                let _ = sender.send(result.clone());
            }
        }
    }
}

/// Whoever makes the runs. If it ends in a panic, those who wait are told, and the next one makes
/// them.
struct Serving<'a> {
    gather: &'a Gather,
    /// Whom the current run is for. They are told last: who comes then finds nobody running.
    covered: Vec<oneshot::Sender<Result<()>>>,
    over: bool,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if !self.over {
            *self.gather.queue() = Queue::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn f06_a_run_that_panics_is_an_error_and_the_next_one_runs() {
        let gather = Arc::new(Gather::default());
        let panics = Arc::new(AtomicBool::new(true));
        let join = || {
            let panics = panics.clone();
            let joined = gather.join(move || {
                let panics = panics.clone();
                Box::pin(async move {
                    assert!(!panics.swap(false, Ordering::Relaxed), "told to panic");
                    Ok(())
                })
            });
            runtime::timeout(Duration::from_secs(5), joined)
        };
        runtime::block_on(async {
            assert_eq!(join().await.unwrap().unwrap_err().kind, Kind::Io);
            join().await.unwrap().unwrap();
        });
    }
}
