//! A start: see what is there, fence, choose, write the start record, get the lease.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nbd_rs_commit_log::{Epoch, Event, Phase, Stage};

use super::call::Caller;
use super::config::Config;
use super::scan::{scan, Seen};
use super::shared::Shared;
use super::store::LogStore;
use super::{lane, watch, Log};
use crate::error::{Error, Kind, Result};
use crate::layout::distributed::environment::within;

/// So many owners are tried, each with a greater epoch.
const ATTEMPTS: u32 = 8;

/// Why a start did not succeed.
enum Failed {
    /// Somebody with a greater epoch was met, or the log was cut meanwhile: a new owner may succeed.
    /// The greatest epoch counter that was met or used comes with it, and who is to be left out.
    InVain(Error, u64, BTreeSet<usize>),
    /// It will not.
    ForGood(Error),
}

/// Starts an owner that has its lease.
pub(super) async fn open(mut config: Config, stores: Vec<Arc<dyn LogStore>>) -> Result<Log> {
    if stores.len() != config.quorum.backends() {
        let text = format!("{} stores for {:?}", stores.len(), config.quorum);
        return Err(Error::new(Kind::Invalid, text));
    }
    let (environment, timing) = (config.environment.clone(), config.timing);
    let caller = |store| Caller::new(store, environment.clone(), timing.call);
    let callers: Arc<Vec<Caller>> = Arc::new(stores.into_iter().map(caller).collect());
    let deadline = environment.now() + timing.start;
    let mut attempt = 0;
    let mut left_out = BTreeSet::new();
    loop {
        attempt += 1;
        let error = match once(&config, &callers, &left_out, deadline).await {
            Ok(log) => return Ok(log),
            Err(Failed::ForGood(error)) => return Err(error),
            Err(Failed::InVain(error, counter, others)) => {
                left_out.extend(others);
                // An epoch is used once, also where nothing is left of it.
                config.counter_seen = config.counter_seen.max(counter);
                error
            }
        };
        if attempt == ATTEMPTS || environment.now() >= deadline {
            let error = error.context("the log could not be taken over, again and again");
            return Err(Error {
                kind: Kind::Busy,
                ..error
            });
        }
        tracing::info!("{error}; starting again");
        let part = environment.random() % 1000;
        let pause = timing.retry_most / 4 * attempt;
        environment.sleep(pause * part as u32 / 1000).await;
    }
}

async fn once(
    config: &Config,
    callers: &Arc<Vec<Caller>>,
    left_out: &BTreeSet<usize>,
    deadline: Duration,
) -> Result<Log, Failed> {
    let began = config.environment.now();
    let seen = scan(config, callers, deadline).await;
    let seen = seen.map_err(|errors| Failed::ForGood(too_few(callers, &errors, "be read")))?;
    let shared = begin(config, callers, left_out, seen)?;
    // Whatever comes in between, also that nobody waits any more, ends this owner.
    let log = Log { shared };
    let start = Start {
        shared: &log.shared,
        began,
    };
    start.wait(deadline).await?;
    Ok(log)
}

fn begin(
    config: &Config,
    callers: &Arc<Vec<Caller>>,
    left_out: &BTreeSet<usize>,
    seen: Seen,
) -> Result<Arc<Shared>, Failed> {
    let before = seen.newest.counter.max(config.counter_seen);
    let too_many = || Failed::ForGood(Error::new(Kind::Corrupt, "no epoch is left"));
    let epoch = Epoch {
        counter: before.checked_add(1).ok_or_else(too_many)?,
        owner: config.owner,
    };
    let shared = Shared::new(config.clone(), callers.clone(), epoch, seen.known);
    for backend in 0..callers.len() {
        let waits = left_out.contains(&backend);
        let task = lane::run(shared.clone(), backend, waits);
        config.environment.spawn(Box::pin(task));
    }
    Ok(shared)
}

struct Start<'a> {
    shared: &'a Arc<Shared>,
    began: Duration,
}

impl Start<'_> {
    async fn wait(&self, deadline: Duration) -> Result<(), Failed> {
        let shared = self.shared;
        let mut changes = shared.changes();
        while !self.is_serving()? {
            self.check(deadline)?;
            let tick = shared.config.timing.patience / 8;
            let _ = within(&*shared.config.environment, tick, changes.changed()).await;
        }
        while !watch::look(shared).await {
            self.is_serving()?;
            self.check(deadline)?;
            shared.sleep(shared.config.timing.retry_first).await;
        }
        let task = watch::run(shared.clone());
        shared.config.environment.spawn(Box::pin(task));
        Ok(())
    }

    fn is_serving(&self) -> Result<bool, Failed> {
        let core = self.shared.core();
        let ended = core.ended.clone().map(|error| (error, BTreeSet::new()));
        match ended.or_else(|| core.in_vain.clone()) {
            Some((error, left_out)) => {
                let newest = core.known.iter().map(|known| known.newest().counter);
                let counter = newest.fold(self.shared.epoch.counter, u64::max);
                Err(Failed::InVain(error, counter, left_out))
            }
            None => Ok(core.owner.stage() == Stage::Serving),
        }
    }

    /// Says when nobody is waited for any longer.
    fn check(&self, deadline: Duration) -> Result<(), Failed> {
        let shared = self.shared;
        if shared.now() >= deadline {
            let errors: Vec<_> = {
                let core = shared.core();
                core.known.iter().map(|it| it.error.clone()).collect()
            };
            let error = too_few(&shared.callers, &errors, "take the start record");
            return Err(Failed::ForGood(error));
        }
        if self.is_enough() {
            shared.happened(&Event::Decide);
        }
        Ok(())
    }

    /// Whether a log may be chosen, and those that are not read yet are silent, or late.
    fn is_enough(&self) -> bool {
        let (now, timing) = (self.shared.now(), self.shared.config.timing);
        let core = self.shared.core();
        if !core.owner.may_decide() {
            return false;
        }
        let lanes = core.owner.lanes().iter().zip(&core.known);
        let mut missing = lanes.filter(|(lane, _)| lane.phase() != Phase::Fenced);
        now >= self.began + timing.patience_most
            || missing.all(|(_, known)| now >= known.answered.max(self.began) + timing.patience)
    }
}

fn too_few(callers: &[Caller], errors: &[Option<Error>], doing: &str) -> Error {
    let mut text = format!("too few of {} backends could {doing}", callers.len());
    for (caller, error) in callers.iter().zip(errors) {
        if let Some(error) = error {
            text += &format!("; {}: {error}", caller.name());
        }
    }
    Error::new(Kind::Io, text)
}
