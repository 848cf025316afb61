//! C17: one server at a time.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};

use crate::client::Client;
use crate::places::{kill, one_line, Place};
use crate::server::Server;
use crate::tools::{present, skip};

/// Exit code of a server whose volume was taken over.
const TAKEN_OVER: i32 = 75;
/// So long without a heartbeat, and another machine's owner may be succeeded.
const LEASE: Duration = Duration::from_secs(10);

fn both() -> [Place; 2] {
    let places = [
        Place::own("cache+retry+s3:", ""),
        Place::directory("cache+file:", ""),
    ];
    for place in &places {
        place.init(16 << 20, "64Ki");
    }
    places
}

#[test]
fn c17_a_second_server_is_refused_and_told_who_serves() {
    for place in both() {
        let first = place.serve().start();
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let pid = format!("pid {}", first.pid().as_raw_nonzero());
        let words = [host.as_str(), &pid, "epoch 1", "--takeover"];
        one_line(&place.serve_at("second").refused(), &words);
        // Nor is it destroyed, replaced or grown meanwhile.
        place.refused("destroy", 1, &[&pid]);
        place.refused("init --force --size 1Mi", 1, &[&pid]);
        place.refused("resize --size 32Mi", 1, &[&pid]);
        let info = place.info();
        assert_eq!(info["owner"]["standing"], "serves it");
        assert!(info["owner"]["who"]
            .as_str()
            .is_some_and(|who| who.contains(&pid)));
        let mut client = Client::unix(&first);
        assert_eq!(client.write(0, 0, &[1; 4096]), 0);
        assert_eq!(client.flush(), 0, "the first one goes on");
        first.stop();
    }
}

#[test]
fn c17_an_owner_that_was_killed_on_this_machine_is_succeeded_at_once() {
    for place in both() {
        let mut first = place.serve().start();
        let mut client = Client::unix(&first);
        assert_eq!(client.write(0, 0, &[1; 4096]), 0);
        kill(&mut first);
        let begin = Instant::now();
        let second = place.serve().start();
        assert!(begin.elapsed() < LEASE / 2, "{:?}", begin.elapsed());
        let found = Client::unix(&second).read(0, 4096);
        assert_eq!(found, Ok(vec![1; 4096]));
        second.stop();
    }
}

#[test]
fn c17_a_takeover_shuts_the_first_server_out() {
    for place in both() {
        let mut first = place.serve().start();
        let mut old = Client::unix(&first);
        assert_eq!(old.write(0, 0, &[1; 4096]), 0);
        assert_eq!(old.write(0, 1 << 20, &[1; 4096]), 0);
        let second = place.serve_at("second").words(["--takeover"]).start();
        let mut new = Client::unix(&second);
        assert_eq!(new.read(0, 4096), Ok(vec![1; 4096]));
        assert_eq!(new.write(0, 0, &[2; 4096]), 0);
        assert_eq!(new.flush(), 0);
        // Whether it has noticed yet or not, it can't make anybody believe in a flush.
        let flushed = old.send(crate::client::FLUSH, 0, 0, 0, &[]);
        if let Ok(reply) = flushed.and_then(|_| old.receive()) {
            assert_ne!(reply.error, 0, "a flush was acknowledged after a takeover");
        }
        let ended = first.wait(Duration::from_secs(15));
        let code = ended.expect("it ends").code();
        assert_eq!(code, Some(TAKEN_OVER), "{}", first.log());
        assert_eq!(new.read(0, 4096), Ok(vec![2; 4096]));
        assert_eq!(new.read(1 << 20, 4096), Ok(vec![1; 4096]));
        second.stop();
        place.is_clean();
    }
}

