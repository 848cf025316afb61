//! What clients can make the server hold: memory, requests in flight, the attention that others
//! need (w52, w63, w68, f31).

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{send, SendFlags};

use crate::client::{
    request, Client, Framing, EXTENDED, FRAMINGS, PAYLOAD_LEN, READ, SIMPLE, STRUCTURED, WRITE,
};
use crate::stage::{cases, count, Stage};

/// The smallest memory budget that a server can have, in KiB.
const BUDGET_KIB: u64 = 64 << 10;
/// What a connection may use without asking, in KiB.
const OWN_KIB: u64 = 256;
/// The largest payload.
const MAX: usize = 32 << 20;

fn small() -> Stage {
    Stage::with("64Mi", |serve| serve.words(["--memory", "64Mi"]))
}

fn announced(framing: Framing) -> Vec<u8> {
    let flags = if framing == Framing::Extended {
        PAYLOAD_LEN
    } else {
        0
    };
    request(framing, WRITE, flags, 1, 0, MAX as u64)
}

/// An honest client is served, and soon.
fn serves_soon(stage: &Stage) {
    let begin = Instant::now();
    for framing in FRAMINGS {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, 40 << 20, &[5; 65536]), 0);
        assert_eq!(client.read(40 << 20, 65536), Ok(vec![5; 65536]));
        client.disconnect();
    }
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn w52_a_hundred_announced_writes_of_32_mebibytes_cost_what_has_come_and_no_more() {
    const CLIENTS: u64 = 100;
    let table = [
        ("nothing", 0),
        ("a little", 1000),
        ("64 KiB", 65536),
        ("all", MAX),
    ];
    cases("w52 memory", table, |here| {
        let stage = small();
        let before = stage.status("VmRSS");
        let clients: Vec<Client> = (0..CLIENTS)
            .map(|n| {
                let mut client = stage.client(FRAMINGS[n as usize % 3]);
                client.send_within(Duration::from_millis(20));
                let bytes = announced(client.framing());
                client.send_raw(&bytes).expect("sent");
                // Sent as far as the server takes it.
                let _ = client.send_raw(&vec![9; here]);
                client
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        let used = stage.status("VmRSS").saturating_sub(before);
        let most = match here {
            0 | 1000 => 16 << 10,
            _ => BUDGET_KIB + CLIENTS * OWN_KIB + (16 << 10),
        };
        println!("w52: {used} KiB for {CLIENTS} connections that sent {here} bytes each");
        assert!(used < most, "{used} KiB of memory, {most} are allowed");
        serves_soon(&stage);
        drop(clients);
        // When they are gone there is room again.
        let mut client = stage.client(Framing::Simple);
        assert_eq!(client.write(0, 0, &vec![1; MAX]), 0);
        stage.stop();
    });
}

#[test]
fn f31_clients_that_take_no_replies_cost_little_and_keep_nobody_waiting() {
    let stage = small();
    let mut honest = stage.client(Framing::Structured);
    assert_eq!(honest.write(0, 0, &vec![7; MAX]), 0);
    let before = stage.status("VmRSS");
    let deaf: Vec<Client> = (0..12)
        .map(|n| {
            let mut client = stage.client(FRAMINGS[n % 3]);
            client.send_within(Duration::from_millis(50));
            for _ in 0..2000 {
                if client.send(READ, 0, 0, 1 << 20, &[]).is_err() {
                    break;
                }
            }
            client
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    let used = stage.status("VmRSS").saturating_sub(before);
    println!("f31: {used} KiB for {} deaf clients", deaf.len());
    assert!(used < BUDGET_KIB + 12 * OWN_KIB + (16 << 10), "{used} KiB");
    // Also where they read.
    for round in 0..20_u8 {
        let begin = Instant::now();
        assert_eq!(honest.write(0, 0, &[round; 65536]), 0);
        assert_eq!(honest.read(0, 65536), Ok(vec![round; 65536]));
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
    }
    serves_soon(&stage);
    drop(deaf);
    stage.stop();
}

/// Sends what the socket takes.
fn push(client: &Client, bytes: &[u8], sent: &mut usize) {
    while *sent < bytes.len() {
        match send(client.line.as_fd(), &bytes[*sent..], SendFlags::DONTWAIT) {
            Ok(more) => *sent += more,
            Err(_) => return,
        }
    }
}

#[test]
fn w63_a_hundred_thousand_requests_at_once_are_taken_as_they_are_answered() {
    const REQUESTS: u64 = 100_000;
    const LENGTH: usize = 512;
    let stage = small();
    assert_eq!(stage.client(Framing::Simple).write(0, 0, &[3; 65536]), 0);
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("w63", table, |framing| {
        let before = stage.status("VmRSS");
        let mut client = stage.client(framing);
        let one = |cookie| {
            request(
                framing,
                READ,
                0,
                cookie,
                (cookie % 100) * 512,
                LENGTH as u64,
            )
        };
        let bytes: Vec<u8> = (0..REQUESTS).flat_map(one).collect();
        let mut sent = 0;
        for _ in 0..10 {
            push(&client, &bytes, &mut sent);
            thread::sleep(Duration::from_millis(50));
        }
        assert!(sent < bytes.len(), "all were taken, and no reply was");
        let used = stage.status("VmRSS").saturating_sub(before);
        assert!(used < 8 << 10, "{used} KiB of memory");
        serves_soon(&stage);
        let (magic, head) = match framing {
            Framing::Simple => (SIMPLE, 16),
            Framing::Structured => (STRUCTURED, 20 + 8),
            Framing::Extended => (EXTENDED, 32 + 8),
        };
        for n in 0..REQUESTS {
            if n % 16 == 0 {
                push(&client, &bytes, &mut sent);
            }
            let reply = client.line.bytes(head + LENGTH).expect("a reply");
            assert_eq!(reply[..4], magic.to_be_bytes(), "reply {n}");
            assert!(reply[head..].iter().all(|byte| *byte == 3), "reply {n}");
        }
        client.line.stays_silent(Duration::from_millis(20));
    });
    stage.stop();
}

#[test]
fn w06_more_connections_than_allowed_are_turned_away_and_harm_nobody() {
    let stage = Stage::with("1Mi", |serve| serve.words(["--max-connections", "10"]));
    let mut inside: Vec<Client> = (0..10).map(|_| stage.client(Framing::Simple)).collect();
    for _ in 0..50 {
        stage.line().ends();
    }
    for client in &mut inside {
        assert_eq!(client.read(0, 1), Ok(vec![0]));
    }
    inside.pop().expect("ten").disconnect();
    let until = Instant::now() + Duration::from_secs(5);
    while stage.line().bytes(18).is_err() {
        assert!(Instant::now() < until, "the place was not given back");
        thread::sleep(Duration::from_millis(5));
    }
    count("w06", 50);
    stage.stop();
}

#[test]
fn w68_a_unix_socket_is_for_its_owner_unless_it_was_said_otherwise() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |stage: &Stage| {
        let metadata = std::fs::metadata(stage.server.unix()).expect("a socket");
        metadata.permissions().mode() & 0o777
    };
    let stage = Stage::new();
    assert_eq!(mode(&stage), 0o600);
    stage.stop();
    let stage = Stage::with("1Mi", |serve| serve.words(["--socket-mode", "0660"]));
    assert_eq!(mode(&stage), 0o660);
    stage.stop();
}
