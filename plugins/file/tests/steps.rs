//! Puts that are cut off, and systems that fail: strace ends or fails a second process at each of
//! its calls.

mod common;
#[path = "../../../host/tests/common/tools.rs"]
#[allow(dead_code)]
mod tools;

use std::path::Path;
use std::process::Command;

use common::{open, tree, Store};
use nbd_rs_plugin::conformance::host::block_on;
use nbd_rs_plugin::{Body, Bytes, Condition, Kind, OpenFlags};

const LEN: usize = 300_000;
/// What the second process answers is this and the number of the error's kind.
const FAILED: i32 = 100;
const STORED: i32 = 99;
/// Every call that a put makes and that changes something.
const CALLS: [&str; 10] = [
    "openat2",
    "openat",
    "mkdirat",
    "writev",
    "utimensat",
    "fsync",
    "flock",
    "linkat",
    "renameat",
    "unlinkat",
];

fn contents(version: u8) -> Body {
    Bytes::from(vec![version; LEN]).into()
}

/// Not a test of its own: the second process. It stores `b` in the object `a/b/c`.
#[test]
fn second_process() {
    let Ok(root) = std::env::var("NBD_RS_TEST_ROOT") else {
        return;
    };
    if let Ok(limit) = std::env::var("NBD_RS_TEST_FILE_SIZE") {
        let limit = Some(limit.parse().unwrap());
        let limit = rustix::process::Rlimit {
            current: limit,
            maximum: limit,
        };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    }
    let condition = match std::env::var("NBD_RS_TEST_CONDITION").as_deref() {
        Ok("absent") => Condition::IfAbsent,
        _ => Condition::Always,
    };
    let next = open(Path::new(&root), OpenFlags::WRITE);
    let code = match block_on(next.put("a/b/c", contents(b'b'), condition)) {
        Ok(_) => STORED,
        Err(error) => {
            eprintln!("{error}");
            FAILED + error.kind.0 as i32
        }
    };
    std::process::exit(code);
}

/// Runs the second process under strace with `inject`; its code, or none if it was killed.
fn put(root: &Path, inject: &str, variables: &[(&str, &str)]) -> Option<i32> {
    let mut command = Command::new("timeout");
    // A write beyond the limit is an error, not a signal that kills, as in the server.
    command.args(["60", "env", "--ignore-signal=XFSZ"]);
    command.args(["strace", "-f", "-qq", "-o", "/dev/null"]);
    if !inject.is_empty() {
        command.args(["-e", &format!("inject={inject}")]);
    }
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "second_process", "--nocapture"]);
    command.env("NBD_RS_TEST_ROOT", root);
    command.envs(variables.iter().copied());
    let output = command.output().unwrap();
    match output.status.code() {
        // timeout(1) and strace end as the process did.
        Some(137) | None => None,
        code => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(code >= Some(STORED), "{inject}: {code:?} {said}");
            code
        }
    }
}

/// The store before the put: empty, or with an old object.
fn prepared(old: bool) -> Store {
    let store = Store::new();
    if old {
        let put = store.next.put("a/b/c", contents(b'a'), Condition::Always);
        block_on(put).unwrap();
        block_on(store.next.close()).unwrap();
    }
    store
}

/// Which object there is after the next start, whole; nothing else may be there.
fn after_restart(store: &Store, what: &str) -> Option<u8> {
    drop(open(&store.root, OpenFlags::WRITE));
    let files: Vec<String> = tree(&store.root)
        .into_iter()
        .filter(|path| !store.root.join(path).is_dir())
        .collect();
    match files.as_slice() {
        [] => None,
        [only] => {
            assert_eq!(only, "a/b/c", "{what}");
            let bytes = store.get("a/b/c").unwrap();
            assert_eq!(bytes.len(), LEN, "{what}");
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{what}: torn");
            Some(bytes[0])
        }
        more => panic!("{what}: left behind: {more:?}"),
    }
}

