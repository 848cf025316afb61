//! Journals on a real disk that are somebody else's, copies, or not needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_rs_journal::claim::{Claim, Ticket};
use nbd_rs_journal::disk::Directory;
use nbd_rs_journal::error::{Error, Kind};
use nbd_rs_journal::uuid::Uuid;
use nbd_rs_journal::{discard, inspect, Opened};

use crate::common::{block, claim, file_name, open, seqs, VOLUME};

const RING_BLOCKS: u64 = 32;

struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("journals")
    }

    fn disk(&self) -> Arc<Directory> {
        Directory::open(&self.path()).unwrap()
    }

    fn open(&self, claim: &Claim) -> Result<Opened, Error> {
        open(self.disk(), claim, RING_BLOCKS)
    }

    /// Leaves one record behind that is not shipped.
    fn leave_one(&self) -> Ticket {
        let opened = self.open(&claim(1, None)).unwrap();
        opened.journal.append(&[block(1)], |_| {}).unwrap();
        opened.journal.ticket()
    }

    fn file(&self) -> PathBuf {
        self.path().join(file_name(1))
    }

    fn refused(&self, claim: &Claim, kind: Kind, reason: &str) {
        let error = self.open(claim).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(reason), "{error}");
        assert!(!error.message.contains('\n'), "{error}");
    }
}

fn copy_over(from: &Path, to: &Path) {
    std::fs::remove_file(to).unwrap();
    std::fs::copy(from, to).unwrap();
}

#[test]
fn c12_what_was_acknowledged_is_there_again_on_a_real_disk() {
    let stage = Stage::new();
    let ticket = stage.leave_one();
    let opened = stage.open(&claim(2, Some(ticket))).unwrap();
    assert!(opened.crashed);
    assert_eq!(seqs(&opened.records), [1]);
    assert_eq!(opened.records[0].changes, [block(1)]);
    let ticket = opened.journal.ticket();
    assert_eq!(ticket.epoch, 2);
    opened.journal.shipped(1).unwrap();
    opened.journal.close().unwrap();
    let opened = stage.open(&claim(3, None)).unwrap();
    assert!(!opened.crashed);
    assert_eq!(opened.records, []);
    assert_eq!(opened.journal.last_seq(), 1, "numbers go on");
}

#[test]
fn f21_a_journal_that_was_passed_by_is_not_needed_in_any_state() {
    // Its disk lost the end of it, all but the name, and that, too.
    let ruins: [fn(&Path); 3] = [
        |_| (),
        |file| std::fs::write(file, b"nothing").unwrap(),
        |file| std::fs::remove_file(file).unwrap(),
    ];
    for ruin in ruins {
        let stage = Stage::new();
        let ticket = Ticket {
            passed_by: true,
            shipped_seq: 9,
            ..stage.leave_one()
        };
        ruin(&stage.file());
        let opened = stage.open(&claim(2, Some(ticket))).unwrap();
        assert_eq!(opened.records, []);
        assert_ne!(opened.journal.ticket().journal, ticket.journal);
    }
}

#[test]
fn f66_a_second_process_is_kept_out() {
    let stage = Stage::new();
    let _first = stage.open(&claim(1, None)).unwrap();
    stage.refused(&claim(2, None), Kind::InUse, "in use by process ");
    let error = inspect(&*stage.disk(), VOLUME).unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    assert_eq!(
        discard(&*stage.disk(), VOLUME).unwrap_err().kind,
        Kind::InUse
    );
}

#[test]
fn f71_a_copy_and_an_older_state_are_refused() {
    let stage = Stage::new();
    let ticket = stage.leave_one();
    let backup = stage.dir.path().join("backup");
    std::fs::copy(stage.file(), &backup).unwrap();
    // Restored as another file.
    copy_over(&backup, &stage.file());
    stage.refused(&claim(2, Some(ticket)), Kind::Moved, "is a copy");
    // The operator knows that the first one is gone.
    let moved = Claim {
        moved: true,
        ..claim(2, Some(ticket))
    };
    let opened = stage.open(&moved).unwrap();
    assert_eq!(seqs(&opened.records), [1]);
    let newer = opened.journal.ticket();
    drop(opened);
    // From now on this is the one.
    let opened = stage.open(&claim(3, Some(newer))).unwrap();
    let newest = opened.journal.ticket();
    drop(opened);
    // Written back into the same file it is told by its epoch, whatever the operator says.
    std::fs::write(stage.file(), std::fs::read(&backup).unwrap()).unwrap();
    let moved = Claim {
        moved: true,
        ..claim(4, Some(newest))
    };
    stage.refused(&moved, Kind::Foreign, "an older copy: it is of epoch 1");
}

