//! Stores that fail, answer late, wrong or not at all: one of three at a time, and nobody notices.

use std::time::Duration;

use nbd_rs_s3_server::{Fault, Quirks, Rule};

use crate::client::{Client, FLUSH, READ, WRITE};
use crate::cluster::{all, pattern, Cluster};
use crate::server::Server;

const SIZE: usize = 2 << 20;
const SHARD: usize = 64 << 10;

fn stage() -> (Cluster, Server, Client) {
    let cluster = Cluster::new(3, "cache:s3:", 0).with_options("?read_timeout=1s");
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    let client = Client::structured(&server);
    client.line.receive_within(Duration::from_secs(60));
    (cluster, server, client)
}

/// Puts and gets of each backend meet these faults, one after another.
fn nobody_notices(faults: &[Fault]) {
    let (cluster, server, mut client) = stage();
    let mut bytes = vec![0; SIZE];
    for (number, fault) in faults.iter().enumerate() {
        for (backend, store) in cluster.stores.iter().enumerate() {
            let at = (number * 3 + backend) % 30 * SHARD;
            for method in ["PUT", "GET"] {
                store.script([Rule::next(method, fault.clone())]);
            }
            // A part of a shard, and one that is worth an image.
            for (from, len) in [(at + 5000, 9000), (at + SHARD, SHARD)] {
                bytes[from..from + len].fill(1 + number as u8);
                let reply = client.ask(WRITE, 0, from as u64, len, &bytes[from..from + len]);
                assert_eq!(reply.error, 0, "{fault:?}: {}", reply.text);
            }
            let reply = client.ask(FLUSH, 0, 0, 0, &[]);
            assert_eq!(reply.error, 0, "{fault:?}: {}", reply.text);
            let reply = client.ask(READ, 0, at as u64, 2 * SHARD, &[]);
            assert_eq!(reply.error, 0, "{fault:?}: {}", reply.text);
            assert!(reply.data == bytes[at..at + 2 * SHARD], "{fault:?}");
        }
    }
    cluster
        .stores
        .iter()
        .for_each(|store| store.forget_script());
    server.stop();
    let server = cluster.serve().start();
    assert!(all(&server, SIZE) == bytes, "after a restart");
    server.stop();
    for store in &cluster.stores {
        assert_eq!(store.broken(), [""; 0], "bodies that were not whole");
    }
    cluster.run("scrub --deep --repair");
    cluster.run("scrub --deep");
}

#[test]
fn f38_f50_answers_that_are_errors_are_borne() {
    nobody_notices(&[
        Fault::Error(503, "SlowDown"),
        Fault::Error(500, "InternalError"),
        Fault::Error(403, "RequestTimeTooSkewed"),
        Fault::Error(403, "ExpiredToken"),
        Fault::Error(409, "ConditionalRequestConflict"),
    ]);
}

#[test]
fn f39_f40_f41_f52_connections_that_break_and_answers_that_are_lost_are_borne() {
    nobody_notices(&[
        Fault::CutBeforeBody,
        Fault::CutInBody,
        Fault::CutAfterBody,
        Fault::LostAnswer,
        Fault::CutHead,
    ]);
}

#[test]
fn f42_f43_f49_answers_that_are_not_what_was_asked_for_are_never_used() {
    nobody_notices(&[
        Fault::CutAnswer,
        Fault::Overlong,
        Fault::Answer(200, Vec::new(), b"<html>a proxy</html>".to_vec()),
        Fault::Answer(
            301,
            vec![("location".to_owned(), "http://127.0.0.1:9/".to_owned())],
            Vec::new(),
        ),
    ]);
}

#[test]
fn f51_f53_f63_answers_that_hang_and_puts_that_come_late_are_borne() {
    let late = Duration::from_secs(2);
    nobody_notices(&[
        Fault::Hang(late),
        Fault::HangThenDone(late),
        Fault::Slow(late),
    ]);
}

#[test]
fn c22_f47_f48_a_backend_that_ignores_conditions_is_refused_at_init_and_at_each_start() {
    let deaf = Quirks {
        no_conditions: true,
        ..Quirks::default()
    };
    let cluster = Cluster::new(3, "s3:", 0).with_options("?conditions=yes");
    cluster.stores[1].set_quirks(deaf);
    cluster.refused("init --size 1Mi", 1, &["does not obey"]);
    cluster.stores[1].set_quirks(Quirks::default());
    cluster.run("init --size 1Mi");
    cluster.stores[2].set_quirks(deaf);
    let said = cluster.serve().refused();
    assert!(said.contains("does not obey"), "{said}");
}

/// Written in three rounds, so that there is something to fall back to.
fn with_a_history(cluster: &Cluster) -> Vec<u8> {
    cluster.init(SIZE, "64Ki");
    let mut expected = Vec::new();
    for round in 0..3 {
        let server = cluster.serve().start();
        expected = pattern(SIZE, round);
        let mut client = Client::unix(&server);
        for at in (0..SIZE).step_by(50_000) {
            let end = SIZE.min(at + 50_000);
            assert_eq!(client.write(0, at as u64, &expected[at..end]), 0);
        }
        assert_eq!(client.flush(), 0);
        server.stop();
    }
    expected
}

#[test]
fn c16_f44_f46_f60_a_backend_that_lost_puts_or_is_an_old_copy_is_never_believed() {
    for lost in [3, 30, 150] {
        let cluster = Cluster::new(3, "s3:", 0);
        let expected = with_a_history(&cluster);
        cluster.stores[0].power_cut(lost);
        let server = cluster.serve().start();
        assert!(all(&server, SIZE) == expected, "{lost} lost");
        server.stop();
        cluster.run("scrub --deep --repair");
        cluster.run("scrub --deep");
        for away in 1..3 {
            cluster.stores[away].set_away(true);
            let mut server = cluster.serve().start();
            assert!(all(&server, SIZE) == expected, "{lost} lost, {away} away");
            crate::cluster::kill(&mut server);
            cluster.stores[away].set_away(false);
        }
    }
}
