//! Requests whose disk is slow, refuses, or fails: strace makes it so (w42, w44, w60, w61, w70).

use std::thread;
use std::time::{Duration, Instant};

use crate::client::handshake::info_query;
use crate::client::line::is_end;
use crate::client::{
    Client, Framing, BLOCK_STATUS, CACHE, EINVAL, EIO, ENOSPC, ENOTSUP, EPERM, FAST_ZERO, FLUSH,
    FRAMINGS, FUA, NO_HOLE, READ, SEND_FAST_ZERO, SEND_TRIM, SEND_WRITE_ZEROES, TRIM, WRITE,
    WRITE_ZEROES,
};
use crate::stage::{cases, Stage};
use crate::tools::present;
use crate::trace::{from_start, Trace, SYNC};

#[test]
fn requests_overtake_a_slow_one_and_each_is_answered_once() {
    if !present(&["strace"]) {
        return;
    }
    let log = tempfile::NamedTempFile::new().expect("a file");
    let slow = |serve| from_start(serve, log.path(), SYNC, "delay_enter=1000000");
    let stage = Stage::with("8Mi", slow);
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("overtaking", table, |framing| {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, 1 << 20, &[8; 4096]), 0);
        let begin = Instant::now();
        let slow = [
            client.send(WRITE, FUA, 0, 4096, &[9; 4096]).expect("sent"),
            client.send(FLUSH, 0, 0, 0, &[]).expect("sent"),
        ];
        let quick: Vec<u64> = (0..50)
            .map(|n| {
                let command = [READ, WRITE, CACHE, WRITE_ZEROES, 0x55][n % 5];
                let payload = [7; 512];
                let payload = if command == WRITE { &payload[..] } else { &[] };
                let offset = (1 << 20) + 4096 * n as u64;
                client.send(command, 0, offset, 512, payload).expect("sent")
            })
            .collect();
        let mut got: Vec<u64> = (0..50)
            .map(|_| client.receive().expect("a reply").cookie)
            .collect();
        assert!(begin.elapsed() < Duration::from_millis(900), "they waited");
        got.sort_unstable();
        assert_eq!(got, quick);
        let mut last = [(); 2].map(|()| client.receive().expect("a reply"));
        last.sort_by_key(|reply| reply.cookie);
        assert_eq!(last.each_ref().map(|reply| reply.cookie), slow);
        assert!(last.iter().all(|reply| reply.error == 0));
        assert!(
            begin.elapsed() > Duration::from_millis(900),
            "not slow at all"
        );
    });
    stage.stop();
}

fn flags(stage: &Stage) -> u16 {
    let mut handshake = stage.handshake();
    let infos = handshake
        .agree(6, &info_query(b"disk", &[]))
        .expect("infos");
    u16::from_be_bytes([infos[0].data[10], infos[0].data[11]])
}

#[test]
fn w42_what_the_file_system_cannot_do_is_neither_offered_nor_done() {
    if !present(&["strace"]) {
        return;
    }
    let log = tempfile::NamedTempFile::new().expect("a file");
    let without = |serve| from_start(serve, log.path(), "fallocate", "error=EOPNOTSUPP");
    let stage = Stage::with("8Mi", without);
    let offered = flags(&stage) & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO);
    assert_eq!(offered, SEND_WRITE_ZEROES);
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for (name, command, flags, error) in [
            ("TRIM", TRIM, 0, EINVAL),
            ("TRIM with FUA", TRIM, FUA, EINVAL),
            ("fast WRITE_ZEROES", WRITE_ZEROES, FAST_ZERO, EINVAL),
            ("fast, no hole", WRITE_ZEROES, FAST_ZERO | NO_HOLE, EINVAL),
            ("WRITE_ZEROES", WRITE_ZEROES, 0, 0),
            ("no hole", WRITE_ZEROES, NO_HOLE, 0),
        ] {
            table.push((
                format!("{name}, {framing:?}"),
                (framing, command, flags, error),
            ));
        }
    }
    cases("w42", table, |(framing, command, flags, error)| {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, 0, &[1; 65536]), 0);
        assert_eq!(client.zero(command, flags, 100, 50_000), error);
        let mut expected = vec![1; 65536];
        if error == 0 {
            expected[100..50_100].fill(0);
        }
        assert!(client.read(0, 65536) == Ok(expected), "what it left");
    });
    stage.stop();
}

#[test]
fn w44_a_fast_zero_that_would_be_slow_changes_nothing() {
    if !present(&["strace"]) {
        return;
    }
    let stage = Stage::new();
    assert_eq!(flags(&stage) & SEND_FAST_ZERO, SEND_FAST_ZERO);
    let log = stage.dir.path().join("strace");
    // Offered at the start, refused by the disk later.
    let slow = Trace::attach(&stage.server, &log, "fallocate", "error=EOPNOTSUPP");
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for flags in [FAST_ZERO, FAST_ZERO | FUA, FAST_ZERO | NO_HOLE] {
            table.push((format!("flags {flags:#x}, {framing:?}"), (framing, flags)));
        }
    }
    cases("w44", table, |(framing, flags)| {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, 0, &[1; 65536]), 0);
        assert_eq!(client.zero(WRITE_ZEROES, flags, 0, 65536), ENOTSUP);
        assert!(
            client.read(0, 65536) == Ok(vec![1; 65536]),
            "it changed something"
        );
        // Without the wish it is done, slowly; and never ENOTSUP.
        let slowly = flags & !FAST_ZERO;
        assert_eq!(client.zero(WRITE_ZEROES, slowly, 0, 4096), 0);
        assert_eq!(client.zero(TRIM, 0, 4096, 4096), 0);
        let mut expected = vec![1; 65536];
        expected[..8192].fill(0);
        assert!(client.read(0, 65536) == Ok(expected), "zeros");
    });
    slow.detach();
    stage.stop();
}

