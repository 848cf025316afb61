//! When something fails: the store, the journal's disk; and the end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::error::Kind as JournalKind;
use nbd_rs_journal::Journal;
use tokio::task::JoinHandle;

use super::{blocking, on_disk, Core, FlushTo, Mode};
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// The journal's disk is tried again so often.
const DISK_RETRY: Duration = Duration::from_secs(5);

/// Whether the store may take the same later, without anybody doing anything.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Transient | Kind::Timeout | Kind::Ambiguous | Kind::Io | Kind::Busy
    )
}

/// Whether just this change is refused, for what lies there: others go on without it.
pub(super) fn is_final(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Corrupt | Kind::Invalid | Kind::Unsupported
    )
}

/// The journal's disk failed: when the volume has everything that is in the journal, and knows that
/// the journal is not needed, changes go to it directly. A journal that comes back, or what a
/// restart finds of it, must not undo them.
pub(super) async fn go_past(core: &Arc<Core>) -> Result<()> {
    // Whoever is in the middle of appending comes first.
    let drain = |core: &Arc<Core>| {
        let _alone = core.order.write().unwrap_or_else(PoisonError::into_inner);
        core.progress
            .send_modify(|progress| progress.mode = Mode::Draining);
        Ok(())
    };
    blocking(core, drain).await?;
    core.unshipped.merge();
    core.ship_all(true).await?;
    let seq = core.journal.last_seq();
    let ticket = Ticket {
        shipped_seq: seq,
        passed_by: true,
        ..core.journal.ticket()
    };
    core.ledger.write(Some(ticket)).await?;
    core.progress
        .send_modify(|progress| progress.mode = Mode::Past);
    core.succeeded(seq);
    tracing::error!("the journal's disk failed: every write goes to the store before its answer");
    Ok(())
}

/// The volume could not be given everything. Perhaps the journal's disk works again: then nothing has
/// gone past it, and what the store has is known to it.
pub(super) async fn go_on(core: &Arc<Core>) -> Result<()> {
    if on_disk(core, Journal::retry).await.is_err() {
        return go_past(core).await;
    }
    let in_store_seq = core.in_store_seq.load(Ordering::Acquire);
    if in_store_seq >= core.refused_seq.load(Ordering::Acquire) {
        core.succeeded(in_store_seq);
    }
    core.progress
        .send_modify(|progress| progress.mode = Mode::Journal);
    tracing::info!("the journal works again");
    Ok(())
}

/// Tries the journal's disk again. The volume hears of it before the first change is in there.
pub(super) async fn come_back(core: &Arc<Core>) -> Result<()> {
    let _ = runtime::timeout(DISK_RETRY, core.wake.notified()).await;
    if core.closing.load(Ordering::Acquire) {
        return Ok(());
    }
    if let Err(error) = on_disk(core, Journal::retry).await {
        tracing::debug!("the journal's disk still fails: {error}");
        return Ok(());
    }
    core.ledger.write(Some(core.journal.ticket())).await?;
    core.progress
        .send_modify(|progress| progress.mode = Mode::Journal);
    tracing::info!("the journal works again");
    Ok(())
}

/// The end: what waits is shipped, as far as that can be done soon, and the volume is given back.
/// What the store does not have stays in the journal, and the volume goes on saying so.
pub(super) async fn close(core: &Arc<Core>, shipper: Option<JoinHandle<()>>) -> Result<()> {
    core.closing.store(true, Ordering::Release);
    core.wake.notify_one();
    let until = Instant::now() + core.timing.close;
    let is_quiet = end(core, shipper, until).await;
    let died = core.progress.borrow().check();
    let may_ship = is_quiet && died.is_ok();
    let is_used = core.mode() == Mode::Journal && core.journal.failure().is_none();
    let closed = match core.mode() {
        _ if is_used => close_journal(core, may_ship, until).await,
        Mode::Past => Ok(()),
        Mode::Journal | Mode::Draining => close_without(core, may_ship).await,
    };
    let (closed, tells) = match closed {
        Ok(()) if is_used => (Ok(()), true),
        Err(_) if is_used && has_failed(core) => (close_without(core, may_ship).await, false),
        closed => (closed, false),
    };
    let giving_back = give_back(core, tells);
    if !is_used || core.flush_to == FlushTo::Remote || core.owes_a_flush() {
        return giving_back.await.and(died).and(closed);
    }
    // All that a flush means is done here: what the store could not be told waits with the rest.
    let late = |_| Err(Error::new(Kind::Timeout, "the store does not answer"));
    match runtime::timeout(core.timing.give_back, giving_back)
        .await
        .unwrap_or_else(late)
    {
        Err(error) if error.kind != Kind::Fenced => {
            tracing::warn!("the volume could not be given back: {error}");
            died.and(closed)
        }
        given_back => given_back.and(died).and(closed),
    }
}

/// The volume is given back, and hears what waits in the journal if there is something to tell.
async fn give_back(core: &Core, tells: bool) -> Result<()> {
    let told = match tells {
        true => tell_the_end(core).await,
        false => Ok(()),
    };
    core.volume.close().await.and(told)
}

/// Ends the shipper. Whether nothing that it sent is under way any more; what is may come late, so
/// nothing must be sent behind it then.
pub(super) async fn end(core: &Core, shipper: Option<JoinHandle<()>>, until: Instant) -> bool {
    if let Some(mut shipper) = shipper {
        // It ends by itself after what is under way.
        if runtime::timeout(
            until.saturating_duration_since(Instant::now()),
            &mut shipper,
        )
        .await
        .is_err()
        {
            shipper.abort();
            // It may be in the middle of something. After this it marks nothing as shipped.
            let _ = shipper.await;
        }
    }
    let ended = runtime::timeout(core.timing.sent, core.round.lock()).await;
    ended.is_ok()
}

/// Whether the journal's disk failed; a closed one did not.
fn has_failed(core: &Core) -> bool {
    let failure = core.journal.failure();
    failure.is_some_and(|failure| failure.kind != JournalKind::Invalid)
}

/// The journal's disk has failed: the volume gets everything now, and says so.
async fn close_without(core: &Arc<Core>, may_ship: bool) -> Result<()> {
    let slow = || {
        let text = "the journal's disk failed, and the store is slow";
        Error::new(Kind::Timeout, text)
    };
    if !may_ship {
        return Err(slow());
    }
    let gone_past = runtime::timeout(core.timing.close, go_past(core)).await;
    gone_past.map_err(|_| slow())?
}

async fn close_journal(core: &Arc<Core>, may_ship: bool, until: Instant) -> Result<()> {
    if core.flush_to == FlushTo::Local && may_ship && !core.unshipped.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        match runtime::timeout(left, core.ship_all(true)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!("what is in the journal can't be shipped now: {error}")
            }
            Err(_) => tracing::warn!("the store is slow: it does not get all of the journal now"),
        }
    }
    on_disk(core, Journal::close).await
}

/// The volume hears whether writes go on waiting in the journal that was closed.
async fn tell_the_end(core: &Core) -> Result<()> {
    if core.unshipped.is_empty() {
        return core.ledger.write(None).await;
    }
    let kib = core.unshipped.bytes().div_ceil(1024);
    tracing::warn!("{kib} KiB wait in the journal until the volume is served again here");
    core.ledger.write(Some(core.journal.ticket())).await
}
