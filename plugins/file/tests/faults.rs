//! A directory of objects when processes die, the disk is full, and names or links lead elsewhere.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_rs_file::backend::FileBackend;
use nbd_rs_plugin::conformance::host::{block_on, host};
use nbd_rs_plugin::{
    export_backend, Body, Bytes, Condition, GetFlags, Kind, Next, OpenFlags, OpenRequest, Piece,
    Range, Result,
};
use rustix::process::{setrlimit, Resource, Rlimit};

const OBJECT_BYTES: usize = 300_000;
const KEYS: u64 = 5;

fn open(dir: &Path) -> Next {
    let request = OpenRequest {
        scheme: "file".into(),
        target: dir.to_str().expect("a path in UTF-8").into(),
        options: Vec::new().into(),
        flags: OpenFlags::WRITE | OpenFlags::CREATE,
        inner: None.into(),
        reserved: [0; 4],
    };
    let opened = block_on(FileBackend::open(host(), request));
    Next::from(export_backend(opened.expect("the store opens")))
}

fn put(store: &Next, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<()> {
    let body = Body::One(Bytes::from(bytes));
    block_on(store.put(key, body, condition)).map(drop)
}

fn get(store: &Next, key: &str) -> Result<Vec<u8>> {
    let got = block_on(store.get(key, Range::ALL, GetFlags::NONE))?;
    let piece = |piece: &Piece| match piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        other => panic!("not memory: {other:?}"),
    };
    Ok(got.data.pieces().iter().flat_map(piece).collect())
}

/// The environment variable that makes this test binary the process that dies.
const CHILD: &str = "NBD_RS_FILE_TEST_CHILD";

/// The one that lets it write no file as large as an object.
const LIMITED: &str = "NBD_RS_FILE_TEST_LIMITED";

/// This binary again, to run the one test that only works as a child of another.
fn child(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "child_that_puts_until_it_dies"])
        .env(CHILD, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn end(mut child: Child) {
    // Ended by itself? The test sees what it left all the same.
    let _ = child.kill();
    let _ = child.wait();
}

/// Puts objects of one byte each, again and again. Alone it does nothing.
#[test]
fn child_that_puts_until_it_dies() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    if std::env::var_os(LIMITED).is_some() {
        let most = Some(OBJECT_BYTES as u64 / 2);
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        setrlimit(Resource::Fsize, limit).expect("a limit");
    }
    let store = open(Path::new(&dir));
    for round in 0..100_000_u64 {
        let key = format!("deep/er/{}", round % KEYS);
        let bytes = vec![round as u8; OBJECT_BYTES];
        if put(&store, &key, bytes, Condition::Always).is_err() {
            return;
        }
    }
}

/// Whether every object is whole, and how many there are.
fn whole_objects(store: &Next) -> usize {
    let keys = (0..KEYS).map(|key| format!("deep/er/{key}"));
    let found = keys.filter(|key| match get(store, key) {
        Ok(bytes) => {
            assert_eq!(bytes.len(), OBJECT_BYTES, "{key} is cut");
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{key} is mixed");
            true
        }
        Err(error) => {
            assert_eq!(error.kind, Kind::NotFound, "{key}: {error}");
            false
        }
    });
    found.count()
}

/// Files that lie in the store's directory, wherever.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path.display().to_string()),
        }
    }
    found
}

#[test]
fn c19_f01_a_put_whose_process_is_killed_leaves_the_old_object_or_the_new_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut seen = 0;
    for round in 0..40 {
        let child = child(dir.path()).spawn().expect("a child");
        std::thread::sleep(Duration::from_millis(5 + round * 3));
        end(child);
        let store = open(dir.path());
        let found = whole_objects(&store);
        assert!(found >= seen, "an object is gone");
        seen = found;
        // Opened for writing, the store has removed what was on its way.
        assert_eq!(files(dir.path()).len(), found, "{:?}", files(dir.path()));
    }
    assert_eq!(seen as u64, KEYS, "the children hardly came to anything");
}

#[test]
fn f14_f15_a_put_that_finds_no_space_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = child(dir.path());
    child.env(LIMITED, "");
    // The signal that a file-size limit raises kills this child, or the put fails: as good.
    child.status().expect("a child");
    let store = open(dir.path());
    assert_eq!(whole_objects(&store), 0);
    assert_eq!(files(dir.path()), Vec::<String>::new());
}

#[test]
fn u04_neither_names_nor_links_lead_out_of_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    fs::create_dir_all(&root).expect("a directory");
    fs::create_dir_all(&outside).expect("a directory");
    fs::write(outside.join("secret"), "secret").expect("a file");
    std::os::unix::fs::symlink(&outside, root.join("link")).expect("a link");
    std::os::unix::fs::symlink(outside.join("secret"), root.join("file")).expect("a link");
    let store = open(&root);
    for key in [
        "../outside/secret",
        "link/secret",
        "file",
        "/etc/passwd",
        "a//b",
        ".",
    ] {
        assert!(get(&store, key).is_err(), "{key} was read");
        assert!(
            put(&store, key, vec![1], Condition::IfAbsent).is_err(),
            "{key} was put"
        );
        let deleted = block_on(store.delete(vec![key.to_owned()]));
        // Refused, or nothing there that counts as an object: what matters is what is left.
        drop(deleted);
    }
    assert_eq!(fs::read(outside.join("secret")).expect("a file"), b"secret");
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 1);
}

#[test]
fn c19_of_two_processes_that_create_one_wins() {
    let dir = tempfile::tempdir().expect("a directory");
    let stores = [open(dir.path()), open(dir.path())];
    for round in 0..50 {
        let key = format!("race-{round}");
        let results: Vec<bool> = std::thread::scope(|scope| {
            let racer = |store| {
                let key = &key;
                scope.spawn(move || put(store, key, vec![7; 4096], Condition::IfAbsent).is_ok())
            };
            let racers: Vec<_> = stores.iter().map(racer).collect();
            racers
                .into_iter()
                .map(|racer| racer.join().expect("no panic"))
                .collect()
        });
        assert_eq!(
            results.iter().filter(|won| **won).count(),
            1,
            "round {round}"
        );
    }
}
