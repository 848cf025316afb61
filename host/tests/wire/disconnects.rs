//! Clients that leave in every possible way, and cookies (w62, w64 to w66, w72, f29, f32, f36).

use std::thread;
use std::time::{Duration, Instant};

use crate::client::handshake::{info_query, meta_query, option_bytes};
use crate::client::line::Line;
use crate::client::reply::Chunk;
use crate::client::{
    request, Client, Framing, BLOCK_STATUS, CACHE, DISC, EXTENDED, FLUSH, FRAMINGS, FUA,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_LIST, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY,
    PAYLOAD_LEN, READ, SIMPLE, STRUCTURED, TRIM, WRITE, WRITE_ZEROES,
};
use crate::stage::{cases, count, Stage};

/// The cookies of so many replies without data, in the order they came.
fn cookies(client: &mut Client, replies: usize) -> Vec<u64> {
    let framing = client.framing();
    let mut one = || match client.line.u32().expect("a reply") {
        SIMPLE => {
            assert_eq!(client.line.u32().expect("an error"), 0);
            client.line.u64().expect("a cookie")
        }
        STRUCTURED | EXTENDED => {
            let chunk = Chunk::receive(&mut client.line, framing).expect("a chunk");
            assert_eq!((chunk.kind, chunk.done), (0, true), "success");
            chunk.cookie
        }
        magic => panic!("{magic:#x} begins no reply"),
    };
    (0..replies).map(|_| one()).collect()
}

#[test]
fn w62_cookies_are_opaque_also_when_they_are_used_twice() {
    let stage = Stage::new();
    let sets: [(&str, &[u64]); 5] = [
        ("0", &[0]),
        ("all ones", &[u64::MAX]),
        ("a magic number", &[0x2560_9513_6744_6698]),
        ("the same ten times", &[7; 10]),
        ("some twice", &[0, 1, 0, u64::MAX, 1, 1 << 63]),
    ];
    let table = sets.into_iter().flat_map(|(name, set)| {
        FRAMINGS.map(|framing| (format!("{name}, {framing:?}"), (framing, set)))
    });
    cases("w62", table, |(framing, set)| {
        let mut client = stage.client(framing);
        let mut bytes = Vec::new();
        for (n, cookie) in set.iter().enumerate() {
            let command = [WRITE_ZEROES, FLUSH, CACHE, TRIM][n % 4];
            let length = if command == FLUSH { 0 } else { 4096 };
            bytes.extend(request(framing, command, 0, *cookie, 0, length));
        }
        client.send_raw(&bytes).expect("sent");
        let mut got = cookies(&mut client, set.len());
        let mut expected = set.to_vec();
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected);
    });
    stage.stop();
}

#[test]
fn w64_a_write_whose_payload_does_not_come_whole_is_not_done_at_all() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for length in [2, 4096, 200_000, 300_000, 4 << 20] {
            for here in [0, 1, length / 2, length - 1] {
                for reset in [false, true] {
                    let how = if reset { "reset" } else { "closed" };
                    let name = format!("{here} of {length}, {how}, {framing:?}");
                    table.push((name, (framing, length, here, reset)));
                }
            }
        }
    }
    cases("w64", table, |(framing, length, here, reset)| {
        let line = Line::tcp(&stage.server).expect("accepted");
        let handshake = crate::client::handshake::Handshake::begin(line).expect("a greeting");
        let mut client = handshake.go(framing, b"disk").expect("a handshake");
        let flags = if framing == Framing::Extended {
            PAYLOAD_LEN
        } else {
            0
        };
        let mut bytes = request(framing, WRITE, flags, 1, 0, length as u64);
        bytes.resize(bytes.len() + here, 0xee);
        client.send_raw(&bytes).expect("sent");
        if reset {
            client.reset();
        } else {
            drop(client);
        }
    });
    quiet(&stage);
    let mut client = stage.client(Framing::Simple);
    assert!(
        client.read(0, 4 << 20) == Ok(vec![0; 4 << 20]),
        "half a WRITE"
    );
    stage.stop();
}

/// Waits until the server has seen every client leave.
fn quiet(stage: &Stage) {
    let until = Instant::now() + Duration::from_secs(5);
    while clients(stage) > 0 {
        assert!(
            Instant::now() < until,
            "{} clients are left",
            clients(stage)
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Threads of the server that serve a client.
fn clients(stage: &Stage) -> usize {
    let pid = stage.server.pid().as_raw_nonzero();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let names = tasks
        .map_while(Result::ok)
        .map(|task| task.path().join("comm"));
    let client = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path).is_ok_and(|name| name.trim_end() == "client")
    };
    names.filter(client).count()
}

/// Every kind of message, in one go.
fn script(framing: Framing) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(OPT_LIST, b""));
    bytes.extend(option_bytes(99, b"what"));
    let headers = match framing {
        Framing::Simple => None,
        Framing::Structured => Some(OPT_STRUCTURED_REPLY),
        Framing::Extended => Some(OPT_EXTENDED_HEADERS),
    };
    if let Some(option) = headers {
        bytes.extend(option_bytes(option, b""));
        let query = meta_query(b"disk", &[b"base:allocation"]);
        bytes.extend(option_bytes(OPT_SET_META_CONTEXT, &query));
    }
    bytes.extend(option_bytes(OPT_GO, &info_query(b"disk", &[3])));
    let payload = if framing == Framing::Extended {
        PAYLOAD_LEN
    } else {
        0
    };
    for (command, flags, length) in [
        (READ, 0, 4096),
        (WRITE, FUA | payload, 40),
        (TRIM, 0, 512),
        (WRITE_ZEROES, 0, 512),
        (BLOCK_STATUS, 0, 4096),
        (CACHE, 0, 4096),
        (0x55, 0, 0),
        (FLUSH, 0, 0),
        (DISC, 0, 0),
    ] {
        bytes.extend(request(framing, command, flags, 9, 0, length));
        if command == WRITE {
            bytes.extend([0xee; 40]);
        }
    }
    bytes
}

