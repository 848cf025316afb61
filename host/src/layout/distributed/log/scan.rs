//! Before an owner begins: what lies on the backends, so that its epoch is the greatest.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_rs_commit_log::Epoch;

use super::call::Caller;
use super::config::Config;
use super::known::Known;
use super::slots::{Ahead, Slots};
use crate::error::{Error, Result};
use crate::layout::distributed::environment::within;

/// What was seen of each backend, and the greatest epoch.
pub(super) struct Seen {
    pub(super) known: Vec<Known>,
    pub(super) newest: Epoch,
}

/// Reads all backends, without those that are silent for too long if the others are enough.
///
/// # Errors
/// Each backend's last error if too few answered until `deadline`.
pub(super) async fn scan(
    config: &Config,
    callers: &[Caller],
    deadline: Duration,
) -> Result<Seen, Vec<Option<Error>>> {
    let environment = &*config.environment;
    let began = environment.now();
    let mut known: Vec<Known> = callers.iter().map(|_| Known::default()).collect();
    let mut errors: Vec<Option<Error>> = vec![None; callers.len()];
    let reads = (0..callers.len()).map(|backend| read(config, callers, backend));
    let mut reads: FuturesUnordered<_> = reads.collect();
    let mut done = 0;
    while done < callers.len() {
        let until = match done >= config.quorum.fence() {
            true => deadline.min(began + config.timing.patience),
            false => deadline,
        };
        let left = until.saturating_sub(environment.now());
        match within(environment, left, reads.next()).await {
            Some(Some((backend, Ok(found)))) => {
                known[backend] = found;
                errors[backend] = None;
                done += 1;
            }
            Some(Some((backend, Err(error)))) => {
                errors[backend] = Some(error);
                reads.push(read(config, callers, backend));
            }
            Some(None) | None => break,
        }
    }
    if done < config.quorum.fence() {
        return Err(errors);
    }
    let now = environment.now();
    for (known, error) in known.iter_mut().zip(errors) {
        // One that is only slow is listened to again.
        known.answered = if error.is_none() { now } else { began };
        known.away_since = error.as_ref().map(|_| began);
        known.error = error;
    }
    let newest = known.iter().map(Known::newest);
    let newest = newest.fold(Epoch::default(), Epoch::max);
    Ok(Seen { known, newest })
}

/// One backend, with a pause behind a failure.
async fn read(config: &Config, callers: &[Caller], backend: usize) -> (usize, Result<Known>) {
    let slots = Slots {
        caller: &callers[backend],
        volume: config.volume,
    };
    let found = read_all(&slots).await;
    if found.is_err() {
        let pause = config.timing.retry_most / 8;
        config.environment.sleep(pause).await;
    }
    (backend, found)
}

pub(super) async fn read_all(slots: &Slots<'_>) -> Result<Known> {
    let mut known = Known::default();
    last_floor(slots, &mut known).await?;
    let mut slot = known.first_slot();
    let mut ahead = Ahead::default();
    loop {
        let found = slots.from(slot, &mut ahead).await?;
        let Some((last, _, _)) = found.last() else {
            return Ok(known);
        };
        slot = last + 1;
        for (slot, entry, seal) in found {
            known.note(slot, entry, seal);
        }
    }
}

/// Finds the last floor in few steps: there are no gaps between them.
async fn last_floor(slots: &Slots<'_>, known: &mut Known) -> Result<()> {
    let mut step = 1;
    loop {
        let number = known.floors() + step - 1;
        match slots.floor(number).await? {
            Some(floor) => {
                known.note_floor(number, floor);
                step *= 2;
            }
            None if step == 1 => return Ok(()),
            // Half of what is too far, and half of that again, since the next success doubles it.
            None => step = (step / 4).max(1),
        }
    }
}
