//! One writer at a time of a part of a unit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Units that somebody changes a part of; others take no memory.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>);

/// The right to change parts of a unit.
pub(super) struct Locked<'a> {
    locks: &'a Locks,
    unit: u64,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else changes a part of the unit.
    pub(super) async fn lock(&self, unit: u64) -> Locked<'_> {
        let lock = self.all().entry(unit).or_default().clone();
        let mut locked = Locked {
            locks: self,
            unit,
            guard: None,
        };
        locked.guard = Some(lock.lock_owned().await);
        locked
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut all = self.locks.all();
        let is_idle = |lock: &Arc<_>| Arc::strong_count(lock) == 1;
        if all.get(&self.unit).is_some_and(is_idle) {
            all.remove(&self.unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn c03_a_unit_has_one_writer_and_idle_ones_take_no_memory() {
        let locks = Arc::new(Locks::default());
        let first = locks.lock(7).await;
        let second = tokio::spawn({
            let locks = locks.clone();
            async move { drop(locks.lock(7).await) }
        });
        drop(locks.lock(8).await);
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        // Who gives up waiting leaves nothing behind.
        drop(futures_util::FutureExt::now_or_never(locks.lock(7)));
        drop(first);
        second.await.unwrap();
        assert!(locks.all().is_empty());
    }
}
