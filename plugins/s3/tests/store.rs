//! The store on a server that keeps the rules: each operation, and what is said of it.

mod common;

use std::sync::Arc;

use common::exercise::exercise;
use common::{block_on, body, conforms, get, kind, names, open, request, Bench};
use nbd_rs_plugin::{
    Body, Bytes, CapabilityFlags, Condition, GetFlags, Kind, ObjectFlags, ObjectMode, OpenFlags,
    Range,
};
use nbd_rs_s3::backend::S3Backend;
use nbd_rs_s3_server::{Fault, Quirks, Rule, Server, BUCKET};

#[test]
fn the_suite_of_every_backend_is_passed() {
    for folder_order in [false, true] {
        let server = Server::start();
        server.set_quirks(Quirks {
            folder_order,
            ..Quirks::default()
        });
        conforms(&open(&server.target(""), &[]).unwrap(), 10, &[]);
        assert_eq!(server.keys(), Vec::<String>::new());
        assert_eq!(server.broken(), Vec::<String>::new());
    }
}

#[test]
fn the_bucket_may_stand_in_the_host() {
    let server = Server::start();
    let style = [("style", "virtual")];
    let store = open(&server.named_target(""), &style).unwrap();
    conforms(&store, 10, &[]);
    exercise(&store);
    // One that does not exist is made there, too.
    let target = server.named_target("p/").replace(BUCKET, "other");
    let made = [("create_bucket", "true"), style[0]];
    let other = open(&target, &made).unwrap();
    block_on(other.put("k", body(b"x"), Condition::Always)).unwrap();
    assert_eq!(get(&other, "k", Range::ALL).unwrap(), b"x");
    assert_eq!(server.keys(), Vec::<String>::new(), "of the first bucket");
    let port = server.address().port();
    for seen in server.seen() {
        let host = seen.header("host").unwrap();
        let hosts = [BUCKET, "other"].map(|bucket| format!("{bucket}.localhost:{port}"));
        assert!(hosts.iter().any(|known| known == host), "{host}");
        let in_path = seen.target.starts_with(&format!("/{BUCKET}"));
        assert!(!in_path, "{}", seen.target);
    }
    assert_eq!(server.broken(), Vec::<String>::new());
}

#[test]
fn a_bucket_in_the_host_is_the_name_that_the_certificate_must_have() {
    let dir = tempfile::tempdir().unwrap();
    for (name, fits) in [("bucket.localhost", true), ("localhost", false)] {
        let server = Server::start_tls(name);
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, server.ca().unwrap()).unwrap();
        let target = server.named_target("p/").replace("http:", "https:");
        let options = [("style", "virtual"), ("ca", ca.to_str().unwrap())];
        match open(&target, &options) {
            Ok(store) => {
                assert!(fits, "{name}");
                block_on(store.put("k", body(b"x"), Condition::Always)).unwrap();
                assert_eq!(server.object("p/k").unwrap(), b"x");
            }
            Err(error) => assert!(!fits, "{name}: {error}"),
        }
    }
}

#[test]
fn f45_a_server_that_walks_folders_loses_no_name_between_pages() {
    let bench = Bench::new();
    bench.server.set_quirks(Quirks {
        folder_order: true,
        ..Quirks::default()
    });
    let mut expected: Vec<String> = (0..1500).map(|at| format!("d/{at:05}")).collect();
    expected.extend(["d.x", "d-", "d", "e", "d0"].map(str::to_owned));
    for key in &expected {
        bench.server.insert(&format!("p/{key}"), b"");
    }
    expected.sort();
    assert_eq!(names(&bench.store, ""), expected);
    let page = block_on(bench.store.list("", Some("d.x"))).unwrap();
    assert_eq!(page.items[0].key.as_str(), "d/00000");
}

#[test]
fn f45_a_listing_that_does_not_go_on_is_an_error() {
    let bench = Bench::new();
    let endless =
        "<ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated></ListBucketResult>";
    bench.next("GET", Fault::answer(200, &[], endless));
    assert_eq!(kind(block_on(bench.store.list("", None))), Kind::Io);
}

#[test]
fn what_is_put_is_read_whole_and_by_ranges() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|at| at as u8 ^ (at >> 8) as u8)
        .collect();
    let put = bench.put("a/b c+ä%&=?#~!'()*", &bytes).unwrap();
    let read = |range| bench.get("a/b c+ä%&=?#~!'()*", range).unwrap();
    assert_eq!(read(Range::ALL), bytes);
    assert_eq!(read(Range::new(0, 1)), bytes[..1]);
    assert_eq!(
        read(Range::new(123_456, 1_000_000)),
        bytes[123_456..1_123_456]
    );
    assert_eq!(
        read(Range::new(2_999_999, Range::TO_END)),
        bytes[2_999_999..]
    );
    let meta = block_on(bench.store.head("a/b c+ä%&=?#~!'()*", GetFlags::NONE)).unwrap();
    assert_eq!((meta.size, &meta.etag), (3_000_000, &put.etag));
    assert!(meta.modified_ms > 1_700_000_000_000);
    assert!(!meta.etag.contains('"'));
    assert_eq!(bench.server.broken(), Vec::<String>::new());
}

