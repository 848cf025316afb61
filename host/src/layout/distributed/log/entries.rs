//! What a new owner goes on from: the records of the chosen log, from its last checkpoint on.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesOrdered, StreamExt};
use nbd_rs_commit_log::{Kind, Position, Record};
use nbd_rs_plugin::Bytes;

use super::payloads::Payload;
use super::shared::Shared;
use crate::error::{Error, Kind as ErrorKind, Result};

/// Records that are read at once.
const MAX_AHEAD: usize = 16;
/// Bytes that are read at once, but for a record that is longer.
const MAX_AHEAD_BYTES: u64 = 32 << 20;

/// A record of the log.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Its name. Numbers may be left out: start records carry nothing.
    pub position: Position,
    /// What it is to the protocol: data, or the checkpoint that stands for all before.
    pub kind: Kind,
    /// Its payload, as it was appended.
    pub payload: Bytes,
}

/// The records that were there before this owner, in order. To be read to its end before anything is
/// collected.
pub struct Entries {
    shared: Arc<Shared>,
    left: VecDeque<(Record, u64)>,
    reads: FuturesOrdered<BoxFuture<'static, Result<(LogEntry, u64)>>>,
    bytes: u64,
    failed: Option<Error>,
}

impl Entries {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let left = {
            let core = shared.core();
            let base = core.owner.base().map_or(0, |base| base.seq);
            let log = core.owner.log();
            let log: Vec<Record> = log
                .iter()
                .filter(|it| it.position.seq <= base)
                .copied()
                .collect();
            let from = log.iter().rposition(|it| it.kind == Kind::Checkpoint);
            let carries = log[from.unwrap_or(0)..]
                .iter()
                .filter(|it| it.kind != Kind::Start);
            let bytes = |record: &Record| core.payload_bytes(record.position).unwrap_or(0);
            carries.map(|record| (*record, bytes(record))).collect()
        };
        Self {
            shared,
            left,
            reads: FuturesOrdered::new(),
            bytes: 0,
            failed: None,
        }
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.left.len() + self.reads.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next one, whole, from any backend that has it so; none behind the last.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is damaged wherever it lies; the error of a
    /// backend if the others don't have it. It is not passed over: the next call fails as well.
    pub async fn next(&mut self) -> Result<Option<LogEntry>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.read_ahead();
        match self.reads.next().await {
            None => Ok(None),
            Some(Ok((entry, bytes))) => {
                self.bytes -= bytes;
                Ok(Some(entry))
            }
            Some(Err(error)) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    fn read_ahead(&mut self) {
        while let Some((record, bytes)) = self.left.front().copied() {
            let fits = self.reads.len() < MAX_AHEAD && self.bytes + bytes <= MAX_AHEAD_BYTES;
            if !self.reads.is_empty() && !fits {
                return;
            }
            self.left.pop_front();
            self.bytes += bytes;
            let shared = self.shared.clone();
            self.reads.push_back(read(shared, record, bytes).boxed());
        }
    }
}

/// From whoever has it, also if that is away for a while.
async fn payload(shared: &Shared, position: Position) -> Result<Payload> {
    let timing = shared.config.timing;
    let until = shared.now() + timing.start;
    loop {
        let error = match shared.payload(position).await {
            Ok(payload) => return Ok(payload),
            Err(error) => error,
        };
        let is_final = matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound);
        if is_final || shared.has_ended() || shared.now() >= until {
            return Err(error);
        }
        shared.sleep(shared.jitter(timing.retry_most)).await;
    }
}

async fn read(shared: Arc<Shared>, record: Record, bytes: u64) -> Result<(LogEntry, u64)> {
    let payload = payload(&shared, record.position).await?;
    let entry = LogEntry {
        position: record.position,
        kind: record.kind,
        payload: payload.bytes(),
    };
    Ok((entry, bytes))
}
