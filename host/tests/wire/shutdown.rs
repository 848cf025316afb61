//! A server that goes down, seen by clients in every state (w69, w74).

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::client::handshake::option_header;
use crate::client::line::Line;
use crate::client::{
    request, Framing, BLOCK_STATUS, CACHE, ESHUTDOWN, FLUSH, FRAMINGS, FUA, OPT_ABORT, OPT_GO,
    OPT_LIST, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, PAYLOAD_LEN, READ, REP_ACK,
    REP_ERR_SHUTDOWN, TRIM, WRITE, WRITE_ZEROES,
};
use crate::stage::{cases, count, Stage};
use crate::tools::present;
use crate::trace::{from_start, wait_for_call, Trace, SYNC};

#[test]
fn w69_requests_to_a_server_that_goes_down_are_refused_with_that() {
    if !present(&["strace"]) {
        return;
    }
    thread::scope(|scope| {
        for framing in FRAMINGS {
            scope.spawn(move || refuses_when_going_down(framing));
        }
    });
    count("w69", 3 * 8);
}

/// What is in flight is finished, what comes after the signal refused, and nothing of it done.
fn refuses_when_going_down(framing: Framing) {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let slow = |serve| from_start(serve, log.path(), SYNC, "delay_enter=2000000");
    let mut stage = Stage::with("8Mi", slow);
    let mut client = stage.client(framing);
    assert_eq!(client.write(0, 0, &[1; 65536]), 0);
    let flush = client.send(FLUSH, 0, 0, 0, &[]).expect("sent");
    wait_for_call(log.path(), SYNC);
    stage.server.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(300));
    for (command, flags, length) in [
        (READ, 0, 4096),
        (WRITE, 0, 4096),
        (WRITE, FUA, 300_000),
        (TRIM, 0, 4096),
        (WRITE_ZEROES, 0, 4096),
        (CACHE, 0, 4096),
        (BLOCK_STATUS, 0, 4096),
        (FLUSH, 0, 0),
    ] {
        let payload = vec![2; if command == WRITE { length } else { 0 }];
        let reply = client.ask(command, flags, 0, length, &payload);
        assert_eq!(reply.error, ESHUTDOWN, "command {command}, {framing:?}");
        assert_eq!(reply.contents, 0);
    }
    let reply = client.receive().expect("what was in flight is answered");
    assert_eq!((reply.cookie, reply.error), (flush, 0));
    client.line.ends();
    let status = stage.server.wait(Duration::from_secs(10));
    assert_eq!(status.expect("it ends").code(), Some(0));
    let image = fs::read(stage.image()).expect("an image");
    assert!(image[..65536].iter().all(|byte| *byte == 1), "it was done");
}

#[test]
fn w69_options_to_a_server_that_goes_down_are_refused_with_that() {
    if !present(&["strace"]) {
        return;
    }
    let go = crate::client::handshake::info_query(b"disk", &[]);
    let table = [
        ("LIST", (OPT_LIST, vec![], REP_ERR_SHUTDOWN)),
        ("GO", (OPT_GO, go, REP_ERR_SHUTDOWN)),
        (
            "STRUCTURED_REPLY",
            (OPT_STRUCTURED_REPLY, vec![], REP_ERR_SHUTDOWN),
        ),
        // Who leaves may leave.
        ("ABORT", (OPT_ABORT, vec![], REP_ACK)),
    ];
    cases("w69 options", table, |(option, data, expected)| {
        let mut stage = Stage::new();
        let mut handshake = stage.handshake();
        handshake.agree(OPT_LIST, b"").expect("a list");
        // The server wakes up for the option, and before it looks the signal comes.
        let log = stage.dir.path().join("strace");
        let slow = Trace::attach(
            &stage.server,
            &log,
            "poll,ppoll,restart_syscall",
            "delay_exit=1500000",
        );
        // A call that was under way when the tracer came begins again under its eyes.
        thread::sleep(Duration::from_millis(500));
        handshake.send(option, &data).expect("sent");
        thread::sleep(Duration::from_millis(500));
        stage.server.signal(Signal::TERM);
        assert_eq!(handshake.ended(option), expected);
        handshake.line.ends();
        let status = stage.server.wait(Duration::from_secs(10));
        assert_eq!(status.expect("it ends").code(), Some(0));
        drop(slow);
    });
}

#[test]
fn w74_a_server_stops_in_order_whatever_its_clients_are_at() {
    let mut stage = Stage::new();
    let mut lines = Vec::new();
    let tcp = || Line::tcp(&stage.server).expect("accepted");
    lines.push(tcp());
    lines.push(stage.line());
    lines.push(stage.handshake().line);
    let mut half = stage.handshake();
    let header = option_header(OPT_SET_META_CONTEXT, 5000);
    half.line.send(&header[..9]).expect("sent");
    lines.push(half.line);
    let mut half = stage.handshake();
    half.line.send(&header).expect("sent");
    half.line.send(&[0; 2500]).expect("sent");
    lines.push(half.line);
    for framing in FRAMINGS {
        lines.push(stage.client(framing).line);
        let flags = if framing == Framing::Extended {
            PAYLOAD_LEN
        } else {
            0
        };
        for (length, here) in [(4096_usize, 0), (4096, 100), (1 << 20, 500_000), (64, 0)] {
            let mut client = stage.client(framing);
            let mut bytes = request(framing, WRITE, flags, 1, 0, length as u64);
            bytes.truncate(if length == 64 { 13 } else { bytes.len() });
            bytes.resize(bytes.len() + here, 0xee);
            client.send_raw(&bytes).expect("sent");
            lines.push(client.line);
        }
        // A refused payload that is being read over.
        let mut client = stage.client(framing);
        let mut bytes = request(framing, WRITE, flags, 1, 1 << 40, 1 << 20);
        bytes.resize(bytes.len() + 1000, 0xee);
        client.send_raw(&bytes).expect("sent");
        lines.push(client.line);
    }
    thread::sleep(Duration::from_millis(100));
    stage.server.signal(Signal::TERM);
    let status = stage.server.wait(Duration::from_secs(5)).expect("it ends");
    assert_eq!(status.code(), Some(0));
    count("w74", lines.len());
    for line in &mut lines {
        line.rest().expect("it hung up");
    }
    let image = fs::read(stage.image()).expect("an image");
    assert!(image.iter().all(|byte| *byte == 0), "half a WRITE was done");
}
