//! Writes and syncs that fail.

use std::sync::{Arc, OnceLock};

use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::error::Kind;
use nbd_rs_journal::{Journal, Opened};

use crate::common::{block, claim, file_name, open, seqs};
use nbd_rs_recorder_disk::{Faults, Image, Recorder};

const RING_BLOCKS: u64 = 32;

fn start() -> (Recorder, Journal, Ticket) {
    let disk = Recorder::start(Image::default());
    let journal = open(disk.disk(), &claim(1, None), RING_BLOCKS)
        .unwrap()
        .journal;
    let ticket = journal.ticket();
    (disk, journal, ticket)
}

fn append(journal: &Journal, fill: u8) {
    journal
        .append(&[block(fill)], |seq| assert_eq!(seq, u64::from(fill)))
        .unwrap();
}

/// After the power went, with nothing kept that was not synced.
fn after_power_cut(disk: &Recorder, ticket: Ticket) -> Opened {
    let image = disk.power_cut_at_its_worst();
    let claim = nbd_rs_journal::claim::Claim {
        boot: nbd_rs_journal::uuid::Uuid([9; 16]),
        ..claim(2, Some(ticket))
    };
    open(Recorder::start(image).disk(), &claim, RING_BLOCKS).unwrap()
}

fn holds(opened: &Opened, fills: std::ops::RangeInclusive<u8>) {
    let expected: Vec<u64> = fills.clone().map(u64::from).collect();
    assert_eq!(seqs(&opened.records), expected);
    for (record, fill) in opened.records.iter().zip(fills) {
        assert_eq!(record.changes, [block(fill)]);
    }
}

#[test]
fn c05_f10_after_one_failed_sync_everything_is_durable_in_a_new_file() {
    let (disk, journal, ticket) = start();
    append(&journal, 1);
    journal.sync().unwrap();
    append(&journal, 2);
    append(&journal, 3);
    disk.fail(Faults {
        syncs: 1,
        ..Faults::default()
    });
    journal.sync().unwrap();
    assert_eq!(journal.durable_seq(), 3);
    holds(&after_power_cut(&disk, ticket), 1..=3);
    // The first record is in the old file, which goes when the store has it.
    let names = || disk.disk().names().unwrap();
    assert!(names().contains(&file_name(1)) && names().contains(&file_name(2)));
    journal.shipped(1).unwrap();
    assert!(!names().contains(&file_name(1)));
    append(&journal, 4);
    journal.sync().unwrap();
    holds(&after_power_cut(&disk, ticket), 2..=4);
}

#[test]
fn c05_f10_a_disk_that_fails_again_and_again_leaves_a_chain_of_files() {
    let (disk, journal, ticket) = start();
    for fill in 1..=5 {
        append(&journal, fill);
        disk.fail(Faults {
            syncs: u32::from(fill % 2 == 0),
            ..Faults::default()
        });
        journal.sync().unwrap();
    }
    let opened = after_power_cut(&disk, ticket);
    holds(&opened, 1..=5);
    // The one that came back knows the whole chain, too.
    opened.journal.shipped(5).unwrap();
    assert_eq!(opened.journal.usage().used_bytes, 0);
}

#[test]
fn c05_flush_after_failed_sync_stays_an_error_until_everything_was_written_again() {
    let (disk, journal, ticket) = start();
    append(&journal, 1);
    disk.fail(Faults {
        syncs: 1,
        creates: 1,
        ..Faults::default()
    });
    let error = journal.sync().unwrap_err();
    assert_eq!(error.kind, Kind::Io);
    assert!(error.message.contains("so did a new file"), "{error}");
    // The disk would say yes now, and must not be believed.
    let syncs = disk.syncs();
    assert_eq!(journal.sync().unwrap_err(), error);
    assert_eq!(journal.append(&[block(2)], |_| {}).unwrap_err(), error);
    assert_eq!(disk.syncs(), syncs);
    assert_eq!(journal.durable_seq(), 0);
    assert_eq!(journal.failure(), Some(error));
    journal.retry().unwrap();
    assert_eq!((journal.durable_seq(), journal.failure()), (1, None));
    append(&journal, 2);
    journal.sync().unwrap();
    holds(&after_power_cut(&disk, ticket), 1..=2);
}

#[test]
fn c24_a_failed_journal_still_hears_what_the_store_has() {
    let (disk, journal, ticket) = start();
    append(&journal, 1);
    append(&journal, 2);
    disk.fail(Faults {
        syncs: 1,
        creates: 2,
        errno: 28,
        ..Faults::default()
    });
    journal.sync().unwrap_err();
    journal.shipped(1).unwrap();
    assert_eq!(journal.retry().unwrap_err().errno, 28);
    journal.retry().unwrap();
    let opened = after_power_cut(&disk, ticket);
    holds(&opened, 2..=2);
    assert_eq!(journal.ticket().shipped_seq, 1);
}

#[test]
fn c10_f14_a_record_that_could_not_be_written_is_not_there_later() {
    let (disk, journal, ticket) = start();
    append(&journal, 1);
    disk.fail(Faults {
        writes: 1,
        errno: 28,
        ..Faults::default()
    });
    let error = journal
        .append(&[block(2)], |_| panic!("it was refused"))
        .unwrap_err();
    assert_eq!((error.kind, error.errno), (Kind::NoSpace, 28));
    holds(&after_power_cut(&disk, ticket), 1..=1);
    append(&journal, 2);
    journal.sync().unwrap();
    holds(&after_power_cut(&disk, ticket), 1..=2);
}