/// System calls that read data.
const READS: &str = "preadv2,pread64";
/// System calls that write data.
const WRITES: &str = "pwrite64,process_vm_writev";

#[test]
fn w61_w70_failures_of_the_disk_are_errors_of_the_protocol() {
    if !present(&["strace"]) {
        return;
    }
    let table = [
        ("EIO", EIO),
        ("ENOMEM", EIO),
        ("ESTALE", EIO),
        ("ETIMEDOUT", EIO),
        ("EREMOTEIO", EIO),
        ("ENOSPC", ENOSPC),
        ("EDQUOT", ENOSPC),
        ("EFBIG", ENOSPC),
        ("EROFS", EPERM),
        ("EACCES", EPERM),
    ];
    let stage = Stage::new();
    assert_eq!(stage.client(Framing::Simple).write(0, 0, &[1; 65536]), 0);
    let log = stage.dir.path().join("strace");
    cases("w70", table.map(|row| (row.0, row)), |(errno, error)| {
        let calls = format!("{READS},{WRITES}");
        let how = format!("error={errno}");
        let failing = Trace::attach(&stage.server, &log, &calls, &how);
        for framing in FRAMINGS {
            let mut client = stage.client(framing);
            let reply = client.ask(READ, 0, 0, 4096, &[]);
            assert_eq!(
                (reply.error, reply.contents),
                (error, 0),
                "READ, {framing:?}"
            );
            assert_eq!(reply.text.is_empty(), framing == Framing::Simple);
            // The second one is in step.
            assert_eq!(client.ask(READ, 0, 4096, 4096, &[]).error, error);
            assert_eq!(client.write(0, 0, &[2; 4096]), error, "WRITE, {framing:?}");
            assert_eq!(client.zero(CACHE, 0, 0, 4096), 0);
        }
        failing.detach();
        let mut client = stage.client(Framing::Simple);
        assert!(
            client.read(0, 65536) == Ok(vec![1; 65536]),
            "it works again"
        );
    });
    stage.stop();
}

/// A READ of 32 MiB whose reply has begun when the disk fails: the socket is full, the rest has to
/// be read again, and can't be.
fn reading_when_the_disk_fails(framing: Framing) -> (Stage, Client) {
    let stage = Stage::with("64Mi", |serve| serve);
    let mut client = stage.client(framing);
    assert_eq!(client.write(0, 0, &vec![7; 32 << 20]), 0);
    let log = stage.dir.path().join("strace");
    let failing = Trace::attach(&stage.server, &log, READS, "error=EIO");
    client.send(READ, 0, 0, 32 << 20, &[]).expect("sent");
    thread::sleep(Duration::from_millis(1500));
    failing.detach();
    (stage, client)
}

#[test]
fn w60_a_simple_reply_that_cannot_be_finished_ends_the_connection() {
    if !present(&["strace"]) {
        return;
    }
    let (stage, mut client) = reading_when_the_disk_fails(Framing::Simple);
    let rest = client.line.rest().expect("it hung up");
    assert_eq!(
        rest[..8],
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0],
        "success was said"
    );
    assert!(
        rest.len() < (32 << 20) + 16,
        "the reply is whole: nothing failed"
    );
    assert!(
        rest[16..].iter().all(|byte| *byte == 7),
        "something else for data"
    );
    stage.still_serves();
    stage.stop();
}

#[test]
fn w61_a_chunk_that_cannot_be_finished_is_filled_and_followed_by_an_error() {
    if !present(&["strace"]) {
        return;
    }
    let table = [Framing::Structured, Framing::Extended];
    cases(
        "w61",
        table.map(|framing| (format!("{framing:?}"), framing)),
        |framing| {
            let (stage, mut client) = reading_when_the_disk_fails(framing);
            let reply = client.receive().expect("a reply");
            assert_eq!((reply.error, reply.contents, reply.chunks), (EIO, 1, 2));
            assert!(!reply.text.is_empty());
            assert!(client.read(0, 4096) == Ok(vec![7; 4096]), "in step");
            stage.stop();
        },
    );
}

#[test]
fn w61_a_cut_image_is_an_error_and_never_zeros() {
    let stage = Stage::new();
    assert_eq!(
        stage.client(Framing::Simple).write(0, 0, &vec![1; 4 << 20]),
        0
    );
    let image = std::fs::OpenOptions::new().write(true).open(stage.image());
    image.expect("an image").set_len(1 << 20).expect("cut");
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for (offset, length) in [
            ((1 << 20) - 2048, 4096),
            (2 << 20, 4096),
            (0, 2 << 20),
            (1 << 20, 1 << 20),
            (5 << 20, 1 << 20),
            (0, 8 << 20),
        ] {
            table.push((
                format!("{length} at {offset}, {framing:?}"),
                (framing, offset, length),
            ));
        }
    }
    cases("w61 cut", table, |(framing, offset, length)| {
        let mut client = stage.client(framing);
        client.send(READ, 0, offset, length, &[]).expect("sent");
        match client.receive() {
            Ok(reply) => assert_eq!(reply.error, EIO),
            // W60: a simple reply that had begun can only be cut.
            Err(error) => {
                assert!(is_end(&error) && framing == Framing::Simple, "{error}");
                return;
            }
        }
        if framing != Framing::Simple {
            assert_eq!(client.ask(BLOCK_STATUS, 0, offset, length, &[]).error, EIO);
        }
        assert!(client.read(0, 4096) == Ok(vec![1; 4096]), "in step");
    });
    stage.stop();
}