#[test]
fn empty_ranges_and_empty_objects_are_read() {
    let bench = Bench::new();
    bench.put("empty", b"").unwrap();
    bench.put("ten", b"0123456789").unwrap();
    for (key, offset, len, expected) in [
        ("empty", 0, Range::TO_END, Ok(b"".to_vec())),
        ("empty", 0, 0, Ok(b"".to_vec())),
        ("empty", 1, Range::TO_END, Err(Kind::Invalid)),
        ("empty", 0, 1, Err(Kind::Invalid)),
        ("ten", 10, Range::TO_END, Ok(b"".to_vec())),
        ("ten", 10, 0, Ok(b"".to_vec())),
        ("ten", 11, 0, Err(Kind::Invalid)),
        ("ten", 11, Range::TO_END, Err(Kind::Invalid)),
        ("ten", 5, 6, Err(Kind::Invalid)),
        ("ten", 10, 1, Err(Kind::Invalid)),
        ("ten", u64::MAX, 5, Err(Kind::Invalid)),
        ("none", 0, 0, Err(Kind::NotFound)),
        ("none", 0, 1, Err(Kind::NotFound)),
    ] {
        let found = bench
            .get(key, Range::new(offset, len))
            .map_err(|error| error.kind);
        assert_eq!(found, expected, "{key} {offset} {len}");
    }
}

#[test]
fn meta_is_given_when_it_is_wanted() {
    let bench = Bench::new();
    let etag = bench.put("k", b"0123456789").unwrap().etag;
    for range in [Range::ALL, Range::new(2, 3), Range::new(10, 0)] {
        let got = block_on(bench.store.get("k", range, GetFlags::WANT_META)).unwrap();
        let meta = got.meta.into_option().unwrap();
        assert_eq!((meta.size, &meta.etag, meta.key.as_str()), (10, &etag, "k"));
        let got = block_on(bench.store.get("k", range, GetFlags::NONE)).unwrap();
        assert!(got.meta.is_none());
    }
}

#[test]
fn conditions_are_kept() {
    let bench = Bench::new();
    let first = bench.put_if("k", b"1", Condition::IfAbsent).unwrap();
    assert_eq!(
        kind(bench.put_if("k", b"2", Condition::IfAbsent)),
        Kind::Exists
    );
    let second = bench
        .put_if("k", b"2", Condition::IfMatch(first.etag.clone()))
        .unwrap();
    let late = bench.put_if("k", b"3", Condition::IfMatch(first.etag));
    assert_eq!(kind(late), Kind::Precondition);
    let gone = bench.put_if("none", b"3", Condition::IfMatch(second.etag));
    assert_eq!(kind(gone), Kind::Precondition);
    let nothing = bench.put_if("k", b"3", Condition::IfMatch("".into()));
    assert_eq!(kind(nothing), Kind::Invalid);
    assert_eq!(bench.server.object("p/k").unwrap(), b"2");
}

#[test]
fn many_pieces_are_one_body_and_none_is_copied() {
    struct Counted(Vec<u8>, #[allow(dead_code)] Arc<()>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    for checksum in ["crc32c", "none", "signed"] {
        let bench = Bench::with(&[("checksum", checksum)]);
        let alive = Arc::new(());
        let piece =
            |at: u8| Bytes::from_owner(Counted(vec![at; 10_000 + at as usize], alive.clone()));
        let pieces: Vec<Bytes> = (0..64).map(piece).collect();
        let expected: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let body = Body::Many(pieces.into());
        block_on(bench.store.put("k", body, Condition::Always)).unwrap();
        assert_eq!(bench.server.object("p/k").unwrap(), expected);
        assert_eq!(bench.server.broken(), Vec::<String>::new());
        let seen = bench.server.seen().pop().unwrap();
        assert_eq!(
            seen.header("content-length"),
            Some(expected.len().to_string().as_str())
        );
        let signed = seen.header("x-amz-content-sha256") != Some("UNSIGNED-PAYLOAD");
        let summed = seen.header("x-amz-checksum-crc32c").is_some();
        assert_eq!(
            (signed, summed),
            (checksum == "signed", checksum == "crc32c")
        );
        // What was lent is given back.
        let back = || Arc::strong_count(&alive) == 1;
        let start = std::time::Instant::now();
        while !back() && start.elapsed().as_secs() < 5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(back());
    }
}

