//! C3, F30: Linux gives a connection up, sends the same write again on another one, and then
//! newer data. The old copy must not be carried out late.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::tempdir;

use crate::client::{Client, FLUSH, FUA, WRITE};
use crate::rng::Rng;
use crate::server::{init_raw, Serve};
use crate::tools::present;
use crate::trace::{from_start, SYNC};

const UNIT: usize = 4096;

/// What write number `n` leaves.
fn pattern(n: u64, length: usize) -> Vec<u8> {
    n.to_le_bytes().repeat(length / 8)
}

#[test]
fn c03_f30_a_write_of_a_dead_connection_never_replaces_newer_data() {
    let mut rng = Rng::for_test("f30");
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "16Mi");
    let server = Serve::raw("disk", &image).tcp().start();
    let mut b = Client::tcp(&server).expect("a handshake");
    for round in 1..=400_u64 {
        let dice = rng.next();
        // Several units, of several sizes, so that the server is still at it when A is gone.
        let count = 1 + dice as usize % 12;
        let length = UNIT << ((dice >> 8) % 5);
        let (old, new) = (pattern(2 * round, length), pattern(2 * round + 1, length));
        let flags = if dice >> 16 & 7 == 0 { FUA } else { 0 };
        let mut a = Client::tcp(&server).expect("a handshake");
        a.send_within(Duration::from_millis(50));
        let stopped = dice >> 20 & 3 != 0;
        if stopped {
            server.signal(Signal::STOP);
        }
        for n in 0..count {
            // What a stopped server has no buffer for stays half sent.
            if a.send(WRITE, flags, (n * length) as u64, length, &old)
                .is_err()
            {
                break;
            }
        }
        if dice >> 24 & 1 == 0 {
            a.reset();
        } else {
            drop(a);
        }
        if stopped {
            server.signal(Signal::CONT);
        }
        for n in 0..count {
            b.send(WRITE, 0, (n * length) as u64, length, &old)
                .expect("sent");
        }
        for _ in 0..count {
            assert_eq!(b.receive().expect("a reply").error, 0);
        }
        for n in 0..count {
            b.send(WRITE, flags, (n * length) as u64, length, &new)
                .expect("sent");
        }
        for _ in 0..count {
            assert_eq!(b.receive().expect("a reply").error, 0);
        }
        if dice >> 28 & 3 == 0 {
            thread::sleep(Duration::from_millis(3));
        }
        for _ in 0..2 {
            for n in 0..count {
                let got = b.read((n * length) as u64, length).unwrap();
                assert!(
                    got == new,
                    "round {round}: an older write of a dead connection came back"
                );
            }
            thread::sleep(Duration::from_micros(300));
        }
    }
    // Nothing comes late either.
    let before = b.read(0, 1 << 20).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(b.read(0, 1 << 20).unwrap() == before);
    drop(b);
    server.stop();
}

#[test]
fn c03_what_waits_behind_a_slow_flush_of_a_dead_connection_is_not_done_late() {
    if !present(&["strace"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "8Mi");
    let log = dir.path().join("strace");
    let serve = Serve::raw("disk", &image).tcp();
    let server = from_start(serve, &log, SYNC, "delay_enter=400000").start();
    let mut b = Client::tcp(&server).expect("a handshake");
    for round in 1..=5_u64 {
        let (old, new) = (pattern(2 * round, UNIT), pattern(2 * round + 1, UNIT));
        let mut a = Client::tcp(&server).expect("a handshake");
        a.send(WRITE, 0, 1 << 20, UNIT, &old).unwrap();
        a.send(FLUSH, 0, 0, 0, &[]).unwrap();
        // Behind the FLUSH, with and without a sync of their own.
        for n in 0..64 {
            let flags = if n % 2 == 0 { FUA } else { 0 };
            a.send(WRITE, flags, n * UNIT as u64, UNIT, &old).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
        if round % 2 == 0 {
            a.reset();
        } else {
            drop(a);
        }
        for bytes in [&old, &new] {
            for n in 0..64 {
                b.send(WRITE, 0, n * UNIT as u64, UNIT, bytes).unwrap();
            }
            for _ in 0..64 {
                assert_eq!(b.receive().expect("a reply").error, 0);
            }
        }
        thread::sleep(Duration::from_millis(900));
        for n in 0..64 {
            let got = b.read(n * UNIT as u64, UNIT).unwrap();
            assert!(
                got == new,
                "round {round}: unit {n} went back to an older write"
            );
        }
    }
    drop(b);
    server.stop();
}
