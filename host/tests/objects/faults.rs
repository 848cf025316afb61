//! Stores that fail, answer late or not at all, under the retry link: the client sees no error, and
//! the data is right. And a store that is away: errors in bounded time, and then all is well again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nbd_rs_s3_server::{Fault, Rule};

use crate::client::{Client, EIO, FLUSH, READ, TRIM, WRITE};
use crate::load::{answered, loads, UNITS};
use crate::model::{Model, UNIT};
use crate::places::{kill, Place};
use crate::rng::Rng;

const QUICK: &str = "?retry.base=5ms&read_timeout=1s";
const SHARD: usize = 64 << 10;

/// A volume with some data, served; what it holds.
fn stage() -> (Place, crate::server::Server, Client, Vec<u8>) {
    let place = Place::own("cache+retry+s3:", QUICK);
    place.init(16 * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::structured(&server);
    client.line.receive_within(Duration::from_secs(60));
    let bytes: Vec<u8> = (0..16 * SHARD).map(|at| (at / 4096) as u8 | 1).collect();
    assert_eq!(client.write(0, 0, &bytes[..8 * SHARD]), 0);
    assert_eq!(client.flush(), 0);
    (place, server, client, bytes)
}

/// Every kind of request meets these faults, one after another, and nobody notices.
fn nobody_notices(faults: &[Fault]) {
    let (place, server, mut client, mut bytes) = stage();
    bytes[8 * SHARD..].fill(0);
    for (number, fault) in faults.iter().enumerate() {
        let at = number % 14 * SHARD;
        for method in ["PUT", "GET", "HEAD"] {
            place.s3().script([Rule::next(method, fault.clone())]);
        }
        // A part of a shard: it is read, put, recorded, and the owner is looked at.
        let (from, to) = (at + 5000, at + SHARD + 9000);
        bytes[from..to].fill(100 + number as u8);
        let reply = client.ask(WRITE, 0, from as u64, to - from, &bytes[from..to]);
        assert_eq!(reply.error, 0, "{fault:?}: {}", reply.text);
        let reply = client.ask(FLUSH, 0, 0, 0, &[]);
        assert_eq!(reply.error, 0, "{fault:?}: {}", reply.text);
        let reply = client.ask(READ, 0, at as u64, 2 * SHARD, &[]);
        assert_eq!(reply.error, 0, "{fault:?}: {}", reply.text);
        assert!(reply.data == bytes[at..at + 2 * SHARD], "{fault:?}");
    }
    server.stop();
    place.s3().forget_script();
    let server = place.serve().start();
    let found = Client::unix(&server).read(0, 16 * SHARD);
    assert!(found.is_ok_and(|found| found == bytes), "after a restart");
    server.stop();
    place.is_clean();
    assert_eq!(place.s3().broken(), [""; 0], "bodies that were not whole");
}

#[test]
fn f38_bursts_of_503_are_waited_out() {
    let (place, server, mut client, _) = stage();
    let slow_down = || Fault::answer(503, &[("retry-after", "1")], "slow down");
    let storm = ["PUT", "GET", "HEAD", "PUT"].repeat(4);
    let rules = storm.into_iter().map(|method| match method {
        "PUT" => Rule::next(method, Fault::Error(503, "SlowDown")),
        _ => Rule::next(method, Fault::Error(500, "InternalError")),
    });
    place.s3().script(rules);
    place.s3().script([Rule::next("PUT", slow_down())]);
    for round in 0..8u8 {
        assert_eq!(client.write(0, 5000, &[round; 3000]), 0);
        assert_eq!(client.flush(), 0);
        assert_eq!(client.read(5000, 3000), Ok(vec![round; 3000]));
    }
    server.stop();
    place.s3().forget_script();
    place.is_clean();
}

/// The link that asks again stands before an opened store only: a server did not start when the
/// store's first answer was an error that passes.
#[test]
fn f38_f39_a_server_starts_though_the_first_answers_are_errors() {
    for fault in [Fault::Error(503, "SlowDown"), Fault::CutBeforeBody] {
        let (place, server, ..) = stage();
        server.stop();
        place
            .s3()
            .script([Rule::next("GET", fault.clone()), Rule::next("GET", fault)]);
        place.serve().start().stop();
    }
}

#[test]
fn f39_f40_f41_connections_that_break_and_answers_that_are_lost_are_borne() {
    nobody_notices(&[
        Fault::CutBeforeBody,
        Fault::CutInBody,
        Fault::CutAfterBody,
        Fault::LostAnswer,
        Fault::CutHead,
        Fault::LostAnswer,
    ]);
}

#[test]
fn f42_f43_answers_that_are_no_answers_are_asked_for_again() {
    nobody_notices(&[
        Fault::CutAnswer,
        Fault::Error(500, "InternalError"),
        Fault::Raw(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Fault::Error(409, "ConditionalRequestConflict"),
        Fault::Error(503, "SlowDown"),
    ]);
}

#[test]
fn f38_a_server_says_in_the_end_how_often_calls_were_made_again() {
    let (place, mut server, mut client, _) = stage();
    place.s3().script([
        Rule::on("PUT", "/shard/", Fault::Error(503, "SlowDown")),
        Rule::on("PUT", "/shard/", Fault::Error(503, "SlowDown")),
        Rule::on("HEAD", "/owner", Fault::Error(503, "SlowDown")),
    ]);
    assert_eq!(client.write(0, 5000, &[1; 3000]), 0);
    assert_eq!(client.flush(), 0);
    assert!(place.s3().is_played());
    server.signal(rustix::process::Signal::TERM);
    let ended = server.wait(Duration::from_secs(35));
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    // Its log is read by a thread of its own.
    thread::sleep(Duration::from_millis(100));
    let log = server.log();
    let line = log.lines().find(|line| line.contains("retry: 3 repeats"));
    let line = line.unwrap_or_else(|| panic!("no totals: {log}"));
    for word in ["3 transient", "0 ambiguous", "2 calls saved, 0 given up"] {
        assert!(line.contains(word), "{word}: {line}");
    }
}

#[test]
fn f53_a_put_that_hangs_and_is_done_late_harms_nobody() {
    let (place, server, mut client, mut bytes) = stage();
    let late = Fault::HangThenDone(Duration::from_secs(3));
    for part in ["/shard/", "/state/"] {
        place.s3().script([Rule::on("PUT", part, late.clone())]);
        for round in 1..4u8 {
            bytes[5000..8000].fill(round);
            assert_eq!(client.write(0, 5000, &[round; 3000]), 0);
            assert_eq!(client.flush(), 0);
        }
        // A new shard, too.
        let at = 10 * SHARD as u64;
        assert_eq!(client.write(0, at, &[9; 3000]), 0);
        assert_eq!(client.flush(), 0);
    }
    thread::sleep(Duration::from_secs(3));
    assert_eq!(client.read(0, SHARD), Ok(bytes[..SHARD].to_vec()));
    server.stop();
    let server = place.serve().start();
    let found = Client::unix(&server).read(0, SHARD);
    assert_eq!(found, Ok(bytes[..SHARD].to_vec()));
    server.stop();
    place.is_clean();
}

/// The link that asks again sent a second delete and answered for that one; the first came after
/// the shard was put again.
#[test]
fn c21_f53_a_delete_that_hangs_and_is_done_late_harms_nobody() {
    let (place, server, mut client, mut bytes) = stage();
    for (shard, method) in [(1, "POST"), (3, "DELETE")] {
        let late = Fault::HangThenDone(Duration::from_secs(3));
        place
            .s3()
            .script([Rule::next("POST", late.clone()), Rule::next("DELETE", late)]);
        let at = shard * SHARD;
        let trimmed = client.ask(TRIM, 0, at as u64, SHARD, &[]);
        assert_eq!(trimmed.error, 0, "{method}: {}", trimmed.text);
        assert_eq!(client.flush(), 0);
        // It is on its way.
        thread::sleep(Duration::from_millis(500));
        bytes[at..at + SHARD].fill(0);
        bytes[at..at + 4096].fill(9);
        assert_eq!(client.write(0, at as u64, &[9; 4096]), 0, "{method}");
        assert_eq!(client.flush(), 0);
        thread::sleep(Duration::from_secs(4));
        let fresh = place.s3().keys();
        let name = format!("/shard/{shard:012}");
        assert!(fresh.iter().any(|key| key.ends_with(&name)), "it is hit");
        place.s3().forget_script();
    }
    drop(client);
    server.stop();
    let server = place.serve().start();
    let found = Client::unix(&server).read(0, 8 * SHARD);
    assert_eq!(found, Ok(bytes[..8 * SHARD].to_vec()));
    server.stop();
    place.is_clean();
}

#[test]
fn f40_a_volume_is_destroyed_though_answers_to_deletes_are_lost() {
    let (place, server, ..) = stage();
    server.stop();
    let lost = |method| Rule::next(method, Fault::LostAnswer);
    place
        .s3()
        .script([lost("POST"), lost("DELETE"), lost("DELETE"), lost("POST")]);
    place.destroy();
}

#[test]
fn f46_puts_that_the_store_lost_after_it_acknowledged_them_are_errors_or_old_never_zeros() {
    let (place, mut server, mut client, _) = stage();
    assert_eq!(client.write(0, 8 * SHARD as u64, &[7; SHARD]), 0);
    assert_eq!(client.flush(), 0);
    kill(&mut server);
    let shard = place.object("/shard/000000000008");
    place.s3().remove(&shard);
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(8 * SHARD as u64, 4096), Err(EIO));
    server.stop();
    assert_eq!(place.try_run("check").status.code(), Some(5));
}

#[test]
fn c11_c10_f51_a_store_that_is_away_means_errors_in_good_time_and_comes_back() {
    let place = Place::own(
        "cache+retry+s3:",
        "?retry.time=1s&retry.base=10ms&retry.max=200ms",
    );
    place.init(16 * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    client.line.receive_within(Duration::from_secs(100));
    assert_eq!(client.write(0, 0, &[1; 4 * SHARD]), 0);
    assert_eq!(client.flush(), 0);
    let mut timed = |what: &str, most: u64, ask: &mut dyn FnMut(&mut Client) -> bool| {
        let begin = Instant::now();
        assert!(ask(&mut client), "{what} did not end as expected");
        let took = begin.elapsed();
        println!("away: {what} after {took:?}");
        assert!(took < Duration::from_secs(most), "{what} took {took:?}");
    };
    place.s3().set_away(true);
    // Nothing of this shard is in the cache.
    timed("a WRITE", 45, &mut |c| {
        c.write(0, 8 * SHARD as u64, &[2; 100]) == EIO
    });
    timed("a FLUSH", 45, &mut |c| c.flush() == EIO);
    timed("a READ", 45, &mut |c| {
        c.read(9 * SHARD as u64 - 99, 200) == Err(EIO)
    });
    place.s3().set_away(false);
    timed("the store, a WRITE", 20, &mut |c| {
        c.write(0, 8 * SHARD as u64, &[3; 100]) == 0
    });
    timed("a FLUSH", 20, &mut |c| c.flush() == 0);
    timed("a READ", 20, &mut |c| {
        c.read(0, SHARD) == Ok(vec![1; SHARD])
    });
    timed("a READ", 20, &mut |c| {
        c.read(8 * SHARD as u64, 100) == Ok(vec![3; 100])
    });
    server.stop();
    place.is_clean();
}

/// Anything that a bad day at a store has to offer.
fn bad_day(rng: &mut Rng) -> Rule {
    let method = ["PUT", "PUT", "GET", "HEAD", "POST"][(rng.next() % 5) as usize];
    let fault = match rng.next() % 9 {
        0 => Fault::Error(503, "SlowDown"),
        1 => Fault::Error(500, "InternalError"),
        2 => Fault::CutBeforeBody,
        3 => Fault::CutInBody,
        4 => Fault::CutAfterBody,
        5 => Fault::CutAnswer,
        6 => Fault::Slow(Duration::from_millis(rng.next() % 200)),
        _ => Fault::LostAnswer,
    };
    Rule::next(method, fault)
}

#[test]
fn c01_c12_f38_f39_f40_a_load_on_a_bad_day_sees_no_error_and_survives_kills() {
    let mut rng = Rng::for_test("bad day");
    let place = Place::own("cache+retry+s3:", "?retry.base=5ms&retry.attempts=20");
    place.init(UNITS * UNIT, "64Ki");
    let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
    for round in 0..6 {
        let mut server = place.serve().start();
        let all = Client::unix(&server).read(0, UNITS * UNIT);
        model
            .lock()
            .unwrap()
            .check_after_crash(&all.expect("the volume"));
        if round == 5 {
            server.stop();
            break;
        }
        let loads = loads(&server, &model, &mut rng);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let mut rng = Rng::new(rng.next());
            let (over, store) = (&over, place.s3());
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    store.script([bad_day(&mut rng)]);
                    thread::sleep(Duration::from_millis(4));
                }
            });
            thread::sleep(Duration::from_millis(1500));
            over.store(true, Ordering::Relaxed);
        });
        kill(&mut server);
        place.s3().forget_script();
        // What was on its way has come, as slowly as it may.
        thread::sleep(Duration::from_millis(250));
        answered(loads);
    }
    place.is_clean();
}
