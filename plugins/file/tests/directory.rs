//! A directory of objects: what others may do to it, and where names lead.

mod common;

use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};

use common::{body, open, open_error, Store};
use nbd_rs_plugin::conformance::host::block_on;
use nbd_rs_plugin::{Condition, GetFlags, Kind, ObjectFlags, ObjectMode, OpenFlags, Range};

#[test]
fn u04_no_call_takes_a_name_that_leads_elsewhere() {
    let store = Store::new();
    std::fs::write(store.dir.path().join("outside"), "secret").unwrap();
    for key in [
        "",
        "/etc/hostname",
        "../outside",
        "a/../../outside",
        "a//b",
        "a/",
        ".",
        "a\0b",
    ] {
        let next = &store.next;
        let mode = ObjectMode::create(ObjectFlags::WRITE | ObjectFlags::CREATE, 1);
        let kinds = [
            block_on(next.get(key, Range::ALL, GetFlags::NONE))
                .unwrap_err()
                .kind,
            block_on(next.head(key, GetFlags::NONE)).unwrap_err().kind,
            block_on(next.put(key, body("x"), Condition::Always))
                .unwrap_err()
                .kind,
            block_on(next.open_object(key, mode)).unwrap_err().kind,
        ];
        assert_eq!(kinds, [Kind::Invalid; 4], "{key:?}");
        let deleted = block_on(next.delete(vec![key.to_owned()]))
            .unwrap()
            .remove(0);
        assert_eq!(deleted.unwrap_err().kind, Kind::Invalid, "{key:?}");
    }
    assert_eq!(
        std::fs::read(store.dir.path().join("outside")).unwrap(),
        b"secret"
    );
    assert_eq!(store.tree(), Vec::<String>::new());
}

#[test]
fn u04_symbolic_links_below_the_root_are_not_followed_and_the_root_may_be_one() {
    let store = Store::new();
    let outside = store.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "secret").unwrap();
    symlink(&outside, store.root.join("dir")).unwrap();
    symlink(outside.join("file"), store.root.join("link")).unwrap();
    for key in ["dir/file", "link"] {
        assert_eq!(store.get(key).unwrap_err().kind, Kind::Invalid, "{key}");
        assert_eq!(
            store.put(key, "x").unwrap_err().kind,
            Kind::Invalid,
            "{key}"
        );
        let deleted = block_on(store.next.delete(vec![key.to_owned()]))
            .unwrap()
            .remove(0);
        assert_eq!(deleted.unwrap_err().kind, Kind::Invalid, "{key}");
    }
    let listed = block_on(store.next.list("", None)).unwrap();
    assert_eq!(listed.items.len(), 0);
    assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"secret");

    let alias = store.dir.path().join("alias");
    symlink(&store.root, &alias).unwrap();
    let next = open(&alias, OpenFlags::WRITE);
    block_on(next.put("through", body("x"), Condition::Always)).unwrap();
    assert_eq!(store.get("through").unwrap(), b"x");
}

#[test]
fn a_missing_root_is_not_a_missing_object() {
    let store = Store::new();
    store.put("a/b", "x").unwrap();
    std::fs::remove_dir_all(&store.root).unwrap();
    assert_eq!(store.get("a/b").unwrap_err().kind, Kind::Io);
    let head = block_on(store.next.head("a/b", GetFlags::NONE));
    assert_eq!(head.unwrap_err().kind, Kind::Io);
    assert_eq!(store.put("a/b", "x").unwrap_err().kind, Kind::Io);
    assert_eq!(
        block_on(store.next.list("", None)).unwrap_err().kind,
        Kind::Io
    );
    assert_eq!(
        block_on(store.next.delete(vec!["a/b".into()]))
            .unwrap_err()
            .kind,
        Kind::Io
    );
    let error = open_error(&store.root, OpenFlags::WRITE);
    assert_eq!(error.kind, Kind::NotFound, "the store itself is not there");
}

#[test]
fn an_object_is_not_the_directory_of_others() {
    let store = Store::new();
    store.put("a/b", "x").unwrap();
    assert_eq!(store.put("a", "x").unwrap_err().kind, Kind::Invalid);
    assert_eq!(store.put("a/b/c", "x").unwrap_err().kind, Kind::Invalid);
    assert_eq!(store.get("a").unwrap_err().kind, Kind::NotFound);
    assert_eq!(store.get("a/b/c").unwrap_err().kind, Kind::NotFound);
    let deleted = block_on(store.next.delete(vec!["a".into(), "a/b/c".into()]));
    assert!(deleted.unwrap().into_iter().all(|result| result.is_ok()));
    assert_eq!(store.get("a/b").unwrap(), b"x");
}

#[test]
fn a_change_by_another_process_is_seen_at_once() {
    let store = Store::new();
    let other = open(&store.root, OpenFlags::WRITE);
    for round in 0..20 {
        let text = format!("round {round}");
        block_on(other.put("a/b", body(&text), Condition::Always)).unwrap();
        assert_eq!(store.get("a/b").unwrap(), text.as_bytes());
        block_on(other.delete(vec!["a/b".into()])).unwrap();
        assert_eq!(store.get("a/b").unwrap_err().kind, Kind::NotFound);
    }
}

