//! Puts that are cut off, and systems that fail: strace ends or fails a second process at each of
//! its calls.

mod common;
#[path = "../../../host/tests/common/tools.rs"]
#[allow(dead_code)]
mod tools;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use common::{open, tree, Store};
use nbd_rs_plugin::conformance::host::block_on;
use nbd_rs_plugin::{Body, Bytes, Condition, GetFlags, Kind, Next, OpenFlags, Range};

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

/// Small enough for the room that is kept for such objects.
const SMALL_LEN: usize = 16_444;

fn contents(version: u8, len: usize) -> Body {
    Bytes::from(vec![version; len]).into()
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
    let len = match std::env::var_os("NBD_RS_TEST_SMALL") {
        Some(_) => SMALL_LEN,
        None => LEN,
    };
    let next = open(Path::new(&root), OpenFlags::WRITE);
    let code = match block_on(next.put("a/b/c", contents(b'b', len), condition)) {
        Ok(_) => STORED,
        Err(error) => {
            eprintln!("{error}");
            FAILED + error.kind.0 as i32
        }
    };
    std::process::exit(code);
}

/// Runs the second process under strace with `inject`, several with spaces between; its code, or none
/// if it was killed.
fn put(root: &Path, inject: &str, variables: &[(&str, &str)]) -> Option<i32> {
    let mut command = Command::new("timeout");
    // A write beyond the limit is an error, not a signal that kills, as in the server.
    command.args(["60", "env", "--ignore-signal=XFSZ"]);
    command.args(["strace", "-f", "-qq", "-o", "/dev/null"]);
    for inject in inject.split_whitespace() {
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
fn prepared(old: bool, len: usize) -> Store {
    let store = Store::new();
    if old {
        let put = store
            .next
            .put("a/b/c", contents(b'a', len), Condition::Always);
        block_on(put).unwrap();
        block_on(store.next.close()).unwrap();
    }
    store
}

/// Which object there is after the next start, whole; nothing else may be there.
fn after_restart(store: &Store, what: &str, len: usize) -> Option<u8> {
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
            assert_eq!(bytes.len(), len, "{what}");
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
            let store = prepared(old, LEN);
            let inject = format!("{call}:signal=KILL:when={when}");
            let variables = [("NBD_RS_TEST_CONDITION", condition)];
            let ended = put(&store.root, &inject, &variables);
            let found = after_restart(&store, &inject, LEN);
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

/// No space is left for a file of its own, so the object is written to the room that is kept.
#[test]
fn c24_c19_an_object_replaced_without_space_is_old_or_new_wherever_that_is_killed() {
    if !tools::present(&["strace"]) {
        return;
    }
    let calls = [
        "openat",
        "openat2",
        "flock",
        "writev",
        "ftruncate",
        "utimensat",
        "fsync",
        "renameat2",
    ];
    // A quota is no other case.
    let store = prepared(true, SMALL_LEN);
    let quota = "writev:error=EDQUOT:when=1";
    let ended = put(&store.root, quota, &[("NBD_RS_TEST_SMALL", "")]);
    assert_eq!(ended, Some(STORED));
    assert_eq!(after_restart(&store, quota, SMALL_LEN), Some(b'b'));
    let full = "writev:error=ENOSPC:when=1";
    let mut kills = 0;
    for call in calls {
        for when in 1..40 {
            let store = prepared(true, SMALL_LEN);
            let (inject, first) = match call {
                // One thing at a time can be done to a call.
                "writev" => (format!("{full}+2"), when == 1),
                call => (format!("{full} {call}:signal=KILL:when={when}"), false),
            };
            let ended = put(&store.root, &inject, &[("NBD_RS_TEST_SMALL", "")]);
            let found = after_restart(&store, &inject, SMALL_LEN);
            assert!(matches!(found, Some(b'a' | b'b')), "{inject}: {found:?}");
            if first || ended.is_some() {
                assert_eq!(ended, Some(STORED), "{inject}");
                assert_eq!(found, Some(b'b'), "{inject}");
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 10, "only {kills} kills: does strace inject here?");
}

/// Fails each of the calls in turn with `errno`; gives the kinds that were answered.
fn failed_everywhere(calls: &[&str], errno: &str) -> Vec<(String, Kind)> {
    let mut kinds = Vec::new();
    for old in [false, true] {
        for call in calls {
            for when in 1..40 {
                let store = prepared(old, LEN);
                let inject = format!("{call}:error={errno}:when={when}");
                let code = put(&store.root, &inject, &[]).expect("nobody kills it");
                let found = after_restart(&store, &inject, LEN);
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
        let store = prepared(true, LEN);
        let inject = format!("{call}:error=EINTR:when=1+2");
        assert_eq!(put(&store.root, &inject, &[]), Some(STORED), "{call}");
        assert_eq!(after_restart(&store, call, LEN), Some(b'b'));
    }
}

#[test]
fn f15_a_file_size_limit_is_no_space() {
    if !tools::present(&["strace"]) {
        return;
    }
    for old in [false, true] {
        let store = prepared(old, LEN);
        // Part of the object fits: the first write is short, the second fails.
        let limit = [("NBD_RS_TEST_FILE_SIZE", "100000")];
        let code = put(&store.root, "", &limit);
        assert_eq!(code, Some(FAILED + Kind::NoSpace.0 as i32));
        assert_eq!(after_restart(&store, "limit", LEN), old.then_some(b'a'));
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

/// Somebody takes every bit of space that gets free, for as long as this lives.
struct Hog {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hog {
    fn start(path: std::path::PathBuf, files: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let (told, is_full) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut file = std::fs::File::create(&path).unwrap();
            for number in 0.. {
                let taken = match files {
                    true => std::fs::File::create(path.with_extension(number.to_string())).is_ok(),
                    false => file.write(&[7; 4096]).is_ok(),
                };
                if !taken {
                    let _ = told.send(());
                }
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        is_full.recv().expect("it gets full");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// On a tmpfs with these limits.
fn on_small_disk(limits: &str, test: impl FnOnce(&Path) + std::panic::UnwindSafe) {
    if !rustix::process::geteuid().is_root() {
        tools::skip("needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display().to_string();
    tools::run("mount", &["-t", "tmpfs", "-o", limits, "tmpfs", &at]);
    let done = std::panic::catch_unwind(|| test(dir.path()));
    tools::run("umount", &["-l", &at]);
    done.unwrap();
}

#[test]
fn c24_small_objects_are_replaced_without_space_and_without_a_file_of_their_own() {
    for (limits, files) in [("size=4m", false), ("size=4m,nr_inodes=100", true)] {
        on_small_disk(limits, |dir| {
            let root = dir.join("root");
            let flags = OpenFlags::WRITE | OpenFlags::CREATE;
            let mut next = open(&root, flags);
            let put = |next: &Next, key: &str, version: u8, len, condition| {
                let put = next.put(key, contents(version, len), condition);
                block_on(put).map(|put| put.etag)
            };
            let objects = [("owner", 130), ("index", 61), ("state/page", SMALL_LEN)];
            let mut etags =
                objects.map(|(key, len)| put(&next, key, 0, len, Condition::IfAbsent).unwrap());
            let hog = Hog::start(dir.join("hog"), files);
            for version in 1..60 {
                if version % 20 == 0 {
                    block_on(next.close()).unwrap();
                    next = open(&root, OpenFlags::WRITE);
                }
                for (at, (key, len)) in objects.into_iter().enumerate() {
                    let condition = Condition::IfMatch(etags[at].clone());
                    let replaced = put(&next, key, version, len, condition.clone());
                    let replaced =
                        replaced.unwrap_or_else(|error| panic!("{limits}: {key}: {error}"));
                    assert_ne!(replaced, etags[at]);
                    etags[at] = replaced;
                    let late = put(&next, key, 0xff, len, condition).unwrap_err();
                    assert_eq!(late.kind, Kind::Precondition);
                    let got = block_on(next.get(key, Range::ALL, GetFlags::NONE)).unwrap();
                    assert_eq!(common::bytes_of(&got.data), vec![version; len], "{key}");
                }
                let new = put(&next, "new", 1, SMALL_LEN, Condition::Always);
                assert_eq!(new.unwrap_err().kind, Kind::NoSpace, "{limits}");
            }
            drop(hog);
            let keys = objects.map(|(key, _)| key.to_owned());
            let deleted = block_on(next.delete(keys.to_vec())).unwrap();
            assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
            block_on(next.close()).unwrap();
            assert!(root.read_dir().unwrap().next().is_none(), "room was left");
        });
    }
}

/// The file of a replaced object is written to when another one is replaced.
#[test]
fn c19_c24_who_reads_while_objects_are_replaced_without_space_sees_them_whole() {
    on_small_disk("size=2m", |dir| {
        let next = open(&dir.join("root"), OpenFlags::WRITE | OpenFlags::CREATE);
        let put = |version| {
            let put = next.put("page", contents(version, SMALL_LEN), Condition::Always);
            block_on(put).unwrap();
        };
        put(0);
        let _hog = Hog::start(dir.join("hog"), false);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // So many that some of them are stopped in the middle of a read.
            for _ in 0..24 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let got = block_on(next.get("page", Range::ALL, GetFlags::NONE));
                        let bytes = common::bytes_of(&got.unwrap().data);
                        let whole = bytes.iter().all(|byte| *byte == bytes[0]);
                        assert!(whole && bytes.len() == SMALL_LEN, "torn");
                    }
                });
            }
            (0..2000_u32).for_each(|version| put(version as u8));
            over.store(true, Ordering::Relaxed);
        });
    });
}