#[test]
fn f29_w66_a_session_may_end_at_every_byte() {
    let stage = Stage::new();
    let files = |stage: &Stage| {
        let pid = stage.server.pid().as_raw_nonzero();
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
        fds.count()
    };
    stage.still_serves();
    quiet(&stage);
    let (files_before, mut ran) = (files(&stage), 0);
    for framing in FRAMINGS {
        let script = script(framing);
        for end in 0..=script.len() {
            for how in 0..3 {
                let line = match how {
                    0 => Line::unix(&stage.server),
                    _ => Line::tcp(&stage.server),
                };
                let mut line = line.expect("accepted");
                // The server may hang up first, where the script says DISC.
                let _ = line.send(&script[..end]);
                match how {
                    // An end of file, and what was asked for is read.
                    1 => {
                        line.half_close();
                        line.rest().expect("the rest, and the end");
                    }
                    // A reset, most likely in the middle of the replies.
                    2 => line.reset(),
                    _ => drop(line),
                }
                ran += 1;
            }
        }
    }
    count("f29", ran);
    quiet(&stage);
    assert_eq!(files(&stage), files_before, "file descriptors leak");
    stage.still_serves();
    stage.stop();
}

#[test]
fn f32_w65_after_a_half_close_what_was_asked_is_answered_and_then_it_is_over() {
    let stage = Stage::new();
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("w65", table, |framing| {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, 0, &[3; 65536]), 0);
        for n in 0..20 {
            let length = if n == 7 { 2 << 20 } else { 4096 };
            client.send(READ, 0, n * 4096, length, &[]).expect("sent");
        }
        client.line.half_close();
        for _ in 0..20 {
            let reply = client.receive().expect("a reply");
            assert_eq!(reply.error, 0);
            assert_eq!(reply.data[0], if reply.cookie < 18 { 3 } else { 0 });
        }
        client.line.ends();
    });
    stage.stop();
}

#[test]
fn f36_what_is_in_flight_at_a_disc_is_done_and_answered() {
    let stage = Stage::new();
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("f36", table, |framing| {
        for round in 1..=20_u8 {
            let mut client = stage.client(framing);
            for n in 0..64 {
                let flags = if n % 8 == 0 { FUA } else { 0 };
                let data = [round; 4096];
                client
                    .send(WRITE, flags, n * 4096, 4096, &data)
                    .expect("sent");
            }
            client.send(DISC, 0, 0, 0, &[]).expect("sent");
            for _ in 0..64 {
                assert_eq!(client.receive().expect("a reply").error, 0);
            }
            client.line.ends();
            // Sent, and not waited for: it is done all the same.
            let mut client = stage.client(framing);
            let mut bytes = Vec::new();
            let flags = if framing == Framing::Extended {
                PAYLOAD_LEN
            } else {
                0
            };
            for n in 64..128 {
                bytes.extend(request(framing, WRITE, flags, n, n * 4096, 4096));
                bytes.extend([round; 4096]);
            }
            bytes.extend(request(framing, DISC, 0, 0, 0, 0));
            client.send_raw(&bytes).expect("sent");
            drop(client);
            quiet(&stage);
            let mut other = stage.client(Framing::Simple);
            let all = other.read(0, 128 * 4096).expect("bytes");
            assert!(all.iter().all(|byte| *byte == round), "round {round}");
        }
    });
    stage.stop();
}

#[test]
fn w72_clients_that_come_and_go_at_once_do_no_harm() {
    let stage = Stage::new();
    for n in 0..500 {
        match n % 3 {
            0 => drop(Line::unix(&stage.server)),
            1 => drop(Line::tcp(&stage.server)),
            _ => Line::tcp(&stage.server).expect("accepted").reset(),
        }
    }
    count("w72", 500);
    stage.still_serves();
    quiet(&stage);
    stage.stop();
}

#[test]
fn w66_a_client_that_leaves_in_the_middle_of_its_reply_harms_nobody() {
    let stage = Stage::with("64Mi", |serve| serve);
    let mut other = stage.client(Framing::Simple);
    assert_eq!(other.write(0, 0, &vec![5; 32 << 20]), 0);
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("w66", table, |framing| {
        for round in 0..10 {
            let line = Line::tcp(&stage.server).expect("accepted");
            let handshake = crate::client::handshake::Handshake::begin(line).expect("greeting");
            let mut client = handshake.go(framing, b"disk").expect("a handshake");
            for _ in 0..4 {
                client.send(READ, 0, 0, 32 << 20, &[]).expect("sent");
            }
            client.line.bytes(1 + round * 100_000).expect("some of it");
            client.reset();
        }
    });
    // Nothing keeps writers off what was being read.
    let begin = Instant::now();
    assert_eq!(other.write(0, 0, &vec![6; 32 << 20]), 0);
    assert!(begin.elapsed() < Duration::from_secs(5));
    quiet_but_one(&stage);
    stage.stop();
}

fn quiet_but_one(stage: &Stage) {
    let until = Instant::now() + Duration::from_secs(5);
    while clients(stage) > 1 {
        assert!(Instant::now() < until, "clients are left");
        thread::sleep(Duration::from_millis(5));
    }
}
