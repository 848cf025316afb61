//! Changes on their way out: the store gets them in batches, oldest first, two at a time.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{join_all, FutureExt};
use nbd_rs_journal::change::Change;
use nbd_rs_journal::index::Batch;
use nbd_rs_plugin::ZeroFlags;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinError;

use super::{blocking, care, on_disk, Core, Mode};
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// A change waits so long for others that could go with it.
const AGE: Duration = Duration::from_secs(2);
/// After a failure the next round begins so much later; twice as much after each further one.
pub(super) const RETRY: Duration = Duration::from_millis(200);
/// At the most.
const MOST_RETRY: Duration = Duration::from_secs(2);
/// Batches on their way at the same time: while the last puts of one come to their end, the next
/// one's begin, if they have no byte in common.
const UNDER_WAY: usize = 2;
/// The journal's next sync tells it how far the store is, unless this part of the ring is in use.
const ROOM: u64 = 4;
/// The volume is told so often how far the store is.
const TELL: Duration = Duration::from_secs(60);

/// A batch that the volume has, but for what it refused.
struct Put {
    seq: u64,
    refused: Vec<Range<u64>>,
    why: Option<Error>,
}

/// See [`Core`]. It is over when the last of these is gone.
type Round = Arc<OwnedMutexGuard<()>>;
type UnderWay = Pin<Box<dyn Future<Output = Result<Put>> + Send>>;

/// Ships until the volume is closed or lost. If that ends in a panic nothing is shipped any more, and
/// all who wait for it are told.
pub(super) async fn run(core: Arc<Core>) {
    let shipping = AssertUnwindSafe(ship(&core)).catch_unwind();
    if let Err(payload) = shipping.await {
        // The panic itself was printed where it happened; a payload's drop might panic, too.
        std::mem::forget(payload);
        core.died();
    }
}

async fn ship(core: &Arc<Core>) {
    while !core.closing.load(Ordering::Acquire) {
        let used_bytes = core.journal.usage().used_bytes;
        let ended = match core.mode() {
            Mode::Journal if core.journal.failure().is_none() => {
                if !core.is_due() {
                    core.wait_until_due().await;
                    continue;
                }
                core.watched(core.ship_all(false)).await
            }
            Mode::Journal => core.watched(care::go_past(core)).await,
            Mode::Draining => core.watched(care::go_on(core)).await,
            Mode::Past => care::come_back(core).await,
        };
        match ended {
            Ok(()) => {}
            Err(error) if error.kind == Kind::Fenced => {
                core.failed(error);
                return;
            }
            Err(error) => {
                let has_room = core.journal.usage().used_bytes < used_bytes;
                let ready = care::is_final(&error) && has_room;
                let failures = core.failed(error);
                core.pause(retry_after(failures), ready).await;
            }
        }
    }
}

/// Whether two batches have a byte in common: the order of changes there matters.
fn overlap(one: &Batch, other: &Batch) -> bool {
    let (mut ones, mut others) = (
        one.changes.iter().peekable(),
        other.changes.iter().peekable(),
    );
    while let (Some(a), Some(b)) = (ones.peek(), others.peek()) {
        if a.offset + a.len <= b.offset {
            ones.next();
        } else if b.offset + b.len <= a.offset {
            others.next();
        } else {
            return true;
        }
    }
    false
}

fn retry_after(failures: u32) -> Duration {
    RETRY.saturating_mul(1 << failures.min(10)).min(MOST_RETRY)
}

impl Core {
    /// Whether a batch should go now.
    fn is_due(&self) -> bool {
        let is_high = self.journal.usage().is_high();
        !self.unshipped.is_empty() && (self.unshipped.is_worth_it() || is_high || self.is_wanted())
    }

    /// Whether somebody waits for the store.
    fn is_wanted(&self) -> bool {
        self.wanted_seq.load(Ordering::Relaxed) > self.progress.borrow().stored_seq
    }

    /// Whether a layer that could still grow should go.
    fn seals(&self) -> bool {
        self.is_wanted() || self.journal.usage().is_high()
    }

