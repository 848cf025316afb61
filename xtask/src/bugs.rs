//! Do the tests bite? Bugs that would lose data are put into a copy of the source, one at a time, and the
//! test that is there for it has to fail.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{cargo, root, target, Outcome};

/// A bug, and the test that finds it.
struct Bug {
    name: &'static str,
    file: &'static str,
    /// What stands there once, and what in its place.
    change: (&'static str, &'static str),
    /// The options of `cargo test`, and the test.
    test: (&'static [&'static str], &'static str),
}

const LOG: &[&str] = &["-p", "nbd-rs-commit-log", "--test", "simulation"];
const LOG_UNIT: &[&str] = &["-p", "nbd-rs-commit-log", "--lib"];
const HOST: &[&str] = &["-p", "nbd-rs", "--lib"];
const FILE: &[&str] = &["-p", "nbd-rs-file", "--test", "steps"];

const BUGS: [Bug; 11] = [
    Bug {
        name: "acknowledge-at-quorum-minus-one",
        file: "commit-log/src/rules.rs",
        change: (
            "fn is_durable(&self, holders: usize, quorum: &Quorum) -> bool {\n        holders >=",
            "fn is_durable(&self, holders: usize, quorum: &Quorum) -> bool {\n        holders + 1 >=",
        ),
        test: (LOG, "c17_c20_f58_f67_no_run_loses_what_was_acknowledged"),
    },
    Bug {
        name: "compare-copies-by-who-copied-them",
        file: "commit-log/src/rules.rs",
        change: (
            "-> Position {\n        record.position\n",
            "-> Position {\n        Position { epoch: _writer, ..record.position }\n",
        ),
        test: (LOG_UNIT, "f59_logs_are_compared_by_who_made_their_last_record"),
    },
    Bug {
        name: "collect-fences",
        file: "commit-log/src/rules.rs",
        change: (
            "fn is_garbage(&self, entry: &Entry) -> bool {\n        matches!(entry, Entry::Record { .. })",
            "fn is_garbage(&self, entry: &Entry) -> bool {\n        matches!(entry, _)",
        ),
        test: (LOG, "c17_c20_f58_f67_no_run_loses_what_was_acknowledged"),
    },
    Bug {
        name: "ignore-a-412",
        file: "host/src/layout/distributed/log/lane.rs",
        change: (
            "Created::Exists => (Answer::Exists, None),",
            "Created::Exists => (Answer::Stored, None),",
        ),
        test: (HOST, "c17_the_older_of_two_owners_neither_flushes_nor_reads"),
    },
    Bug {
        name: "sync-no-directory",
        file: "plugins/file/src/directory.rs",
        change: (
            "opened.sync_all().map_err(|error| {",
            "let _ = opened;\n        Ok::<(), std::io::Error>(()).map_err(|error| {",
        ),
        test: (FILE, "f19_a_sync_that_fails_is_an_error_of_the_put"),
    },
    Bug {
        name: "read-what-is-lost-as-zeros",
        file: "host/src/layout/distributed/volume/read.rs",
        change: (
            "Source::Stored(piece) => self.fetch(piece).await?,",
            "Source::Stored(piece) => self.fetch(piece).await.unwrap_or(None),",
        ),
        test: (
            HOST,
            "c25_f43_a_damaged_copy_is_passed_over_and_damage_everywhere_is_an_error",
        ),
    },
    Bug {
        name: "compare-no-checksums",
        file: "host/src/layout/distributed/volume/read.rs",
        change: ("    match damaged {\n", "    match damaged.filter(|_| false) {\n"),
        test: (
            HOST,
            "c25_f43_a_damaged_copy_is_passed_over_and_damage_everywhere_is_an_error",
        ),
    },
    Bug {
        name: "record-no-trims",
        file: "host/src/layout/distributed/volume/batch.rs",
        change: (
            "let all = self.empty.within(0..u64::MAX);",
            "let all = self.empty.within(0..u64::MAX);\n        let all = all.filter(|(_, empty)| *empty == Empty::Zero);",
        ),
        test: (HOST, "c03_the_newest_change_of_each_unit_counts"),
    },
    Bug {
        name: "fold-over-newer-changes",
        file: "host/src/layout/distributed/state/mod.rs",
        change: (
            "self.index.cut(self.geometry.units_of(number), through);",
            "self.index.cut(self.geometry.units_of(number), u64::MAX);",
        ),
        test: (HOST, "layout::distributed::state::tests"),
    },
    Bug {
        name: "read-without-a-lease",
        file: "host/src/layout/distributed/log/mod.rs",
        change: ("self.shared.lease.holds(self.shared.now())", "true"),
        test: (
            HOST,
            "c20_f41_a_flush_with_two_backends_away_is_an_error_and_nothing_is_lost",
        ),
    },
    Bug {
        name: "answer-a-flush-one-record-early",
        file: "host/src/layout/distributed/volume/shared.rs",
        change: ("(core.done >= last)", "(core.done + 1 >= last)"),
        test: (
            HOST,
            "c20_f41_a_flush_with_two_backends_away_is_an_error_and_nothing_is_lost",
        ),
    },
];

