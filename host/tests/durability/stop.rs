//! C23: SIGTERM, once and twice, with clients in every state.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::{tempdir, TempDir};

use crate::client::{header, Client, EIO, FLUSH, READ, WRITE};
use crate::load::{loads, UNITS};
use crate::model::Model;
use crate::rng::Rng;
use crate::server::{init_raw, Serve, Server};
use crate::tools::present;
use crate::trace::{from_start, wait_for_call, Trace, SYNC};

/// What a stop may take when clients do not help, and a little.
const DRAIN: Duration = Duration::from_secs(35);
/// What it may take when nothing is in flight.
const IDLE: Duration = Duration::from_secs(5);

fn stage() -> (TempDir, Serve) {
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "8Mi");
    let serve = Serve::raw("disk", &image).unix(&dir.path().join("sock"));
    (dir, serve)
}

/// SIGTERM, and the exit code that follows.
fn terminate(server: &mut Server, limit: Duration) -> Option<i32> {
    let begin = Instant::now();
    server.signal(Signal::TERM);
    let status = server.wait(limit);
    let status = status.unwrap_or_else(|| panic!("still there {limit:?} after SIGTERM"));
    println!("ended {:?} after SIGTERM: {status}", begin.elapsed());
    status.code()
}

#[test]
fn c23_sigterm_under_load_loses_nothing_and_exits_with_0() {
    let mut rng = Rng::for_test("c23");
    for _ in 0..8 {
        let (dir, serve) = stage();
        let mut server = serve.start();
        let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
        let loads = loads(&server, &model, &mut rng);
        thread::sleep(Duration::from_millis(20 + rng.next() % 150));
        assert_eq!(terminate(&mut server, DRAIN), Some(0));
        let done: Vec<_> = loads.into_iter().map(|load| load.join().unwrap()).collect();
        let answered: usize = done.iter().map(|done| done.answered).sum();
        let refused: usize = done.iter().map(|done| done.refused).sum();
        println!("c23: {answered} answered, {refused} refused with ESHUTDOWN");
        let volume = fs::read(dir.path().join("disk.img")).unwrap();
        model.lock().unwrap().check_after_crash(&volume);
    }
}

#[test]
fn c23_a_request_in_flight_is_answered_before_the_server_goes() {
    if !present(&["strace"]) {
        return;
    }
    let (dir, serve) = stage();
    let log = dir.path().join("strace");
    let mut server = from_start(serve, &log, SYNC, "delay_enter=1500000").start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[7; 4096]), 0);
    client.send(FLUSH, 0, 0, 0, &[]).unwrap();
    wait_for_call(&log, SYNC);
    server.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(300));
    server.assert_alive();
    let late = UnixStream::connect(server.unix()).and_then(|mut socket| {
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.read_exact(&mut [0; 18])
    });
    assert!(late.is_err(), "a new client was greeted after SIGTERM");
    let reply = client.receive().expect("FLUSH in flight is answered");
    assert_eq!(reply.error, 0);
    let status = server.wait(DRAIN).expect("it ends then");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn c23_a_second_sigterm_ends_it_at_once() {
    if !present(&["strace"]) {
        return;
    }
    let (dir, serve) = stage();
    let mut server = serve.start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[7; 4096]), 0);
    let log = dir.path().join("strace");
    let slow = Trace::attach(&server, &log, SYNC, "delay_enter=20000000");
    client.send(FLUSH, 0, 0, 0, &[]).unwrap();
    thread::sleep(Duration::from_millis(200));
    server.signal(Signal::TERM);
    let ended = server.wait(Duration::from_millis(500));
    assert_eq!(ended, None, "it did not wait for the FLUSH in flight");
    server.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(300));
    // strace holds on to the thread until the delay is over, even at its exit. A server that had
    // not ended by itself could now finish the FLUSH, and would do so with success.
    slow.kill();
    let status = server.wait(Duration::from_secs(2));
    let status = status.expect("gone at the second SIGTERM");
    assert_ne!(status.code(), Some(0), "it waited for the FLUSH in flight");
    assert!(client.receive().is_err(), "the FLUSH was answered");
}

#[test]
fn c23_sigterm_and_sigint_with_idle_clients() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_dir, serve) = stage();
        let mut server = serve.tcp().start();
        let mut idle = Client::unix(&server);
        let tcp = Client::tcp(&server).expect("a handshake");
        // Connected, and silent before and in the handshake.
        let silent = TcpStream::connect(server.tcp()).unwrap();
        server.signal(signal);
        let status = server.wait(IDLE).expect("idle clients do not hold it");
        assert_eq!(status.code(), Some(0), "after {signal:?}");
        assert!(idle.receive().is_err(), "the connection is closed");
        drop((tcp, silent));
    }
}

#[test]
fn c23_sigterm_with_a_client_that_stopped_in_the_middle_of_a_request() {
    let (dir, serve) = stage();
    let mut server = serve.start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    let mut half = header(WRITE, 0, 99, 0, 65536);
    half.extend_from_slice(&[2; 32768]);
    client.send_raw(&half).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(terminate(&mut server, DRAIN), Some(0));
    let image = fs::read(dir.path().join("disk.img")).unwrap();
    assert!(
        image[..4096].iter().all(|&byte| byte == 1),
        "half a WRITE was carried out"
    );
}

#[test]
fn c23_sigterm_with_a_client_that_reads_no_replies() {
    let (_dir, serve) = stage();
    let mut server = serve.start();
    let mut client = Client::unix(&server);
    for _ in 0..32 {
        client.send(READ, 0, 0, 1 << 20, &[]).unwrap();
    }
    thread::sleep(Duration::from_millis(200));
    // What is in flight cannot be delivered; that must not keep the server for ever.
    terminate(&mut server, DRAIN);
    assert_eq!(client.waiting(), 32);
}

#[test]
fn c23_a_flush_that_fails_at_the_stop_shows_in_the_exit_code() {
    if !present(&["strace"]) {
        return;
    }
    let (dir, serve) = stage();
    let mut server = serve.start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    let failing = Trace::attach(&server, &dir.path().join("strace"), SYNC, "error=EIO");
    assert_eq!(
        terminate(&mut server, DRAIN),
        Some(3),
        "the last flush failed: {}",
        server.log()
    );
    failing.detach();
}

#[test]
fn c05_c23_a_stop_after_a_failed_sync_is_no_success_either() {
    if !present(&["strace"]) {
        return;
    }
    let (dir, serve) = stage();
    let mut server = serve.start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    let failing = Trace::attach(&server, &dir.path().join("strace"), SYNC, "error=EIO");
    assert_eq!(client.flush(), EIO);
    failing.detach();
    // The sync would now work, and would be a lie.
    assert_eq!(
        terminate(&mut server, DRAIN),
        Some(3),
        "written data may be lost: {}",
        server.log()
    );
}
