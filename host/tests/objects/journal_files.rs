//! Journals as files: elsewhere, copied, moved, damaged, of a newer program, given up.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::places::{kill, one_line, Place};
use crate::server::{nbd_rs, text, Serve};
use crate::tools::present;

const SIZE: usize = 16 << 20;
/// Exit code of `verify`: data is lost.
const DAMAGED: i32 = 5;
/// Where a journal's superblocks lie, and where its ring begins, in bytes
/// (`docs/journal-format.md`).
const SUPERBLOCKS: [u64; 4] = [0, 32 << 10, 64 << 10, 96 << 10];
const RING: u64 = 192 << 10;
const MAGIC_BYTES: u64 = 7;

/// A volume whose server was killed: `old` is in the store, `new` waits in the journal.
fn waiting() -> Place {
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 8Mi");
    place.init(SIZE, "64Ki");
    let server = place.serve().start();
    assert_eq!(Client::unix(&server).write(0, 0, b"old"), 0);
    server.stop();
    let mut server = place.serve().start();
    let mut client = Client::unix(&server);
    place.s3().set_away(true);
    assert_eq!(client.write(0, 0, b"new"), 0);
    assert_eq!(client.write(0, 1 << 20, &[7; 9000]), 0);
    kill(&mut server);
    place.s3().set_away(false);
    place
}

#[track_caller]
fn holds(serve: crate::server::Serve, bytes: &[u8]) {
    let server = serve.start();
    let found = Client::unix(&server).read(0, bytes.len());
    assert_eq!(found, Ok(bytes.to_vec()));
    server.stop();
}

/// `nbd-rs journal` with these words and the directory.
fn journal(directory: &Path, words: &[&str]) -> Output {
    let (command, rest) = words.split_first().expect("a command");
    let directory = directory.display().to_string();
    let mut all = vec!["journal", command, "--journal", &directory];
    all.extend(rest);
    nbd_rs(&all)
}

#[track_caller]
fn worked(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    one_line(&String::from_utf8_lossy(&output.stderr), words);
}

fn verified(directory: &Path) -> Value {
    let said = worked(&journal(directory, &["verify", "--json"]));
    let all: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    all[0].clone()
}

fn uuid(place: &Place) -> String {
    place.info()["uuid"].as_str().expect("a uuid").to_owned()
}

fn the_file(place: &Place) -> PathBuf {
    let files = place.journal_files();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn c12_writes_that_wait_elsewhere_keep_the_volume_from_being_served() {
    let place = waiting();
    let before = place.info()["journal"]["journal"].clone();
    assert!(before.is_string(), "info does not say where writes wait");
    let words = [
        "acknowledged writes wait",
        "--accept-lost-writes",
        "--journal DIR",
    ];
    one_line(&place.without_journal().refused(), &words);
    let elsewhere = place.dir().join("elsewhere");
    let at = elsewhere.display().to_string();
    let gathers = ["--journal", &at];
    one_line(&place.gathering(&gathers).refused(), &words);
    // Nor sent from a place where they are not.
    refused(
        &journal(&elsewhere, &["replay", "sharded", &place.location]),
        1,
        &words,
    );
    assert_eq!(place.info()["journal"]["journal"], before);
    holds(place.serve(), b"new");
    assert!(place.info()["journal"].is_null(), "nothing waits any more");
    holds(place.without_journal(), b"new");
    place.is_clean();
}

#[test]
fn c12_writes_that_were_given_up_stay_given_up() {
    for with_another in [false, true] {
        let place = waiting();
        let at = place.dir().join("elsewhere").display().to_string();
        let given_up = match with_another {
            true => place.gathering(&["--journal", &at]),
            false => place.without_journal(),
        };
        holds(given_up.words(["--accept-lost-writes"]), b"old");
        // The journal turns up again: it is not mixed with what came after it.
        let said = one_line(&place.serve().refused(), &["journal discard"]);
        println!("a journal that was given up: {said}");
        let uuid = uuid(&place);
        refused(
            &journal(&place.journal(), &["discard", &uuid]),
            1,
            &["--force"],
        );
        worked(&journal(&place.journal(), &["discard", "--force", &uuid]));
        holds(place.serve(), b"old");
        place.is_clean();
    }
}

fn copy_journal(place: &Place) {
    let kept = place.dir().join("kept");
    fs::rename(place.journal(), &kept).expect("moved away");
    fs::create_dir(place.journal()).expect("a directory");
    for entry in fs::read_dir(&kept).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = place.journal().join(entry.file_name());
        fs::copy(entry.path(), to).expect("copied");
    }
}

#[test]
fn f71_a_copied_journal_is_refused_unless_it_is_said_to_have_been_moved() {
    let place = waiting();
    copy_journal(&place);
    let words = ["is a copy", "--journal-moved"];
    one_line(&place.serve().refused(), &words);
    refused(
        &journal(&place.journal(), &["replay", "sharded", &place.location]),
        1,
        &words,
    );
    holds(place.serve().words(["--journal-moved"]), b"new");
    holds(place.serve(), b"new");
    place.is_clean();
}