fn killed_everywhere(old: bool, condition: &str) {
    if !tools::present(&["strace"]) {
        return;
    }
    let before = old.then_some(b'a');
    let mut kills = 0;
    for call in CALLS {
        for when in 1..40 {
            let store = prepared(old);
            let inject = format!("{call}:signal=KILL:when={when}");
            let variables = [("NBD_RS_TEST_CONDITION", condition)];
            let ended = put(&store.root, &inject, &variables);
            let found = after_restart(&store, &inject);
            assert!(
                found == before || found == Some(b'b'),
                "{inject}: {found:?}"
            );
            if ended.is_some() {
                assert_eq!(found, Some(b'b'), "{inject}");
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 15, "only {kills} kills: does strace inject here?");
}

#[test]
fn c19_a_new_object_is_absent_or_whole_wherever_a_put_is_killed() {
    killed_everywhere(false, "always");
}

#[test]
fn c19_a_put_if_absent_is_absent_or_whole_wherever_it_is_killed() {
    killed_everywhere(false, "absent");
}

#[test]
fn c19_a_replaced_object_is_old_or_new_wherever_a_put_is_killed() {
    killed_everywhere(true, "always");
}

/// Fails each of the calls in turn with `errno`; gives the kinds that were answered.
fn failed_everywhere(calls: &[&str], errno: &str) -> Vec<(String, Kind)> {
    let mut kinds = Vec::new();
    for old in [false, true] {
        for call in calls {
            for when in 1..40 {
                let store = prepared(old);
                let inject = format!("{call}:error={errno}:when={when}");
                let code = put(&store.root, &inject, &[]).expect("nobody kills it");
                let found = after_restart(&store, &inject);
                if code == STORED {
                    assert_eq!(found, Some(b'b'), "{inject}");
                    break;
                }
                let kind = Kind((code - FAILED) as u32);
                // Only who does not know may have stored it.
                let before = old.then_some(b'a');
                let stored = kind == Kind::Ambiguous && found == Some(b'b');
                assert!(found == before || stored, "{inject}: {kind}, {found:?}");
                kinds.push((inject, kind));
            }
        }
    }
    kinds
}

#[test]
fn f14_no_space_at_any_step_leaves_no_object_and_no_temporary_file() {
    if !tools::present(&["strace"]) {
        return;
    }
    let kinds = failed_everywhere(&["writev", "linkat", "renameat", "mkdirat"], "ENOSPC");
    assert!(kinds.len() >= 6, "{kinds:?}");
    for (inject, kind) in kinds {
        assert_eq!(kind, Kind::NoSpace, "{inject}");
    }
}

#[test]
fn f19_a_sync_that_fails_is_an_error_of_the_put() {
    if !tools::present(&["strace"]) {
        return;
    }
    let kinds = failed_everywhere(&["fsync"], "EIO");
    let of = |kind| kinds.iter().filter(|(_, seen)| *seen == kind).count();
    assert!(of(Kind::Io) >= 2, "{kinds:?}");
    assert!(of(Kind::Ambiguous) >= 2, "{kinds:?}");
    assert_eq!(of(Kind::Io) + of(Kind::Ambiguous), kinds.len(), "{kinds:?}");
}

#[test]
fn f17_interrupted_calls_are_made_again() {
    if !tools::present(&["strace"]) {
        return;
    }
    for call in ["writev", "flock", "openat2"] {
        let store = prepared(true);
        let inject = format!("{call}:error=EINTR:when=1+2");
        assert_eq!(put(&store.root, &inject, &[]), Some(STORED), "{call}");
        assert_eq!(after_restart(&store, call), Some(b'b'));
    }
}

#[test]
fn f15_a_file_size_limit_is_no_space() {
    if !tools::present(&["strace"]) {
        return;
    }
    for old in [false, true] {
        let store = prepared(old);
        // Part of the object fits: the first write is short, the second fails.
        let limit = [("NBD_RS_TEST_FILE_SIZE", "100000")];
        let code = put(&store.root, "", &limit);
        assert_eq!(code, Some(FAILED + Kind::NoSpace.0 as i32));
        assert_eq!(after_restart(&store, "limit"), old.then_some(b'a'));
    }
}

#[test]
fn f14_a_full_file_system_keeps_what_it_has() {
    if !rustix::process::geteuid().is_root() {
        tools::skip("needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display().to_string();
    tools::run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &at]);
    let mounted = std::panic::catch_unwind(|| {
        let next = open(dir.path(), OpenFlags::WRITE);
        let put = |key: &str, len: usize| {
            let body = Bytes::from(vec![7; len]).into();
            block_on(next.put(key, body, Condition::Always))
        };
        put("d/kept", 100_000).unwrap();
        assert_eq!(put("d/kept", 2 << 20).unwrap_err().kind, Kind::NoSpace);
        assert_eq!(put("e/new", 2 << 20).unwrap_err().kind, Kind::NoSpace);
        assert_eq!(tree(dir.path()), ["d/kept"]);
        put("e/new", 800_000).unwrap();
    });
    tools::run("umount", &["-l", &at]);
    mounted.unwrap();
}
