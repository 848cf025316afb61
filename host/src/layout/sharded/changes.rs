//! Changes that are under way, also those that nobody waits for any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::{Error, Kind, Result};
use crate::runtime;

/// Counts them. Once the volume is closed none begins.
#[derive(Default)]
pub(super) struct Changes {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    under_way: usize,
    closed: bool,
}

/// A change that is under way until this is dropped.
pub(super) struct UnderWay(Arc<Changes>);

impl Clone for UnderWay {
    fn clone(&self) -> Self {
        self.0.state().under_way += 1;
        Self(self.0.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state();
            state.under_way -= 1;
            state.under_way
        };
        if left == 0 {
            self.0.ended.notify_waiters();
        }
    }
}

impl Changes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change begins.
    ///
    /// # Errors
    /// If the volume is closed.
    pub(super) fn begin(self: &Arc<Self>) -> Result<UnderWay> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::new(Kind::Io, "the volume was closed"));
        }
        state.under_way += 1;
        Ok(UnderWay(self.clone()))
    }

    /// Whether there is none.
    pub(super) fn are_none(&self) -> bool {
        self.state().under_way == 0
    }

    /// Waits so long until there is none, and lets no other begin. Whether there is none.
    pub(super) async fn close(&self, most: Duration) -> bool {
        let ended = runtime::timeout(most, self.none()).await.is_ok();
        self.state().closed = true;
        ended
    }

    /// Closes at the first moment without one: parts of a change may begin until then.
    async fn none(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut state = self.state();
                if state.under_way == 0 {
                    state.closed = true;
                    return;
                }
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::block_on;

    #[test]
    fn c23_closing_waits_for_every_part_of_a_change_but_not_for_ever() {
        block_on(async {
            let changes = Arc::new(Changes::default());
            let change = changes.begin().unwrap();
            let part = change.clone();
            let closing = {
                let changes = changes.clone();
                tokio::spawn(async move { changes.close(Duration::from_secs(60)).await })
            };
            drop(change);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!closing.is_finished());
            let more = changes.begin().unwrap();
            drop(part);
            drop(more);
            assert!(closing.await.unwrap());
            assert!(changes.begin().is_err());

            let changes = Arc::new(Changes::default());
            let _change = changes.begin().unwrap();
            assert!(!changes.close(Duration::from_millis(10)).await);
            assert!(changes.begin().is_err() && !changes.are_none());
        });
    }
}
