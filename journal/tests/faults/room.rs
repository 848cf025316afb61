//! A ring that fills up.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_journal::change::{Change, What};
use nbd_rs_journal::data::Data;
use nbd_rs_journal::error::Kind;
use nbd_rs_journal::Journal;

use crate::common::{block, claim, open, options};
use nbd_rs_recorder_disk::{Image, Recorder};

fn start(blocks: u64) -> Arc<Journal> {
    let disk = Recorder::start(Image::default());
    Arc::new(open(disk.disk(), &claim(1, None), blocks).unwrap().journal)
}

#[test]
fn c24_a_full_ring_says_so_and_takes_more_when_something_was_shipped() {
    let journal = start(10);
    for fill in 1..=5 {
        let usage = journal.append(&[block(fill)], |_| {}).unwrap();
        assert_eq!(usage.is_high(), fill >= 4, "80 percent");
        assert_eq!(usage.used_bytes, u64::from(fill) * 8192);
    }
    let full = journal
        .append(&[block(6)], |_| panic!("it is full"))
        .unwrap_err();
    assert_eq!(full.kind, Kind::Full);
    assert!(!journal.wait_for_room(8192, Duration::from_millis(1)));
    let waiter = journal.clone();
    let waiter = std::thread::spawn(move || waiter.wait_for_room(8192, Duration::from_secs(60)));
    journal.sync().unwrap();
    assert_eq!(journal.shipped(2).unwrap().used_bytes, 3 * 8192);
    assert!(waiter.join().unwrap());
    journal
        .append(&[block(6)], |seq| assert_eq!(seq, 6))
        .unwrap();
}

#[test]
fn only_what_is_durable_may_be_shipped() {
    let journal = start(10);
    journal.append(&[block(1)], |_| {}).unwrap();
    let error = journal.shipped(1).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    journal.sync().unwrap();
    journal.shipped(1).unwrap();
    // Once more is no harm.
    journal.shipped(1).unwrap();
    assert_eq!(journal.usage().used_bytes, 0);
}

#[test]
fn what_can_never_be_a_record_is_refused() {
    let journal = start(10);
    let zero = |offset, len| Change {
        offset,
        len,
        what: What::Zero,
    };
    let too_large = Change::write(0, Data::new(vec![1; 10 * 4096]));
    for changes in [
        vec![],
        vec![zero(0, 0)],
        vec![zero(u64::MAX, 2)],
        vec![zero(0, 1); 257],
        vec![too_large],
    ] {
        let error = journal
            .append(&changes, |_| panic!("it was refused"))
            .unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{error}");
    }
    journal
        .append(&[zero(0, u64::MAX)], |seq| assert_eq!(seq, 1))
        .unwrap();
}

#[test]
fn a_ring_has_a_sensible_size() {
    for blocks in [0, 1, 7, 1 << 40] {
        let disk = Recorder::start(Image::default());
        let error = open(disk.disk(), &claim(1, None), blocks).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
    }
    let disk = Recorder::start(Image::default());
    let odd = nbd_rs_journal::Options {
        ring_bytes: options(8).ring_bytes + 1,
    };
    Journal::open(disk.disk(), &claim(1, None), &odd).unwrap_err();
}