#[test]
fn f14_a_journal_that_cannot_be_made_leaves_nothing_behind() {
    for faults in [
        Faults {
            creates: 1,
            errno: 28,
            ..Faults::default()
        },
        Faults {
            writes: 1,
            errno: 28,
            ..Faults::default()
        },
        Faults {
            syncs: 1,
            errno: 28,
            ..Faults::default()
        },
    ] {
        let disk = Recorder::start(Image::default());
        disk.fail(faults);
        let error = open(disk.disk(), &claim(1, None), RING_BLOCKS).unwrap_err();
        assert_eq!(error.kind, Kind::NoSpace, "{error}");
        assert!(disk.disk().names().unwrap().is_empty());
        open(disk.disk(), &claim(1, None), RING_BLOCKS).unwrap();
    }
}

#[test]
fn f21_a_disk_that_lied_about_its_syncs_is_found_out() {
    let (disk, journal, ticket) = start();
    append(&journal, 1);
    disk.fail(Faults {
        lies: 2,
        ..Faults::default()
    });
    journal.sync().unwrap();
    journal.shipped(1).unwrap();
    let image = disk.power_cut_at_its_worst();
    let ticket = Ticket {
        shipped_seq: 1,
        ..ticket
    };
    let opened = open(
        Recorder::start(image).disk(),
        &claim(2, Some(ticket)),
        RING_BLOCKS,
    );
    let error = opened.unwrap_err();
    assert_eq!(error.kind, Kind::Foreign);
    assert!(
        error.message.contains("did not keep what it said"),
        "{error}"
    );
}

#[test]
fn c04_a_sync_covers_what_was_there_when_it_began_and_nothing_else() {
    let (disk, journal, _) = start();
    let journal = Arc::new(journal);
    let shared: Arc<OnceLock<Arc<Journal>>> = Arc::default();
    shared.set(journal.clone()).unwrap();
    append(&journal, 1);
    let late = shared.clone();
    disk.in_next_sync(move || append(late.get().unwrap(), 2));
    journal.sync().unwrap();
    assert_eq!((journal.last_seq(), journal.durable_seq()), (2, 1));
    journal.sync().unwrap();
    assert_eq!(journal.durable_seq(), 2);
}

#[test]
fn c04_those_who_wait_share_a_sync() {
    let (disk, journal, _) = start();
    let journal = Arc::new(journal);
    append(&journal, 1);
    let before = disk.syncs();
    let (waiting, all_wait) = std::sync::mpsc::channel();
    let others: Arc<std::sync::Mutex<Vec<std::thread::JoinHandle<()>>>> = Arc::default();
    let (in_sync, threads) = (journal.clone(), others.clone());
    // While one sync runs, eight more come; none of them may believe it.
    disk.in_next_sync(move || {
        for _ in 0..8 {
            let (journal, waiting) = (in_sync.clone(), waiting.clone());
            threads.lock().unwrap().push(std::thread::spawn(move || {
                journal.append(&[block(9)], |_| {}).unwrap();
                waiting.send(()).unwrap();
                journal.sync().unwrap();
            }));
        }
        for _ in 0..8 {
            all_wait.recv().unwrap();
        }
    });
    journal.sync().unwrap();
    let threads = std::mem::take(&mut *others.lock().unwrap());
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(journal.durable_seq(), 9);
    // Each appended before the first sync ended, so one more was enough for all.
    assert_eq!(disk.syncs() - before, 2);
}

/// Found by reading: the new file was made under the lock that everybody who asks had to take, the
/// one thread of the heartbeats among them.
#[test]
fn c17_what_is_known_is_told_while_a_new_file_is_made() {
    let (disk, journal, ticket) = start();
    let journal = Arc::new(journal);
    append(&journal, 1);
    journal.sync().unwrap();
    append(&journal, 2);
    let (made, begins) = std::sync::mpsc::channel();
    let (go, goes_on) = std::sync::mpsc::channel::<()>();
    disk.in_next_create(move || {
        made.send(()).unwrap();
        // Also if the test has failed.
        let _ = goes_on.recv();
    });
    disk.fail(Faults {
        syncs: 1,
        ..Faults::default()
    });
    let thread = |call: fn(&Journal)| {
        let journal = journal.clone();
        std::thread::spawn(move || call(&journal))
    };
    let sync = thread(|journal| journal.sync().unwrap());
    begins.recv().unwrap();
    let (asker, (told, tells)) = (journal.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let seqs = (asker.last_seq(), asker.durable_seq());
        let noted = asker.note_shipped(1).unwrap();
        let _ = told.send((
            seqs,
            asker.failure(),
            asker.usage() == noted,
            asker.ticket(),
        ));
    });
    let answer = tells.recv_timeout(std::time::Duration::from_secs(20));
    assert_eq!(answer, Ok(((2, 1), None, true, ticket)));
    // Who wants to add something waits until it is known in which file.
    let late = thread(|journal| append(journal, 3));
    go.send(()).unwrap();
    sync.join().unwrap();
    late.join().unwrap();
    assert_eq!(journal.durable_seq(), 2);
    journal.sync().unwrap();
    assert_eq!(journal.ticket().shipped_seq, 1);
    holds(&after_power_cut(&disk, ticket), 2..=3);
}
