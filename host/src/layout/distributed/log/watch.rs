//! Looking for somebody newer, every few seconds: what gives this owner its lease.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_rs_commit_log::{Entry, Event, Stage};

use super::object::Seal;
use super::shared::Shared;
use crate::error::Result;
use crate::layout::distributed::environment::within;

/// Until the owner has ended.
pub(super) async fn run(shared: Arc<Shared>) {
    let timing = shared.config.timing;
    loop {
        let pause = match shared.lease.holds(shared.now()) {
            true => timing.heartbeat,
            false => timing.heartbeat / 6,
        };
        let woken = shared.look.notified();
        within(&*shared.config.environment, pause, woken).await;
        if shared.has_ended() {
            return;
        }
        if !look(&shared).await && !shared.lease.holds(shared.now()) {
            // Whoever waits for the lease wakes this again and again.
            shared.sleep(timing.heartbeat / 6).await;
        }
    }
}

/// Looks at the slots that somebody newer would have taken; whether enough of them are empty.
pub(super) async fn look(shared: &Shared) -> bool {
    let began = shared.now();
    let watched: Vec<_> = {
        let core = shared.core();
        match core.owner.stage() {
            Stage::Serving => core.owner.watched().collect(),
            _ => return false,
        }
    };
    let looks = watched.into_iter().map(|(backend, slot)| async move {
        let found = header(shared, backend, slot).await;
        (backend, slot, found)
    });
    let mut looks: FuturesUnordered<_> = looks.collect();
    let mut empty = 0;
    while let Some((backend, slot, found)) = looks.next().await {
        match found {
            Some(Ok(None)) => empty += 1,
            Some(Ok(Some((entry, seal)))) => saw(shared, backend, slot, entry, seal),
            // Its own task finds out, if it lasts.
            Some(Err(_)) | None => {}
        }
        if empty >= shared.config.quorum.fence() {
            shared.confirmed(began);
            return true;
        }
    }
    false
}

async fn header(
    shared: &Shared,
    backend: usize,
    slot: u64,
) -> Option<Result<Option<(Entry, Seal)>>> {
    let slots = shared.slots(backend);
    let look = slots.header(slot);
    within(&*shared.config.environment, shared.config.timing.look, look).await
}

fn saw(shared: &Shared, backend: usize, slot: u64, entry: Entry, seal: Seal) {
    {
        let mut core = shared.core();
        if entry.writer() == shared.epoch {
            // A record of its own that was put meanwhile.
            return;
        }
        core.known[backend].note(slot, entry, seal);
    }
    shared.happened(&Event::Watched {
        backend,
        slot,
        entry,
    });
}