    /// Waits until a batch should go, because it is large, asked for, or old.
    async fn wait_until_due(self: &Arc<Self>) {
        if self.unshipped.is_empty() {
            let stored_seq = self.progress.borrow().stored_seq;
            if self.journal.ticket().shipped_seq < stored_seq {
                // Nobody's sync comes along: then a restart would send all of it again.
                let came = runtime::timeout(AGE, self.wake.notified()).await;
                if came.is_err() {
                    if let Err(error) = self.note_shipped(stored_seq).await {
                        tracing::warn!("the journal was not told how far the store is: {error}");
                    }
                }
                return;
            }
            self.wake.notified().await;
            return;
        }
        let end = Instant::now() + AGE;
        while !self.is_due() && !self.closing.load(Ordering::Acquire) {
            let left = end.saturating_duration_since(Instant::now());
            if runtime::timeout(left, self.wake.notified()).await.is_err() {
                // What waits is old: as if somebody wanted it.
                let last_seq = self.journal.last_seq();
                self.wanted_seq.fetch_max(last_seq, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Waits, or until the volume is closed; with `ready`, no longer than there is room.
    async fn pause(&self, time: Duration, ready: bool) {
        let end = Instant::now() + time;
        while !self.closing.load(Ordering::Acquire) && Instant::now() < end {
            let is_near = self.journal.usage().is_high() || self.unshipped.pressure().is_some();
            if ready && is_near {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            let _ = runtime::timeout(left, self.wake.notified()).await;
        }
    }

    /// Tells the volume now and then how far its store is, for those who may have to do without the
    /// journal.
    async fn tell(&self) {
        let ticket = self.journal.ticket();
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.0.elapsed() < TELL || ticket.shipped_seq == told.1 {
                return;
            }
            *told = (Instant::now(), ticket.shipped_seq);
        }
        if let Err(error) = self.ledger.write(Some(ticket)).await {
            tracing::debug!("the volume was not told how far its store is: {error}");
        }
    }

    /// The store has everything up to record `seq`, and a restart will know that it needs nothing of
    /// it: who waits for that can be answered.
    pub(super) fn succeeded(&self, seq: u64) {
        self.progress.send_modify(|progress| {
            progress.stored_seq = progress.stored_seq.max(seq);
            progress.failures = 0;
            if progress.failure.take().is_some() {
                tracing::info!("changes are shipped again");
            }
        });
    }

    /// How many rounds have failed in a row, this one included.
    fn failed(&self, error: Error) -> u32 {
        let waiting = self.unshipped.bytes() >> 10;
        let mut in_a_row = 0;
        self.progress.send_modify(|progress| {
            if progress.failures == 0 {
                tracing::warn!(
                    "changes can't be shipped, {waiting} KiB of them wait in the journal: {error}"
                );
            }
            progress.failures += 1;
            in_a_row = progress.failures;
            progress.failed_round = self.rounds.load(Ordering::Acquire);
            progress.failure = Some(error);
        });
        in_a_row
    }

    /// Waits for a round, however long it takes: nothing may be sent again while it is under way. If
    /// the volume answers nothing for too long those who wait are told, as after a round that failed.
    async fn watched(&self, round: impl Future<Output = Result<()>>) -> Result<()> {
        let mut round = std::pin::pin!(round);
        loop {
            let answers = self.answers.load(Ordering::Relaxed);
            if let Ok(ended) = runtime::timeout(self.timing.flush, round.as_mut()).await {
                return ended;
            }
            if self.answers.load(Ordering::Relaxed) == answers {
                self.rounds.fetch_add(1, Ordering::AcqRel);
                let text = format!(
                    "neither the store nor the journal's disk has answered for {:?}",
                    self.timing.flush
                );
                self.failed(Error::new(Kind::Timeout, text));
            }
        }
    }

    /// Nothing is shipped any more. What was acknowledged is in the journal.
    fn died(&self) {
        let text = "changes are not sent to the store any more, for a bug in nbd-rs: start the server again, which sends what waits in the journal";
        tracing::error!("{text}");
        self.progress.send_modify(|progress| {
            progress.failure = Some(Error::new(Kind::Panic, text));
            progress.is_dead = true;
        });
    }

    /// Ships a batch and all that are ready behind it; with `all` what could still grow, too. After
    /// a failure nothing is under way, and what is left becomes one batch.
    ///
    /// # Errors
    /// [`Kind::Busy`] if this was called before and not waited for, and what it sent is under way.
    pub(super) async fn ship_all(self: &Arc<Self>, all: bool) -> Result<()> {
        let busy = |_| Error::new(Kind::Busy, "the store is still at work on earlier changes");
        let round = Arc::new(self.round.clone().try_lock_owned().map_err(busy)?);
        self.rounds.fetch_add(1, Ordering::AcqRel);
        if self.progress.borrow().failures > 0 {
            // Nothing is under way, and what came later may mend what was refused.
            self.unshipped.merge();
        }
        let mut under_way: VecDeque<(Batch, UnderWay)> = VecDeque::new();
        let mut sent = 0;
        let mut refused = None;
        loop {
            // What was refused has become a batch of the next round.
            while under_way.len() < self.most_under_way() && refused.is_none() {
                let seal = all || sent == 0 || self.seals();
                let Some(batch) = self.unshipped.batch_behind(sent, seal) else {
                    break;
                };
                if under_way.iter().any(|(other, _)| overlap(other, &batch)) {
                    break;
                }
                sent = batch.seq;
                under_way.push_back((batch.clone(), self.send(batch, round.clone())));
            }
            let Some((_, first)) = under_way.pop_front() else {
                return refused.map_or(Ok(()), Err);
            };
            let stored = match first.await {
                Ok(put) => self.store(put, &mut refused).await,
                Err(error) => Err(error),
            };
            if let Err(error) = stored {
                // Later changes of the same shards must not arrive after those that are sent again.
                join_all(under_way.into_iter().map(|(_, put)| put)).await;
                return Err(error);
            }
        }
    }

    /// Sends a batch in a task of its own, which comes to its end also when nobody waits for it any
    /// more.
    fn send(self: &Arc<Self>, batch: Batch, round: Round) -> UnderWay {
        let core = self.clone();
        let task = runtime::handle().spawn(async move {
            let _round = round;
            core.put(batch).await
        });
        Box::pin(async move {
            match task.await.map_err(JoinError::try_into_panic) {
                Ok(put) => put,
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                Err(Err(_)) => Err(Error::new(Kind::Io, "a batch was given up")),
            }
        })
    }

    /// Sends a batch. Only what is durable here may be in the store: after a power cut the journal
    /// must not be behind it.
    async fn put(self: &Arc<Self>, batch: Batch) -> Result<Put> {
        let has_failed = self.journal.failure().is_some();
        if self.journal.durable_seq() < batch.seq && !has_failed {
            self.synced(batch.seq).await?;
        }
        let results = self.made(&batch.changes).await?;
        let mut put = Put {
            seq: batch.seq,
            refused: Vec::new(),
            why: None,
        };
        for (change, result) in batch.changes.iter().zip(results) {
            match result {
                Ok(()) => {}
                Err(error) if care::is_final(&error) => {
                    put.refused.push(change.offset..change.offset + change.len);
                    put.why = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(put)
    }

    /// Makes the changes of a batch: together where the volume can do that, so that it has a batch or
    /// none of it.
    async fn made(self: &Arc<Self>, changes: &[Change]) -> Result<Vec<Result<()>>> {
        if let Some(together) = self.volume.together() {
            let made = together.make(changes.to_vec()).await;
            self.answers.fetch_add(1, Ordering::Relaxed);
            return made;
        }
        let applied = changes.iter().map(|change| async {
            let result = self.apply(change, ZeroFlags::NONE).await;
            self.answers.fetch_add(1, Ordering::Relaxed);
            result
        });
        Ok(join_all(applied).await)
    }

    /// A batch that is made as a whole waits for the one before it.
    fn most_under_way(&self) -> usize {
        match self.volume.together() {
            Some(_) => 1,
            None => UNDER_WAY,
        }
    }

    /// A batch was sent: it becomes durable in the store, and is done with here.
    async fn store(self: &Arc<Self>, put: Put, refused: &mut Option<Error>) -> Result<()> {
        self.volume.flush().await?;
        if let Some(error) = put.why {
            // They stay, and so does the reason not to call anything since then flushed.
            match blocking(self, move |core| core.append_again(&put.refused)).await? {
                Some(seq) => self.refused_seq.store(seq, Ordering::Release),
                None => return Err(error),
            }
            *refused = Some(error);
        }
        self.unshipped.shipped(put.seq);
        self.in_store_seq.fetch_max(put.seq, Ordering::AcqRel);
        // Not durable here, and the journal's disk has failed: after a loss of power older records
        // would be put over it, until the volume says that the journal is not needed.
        let is_safe = self.journal.durable_seq() >= put.seq;
        if is_safe && put.seq >= self.refused_seq.load(Ordering::Acquire) {
            self.succeeded(put.seq);
        }
        let usage = on_disk(self, move |journal| journal.note_shipped(put.seq)).await?;
        if usage.used_bytes > usage.ring_bytes / ROOM {
            self.note_shipped(put.seq).await?;
        }
        // There is room.
        self.progress.send_modify(|_| ());
        if self.mode() == Mode::Journal {
            self.tell().await;
        }
        Ok(())
    }
}
