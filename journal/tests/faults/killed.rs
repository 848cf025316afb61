//! A process that is killed while it appends, for real.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nbd_rs_journal::disk::Directory;
use nbd_rs_journal::error::Kind;

use crate::common::rng::Rng;
use crate::common::{block, claim, open};

const RING_BLOCKS: u64 = 64;
const DIRECTORY: &str = "NBD_RS_JOURNAL_TEST_DIRECTORY";

/// Not a test by itself: the process that is killed. It says the number of each record that it
/// would have acknowledged, until the ring is full.
#[test]
fn appends_until_it_is_killed() {
    let Ok(path) = std::env::var(DIRECTORY) else {
        return;
    };
    let disk = Directory::open(Path::new(&path)).unwrap();
    let journal = open(disk, &claim(1, None), RING_BLOCKS).unwrap().journal;
    let ticket = journal.ticket();
    let mut out = std::io::stdout();
    let mut say = |text: String| out.write_all(text.as_bytes()).unwrap();
    say(format!("\njournal {}\n", ticket.journal));
    for fill in 1..=u8::MAX {
        let appended = journal.append(&[block(fill)], |_| {});
        if appended.is_err_and(|error| error.kind == Kind::Full) {
            break;
        }
        say(format!("acked {fill}\n"));
    }
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn c12_f01_sigkill_loses_nothing_that_was_acknowledged() {
    let mut rng = Rng::for_test("sigkill");
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journals");
        let wanted = 1 + rng.next() % 31;
        let acked = run_and_kill(&path, wanted);
        let found =
            nbd_rs_journal::inspect(&*Directory::open(&path).unwrap(), crate::common::VOLUME);
        let found = found.unwrap();
        assert!(found.last_seq >= acked, "{} of {acked}", found.last_seq);
        let ticket = nbd_rs_journal::claim::Ticket {
            journal: found.superblock.journal,
            epoch: 1,
            shipped_seq: 0,
            passed_by: false,
        };
        let disk = Directory::open(&path).unwrap();
        let opened = open(disk, &claim(2, Some(ticket)), RING_BLOCKS).unwrap();
        assert_eq!(opened.records.len() as u64, found.last_seq);
        for record in &opened.records {
            assert_eq!(record.changes, [block(record.seq as u8)]);
        }
    }
}

/// Runs this program as the one above, and kills it at the record that is wanted. The last one
/// that it said.
fn run_and_kill(path: &Path, wanted: u64) -> u64 {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args([
            "--exact",
            "killed::appends_until_it_is_killed",
            "--nocapture",
        ])
        .env(DIRECTORY, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let numbers =
        lines.filter_map(|line| line.unwrap().strip_prefix("acked ")?.parse::<u64>().ok());
    let mut numbers = numbers.skip_while(|number| *number < wanted);
    let seen = numbers.next().expect("it gets there");
    child.kill().unwrap();
    let last = numbers.last().unwrap_or(seen);
    child.wait().unwrap();
    last
}
