//! SIGKILL at every change that reaches the store, before it, after it and with it coming late:
//! between the record that a shard is intended, its put, the record that it was written, the answer.

use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_rs_s3_server::Last;

use crate::client::{Client, FLUSH, FUA, TRIM, WRITE, WRITE_ZEROES};
use crate::model::{Model, UNIT};
use crate::places::{kill, Place};
use crate::server::{binary, Server};

/// Units of a shard of 64 KiB.
const SHARD: usize = 16;
/// Units of the volume.
const UNITS: usize = 70 * SHARD;

/// Command, flags, first unit, units.
type Step = (u16, u16, usize, usize);

/// Each way a shard can go: new, changed, over a border, given up, made again, and in a group of its
/// own. Whatever is not flushed when the server dies was acknowledged all the same.
const SCRIPT: [Step; 14] = [
    (WRITE, 0, 3, 2),
    (WRITE, 0, 4, 3),
    (FLUSH, 0, 0, 0),
    (WRITE, FUA, SHARD - 1, 2),
    (WRITE, 0, 66 * SHARD, SHARD),
    (WRITE_ZEROES, 0, 66 * SHARD + 2, 3),
    (TRIM, 0, 0, 2 * SHARD),
    (WRITE, 0, 5, 1),
    (FLUSH, 0, 0, 0),
    (TRIM, FUA, 66 * SHARD, SHARD),
    (WRITE, FUA, SHARD + 1, 1),
    (WRITE_ZEROES, 0, 0, 70 * SHARD),
    (WRITE, 0, 69 * SHARD + 1, SHARD - 1),
    (FLUSH, 0, 0, 0),
];

/// Plays the script until the server dies; whether it came to its end.
fn play(server: &Server, model: &mut Model) -> bool {
    let mut client = Client::unix(server);
    for (command, flags, first, count) in SCRIPT {
        let (offset, length) = ((first * UNIT) as u64, count * UNIT);
        let (mut sent, mut payload) = (0, Vec::new());
        if count > 0 {
            (sent, payload) = model.send(first, count, command != WRITE);
        }
        let asked = client.send(command, flags, offset, length, &payload);
        let Ok(reply) = asked.and_then(|_| client.receive()) else {
            return false;
        };
        assert_eq!(
            reply.error, 0,
            "an error on a healthy store: {}",
            reply.text
        );
        if count > 0 {
            model.answer(first, count, sent);
        }
    }
    true
}

/// Every unit is old or new. What was not acknowledged may still come.
fn is_legal(client: &mut Client, model: &mut Model) {
    let all = client.read(0, UNITS * UNIT).expect("no errors");
    let now = model.moment();
    for (unit, bytes) in all.chunks(UNIT).enumerate() {
        model.check(unit, bytes, now).expect("old or new");
    }
}

/// Starts it, compares all that it holds, writes and flushes everywhere, and stops it. A change that
/// comes late comes while that is written.
fn looks_right(place: &Place, model: &mut Model, last: Last) {
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    is_legal(&mut client, model);
    if last != Last::Late {
        let all = client.read(0, UNITS * UNIT).expect("no errors");
        model.check_after_crash(&all);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            place.s3().deliver();
        });
        // It can be written everywhere, whatever the dead server left open.
        client.line.receive_within(Duration::from_secs(60));
        for first in [0, SHARD, 66 * SHARD, 69 * SHARD] {
            let (sent, payload) = model.send(first, 1, false);
            assert_eq!(client.write(0, (first * UNIT) as u64, &payload), 0);
            model.answer(first, 1, sent);
        }
        assert_eq!(client.flush(), 0);
    });
    is_legal(&mut client, model);
    server.stop();
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    let all = client.read(0, UNITS * UNIT).expect("no errors");
    model.check_after_crash(&all);
    server.stop();
    place.is_clean();
}

/// Kills at change `point` of the script; whether there was such a change.
fn kill_at(point: usize, last: Last) -> bool {
    let place = Place::own("cache+retry+s3:", "");
    place.init(UNITS * UNIT, "64Ki");
    let mut model = Model::zeros(point as u64, UNITS);
    let mut server = place.serve().start();
    place.s3().stop_after(point, last);
    let ended = std::thread::scope(|scope| {
        let script = scope.spawn(|| play(&server, &mut model));
        while !place.s3().has_stopped_within(Duration::from_millis(20)) {
            if script.is_finished() {
                break;
            }
        }
        kill_process(&server);
        script.join().expect("the script")
    });
    kill(&mut server);
    place.s3().go_on();
    looks_right(&place, &mut model, last);
    !ended
}

fn kill_process(server: &Server) {
    server.signal(rustix::process::Signal::KILL);
}

fn kill_everywhere(last: Last) {
    let mut point = 0;
    while kill_at(point, last) {
        point += 1;
    }
    println!("c12: killed at {point} changes, the last one {last:?}");
    assert!(point > 15, "only {point} changes were seen");
}

#[test]
fn c12_f02_a_kill_before_any_change_of_the_store() {
    kill_everywhere(Last::Lost);
}

#[test]
fn c12_f02_a_kill_after_any_change_of_the_store() {
    kill_everywhere(Last::Done);
}

#[test]
fn c12_f02_f53_a_kill_with_a_change_on_its_way_that_comes_after_the_next_start() {
    kill_everywhere(Last::Late);
}

/// A start that is not waited for.
fn start_and_kill(place: &Place, point: usize, last: Last) -> bool {
    place.s3().stop_after(point, last);
    let socket = place.dir().join("recovering");
    let mut child = Command::new(binary())
        .args(["serve", "--export", "disk", "sharded", &place.location])
        .args(["--no-journal", "--listen"])
        .arg(format!("unix:{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("nbd-rs can be started");
    // It says `ready` once it has made what changes it makes.
    let stdout = child.stdout.take().expect("a pipe");
    let ready = std::thread::spawn(move || {
        use std::io::BufRead;
        let mut lines = std::io::BufReader::new(stdout).lines();
        lines.any(|line| line.is_ok_and(|line| line == "ready"))
    });
    while !ready.is_finished() && !place.s3().has_stopped_within(Duration::from_millis(20)) {}
    let stopped = place.s3().has_stopped_within(Duration::ZERO);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    place.s3().go_on();
    assert!(
        stopped || ready.join().expect("a reader"),
        "it did not start"
    );
    stopped
}

#[test]
fn c12_f03_a_kill_at_every_change_of_a_start_after_a_kill() {
    let place = Place::own("cache+retry+s3:", "");
    place.init(UNITS * UNIT, "64Ki");
    let mut model = Model::zeros(3, UNITS);
    let mut server = place.serve().start();
    place.s3().stop_after(14, Last::Done);
    std::thread::scope(|scope| {
        scope.spawn(|| play(&server, &mut model));
        assert!(place.s3().has_stopped_within(Duration::from_secs(20)));
        kill_process(&server);
    });
    kill(&mut server);
    place.s3().go_on();
    for last in [Last::Lost, Last::Done] {
        let mut point = 0;
        while start_and_kill(&place, point, last) {
            point += 1;
        }
        println!("f03: {point} changes of a start, the last one {last:?}");
        assert!(point >= 4, "only {point} changes were seen");
    }
    looks_right(&place, &mut model, Last::Done);
}