#[test]
fn bulk_deletes_answer_for_each_key() {
    let bench = Bench::new();
    let keys: Vec<String> = (0..2100).map(|at| format!("d/{at:04}")).collect();
    for key in &keys {
        bench.server.insert(&format!("p/{key}"), b"x");
    }
    bench.server.insert("p/d/<&>'\"", b"x");
    bench.server.insert("p/undeletable", b"x");
    bench.server.insert("q/0", b"x");
    let mut asked = keys.clone();
    asked.insert(5, "undeletable".into());
    asked.insert(0, "d/<&>'\"".into());
    asked.push("d/never".into());
    asked.push("a//b".into());
    let before = bench.server.seen().len();
    let results = block_on(bench.store.delete(asked.clone())).unwrap();
    assert_eq!(bench.server.seen().len() - before, 3);
    assert_eq!(results.len(), asked.len());
    for (key, result) in asked.iter().zip(results) {
        match key.as_str() {
            "undeletable" => assert_eq!(kind(result), Kind::Denied),
            "a//b" => assert_eq!(kind(result), Kind::Invalid),
            _ => assert!(result.is_ok(), "{key}: {result:?}"),
        }
    }
    assert_eq!(bench.server.keys(), ["p/undeletable", "q/0"]);
    assert_eq!(bench.server.broken(), Vec::<String>::new());
    assert!(block_on(bench.store.delete(Vec::new())).unwrap().is_empty());
}

#[test]
fn without_bulk_deletes_objects_are_deleted_one_by_one() {
    let bench = Bench::new();
    bench.server.set_quirks(Quirks {
        no_bulk_delete: true,
        ..Quirks::default()
    });
    bench.put("a", b"x").unwrap();
    bench.put("b", b"x").unwrap();
    let results = block_on(bench.store.delete(vec!["a".into(), "b".into(), "c".into()])).unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(bench.server.keys().is_empty());
}

#[test]
fn listings_come_in_pages_and_stay_below_the_prefix() {
    let bench = Bench::new();
    let mut expected = Vec::new();
    for at in 0..1500 {
        bench.server.insert(&format!("p/l/{at:05}"), b"123");
        expected.push(format!("l/{at:05}"));
    }
    for key in ["p", "p/", "p/k", "p0/l/1", "o/l/2", "p/l/x/"] {
        bench.server.insert(key, b"");
    }
    assert_eq!(names(&bench.store, "l/"), expected);
    assert_eq!(names(&bench.store, "l/0000"), expected[..10]);
    assert_eq!(names(&bench.store, "k"), ["k"]);
    let page = block_on(bench.store.list("l/", Some("l/01498"))).unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(
        (page.items[0].size, page.items[0].key.as_str()),
        (3, "l/01499")
    );
    assert!(page.next.is_none());
}

#[test]
fn c22_conditions_are_promised_only_where_they_are_kept() {
    let server = Server::start();
    let promises = |quirks, options: &[(&str, &str)]| {
        server.set_quirks(quirks);
        let flags = open(&server.target("p"), options)
            .unwrap()
            .capabilities()
            .flags;
        (
            flags.has(CapabilityFlags::IF_ABSENT),
            flags.has(CapabilityFlags::IF_MATCH),
        )
    };
    let quirks = Quirks::default();
    assert_eq!(promises(quirks, &[]), (true, true));
    assert_eq!(
        promises(
            Quirks {
                no_conditions: true,
                ..quirks
            },
            &[]
        ),
        (false, false)
    );
    assert_eq!(
        promises(
            Quirks {
                no_etags: true,
                ..quirks
            },
            &[]
        ),
        (true, false)
    );
    assert_eq!(promises(quirks, &[("conditions", "no")]), (false, false));
    assert_eq!(
        promises(
            Quirks {
                no_conditions: true,
                ..quirks
            },
            &[("conditions", "yes")]
        ),
        (true, true)
    );
    // What the probe wrote is gone again.
    assert_eq!(server.keys(), Vec::<String>::new());
}

#[test]
fn f47_a_store_that_ignores_conditions_is_found_out_when_it_is_opened() {
    let server = Server::start();
    server.set_quirks(Quirks {
        no_conditions: true,
        ..Quirks::default()
    });
    let store = open(&server.target("p"), &[]).unwrap();
    assert!(!store.capabilities().has(CapabilityFlags::IF_ABSENT));
    assert!(store.capabilities().has(CapabilityFlags::WRITABLE));
}

