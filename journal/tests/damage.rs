//! Files that are not what was written: each byte, and each length.

mod common;

use common::{block, claim, file_name, open};
use nbd_rs_journal::change::{Change, What};
use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::data::Data;
use nbd_rs_journal::error::Kind;
use nbd_rs_journal::format::superblock::{MARK_AT, RING_AT, SUPERBLOCKS_AT};
use nbd_rs_journal::{Opened, Recovered};
use nbd_rs_recorder_disk::{Image, Recorder};

const RING_BLOCKS: u64 = 9;

/// What was in a journal before something happened to it.
struct Before {
    image: Image,
    ticket: Ticket,
    records: Vec<Recovered>,
    synced: u64,
}

/// Two records shipped, three synced, the last across the ring's end, and `unsynced` more.
fn journal(unsynced: u64, closed: bool) -> Before {
    let disk = Recorder::start(Image::default());
    let journal = open(disk.disk(), &claim(1, None), RING_BLOCKS)
        .unwrap()
        .journal;
    let ticket = journal.ticket();
    let mut records = Vec::new();
    let mut append = |changes: Vec<Change>| {
        let add = |seq| {
            records.push(Recovered {
                seq,
                changes: changes.clone(),
            })
        };
        journal.append(&changes, add).unwrap();
    };
    append(vec![block(1)]);
    append(vec![block(2)]);
    journal.sync().unwrap();
    journal.shipped(2).unwrap();
    let trim = Change {
        offset: 5,
        len: 1 << 33,
        what: What::Trim,
    };
    append(vec![block(3), trim]);
    append(vec![Change::write(9, Data::new(b"a small write"))]);
    append(vec![block(4)]);
    journal.sync().unwrap();
    for _ in 0..unsynced {
        append(vec![Change {
            offset: 5,
            len: 7,
            what: What::Zero,
        }]);
    }
    let synced = 5;
    if closed {
        journal.close().unwrap();
    }
    records.drain(..2);
    Before {
        image: disk.killed(disk.moment()),
        ticket,
        records,
        synced,
    }
}

impl Before {
    fn open(&self, image: Image) -> Result<Opened, nbd_rs_journal::error::Error> {
        let claim = claim(2, Some(self.ticket));
        open(Recorder::start(image).disk(), &claim, RING_BLOCKS)
    }

    /// Whether damage was noticed. If not, what is read must be right.
    fn is_noticed(&self, image: Image, what: &str) -> bool {
        match self.open(image) {
            Ok(opened) => {
                let found = opened.records;
                assert_eq!(found, self.records[..found.len()], "{what}");
                assert!(
                    opened.journal.last_seq() >= self.synced,
                    "{what}: synced records are gone"
                );
                false
            }
            Err(error) => {
                let kinds = [Kind::Damaged, Kind::Newer];
                assert!(kinds.contains(&error.kind), "{what}: {error}");
                true
            }
        }
    }

    /// Flips a bit of each of these bytes of the file; how many were noticed.
    fn flip(&self, bytes: impl Iterator<Item = u64>) -> usize {
        let mut image = self.image.clone();
        let mut flip = |at: u64| {
            image.file(&file_name(1))[at as usize] ^= 1 << (at % 8);
            let noticed = self.is_noticed(image.clone(), &format!("byte {at}"));
            image.file(&file_name(1))[at as usize] ^= 1 << (at % 8);
            noticed
        };
        bytes.filter(|&at| flip(at)).count()
    }
}

#[test]
fn f23_every_changed_byte_is_noticed_or_harmless() {
    let ring = RING_AT..RING_AT + RING_BLOCKS * 4096;
    let sectors = SUPERBLOCKS_AT.into_iter().flatten().chain([MARK_AT]);
    let before = journal(0, false);
    let noticed = before.flip(ring.clone());
    // Three records of two blocks; nothing is needed of the rest.
    assert_eq!(noticed, 6 * 4096, "in the ring");
    let noticed = before.flip(sectors.flat_map(|at| at..at + 512));
    // A changed version may be a newer one.
    assert_eq!(
        noticed, 4,
        "each superblock is there four times, and the mark can be spared"
    );
    let between = (512..MARK_AT).step_by(997);
    assert_eq!(before.flip(between.filter(|at| at % (32 << 10) >= 512)), 0);
}

#[test]
fn f23_every_changed_byte_of_a_journal_with_a_tail_or_closed_is_noticed_or_harmless() {
    let ring = RING_AT..RING_AT + RING_BLOCKS * 4096;
    for (unsynced, closed, needed) in [(1, false, 6), (1, true, 7)] {
        let noticed = journal(unsynced, closed).flip(ring.clone().step_by(5));
        let most = needed * 4096 / 5;
        assert!(
            (most - 8..most + 8).contains(&noticed),
            "{noticed}, {closed}"
        );
    }
}

#[test]
fn f25_a_file_that_was_cut_is_never_taken_for_whole() {
    let before = journal(1, true);
    let whole = before.image.clone().file(&file_name(1)).len();
    for len in (0..whole).step_by(509).chain([whole - 1]) {
        let mut image = before.image.clone();
        image.file(&file_name(1)).truncate(len);
        assert!(before.is_noticed(image, &format!("cut at {len}")));
    }
}

#[test]
fn f22_a_block_that_cannot_be_read_is_an_error_and_not_a_tail() {
    let before = journal(1, false);
    let disk = Recorder::start(before.image.clone());
    for reads in 1..9 {
        disk.fail_reads_after(reads);
        let claim = claim(2, Some(before.ticket));
        let error = open(disk.disk(), &claim, RING_BLOCKS).unwrap_err();
        assert_eq!(error.kind, Kind::Io, "{error}");
    }
}

#[test]
fn f75_a_newer_format_is_refused_in_plain_words() {
    let before = journal(0, true);
    let mut image = before.image.clone();
    image.file(&file_name(1))[SUPERBLOCKS_AT[1][1] as usize + 7] = 2;
    let error = before.open(image).unwrap_err();
    assert_eq!(error.kind, Kind::Newer);
    assert!(error.message.contains("use a newer nbd-rs"), "{error}");
}
