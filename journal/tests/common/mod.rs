//! What the tests of the journal share.

#![allow(dead_code)]

#[path = "../../../host/tests/common/rng.rs"]
pub(crate) mod rng;

use std::sync::Arc;

use nbd_rs_journal::change::{Change, What};
use nbd_rs_journal::claim::{Claim, Ticket};
use nbd_rs_journal::data::Data;
use nbd_rs_journal::disk::Disk;
use nbd_rs_journal::error::{Kind, Result};
use nbd_rs_journal::uuid::Uuid;
use nbd_rs_journal::{Journal, Opened, Options, Recovered};

use rng::Rng;

pub(crate) const VOLUME: Uuid = Uuid([0xab; 16]);
pub(crate) const BLOCK: u64 = 4096;

pub(crate) fn options(blocks: u64) -> Options {
    Options {
        ring_bytes: blocks * BLOCK,
    }
}

pub(crate) fn claim(epoch: u64, ticket: Option<Ticket>) -> Claim {
    Claim {
        volume: VOLUME,
        host: Uuid([7; 16]),
        boot: Uuid([8; 16]),
        epoch,
        ticket,
        moved: false,
    }
}

pub(crate) fn file_name(generation: u64) -> String {
    format!("{VOLUME}.{generation}.journal")
}

/// A write of one block, filled with `fill`.
pub(crate) fn block(fill: u8) -> Change {
    Change::write(
        u64::from(fill) * BLOCK,
        Data::new(vec![fill; BLOCK as usize]),
    )
}

/// A few changes that no other record has.
pub(crate) fn any_changes(rng: &mut Rng) -> Vec<Change> {
    let change = |rng: &mut Rng| {
        let (offset, len) = (rng.next() % (1 << 30), 1 + rng.next() % 9000);
        let what = match rng.next() % 8 {
            0 => What::Zero,
            1 => What::Trim,
            _ => What::Data(Data::new(rng.bytes(len as usize))),
        };
        Change { offset, len, what }
    };
    (0..1 + rng.next() % 3).map(|_| change(rng)).collect()
}

pub(crate) fn seqs(records: &[Recovered]) -> Vec<u64> {
    records.iter().map(|record| record.seq).collect()
}

/// A journal of its own on that disk. A child that another test starts holds a copy of each lock until it
/// runs its program: what is in use is asked for again, for a moment.
pub(crate) fn open(disk: Arc<dyn Disk>, claim: &Claim, blocks: u64) -> Result<Opened> {
    let mut attempts = 0..50;
    loop {
        match Journal::open(disk.clone(), claim, &options(blocks)) {
            Err(error) if error.kind == Kind::InUse && attempts.next().is_some() => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}
