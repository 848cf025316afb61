//! Who has the volume, said on each backend: a second server is told, and does not start (contract C17).
//!
//! It is for people. That an older owner changes nothing any more is up to the log, whatever is said here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;

use super::seat::Seat;
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::lease::{Lease, Timing};
use crate::layout::sharded::names::Names;
use crate::layout::uuid::Uuid;
use crate::runtime;

/// What is said on the backends, in their order.
pub(super) struct Owners {
    volume: Uuid,
    seats: Vec<Arc<Seat>>,
    leases: Mutex<Vec<Option<Arc<Lease>>>>,
    is_released: AtomicBool,
}

impl Owners {
    /// Says on all backends that are there that this process has the volume.
    ///
    /// # Errors
    /// [`Kind::Busy`] with the owner that lives, and what was said is taken back.
    pub(super) async fn take(
        volume: Uuid,
        seats: Vec<Arc<Seat>>,
        takeover: bool,
    ) -> Result<Arc<Self>> {
        let owners = Arc::new(Self {
            volume,
            leases: Mutex::new(vec![None; seats.len()]),
            is_released: AtomicBool::new(false),
            seats,
        });
        let mut there = (0..owners.seats.len()).filter(|&at| owners.seats[at].store().is_some());
        // Of two that start at the same moment one is first at the first backend, and the other goes.
        let first = there.next();
        let mut taken: Result<()> = match first {
            Some(first) => owners.say(first, takeover).await,
            None => Ok(()),
        };
        if taken.is_ok() {
            let others = there.map(|at| owners.say(at, takeover));
            taken = join_all(others).await.into_iter().collect();
        }
        if let Err(error) = taken {
            owners.release().await;
            return Err(error);
        }
        let weak = Arc::downgrade(&owners);
        runtime::handle().spawn(async move {
            let every = Timing::default().heartbeat;
            loop {
                tokio::time::sleep(every).await;
                let Some(owners) = weak.upgrade() else {
                    return;
                };
                owners.say_to_late_ones().await;
            }
        });
        Ok(owners)
    }

    fn leases(&self) -> MutexGuard<'_, Vec<Option<Arc<Lease>>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn say(&self, at: usize, takeover: bool) -> Result<()> {
        let Some(store) = self.seats[at].store() else {
            return Ok(());
        };
        let names = Names::of(self.volume);
        let timing = Timing::default();
        let lease = Lease::take(store, names.owner(), self.volume, takeover, timing, Some(0));
        match lease.await {
            Ok(lease) => {
                self.leases()[at] = lease;
                Ok(())
            }
            // The others say who it is, or was.
            Err(error) if error.kind == Kind::Corrupt && self.seats.len() > 1 && !takeover => {
                tracing::warn!("{}: {error}", self.seats[at].name());
                Box::pin(self.say(at, true)).await
            }
            Err(error) if is_about_owners(&error) => Err(error),
            // It went away meanwhile, and is told when it is back.
            Err(error) => {
                tracing::warn!("{}: {error}", self.seats[at].name());
                Ok(())
            }
        }
    }

    /// Those who came back since have to know, too.
    async fn say_to_late_ones(&self) {
        if self.is_released.load(Ordering::Acquire) {
            return;
        }
        let silent = |at: &usize| self.leases()[*at].is_none() && self.seats[*at].store().is_some();
        let silent: Vec<usize> = (0..self.seats.len()).filter(silent).collect();
        for at in silent {
            // This process is the owner by the log, whoever was it on that backend.
            if let Err(error) = self.say(at, true).await {
                tracing::debug!("{}: {error}", self.seats[at].name());
            }
        }
    }

    /// Takes it back, so that the next one need not wait.
    pub(super) async fn release(&self) {
        self.is_released.store(true, Ordering::Release);
        let leases: Vec<Option<Arc<Lease>>> = {
            let mut leases = self.leases();
            let none = vec![None; leases.len()];
            std::mem::replace(&mut *leases, none)
        };
        let released = leases.iter().flatten().map(|lease| lease.release());
        for released in join_all(released).await {
            match released {
                Err(error) if error.kind != Kind::Fenced => {
                    tracing::debug!("an owner record was not given back: {error}");
                }
                _ => {}
            }
        }
    }
}

/// Whether an error says something of owners: else the backend did not answer.
fn is_about_owners(error: &Error) -> bool {
    matches!(error.kind, Kind::Busy | Kind::Corrupt | Kind::Unsupported)
}