#[test]
fn f71_journals_of_another_volume_machine_or_time_are_refused() {
    let stage = Stage::new();
    let ticket = stage.leave_one();
    let other = Uuid([1; 16]);
    let renamed = stage.path().join(format!("{other}.1.journal"));
    let elsewhere = Claim {
        host: other,
        ..claim(2, Some(ticket))
    };
    stage.refused(&elsewhere, Kind::Moved, "another machine");
    stage.refused(
        &claim(1, Some(ticket)),
        Kind::Foreign,
        "the volume is an older copy",
    );
    stage.refused(&claim(2, None), Kind::Unknown, "was served without this");
    let another = Ticket {
        journal: other,
        ..ticket
    };
    stage.refused(
        &claim(2, Some(another)),
        Kind::Foreign,
        "writes are in journal",
    );
    std::fs::rename(stage.file(), renamed).unwrap();
    stage.refused(&claim(2, Some(ticket)), Kind::Missing, "wait in journal");
    for ticket in [None, Some(ticket)] {
        let volume = Claim {
            volume: other,
            ..claim(2, ticket)
        };
        stage.refused(
            &volume,
            Kind::Foreign,
            &format!("is of volume {VOLUME}, not of {other}"),
        );
    }
}

#[test]
fn a_journal_that_nobody_needs_is_made_anew_when_it_does_not_fit() {
    let stage = Stage::new();
    let opened = stage.open(&claim(1, None)).unwrap();
    let first = opened.journal.ticket().journal;
    opened.journal.close().unwrap();
    // It fits.
    let opened = stage.open(&claim(2, None)).unwrap();
    assert_eq!(opened.journal.ticket().journal, first);
    opened.journal.close().unwrap();
    // It was used on another machine, or is to have another size.
    let elsewhere = Claim {
        host: Uuid([1; 16]),
        ..claim(3, None)
    };
    let opened = stage.open(&elsewhere).unwrap();
    let second = opened.journal.ticket().journal;
    assert_ne!(second, first);
    opened.journal.close().unwrap();
    let larger = Claim {
        epoch: 4,
        ..elsewhere
    };
    let opened = open(stage.disk(), &larger, 2 * RING_BLOCKS).unwrap();
    assert_ne!(opened.journal.ticket().journal, second);
    assert_eq!(opened.journal.usage().ring_bytes, 2 * RING_BLOCKS * 4096);
    let files = std::fs::read_dir(stage.path()).unwrap().count();
    assert_eq!(files, 2, "the lock and one file");
}

#[test]
fn a_journal_with_records_keeps_its_size() {
    let stage = Stage::new();
    let ticket = stage.leave_one();
    let opened = open(stage.disk(), &claim(2, Some(ticket)), 2 * RING_BLOCKS).unwrap();
    assert_eq!(opened.journal.usage().ring_bytes, RING_BLOCKS * 4096);
}

#[test]
fn a_journal_can_be_looked_at_and_thrown_away() {
    let stage = Stage::new();
    assert_eq!(
        inspect(&*stage.disk(), VOLUME).unwrap_err().kind,
        Kind::Missing
    );
    let ticket = stage.leave_one();
    let before = std::fs::read(stage.file()).unwrap();
    let found = inspect(&*stage.disk(), VOLUME).unwrap();
    assert_eq!(std::fs::read(stage.file()).unwrap(), before);
    assert_eq!(found.superblock.journal, ticket.journal);
    assert_eq!((found.last_seq, found.records, found.bytes), (1, 1, 8192));
    discard(&*stage.disk(), VOLUME).unwrap();
    assert!(!stage.file().exists());
    stage.refused(&claim(2, Some(ticket)), Kind::Missing, "is not here");
    stage.open(&claim(2, None)).unwrap();
}
