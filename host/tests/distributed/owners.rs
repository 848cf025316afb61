//! Two servers and one volume.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::client::Client;
use crate::cluster::{all, pattern, Cluster};
use crate::server::Server;

const SIZE: usize = 4 << 20;

#[test]
fn c17_f66_a_second_server_is_refused_and_told_who_serves() {
    let cluster = Cluster::new(2, "cache:s3:", 1);
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    let said = cluster.serve_at("second").refused();
    let pid = format!("pid {}", server.pid().as_raw_nonzero());
    assert!(said.contains(&pid) && said.contains("--takeover"), "{said}");
    cluster.refused("destroy", 1, &[&pid]);
    let info = cluster.info();
    let owners = info["backends"].as_array().expect("a list");
    assert_eq!(owners.len(), 3);
    for backend in owners {
        let who = backend["owner"]["who"].as_str().expect("an owner");
        assert!(who.contains(&pid), "{info:#}");
        assert_eq!(backend["owner"]["standing"], "serves it");
    }
    // It is not hurt by that, and given back at once.
    assert_eq!(Client::unix(&server).write(0, 0, &[1; 4096]), 0);
    server.stop();
    cluster.serve_at("second").start().stop();
}

#[test]
fn c17_a_dead_server_of_this_machine_is_succeeded_at_once() {
    let cluster = Cluster::new(3, "s3:", 0);
    cluster.init(SIZE, "64Ki");
    let mut server = cluster.serve().start();
    assert_eq!(Client::unix(&server).write(0, 0, &[1; 4096]), 0);
    crate::cluster::kill(&mut server);
    let begin = std::time::Instant::now();
    let server = cluster.serve().start();
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "it was waited for"
    );
    assert_eq!(all(&server, 4096), [1; 4096]);
    server.stop();
}

/// It ends with the code of one that was shut out.
fn is_shut_out(mut server: Server) {
    let ended = server.wait(Duration::from_secs(40)).expect("it ends");
    assert_eq!(ended.code(), Some(75), "{}", server.log());
}

#[test]
fn c17_f04_f67_a_takeover_shuts_out_the_first_which_can_t_acknowledge_another_flush() {
    let cluster = Cluster::new(3, "cache:s3:", 0);
    cluster.init(SIZE, "64Ki");
    let first = cluster.serve().start();
    let mut client = Client::unix(&first);
    let before = pattern(SIZE, 1);
    assert_eq!(client.write(0, 0, &before), 0);
    assert_eq!(client.flush(), 0);
    let second = cluster.serve_at("second").words(["--takeover"]).start();
    assert_eq!(Client::unix(&second).write(0, 0, &[9; 4096]), 0);
    // It does not know yet. Whatever it says now, it is no success.
    let wrote = client.send(crate::client::WRITE, 0, 0, 4096, &[3; 4096]);
    if wrote.is_ok() {
        if let Ok(reply) = client.receive() {
            assert_ne!(reply.error, 0, "a WRITE of a server that was shut out");
        }
    }
    is_shut_out(first);
    let mut expected = before;
    expected[..4096].fill(9);
    assert!(all(&second, SIZE) == expected);
    second.stop();
}

#[test]
fn c17_f04_f68_a_server_that_slept_through_a_takeover_ends_and_changes_nothing() {
    let cluster = Cluster::new(3, "s3:", 0);
    cluster.init(SIZE, "64Ki");
    let first = cluster.serve().start();
    assert_eq!(Client::unix(&first).write(0, 0, &[1; 8192]), 0);
    first.signal(Signal::STOP);
    let second = cluster.serve_at("second").words(["--takeover"]).start();
    assert_eq!(Client::unix(&second).write(0, 0, &[2; 4096]), 0);
    thread::sleep(Duration::from_secs(1));
    first.signal(Signal::CONT);
    is_shut_out(first);
    assert!(all(&second, 8192) == [[2; 4096], [1; 4096]].concat());
    second.stop();
}

#[test]
fn c17_f66_of_two_that_start_at_the_same_moment_one_serves() {
    let cluster = Cluster::new(3, "s3:", 0);
    cluster.init(SIZE, "64Ki");
    for round in 0..12_u8 {
        let outcomes: Vec<(bool, String)> = thread::scope(|scope| {
            let start = |at: usize| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let location = cluster.location();
                    let socket = cluster.dir().join(format!("race{at}"));
                    let listen = format!("unix:{}", socket.display());
                    let mut command = std::process::Command::new("timeout");
                    command.arg("4").arg(crate::server::binary());
                    command.args(["serve", "--no-journal", "--listen", &listen]);
                    command.args(["--export", "disk", "distributed", &location]);
                    let output = command.output().expect("timeout(1) can be run");
                    let said = crate::server::text(&output);
                    (
                        String::from_utf8_lossy(&output.stdout).contains("ready"),
                        said,
                    )
                })
            };
            let both: Vec<_> = (0..2).map(start).collect();
            both.into_iter()
                .map(|one| one.join().expect("no panic"))
                .collect()
        });
        let serving = outcomes.iter().filter(|(ready, _)| *ready).count();
        assert_eq!(serving, 1, "round {round}: {outcomes:?}");
    }
}
