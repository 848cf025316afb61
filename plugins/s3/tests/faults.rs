//! What the network and the store do to requests under way (F38 to F55).

mod common;

use std::time::{Duration, Instant};

use common::{block_on, body, kind, open, Bench};
use nbd_rs_plugin::{Condition, GetFlags, Kind, Range};
use nbd_rs_s3_server::{Fault, Rule};

#[test]
fn f39_a_connection_that_breaks_under_a_put_leaves_it_in_doubt() {
    let bench = Bench::new();
    let large = vec![7; 8 << 20];
    for fault in [
        Fault::CutBeforeBody,
        Fault::CutInBody,
        Fault::CutAfterBody,
        Fault::LostAnswer,
    ] {
        bench.next("PUT", fault.clone());
        let error = bench.put("k", &large).unwrap_err();
        assert_eq!(error.kind, Kind::Ambiguous, "{fault:?}: {error}");
    }
    bench.put("k", &large).unwrap();
    assert_eq!(bench.server.object("p/k").unwrap(), large);
}

#[test]
fn f39_a_connection_that_breaks_under_a_get_is_asked_again() {
    let bench = Bench::new();
    for fault in [Fault::CutAfterBody, Fault::CutAnswer, Fault::CutHead] {
        assert_eq!(bench.kind_of_get(fault), Kind::Transient);
    }
}

#[test]
fn f39_a_delete_in_doubt_is_told_so() {
    let bench = Bench::new();
    bench.next("DELETE", Fault::LostAnswer);
    let results = block_on(bench.store.delete(vec!["k".into()])).unwrap();
    assert_eq!(kind(results.into_iter().next().unwrap()), Kind::Ambiguous);
    bench.next("POST", Fault::LostAnswer);
    let results = block_on(bench.store.delete(vec!["a".into(), "b".into()])).unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!(kind(result), Kind::Ambiguous);
    }
}

#[test]
fn f40_f41_a_put_that_was_applied_is_found_by_its_second_try() {
    let bench = Bench::new();
    bench.next("PUT", Fault::LostAnswer);
    let first = bench.put_if("k", b"mine", Condition::IfAbsent);
    assert_eq!(kind(first), Kind::Ambiguous);
    // Who asks again gets Exists, and looks whose it is.
    assert_eq!(
        kind(bench.put_if("k", b"mine", Condition::IfAbsent)),
        Kind::Exists
    );
    assert_eq!(bench.get("k", Range::ALL).unwrap(), b"mine");
}

#[test]
fn f52_every_attempt_carries_the_whole_body() {
    let bench = Bench::new();
    let large: Vec<u8> = (0..4_000_000u32).map(|at| (at % 251) as u8).collect();
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    let date = [("date", "Mon, 04 May 2037 10:00:00 GMT")];
    for fault in [
        Fault::answer(403, &date, skewed),
        Fault::Error(400, "ExpiredToken"),
        Fault::CutAfterBody,
        Fault::Error(503, "SlowDown"),
    ] {
        bench.next("PUT", fault);
        // Some are mended within, the others by the second call.
        if bench.put("k", &large).is_err() {
            bench.put("k", &large).unwrap();
        }
        assert_eq!(bench.server.object("p/k").unwrap(), large);
    }
    let puts: Vec<usize> = bench
        .server
        .seen()
        .iter()
        .filter(|seen| seen.method == "PUT")
        .map(|seen| seen.body_bytes)
        .collect();
    assert_eq!(puts.len(), 8);
    assert!(puts.iter().all(|bytes| *bytes == large.len()), "{puts:?}");
    assert_eq!(bench.server.broken(), Vec::<String>::new());
}

#[test]
fn f53_a_hung_put_ends_in_doubt_and_in_time() {
    let bench = Bench::new();
    let start = Instant::now();
    bench.next("PUT", Fault::HangThenDone(Duration::from_millis(1500)));
    assert_eq!(kind(bench.put("k", b"old")), Kind::Ambiguous);
    assert!(start.elapsed() < Duration::from_millis(1400));
    bench.next("GET", Fault::Hang(Duration::from_millis(1500)));
    assert_eq!(kind(bench.get("k", Range::ALL)), Kind::Transient);
}

#[test]
fn f54_a_bucket_that_goes_away_is_not_an_empty_one() {
    let bench = Bench::new();
    bench.put("k", b"x").unwrap();
    bench.server.remove_bucket();
    assert_eq!(kind(bench.get("k", Range::ALL)), Kind::Io);
    assert_eq!(
        kind(block_on(bench.store.head("k", GetFlags::NONE))),
        Kind::Io
    );
    assert_eq!(kind(block_on(bench.store.list("", None))), Kind::Io);
    let results = block_on(bench.store.delete(vec!["k".into(), "l".into()])).unwrap();
    for result in results {
        assert_eq!(kind(result), Kind::Io);
    }
}

#[test]
fn f46_what_a_store_loses_is_missing_and_not_empty() {
    let bench = Bench::new();
    bench.put("a", b"1").unwrap();
    bench.put("b", b"2").unwrap();
    bench.server.power_cut(1);
    assert_eq!(bench.get("a", Range::ALL).unwrap(), b"1");
    assert_eq!(kind(bench.get("b", Range::ALL)), Kind::NotFound);
}

#[test]
fn f51_nobody_there_and_no_such_name_changed_nothing() {
    let bench = Bench::new();
    let Bench { server, store } = bench;
    drop(server);
    let put = block_on(store.put("k", body(b"x"), Condition::Always));
    // The first may meet the connection that the server has just closed.
    let first = kind(put);
    assert!(
        matches!(first, Kind::Transient | Kind::Ambiguous),
        "{first:?}"
    );
    let put = block_on(store.put("k", body(b"x"), Condition::Always));
    assert_eq!(kind(put), Kind::Transient);
    let error = open("http://k:s@does-not-exist.invalid/bucket/p", &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Transient);
}

#[test]
fn a_connection_that_can_not_be_made_in_time_changed_nothing() {
    // TEST-NET-1: nobody answers, or the network says that it is not there.
    let options = [("connect_timeout", "200ms"), ("timeout", "2s")];
    let error = open("http://k:s@192.0.2.1/bucket/p", &options).unwrap_err();
    assert!(
        matches!(error.kind, Kind::Timeout | Kind::Transient),
        "{error:?}"
    );
}

#[test]
fn idle_connections_that_the_server_closed_fail_no_put() {
    let bench = Bench::new();
    for _ in 0..20 {
        let closes = Fault::answer(
            404,
            &[("connection", "close")],
            "<Error><Code>NoSuchKey</Code></Error>",
        );
        bench.server.script([Rule::next("GET", closes)]);
        assert_eq!(kind(bench.get("none", Range::ALL)), Kind::NotFound);
        bench.put("k", b"x").unwrap();
    }
}

#[test]
fn reads_may_be_dropped_at_any_time() {
    let bench = Bench::new();
    bench.server.insert("p/k", &vec![3; 2 << 20]);
    block_on(async {
        for at in 0..200u64 {
            let get = bench.store.get("k", Range::ALL, GetFlags::NONE);
            // Dropped before the first poll, in the middle, and rarely not at all.
            let _ = tokio::time::timeout(Duration::from_micros(at * 37 % 3000), get).await;
        }
    });
    assert_eq!(bench.get("k", Range::new(1, 5)).unwrap(), [3; 5]);
}
