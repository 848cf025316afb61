//! The plan, carried out: counts the calls, and makes what is to happen to one happen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nbd_rs_plugin::abi_stable::std_types::RVec;
use nbd_rs_plugin::{Bytes, Data, Error, Host, Kind, Piece, Result};

use crate::config::Config;
use crate::plan::{Fate, Fault, Op};

/// The faults of one link.
#[derive(Debug)]
pub struct Faults {
    host: Host,
    config: Config,
    calls: [AtomicU64; Op::ALL.len()],
    met: [AtomicU64; Fault::ALL.len()],
}

/// How a call goes on that may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    op: Op,
    fate: Option<Fate>,
}

impl Faults {
    /// No call yet.
    pub fn new(host: Host, config: Config) -> Self {
        Self {
            host,
            config,
            calls: std::array::from_fn(|_| AtomicU64::new(0)),
            met: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Whether such calls can meet a fault.
    pub fn concern(&self, op: Op) -> bool {
        self.config.plan.ops.contains(&op)
    }

    /// Whether this may happen at all.
    pub fn may(&self, fault: Fault) -> bool {
        self.config.plan.faults.contains(&fault)
    }

    /// How many calls met a fault so far.
    pub fn met(&self) -> u64 {
        let met = self.met.iter();
        met.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// A call comes in: it fails, waits, or goes on.
    ///
    /// # Errors
    /// The fault, if it is one before anything was done.
    pub async fn meet(&self, op: Op, name: &str) -> Result<Step> {
        let number = self.calls[op as usize].fetch_add(1, Ordering::Relaxed);
        let fate = self.config.plan.fate(op, number);
        let fate = fate.filter(|fate| self.count(fate.fault));
        let step = Step { op, fate };
        let Some(fate) = fate else {
            return Ok(step);
        };
        let (call, fault) = (op.name(), fate.fault.name());
        tracing::debug!("{call} {number} of {name:?} meets {fault}");
        match fate.fault {
            Fault::Before => Err(step.error(self.config.error, "fails before anything was done")),
            Fault::Unsure => Err(step.error(Kind::Ambiguous, "is lost, and so is the answer")),
            Fault::NoSpace => Err(Error {
                errno: 28, // ENOSPC
                ..step.error(Kind::NoSpace, "has no space")
            }),
            Fault::Delay => {
                self.host.sleep(self.delay(fate.drawn)).await;
                Ok(step)
            }
            Fault::Hang => std::future::pending().await,
            _ => Ok(step),
        }
    }

    /// One more of these, if there may be one more.
    fn count(&self, fault: Fault) -> bool {
        let counted = self.met() < self.config.most;
        if counted {
            self.met[fault as usize].fetch_add(1, Ordering::Relaxed);
        }
        counted
    }

    fn delay(&self, drawn: u64) -> Duration {
        let longest = self.config.delay.as_millis() as u64;
        Duration::from_millis(drawn % longest.saturating_add(1))
    }

    /// Says how to have the same again.
    pub fn tell_plan(&self) {
        let plan = &self.config.plan;
        let ops: Vec<&str> = plan.ops.iter().map(|op| op.name()).collect();
        let faults: Vec<&str> = plan.faults.iter().map(|fault| fault.name()).collect();
        let (ops, faults) = (ops.join(","), faults.join(","));
        let percent = plan.per_million as f64 / 10_000.0;
        let seed = plan.seed;
        tracing::warn!("faults are on: fault.seed={seed}, {percent}% of {ops} meet {faults}");
    }

    /// Says what happened.
    pub fn tell_met(&self) {
        let met = Fault::ALL.iter().zip(&self.met);
        let met = met.filter_map(|(fault, count)| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then(|| format!("{count} {}", fault.name()))
        });
        let met = met.collect::<Vec<_>>().join(", ");
        let met = if met.is_empty() { "none" } else { &met };
        tracing::info!("faults with seed {}: {met}", self.config.plan.seed);
    }
}

impl Step {
    fn error(self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("fault: {} {what}", self.op.name()))
    }

    fn is(self, fault: Fault) -> bool {
        self.fate.is_some_and(|fate| fate.fault == fault)
    }

    /// Whether the call is to be acknowledged without being carried out.
    pub fn is_lost(self) -> bool {
        self.is(Fault::Lost)
    }

    /// Whether it is to be answered with what was there before.
    pub fn is_stale(self) -> bool {
        self.is(Fault::Stale)
    }

    /// What becomes of the answer of a call that was carried out.
    ///
    /// # Errors
    /// The answer's; an unknown outcome, or for a read a passing failure, if it is to be lost.
    pub fn answer<T>(self, answer: Result<T>) -> Result<T> {
        let answer = answer?;
        match self.is(Fault::After) {
            true if self.op.changes() => Err(self.error(Kind::Ambiguous, "loses its answer")),
            true => Err(self.error(Kind::Transient, "loses its answer")),
            false => Ok(answer),
        }
    }

    /// What becomes of data that was read.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn data(self, data: Result<Data>) -> Result<Data> {
        let data = self.answer(data)?;
        match self.fate {
            Some(fate) if fate.fault == Fault::Short => Ok(shortened(&data)),
            Some(fate) if fate.fault == Fault::Flip => Ok(flipped(&data, fate.drawn)),
            _ => Ok(data),
        }
    }
}

fn gathered(data: &Data) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in data.pieces() {
        match piece {
            Piece::Bytes(piece) => bytes.extend_from_slice(piece),
            Piece::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            // Not asked for by who wants to change what was read.
            Piece::Mapped(_) => {}
        }
    }
    bytes
}

fn shortened(data: &Data) -> Data {
    let mut pieces: Vec<Piece> = data.pieces().to_vec();
    match pieces.pop() {
        Some(Piece::Bytes(last)) if !last.is_empty() => {
            let len = last.len() - 1;
            pieces.push(Piece::Bytes(last.slice(0..len)));
        }
        Some(Piece::Hole(len)) => pieces.push(Piece::Hole(len.saturating_sub(1))),
        _ => {}
    }
    Data::Many(RVec::from(pieces))
}

fn flipped(data: &Data, drawn: u64) -> Data {
    let mut bytes = gathered(data);
    let bits = (bytes.len() as u64 * 8).max(1);
    let bit = drawn % bits;
    if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
        *byte ^= 1 << (bit % 8);
    }
    Bytes::from(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_is_one_byte_less_and_a_flip_is_one_bit() {
        let pieces = [Piece::Bytes(Bytes::from(vec![1, 2])), Piece::Hole(3)];
        let data = Data::Many(pieces.to_vec().into());
        assert_eq!(gathered(&shortened(&data)), [1, 2, 0, 0]);
        let flipped = gathered(&flipped(&data, 12345));
        let differ = flipped.iter().zip([1, 2, 0, 0, 0]);
        let bits: u32 = differ.map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((flipped.len(), bits), (5, 1));
        assert!(shortened(&Bytes::from(vec![7]).into()).is_empty());
    }
}