/// All of them, or those whose names are given.
pub(crate) fn bugs(words: &[std::ffi::OsString]) -> Outcome {
    let wanted = |bug: &&Bug| words.is_empty() || words.iter().any(|word| word == bug.name);
    let bugs: Vec<&Bug> = BUGS.iter().filter(wanted).collect();
    if bugs.is_empty() {
        let names: Vec<&str> = BUGS.iter().map(|bug| bug.name).collect();
        return Err(format!("the bugs are {}", names.join(", ")));
    }
    let place = target().join("bugs");
    let source = place.join("source");
    copy(&source)?;
    let mut missed = Vec::new();
    for bug in bugs {
        println!("== {}", bug.name);
        match is_found(bug, &source, &place.join("target")) {
            Ok(()) => println!("   found by {}", bug.test.1),
            Err(error) => {
                println!("   {error}");
                missed.push(bug.name);
            }
        }
    }
    match missed.is_empty() {
        true => Ok(()),
        false => Err(format!("not found: {}", missed.join(", "))),
    }
}

/// What git knows, as it is now. Files that have not changed keep their age, so that little is built.
fn copy(to: &Path) -> Outcome {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .map_err(|error| format!("git: {error}"))?;
    for name in String::from_utf8_lossy(&listed.stdout).split('\0') {
        let (from, to) = (root().join(name), to.join(name));
        // A file that was deleted and not yet committed is listed, too.
        let Ok(bytes) = fs::read(&from) else {
            continue;
        };
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        let parent = to.parent().unwrap_or(&to);
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        fs::write(&to, bytes).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(())
}

/// Puts the bug in, runs its test, and takes it out again.
fn is_found(bug: &Bug, source: &Path, target: &Path) -> Outcome {
    let file = source.join(bug.file);
    let said = |error: std::io::Error| format!("{}: {error}", file.display());
    let sound = fs::read_to_string(&file).map_err(said)?;
    let (old, new) = bug.change;
    if sound.matches(old).count() != 1 {
        return Err(format!("{} is not what it was: {old:?}", bug.file));
    }
    fs::write(&file, sound.replace(old, new)).map_err(said)?;
    let tested = cargo()
        .args(["test", "--quiet"])
        .args(bug.test.0)
        .args(["--", bug.test.1])
        .current_dir(source)
        .env("CARGO_TARGET_DIR", target)
        .env("RUST_BACKTRACE", "0")
        .output();
    fs::write(&file, sound).map_err(said)?;
    let tested = tested.map_err(|error| format!("cargo: {error}"))?;
    let said = String::from_utf8_lossy(&tested.stdout);
    match (
        tested.status.success(),
        said.contains("test result: FAILED"),
    ) {
        (false, true) => Ok(()),
        (true, _) => Err(format!("{} passes all the same", bug.test.1)),
        (false, false) => Err(String::from_utf8_lossy(&tested.stderr).into_owned()),
    }
}