#[test]
fn c17_a_write_of_a_server_that_was_taken_over_changes_nothing() {
    let place = Place::own("retry+s3:", "");
    place.init(16 << 20, "64Ki");
    let mut first = place.serve().start();
    let mut old = Client::unix(&first);
    assert_eq!(old.write(0, 0, &[1; 65_536]), 0);
    assert_eq!(old.flush(), 0);
    first.signal(Signal::STOP);
    let second = place.serve_at("second").words(["--takeover"]).start();
    let mut new = Client::unix(&second);
    assert_eq!(new.write(0, 0, &[2; 4096]), 0);
    assert_eq!(new.flush(), 0);
    // Under way before anybody has told it.
    let asked = old.send(crate::client::WRITE, 0, 0, 4096, &[3; 4096]);
    first.signal(Signal::CONT);
    if let Ok(reply) = asked.and_then(|_| old.receive()) {
        assert_ne!(reply.error, 0, "a write was acknowledged after a takeover");
    }
    let ended = first.wait(Duration::from_secs(15));
    assert_eq!(ended.expect("it ends").code(), Some(TAKEN_OVER));
    assert_eq!(new.read(0, 4096), Ok(vec![2; 4096]));
    second.stop();
    place.is_clean();
}

/// The server inside a process name space of its own.
fn inner(outer: &Server) -> Pid {
    let pid = outer.pid().as_raw_nonzero();
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).expect("its children");
    let child = children.split_whitespace().next().expect("a child");
    Pid::from_raw(child.parse().expect("a number")).expect("a process")
}

#[test]
fn c17_f04_an_owner_that_cant_be_seen_is_judged_by_its_heart() {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return;
    }
    if !present(&["unshare"]) {
        return;
    }
    let place = Place::own("cache+retry+s3:", "");
    place.init(16 << 20, "64Ki");
    let mut serve = place.serve();
    let words = ["unshare", "--pid", "--fork", "--kill-child"];
    serve.before = words.map(Into::into).to_vec();
    let mut first = serve.start();
    let mut old = Client::unix(&first);
    assert_eq!(old.write(0, 0, &[1; 4096]), 0);
    assert_eq!(old.flush(), 0);
    // Its number says nothing here. Its heart beats.
    one_line(&place.serve_at("second").refused(), &["pid 1,", "epoch 1"]);

    let server = inner(&first);
    kill_process(server, Signal::STOP).expect("it runs");
    let begin = Instant::now();
    let second = place.serve_at("second").start();
    let waited = begin.elapsed();
    println!("c17: another machine's silent owner was succeeded after {waited:?}");
    assert!(waited > LEASE - Duration::from_secs(4), "{waited:?}");
    let mut new = Client::unix(&second);
    assert_eq!(new.read(0, 4096), Ok(vec![1; 4096]));
    assert_eq!(new.write(0, 0, &[2; 4096]), 0);
    assert_eq!(new.flush(), 0);
    // It comes to, and its lease is over: nothing old is read, nothing is acknowledged.
    let asked = old.send(crate::client::READ, 0, 0, 4096, &[]);
    kill_process(server, Signal::CONT).expect("it is there");
    if let Ok(reply) = asked.and_then(|_| old.receive()) {
        assert_ne!(reply.error, 0, "a stale read");
    }
    let ended = first.wait(Duration::from_secs(20));
    assert_eq!(ended.expect("it ends").code(), Some(TAKEN_OVER));
    assert_eq!(new.read(0, 4096), Ok(vec![2; 4096]));
    second.stop();
    place.is_clean();
}

#[test]
fn c17_f66_of_servers_that_start_together_exactly_one_serves() {
    let place = Place::own("cache+retry+s3:", "");
    place.init(1 << 20, "64Ki");
    let location = &place.location;
    for round in 0..5 {
        let children: Vec<_> = (0..4)
            .map(|number| {
                let socket = place.dir().join(format!("{round}-{number}"));
                let child = std::process::Command::new(crate::server::binary())
                    .args(["serve", "--export", "disk", "sharded", location])
                    .args(["--no-journal", "--listen"])
                    .arg(format!("unix:{}", socket.display()))
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null())
                    .spawn();
                child.expect("started")
            })
            .collect();
        let mut serving = children;
        let until = Instant::now() + Duration::from_secs(20);
        while serving.len() > 1 && Instant::now() < until {
            serving.retain_mut(|child| child.try_wait().expect("our own").is_none());
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(100));
        serving.retain_mut(|child| child.try_wait().expect("our own").is_none());
        assert_eq!(serving.len(), 1, "servers that stayed in round {round}");
        serving[0].kill().expect("killed");
        serving[0].wait().expect("ended");
    }
}
