//! Writes wait in the journal while the store is away, and are there when it comes back.

use std::thread;
use std::time::Duration;

use nbd_rs_s3_server::Last;
use rustix::process::Signal;

use crate::client::{Client, FLUSH, FUA, WRITE};
use crate::places::{kill, one_line, Place};
use crate::server::{text, Server};

const QUICK: &str = "?retry.time=1s&retry.base=10ms&retry.max=100ms";
const SHARD: usize = 64 << 10;
const SHARDS: usize = 64;
/// Exit code of a server that can't say that all is durable.
const NOT_FLUSHED: i32 = 3;
/// Without a heartbeat nobody owns a volume for longer than this.
const LEASE: Duration = Duration::from_secs(12);
/// A flush, the end of a server and a store that comes back have taken less.
const PATIENCE: Duration = Duration::from_secs(120);

fn pattern(shard: usize) -> Vec<u8> {
    vec![shard as u8 + 1; SHARD]
}

/// A volume with one shard in the store, served.
fn stage(words: &str) -> (Place, Server, Client) {
    let place = Place::own("cache+retry+s3:", QUICK).journaled(words);
    place.init(SHARDS * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    client.line.receive_within(PATIENCE);
    assert_eq!(client.write(0, 0, &pattern(0)), 0);
    assert_eq!(client.flush(), 0);
    (place, server, client)
}

/// Three shards, one of them in part, that only the journal can have.
fn write_away(client: &mut Client) {
    for shard in [1, 5] {
        let at = (shard * SHARD) as u64;
        assert_eq!(client.write(0, at, &pattern(shard)), 0, "it waits here");
    }
    assert_eq!(client.write(0, 5000, &[99; 3000]), 0);
}

fn is_all_there(server: &Server) {
    let mut client = Client::unix(server);
    let mut first = pattern(0);
    first[5000..8000].fill(99);
    assert!(client.read(0, SHARD) == Ok(first), "a part of a shard");
    for shard in [1, 5] {
        let found = client.read((shard * SHARD) as u64, SHARD);
        assert!(found == Ok(pattern(shard)), "shard {shard}");
    }
}

#[test]
fn c04_c06_f51_a_flush_waits_for_a_store_that_is_away_and_is_true() {
    let (place, mut server, mut client) = stage("");
    place.s3().set_away(true);
    write_away(&mut client);
    for (command, flags) in [(FLUSH, 0), (WRITE, FUA)] {
        let payload = pattern(9);
        let (offset, body) = match command {
            WRITE => (9 * SHARD as u64, &payload[..]),
            _ => (0, &[][..]),
        };
        place.s3().set_away(true);
        let asked = client.send(command, flags, offset, body.len(), body);
        asked.expect("sent");
        client.line.stays_silent(Duration::from_secs(3));
        place.s3().set_away(false);
        client.line.receive_within(PATIENCE);
        assert_eq!(client.receive().expect("a reply").error, 0);
    }
    // It has not waited for nothing: the store has all of it.
    kill(&mut server);
    let given_up = place.without_journal().words(["--accept-lost-writes"]);
    let server = given_up.start();
    is_all_there(&server);
    let found = Client::unix(&server).read(9 * SHARD as u64, SHARD);
    assert!(found == Ok(pattern(9)), "what was written with FUA");
    server.stop();
    place.is_clean();
}

#[test]
fn c23_f51_a_stop_with_the_store_away_exits_with_3_and_the_next_start_has_it_all() {
    let (place, mut server, mut client) = stage("");
    place.s3().set_away(true);
    write_away(&mut client);
    server.signal(Signal::TERM);
    let ended = server.wait(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(NOT_FLUSHED), "{}", server.log());
    assert!(server.log().contains("wait in the journal"));
    place.s3().set_away(false);
    let server = place.serve().start();
    is_all_there(&server);
    server.stop();
    place.is_clean();
}

#[test]
fn c23_a_stop_with_the_store_away_is_in_order_where_a_flush_is_local() {
    let (place, mut server, mut client) = stage("--flush local");
    place.s3().set_away(true);
    write_away(&mut client);
    server.signal(Signal::TERM);
    let ended = server.wait(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0), "{}", server.log());
    assert!(server.log().contains("wait in the journal"));
    place.s3().set_away(false);
    let server = place.serve().start();
    is_all_there(&server);
    server.stop();
    place.is_clean();
}

/// Found by a user: after 40 seconds everything was EIO, and a stop exited with 3.
#[test]
fn c23_c24_where_a_flush_is_local_an_outage_longer_than_the_lease_is_waited_out() {
    let (place, mut server, mut client) = stage("--flush local");
    place.s3().set_away(true);
    write_away(&mut client);
    assert_eq!(client.flush(), 0, "while the lease lasts");
    thread::sleep(LEASE);
    let at = (9 * SHARD) as u64;
    let sent = client.send(WRITE, FUA, at, SHARD, &pattern(9));
    sent.expect("a request");
    // Longer than a flush that needs the store would wait.
    client.line.stays_silent(Duration::from_secs(35));
    place.s3().set_away(false);
    client.line.receive_within(PATIENCE);
    assert_eq!(client.receive().expect("a reply").error, 0);
    place.s3().set_away(true);
    assert_eq!(client.write(0, at, &pattern(10)), 0);
    thread::sleep(LEASE);
    server.signal(Signal::TERM);
    let ended = server.wait(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0), "{}", server.log());
    place.s3().set_away(false);
    let server = place.serve().start();
    is_all_there(&server);
    let found = Client::unix(&server).read(at, SHARD);
    assert!(found == Ok(pattern(10)), "written while the store was away");
    server.stop();
    place.is_clean();
}