#[test]
fn a_store_opened_for_reading_writes_nothing() {
    let server = Server::start();
    server.insert("p/k", b"x");
    let request = request(&server.target("p"), &[], OpenFlags::NONE);
    let backend = block_on(S3Backend::open(request)).unwrap();
    let store = nbd_rs_plugin::Next::from(nbd_rs_plugin::export_backend(backend));
    assert!(!store.capabilities().has(CapabilityFlags::WRITABLE));
    assert_eq!(get(&store, "k", Range::ALL).unwrap(), b"x");
    let put = block_on(store.put("k", body(b"y"), Condition::Always));
    assert_eq!(kind(put), Kind::ReadOnly);
    assert_eq!(
        kind(block_on(store.delete(vec!["k".into()]))),
        Kind::ReadOnly
    );
    assert_eq!((server.count("PUT"), server.count("DELETE")), (0, 0));
}

#[test]
fn objects_are_not_opened_and_a_raw_volume_is_told_so_at_once() {
    let bench = Bench::new();
    let opened = block_on(
        bench
            .store
            .open_object("k", ObjectMode::new(ObjectFlags::WRITE)),
    );
    assert_eq!(
        opened.err().map(|error| error.kind),
        Some(Kind::Unsupported)
    );
    let flags = OpenFlags::WRITE | OpenFlags::SINGLE_OBJECT;
    let error = block_on(S3Backend::open(request("//b/k", &[], flags))).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("sharded"), "{error}");
}

#[test]
fn u4_keys_never_leave_the_prefix() {
    let bench = Bench::new();
    for key in ["", "../q", "a/../../q", "/q", "a/", ".", "a\nb"] {
        assert_eq!(kind(bench.put(key, b"x")), Kind::Invalid, "{key}");
        assert_eq!(kind(bench.get(key, Range::ALL)), Kind::Invalid, "{key}");
        assert_eq!(
            kind(block_on(bench.store.head(key, GetFlags::NONE))),
            Kind::Invalid
        );
    }
    assert!(bench.server.keys().is_empty());
}

#[test]
fn a_missing_bucket_is_made_only_if_asked_for() {
    let server = Server::start();
    server.remove_bucket();
    let error = open(&server.target("p"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Io);
    assert!(error.message.contains("create_bucket=true"), "{error}");
    let store = open(&server.target("p"), &[("create_bucket", "true")]).unwrap();
    block_on(store.put("k", body(b"x"), Condition::Always)).unwrap();
    assert_eq!(server.keys(), ["p/k"]);
}

#[test]
fn a_bucket_whose_names_may_not_be_listed_is_used_all_the_same() {
    let server = Server::start();
    server.script([Rule::next("GET", Fault::Error(403, "AccessDenied"))]);
    let store = open(&server.target("p"), &[]).unwrap();
    block_on(store.put("k", body(b"x"), Condition::Always)).unwrap();
}

#[test]
fn u1_the_secret_is_in_no_text() {
    let server = Server::start();
    let target = format!("http://AKID:CANARY%2Fx@{}/bucket/p", server.address());
    for fault in [
        Fault::Error(403, "SignatureDoesNotMatch"),
        Fault::answer(500, &[], "you said CANARY/x"),
        Fault::CutHead,
    ] {
        server.script([Rule::next("GET", fault)]);
        let error = open(&target, &[]).unwrap_err();
        assert!(!format!("{error:?}").contains("CANARY"), "{error:?}");
    }
    let flags = OpenFlags::WRITE;
    let backend = block_on(S3Backend::open(request(&target, &[], flags))).unwrap();
    assert!(!format!("{backend:?}").contains("CANARY"));
    for seen in server.seen() {
        assert!(!format!("{seen:?}").contains("CANARY"));
    }
}

#[test]
fn requests_are_as_many_at_once_as_allowed() {
    let server = Server::start();
    let store = open(&server.target("p"), &[("connections", "2")]).unwrap();
    server.insert("p/k", b"x");
    let slow = || Rule::next("GET", Fault::Slow(std::time::Duration::from_millis(100)));
    server.script((0..6).map(|_| slow()));
    let start = std::time::Instant::now();
    block_on(async {
        let get = || store.get("k", Range::ALL, GetFlags::NONE);
        let (a, b, c, d, e, f) = tokio::join!(get(), get(), get(), get(), get(), get());
        assert!([a, b, c, d, e, f].iter().all(Result::is_ok));
    });
    let took = start.elapsed().as_millis();
    assert!(
        (290..2000).contains(&took),
        "{took} ms for three turns of 100 ms"
    );
}

#[test]
fn new_objects_have_the_class_that_was_asked_for() {
    let bench = Bench::with(&[("storage_class", "STANDARD_IA")]);
    bench.put("k", b"x").unwrap();
    let seen = bench.server.seen().pop().unwrap();
    assert_eq!(seen.header("x-amz-storage-class"), Some("STANDARD_IA"));
    assert_eq!(bench.get("k", Range::ALL).unwrap(), b"x");
    let seen = bench.server.seen().pop().unwrap();
    assert_eq!(seen.header("x-amz-storage-class"), None);
}