/// ext4 says EPERM, not ENOENT, to a file without a name in a directory that was removed: a put
/// failed when a delete had emptied its directory.
#[test]
fn deletes_of_the_last_object_never_make_a_put_fail() {
    let store = Store::new();
    let other = open(&store.root, OpenFlags::WRITE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..300 {
                block_on(other.put("a/b/old", body("old"), Condition::Always)).unwrap();
                let deleted = block_on(other.delete(vec!["a/b/old".into()])).unwrap();
                assert_eq!(deleted, [Ok(())]);
            }
        });
        for round in 0..300 {
            let text = format!("{round}");
            store.put("a/b/new", &text).unwrap();
            assert_eq!(store.get("a/b/new").unwrap(), text.as_bytes());
            block_on(store.next.delete(vec!["a/b/new".into()])).unwrap();
        }
    });
    assert_eq!(store.tree(), Vec::<String>::new());
}

/// Two stores on one directory stand for two processes: each has a lock of its own.
#[test]
fn c19_conditions_hold_against_other_openers() {
    let store = Store::new();
    let stores: Vec<_> = (0..4)
        .map(|_| open(&store.root, OpenFlags::WRITE))
        .collect();
    store.put("counter", "0").unwrap();
    let rounds = 25;
    std::thread::scope(|scope| {
        for next in &stores {
            scope.spawn(move || {
                for _ in 0..rounds {
                    loop {
                        let got = next.get("counter", Range::ALL, GetFlags::WANT_META);
                        let got = block_on(got).unwrap();
                        let etag = got.meta.into_option().unwrap().etag;
                        let number = common::bytes_of(&got.data);
                        let number: u32 = String::from_utf8(number).unwrap().parse().unwrap();
                        let more = body(&format!("{}", number + 1));
                        let put = next.put("counter", more, Condition::IfMatch(etag));
                        match block_on(put) {
                            Ok(_) => break,
                            Err(error) => assert_eq!(error.kind, Kind::Precondition, "{error}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(
        store.get("counter").unwrap(),
        (4 * rounds).to_string().as_bytes()
    );
    block_on(store.next.close()).unwrap();
    assert_eq!(store.tree(), ["counter"]);
}

#[test]
fn somebody_elses_files_stay_where_they_are() {
    let store = Store::new();
    let temporary = store.root.join(".nbd-rs-tmp");
    std::fs::create_dir(&temporary).unwrap();
    for name in ["put-0123456789abcdef", "put-0123", "notes"] {
        std::fs::write(temporary.join(name), "x").unwrap();
    }
    symlink("/etc/hostname", temporary.join("put-00000000000000aa")).unwrap();
    std::fs::create_dir(temporary.join("put-00000000000000bb")).unwrap();
    let in_use = temporary.join("put-00000000000000cc");
    let writer = std::fs::File::create(&in_use).unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();

    drop(open(&store.root, OpenFlags::NONE));
    assert_eq!(store.tree().len(), 6, "opened to read, it changes nothing");
    drop(open(&store.root, OpenFlags::WRITE));
    let mut left = store.tree();
    left.sort();
    let expected = [
        "notes",
        "put-00000000000000aa",
        "put-00000000000000bb",
        "put-00000000000000cc",
        "put-0123",
    ];
    let expected = expected.map(|name| format!(".nbd-rs-tmp/{name}"));
    assert_eq!(left, expected);
    drop(writer);
    drop(open(&store.root, OpenFlags::WRITE));
    assert!(!in_use.exists(), "its writer is gone, it stays");
}

#[test]
fn objects_of_other_kinds_are_refused_and_not_waited_for() {
    let store = Store::new();
    let fifo = store.root.join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(store.get("fifo").unwrap_err().kind, Kind::Invalid);
    assert_eq!(store.put("fifo", "x").unwrap_err().kind, Kind::Invalid);
    assert!(fifo.exists());
}

#[test]
fn a_directory_of_somebody_else_is_an_error_and_not_an_absence() {
    if rustix::process::geteuid().is_root() {
        return; // Root may read it all the same.
    }
    let store = Store::new();
    store.put("a/b", "x").unwrap();
    std::fs::set_permissions(store.root.join("a"), PermissionsExt::from_mode(0o000)).unwrap();
    assert_eq!(store.get("a/b").unwrap_err().kind, Kind::Denied);
    std::fs::set_permissions(store.root.join("a"), PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn an_object_in_place_is_made_whole_and_opened_by_name() {
    let store = Store::new();
    let flags = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::LOCK;
    let mode = ObjectMode::create(flags, 12_345);
    let object = block_on(store.next.open_object("deep/in/here", mode)).unwrap();
    let path = store.root.join("deep/in/here");
    assert_eq!(std::fs::metadata(&path).unwrap().size(), 12_345);
    let second = block_on(store.next.open_object("deep/in/here", mode)).unwrap_err();
    assert_eq!(second.kind, Kind::Busy);
    drop(object);
    block_on(store.next.open_object("deep/in/here", mode)).unwrap();
}