#[test]
fn f71_an_older_copy_of_a_journal_is_refused_whatever_is_said() {
    let place = waiting();
    let kept = place.dir().join("old");
    fs::create_dir(&kept).expect("a directory");
    let file = the_file(&place);
    let copy = kept.join(file.file_name().expect("a name"));
    fs::copy(&file, &copy).expect("copied");
    // It goes on, and more waits in it.
    let mut server = place.serve().start();
    let mut client = Client::unix(&server);
    place.s3().set_away(true);
    assert_eq!(client.write(0, 0, b"now"), 0);
    kill(&mut server);
    place.s3().set_away(false);
    let newer = place.dir().join("newer");
    fs::rename(&file, &newer).expect("moved");
    fs::rename(&copy, &file).expect("moved");
    for serve in [place.serve(), place.serve().words(["--journal-moved"])] {
        one_line(&serve.refused(), &["older copy"]);
    }
    fs::rename(&newer, &file).expect("moved");
    holds(place.serve(), b"now");
}

#[test]
fn destroy_and_init_force_take_the_journal_along() {
    let place = waiting();
    let at = place.journal().display().to_string();
    let first = uuid(&place);
    place.run(&format!("init --force --size {SIZE} --journal {at}"));
    assert_ne!(uuid(&place), first);
    assert!(place.journal_files().is_empty(), "a journal of no volume");
    holds(place.serve(), &[0; 3]);
    assert_eq!(place.journal_files().len(), 1);
    place.destroy();

    let place = waiting();
    place.destroy();
}

#[test]
fn verify_replay_and_discard_say_what_is_there_and_what_they_did() {
    let place = waiting();
    let (here, uuid) = (place.journal(), uuid(&place));
    let found = verified(&here);
    assert_eq!(found["volume"], uuid.as_str());
    assert_eq!(found["closed"], false);
    assert_eq!(found["records"], 2);
    assert_eq!(found["ring_bytes"], 8 << 20);
    let said = worked(&journal(&here, &["verify", &uuid]));
    assert!(said.contains("2 records wait"), "{said}");
    refused(
        &journal(&here, &["discard", &uuid]),
        1,
        &["2 acknowledged writes", "--force"],
    );
    assert_eq!(verified(&here)["records"], 2, "nothing was changed");

    let said = worked(&journal(&here, &["replay", "sharded", &place.location]));
    assert!(said.contains("nothing waits"), "{said}");
    assert!(!said.contains("secret"), "a secret is printed: {said}");
    let found = verified(&here);
    assert_eq!(
        (&found["records"], &found["closed"]),
        (&0.into(), &true.into())
    );
    assert!(place.info()["journal"].is_null());
    holds(place.without_journal(), b"new");
    // Twice is as good as once.
    worked(&journal(&here, &["replay", "sharded", &place.location]));

    let said = worked(&journal(&here, &["discard", &uuid]));
    assert!(said.contains("is gone"), "{said}");
    let said = worked(&journal(&here, &["discard", &uuid]));
    assert!(said.contains("has no journal here"), "{said}");
    let said = worked(&journal(&here, &["verify"]));
    assert!(said.contains("no journal in"), "{said}");
    assert_eq!(worked(&journal(&here, &["verify", "--json"])).trim(), "[]");
    holds(place.serve(), b"new");
}

#[test]
fn what_is_typed_wrong_at_a_journal_is_refused_in_one_line() {
    let dir = tempfile::tempdir().expect("a directory");
    for command in ["verify", "discard"] {
        refused(&journal(dir.path(), &[command, "disk1"]), 2, &["uuid"]);
    }
    let file = dir.path().join("file");
    fs::write(&file, b"").expect("a file");
    refused(&journal(&file, &["verify"]), 1, &["file"]);
}

#[test]
fn c24_a_journal_that_has_no_room_names_its_directory_and_the_way_out() {
    if !present(&["prlimit"]) {
        return;
    }
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 64Mi");
    place.init(SIZE, "64Ki");
    let mut serve = place.serve();
    serve.before = vec!["prlimit".into(), format!("--fsize={}", 8 << 20).into()];
    let directory = place.journal().display().to_string();
    let said = serve.refused();
    one_line(
        &said,
        &[&directory, "64 MiB", "--journal-size", "--journal"],
    );
    place.serve().start().stop();
}

