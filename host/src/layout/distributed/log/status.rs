//! How it stands, for people and for scripts.

use std::time::Duration;

use nbd_rs_commit_log::{Epoch, Phase, Position, Stage};

use super::shared::Shared;
use crate::error::Error;

/// The whole log.
#[derive(Debug, Clone)]
pub struct Status {
    /// Who this owner is.
    pub epoch: Epoch,
    /// Where it stands.
    pub stage: Stage,
    /// The last record of the log.
    pub last: Option<Position>,
    /// The number of the last record that is acknowledged.
    pub acknowledged: u64,
    /// How much longer reads may be served if no look succeeds.
    pub lease_left: Duration,
    /// Why nothing is done any more, if it is so.
    pub ended: Option<Error>,
    /// In the order in which the stores were given.
    pub backends: Vec<BackendStatus>,
}

/// One backend.
#[derive(Debug, Clone)]
pub struct BackendStatus {
    /// As the store calls itself.
    pub name: String,
    /// How far the owner got with it.
    pub phase: Phase,
    /// Records that it lacks; all of them as long as it is not read.
    pub behind_records: u64,
    /// Bytes of their payloads.
    pub behind_bytes: u64,
    /// How long it has not answered, or not with anything that can be used; none if it does.
    pub away_for: Option<Duration>,
    /// The last error, if it is away.
    pub error: Option<Error>,
    /// Slots whose payload was seen not to be what was written.
    pub damaged: Vec<u64>,
}

impl Status {
    /// Whether fewer backends than all are in use.
    pub fn is_degraded(&self) -> bool {
        let is_fine = |it: &BackendStatus| it.is_in_use() && it.away_for.is_none();
        !self.backends.iter().all(is_fine)
    }
}

impl BackendStatus {
    /// Whether records go to it.
    pub fn is_in_use(&self) -> bool {
        self.phase == Phase::Joined
    }
}

impl Shared {
    pub(super) fn status(&self) -> Status {
        let now = self.now();
        let core = self.core();
        let backends = (0..self.callers.len()).map(|backend| {
            let (lane, known) = (&core.owner.lanes()[backend], &core.known[backend]);
            let log = core.owner.log().iter();
            let lacks = log.filter(|record| record.position.seq > lane.held());
            let lacks: Vec<Position> = lacks.map(|record| record.position).collect();
            let bytes = |at: &Position| match core.payload(*at) {
                Some(payload) => payload.seal.len,
                None => core.payload_bytes(*at).unwrap_or(0),
            };
            BackendStatus {
                name: self.callers[backend].name(),
                phase: lane.phase(),
                behind_records: lacks.len() as u64,
                behind_bytes: lacks.iter().map(bytes).sum(),
                away_for: known.away_since.map(|since| now.saturating_sub(since)),
                error: known.error.clone(),
                damaged: known.damaged(),
            }
        });
        Status {
            backends: backends.collect(),
            epoch: self.epoch,
            stage: core.owner.stage(),
            last: core.owner.log().last().map(|record| record.position),
            acknowledged: core.owner.acknowledged(),
            lease_left: self.lease.left(now),
            ended: core.ended.clone(),
        }
    }
}
