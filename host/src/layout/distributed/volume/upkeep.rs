//! The task that keeps the log short: folds, checkpoints, and what may go after them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::super::environment::within;
use super::super::format::changes::Part;
use super::super::format::names::Object;
use super::super::format::Version;
use super::super::log::Position;
use super::read::Layers;
use super::shared::{Checkpoint, Counts, Inner};
use super::sweep::Sweep;
use crate::error::{Kind, Result};

/// It looks again after so long, if nothing wakes it.
const PAUSE: Duration = Duration::from_secs(5);
/// It rests so long between two looks that found nothing.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
/// After something failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Shards that it looks at for that.
const CANDIDATES: usize = 256;
/// Shards that are folded before it looks again.
const FOLDS: usize = 4;
/// Packs that are made before a checkpoint while the log goes on.
const PACKS: usize = 64;

/// What it knows from one round to the next.
#[derive(Default)]
struct Known {
    /// Shards of which units are unreadable: what is whole of them stays where it is. They are tried
    /// again after a checkpoint.
    damaged: BTreeSet<u32>,
    sweep: Sweep,
}

/// Until the owner has ended.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut known = Known::default();
    while inner.going_on().is_ok() && !inner.core().is_closing {
        let done = inner.keep_up(&mut known).await;
        if let Err(error) = &done {
            tracing::warn!("volume {}: {error}; trying again", inner.volume);
            inner.environment.sleep(AFTER_FAILURE).await;
        }
        if !matches!(done, Ok(true)) {
            within(&*inner.environment, PAUSE, inner.upkeep.notified()).await;
            // A look goes through all that waits: not one after each record.
            inner.environment.sleep(LEAST_PAUSE).await;
        }
    }
    inner.core().is_upkeep_over = true;
    inner.changed.tell();
}

impl Inner {
    /// One round; whether there may be more to do at once.
    async fn keep_up(&self, known: &mut Known) -> Result<bool> {
        self.replicas.look_again().await;
        let (shards, is_due) = {
            let core = self.core();
            let policy = &self.tuning.policy;
            let shards = policy.shards_to_fold(&core.state, CANDIDATES);
            (shards, policy.is_checkpoint_due(&core.state))
        };
        let folded = self.fold(&shards, &mut known.damaged).await?;
        if is_due || self.wants_checkpoint.swap(false, Ordering::AcqRel) {
            self.shorten(&mut known.sweep).await?;
            known.damaged.clear();
        }
        self.sweep(&mut known.sweep).await?;
        Ok(folded)
    }

    /// Images of some of these shards go along with the next record; whether there were any. One
    /// that can't be made now keeps nothing else from being done.
    async fn fold(&self, shards: &[u32], damaged: &mut BTreeSet<u32>) -> Result<bool> {
        let mut folds = 0;
        for &shard in shards {
            let version = Version::default();
            let can_be = self.replicas.can_take(&Object::Image { shard, version });
            if folds == FOLDS || damaged.contains(&shard) || !can_be {
                continue;
            }
            match self.put_image(shard, Layers::Records).await {
                Ok((through, image)) => {
                    let through = Some(through);
                    self.core().open.fold(Part::Image {
                        shard,
                        image,
                        through,
                    });
                    folds += 1;
                }
                Err(error) if error.kind == Kind::Corrupt => {
                    tracing::error!("shard {shard} can't be folded: {error}");
                    damaged.insert(shard);
                }
                Err(error) => tracing::debug!("shard {shard} is not folded now: {error}"),
            }
        }
        if folds > 0 {
            self.flush().await?;
            Counts::add(&self.counts.folds, folds as u64);
        }
        Ok(folds > 0)
    }

    /// Makes a checkpoint, and deletes what is not needed any more.
    async fn shorten(&self, sweep: &mut Sweep) -> Result<()> {
        let begun = self.version();
        for _ in 0..PACKS {
            if !self.pack().await? {
                break;
            }
        }
        self.pages().await?;
        let checkpoint = self.checkpointed().await?;
        let collected = self.log.collect(checkpoint).await?;
        for (backend, error) in collected.left {
            tracing::debug!("the log of backend {backend} was not cut: {error}");
        }
        self.held().await?;
        let garbage = self.core().state.take_garbage();
        Counts::add(&self.counts.collected, collected.records);
        Counts::add(&self.counts.garbage, garbage.len() as u64);
        let failed = self.replicas.delete(garbage).await;
        sweep.checkpointed(begun, self.replicas.backends(), &failed);
        Ok(())
    }

    /// Asks commit for a checkpoint and waits for it: as long as it takes, since it is on its way.
    async fn checkpointed(&self) -> Result<Position> {
        self.core().checkpoint = Checkpoint::Wanted;
        self.commit.notify_one();
        let mut changes = self.changed.listen();
        loop {
            self.going_on()?;
            {
                let mut core = self.core();
                match std::mem::replace(&mut core.checkpoint, Checkpoint::Idle) {
                    Checkpoint::Ended(ended) => return ended,
                    waiting => core.checkpoint = waiting,
                }
            }
            changes.changed().await;
        }
    }
}