#[test]
fn to_look_for_a_journal_makes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("none");
    let none = "00000000-0000-4000-8000-000000000000";
    let said = worked(&journal(&missing, &["verify"]));
    assert!(said.contains("no journal in"), "{said}");
    for words in [&["verify", none][..], &["verify", "--json", none]] {
        let place = missing.display().to_string();
        let said = journal(&missing, words);
        refused(&said, 1, &["no journal of volume", none, &place]);
    }
    let said = worked(&journal(&missing, &["discard", none]));
    assert!(said.contains("has no journal here"), "{said}");
    assert!(!missing.exists(), "to look for it has made it");
}

/// It left a journal of 128 MiB behind.
#[test]
fn a_replay_of_nothing_leaves_nothing_behind() {
    let whole = Place::directory("file:", "?way=whole");
    let in_place = Place::directory("file:", "");
    for place in [&whole, &in_place] {
        place.init(SIZE, "64Ki");
        let words = ["replay", "sharded", &place.location];
        let said = worked(&journal(&place.journal(), &words));
        assert!(said.contains("nothing waits"), "{said}");
        assert!(!place.journal().exists(), "it made a journal");
        place.is_clean();
    }
}

/// Both were ignored without a word.
#[test]
fn what_does_not_fit_a_volume_that_is_there_is_told() {
    let place = Place::directory("file:", "").journaled("");
    place.init(SIZE, "64Ki");
    let server = place.serve().start();
    let until = Instant::now() + Duration::from_secs(10);
    while !server.log().contains("\"disk\": --journal is not used") {
        assert!(Instant::now() < until, "no warning: {}", server.log());
        thread::sleep(Duration::from_millis(10));
    }
    server.stop();
    assert!(!place.journal().exists());

    let location = format!("{}?way=whole", place.location);
    let serve = Serve::sharded("disk", &location).unix(&place.dir().join("sock"));
    let said = serve.refused();
    one_line(&said, &["\"disk\"", "option way", "way=in-place"]);
    let location = format!("{}?way=in-place", place.location);
    let serve = Serve::sharded("disk", &location).unix(&place.dir().join("sock"));
    serve.start().stop();
}

#[test]
fn a_journal_in_use_is_left_alone() {
    let place = Place::own("cache+retry+s3:", "").journaled("");
    place.init(SIZE, "64Ki");
    let server = place.serve().start();
    let uuid = uuid(&place);
    let pid = format!("{}", server.pid().as_raw_nonzero());
    for words in [&["discard", "--force", &uuid][..], &["discard", &uuid]] {
        refused(&journal(&place.journal(), words), 1, &["in use", &pid]);
    }
    let said = worked(&journal(&place.journal(), &["verify"]));
    assert!(said.contains("in use"), "{said}");
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, b"new"), 0);
    assert_eq!(client.flush(), 0);
    server.stop();
    holds(place.serve(), b"new");
}

fn change(file: &Path, at: u64, change: impl FnOnce(&mut u8)) {
    let file = fs::File::options().read(true).write(true).open(file);
    let file = file.expect("a journal");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    change(&mut byte[0]);
    file.write_all_at(&byte, at).expect("changed");
}

#[test]
fn f23_a_damaged_journal_is_found_by_verify_and_refused_by_serve() {
    let place = waiting();
    let (here, file) = (place.journal(), the_file(&place));
    // A power cut leaves no such thing behind a superblock that is whole: all four of them are bad.
    let spoil = || {
        SUPERBLOCKS
            .iter()
            .for_each(|at| change(&file, at + 200, |b| *b ^= 1))
    };
    spoil();
    for words in [&["verify"][..], &["verify", "--json"]] {
        let output = journal(&here, words);
        assert_eq!(output.status.code(), Some(DAMAGED), "{}", text(&output));
    }
    one_line(&place.serve().refused(), &["journal", "discard"]);
    let uuid = uuid(&place);
    refused(
        &journal(&here, &["discard", &uuid]),
        1,
        &["nobody can say", "--force"],
    );
    spoil();
    assert_eq!(verified(&here)["records"], 2);
    holds(place.serve(), b"new");
    // Closed in order, so all its records were durable: the first one of the ring is needed no more.
    change(&file, RING + 20, |byte| *byte ^= 1);
    assert_eq!(verified(&here)["records"], 0);
}

#[test]
fn a_journal_of_a_newer_format_is_refused_in_plain_words() {
    let place = waiting();
    let (here, file) = (place.journal(), the_file(&place));
    let version = |version| {
        for at in SUPERBLOCKS {
            change(&file, at + MAGIC_BYTES, |byte| *byte = version);
        }
    };
    version(2);
    let words = ["format version 2", "use a newer nbd-rs"];
    let said = one_line(&place.serve().refused(), &words);
    assert!(
        !said.contains("discard"),
        "advice that loses writes: {said}"
    );
    refused(
        &journal(&here, &["replay", "sharded", &place.location]),
        1,
        &words,
    );
    let output = journal(&here, &["verify"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("use a newer nbd-rs"),
        "{}",
        text(&output)
    );
    version(1);
    holds(place.serve(), b"new");
}