#[test]
fn f51_a_start_with_the_store_away_is_refused_and_changes_nothing() {
    let (place, mut server, mut client) = stage("");
    place.s3().set_away(true);
    write_away(&mut client);
    kill(&mut server);
    let said = one_line(&place.serve().refused(), &["export \"disk\"", "s3"]);
    println!("a start without the store: {said}");
    let replay = format!("journal replay --journal {}", place.journal().display());
    let output = place.try_run(&replay);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    one_line(&String::from_utf8_lossy(&output.stderr), &[]);
    place.s3().set_away(false);
    let server = place.serve().start();
    is_all_there(&server);
    server.stop();
    place.is_clean();
}

/// Found by a user: the start gave up after two seconds, whatever the link `retry` was told.
#[test]
fn f51_a_start_waits_for_a_store_that_restarts_as_long_as_retry_would() {
    let place = Place::own("cache+retry+s3:", "").journaled("");
    place.init(SHARDS * SHARD, "64Ki");
    place.s3().set_away(true);
    let (mut server, said) = place.serve().begin();
    let early = said.recv_timeout(Duration::from_secs(5));
    assert!(early.is_err(), "{early:?} without a store");
    server.assert_alive();
    place.s3().set_away(false);
    let mut lines = said.into_iter();
    assert!(lines.any(|line| line == "ready"), "{}", server.log());
    server.stop();
    place.is_clean();
}

/// The store refuses the shards' puts and nothing else: the volume can be opened, and what waits
/// can't be sent.
#[test]
fn c12_f51_a_start_that_cant_send_what_waits_is_refused_and_loses_nothing() {
    let (place, mut server, mut client) = stage("");
    place.s3().set_away(true);
    write_away(&mut client);
    kill(&mut server);
    place.s3().set_away(false);
    let refuse = || {
        let fault = nbd_rs_s3_server::Fault::Error(503, "SlowDown");
        nbd_rs_s3_server::Rule::on("PUT", "/shard/", fault)
    };
    place.s3().script((0..10_000).map(|_| refuse()));
    let replay = format!("journal replay --journal {}", place.journal().display());
    let output = place.try_run(&replay);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let words = ["the journal can't be replayed"];
    one_line(&String::from_utf8_lossy(&output.stderr), &words);
    place.s3().forget_script();
    let server = place.serve().start();
    is_all_there(&server);
    server.stop();
    place.is_clean();
}

#[test]
fn c04_c12_a_local_flush_does_not_ask_the_store_and_survives_a_kill() {
    let (place, mut server, mut client) = stage("--flush local");
    // Nothing that changes the store is done or answered any more.
    place.s3().stop_after(0, Last::Lost);
    write_away(&mut client);
    assert_eq!(client.flush(), 0);
    assert_eq!(client.write(FUA, 9 * SHARD as u64, &pattern(9)), 0);
    kill(&mut server);
    place.s3().go_on();
    let server = place.serve().start();
    is_all_there(&server);
    let found = Client::unix(&server).read(9 * SHARD as u64, SHARD);
    assert!(found == Ok(pattern(9)), "what was written with FUA");
    server.stop();
    place.is_clean();
}

#[test]
fn c24_a_full_journal_makes_writers_wait_until_the_store_is_back() {
    let place = Place::own("cache+retry+s3:", QUICK).journaled("--journal-size 1Mi");
    place.init(SHARDS * SHARD, "64Ki");
    let mut server = place.serve().start();
    let mut client = Client::unix(&server);
    place.s3().set_away(true);
    for shard in 0..SHARDS {
        let at = (shard * SHARD) as u64;
        let sent = client.send(WRITE, 0, at, SHARD, &pattern(shard));
        sent.expect("sent");
    }
    // Four times what the journal holds: some are answered, the others wait, and none fails.
    let mut answered = 0;
    client.line.receive_within(Duration::from_secs(2));
    while let Ok(reply) = client.receive() {
        assert_eq!(reply.error, 0);
        answered += 1;
    }
    assert!((4..SHARDS).contains(&answered), "{answered} were answered");
    place.s3().set_away(false);
    client.line.receive_within(PATIENCE);
    for _ in answered..SHARDS {
        assert_eq!(client.receive().expect("a reply").error, 0);
    }
    kill(&mut server);
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    for shard in 0..SHARDS {
        let found = client.read((shard * SHARD) as u64, SHARD);
        assert!(found == Ok(pattern(shard)), "shard {shard}");
    }
    server.stop();
    place.is_clean();
}

#[test]
fn c24_a_write_larger_than_the_journal_is_taken_like_any_other() {
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 1Mi");
    place.init(48 << 20, "1Mi");
    let mut server = place.serve().start();
    let mut client = Client::unix(&server);
    client.line.receive_within(PATIENCE);
    // The largest payload that is offered.
    let bytes: Vec<u8> = (0..32 << 20).map(|at: u32| (at / 999) as u8).collect();
    for (flags, at) in [(0, 4096), (FUA, 13_000)] {
        assert_eq!(client.write(flags, at, &bytes), 0);
        let found = client.read(at, bytes.len());
        assert!(found.is_ok_and(|found| found == bytes), "at {at}");
    }
    kill(&mut server);
    let server = place.serve().start();
    let found = Client::unix(&server).read(13_000, bytes.len());
    assert!(found.is_ok_and(|found| found == bytes), "after a kill");
    server.stop();
    place.is_clean();
}
