//! The first bytes, right and wrong (w01 to w09).

use std::time::Duration;

use crate::client::handshake::{info_query, option_bytes, option_header, Handshake};
use crate::client::line::Line;
use crate::client::{
    Framing, FIXED_NEWSTYLE, NO_ZEROES, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST,
    OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_TOO_BIG, REP_ERR_UNSUP,
};
use crate::server::init_raw;
use crate::stage::{cases, Stage, SIZE};

#[test]
fn w01_unknown_client_flags_end_the_connection() {
    let stage = Stage::new();
    let bits = (2..32).map(|bit| (format!("bit {bit}"), 1_u32 << bit | FIXED_NEWSTYLE));
    let more = [
        ("all of them".to_owned(), u32::MAX),
        ("in the upper half".to_owned(), 0x0003_0000),
    ];
    cases("w01", bits.chain(more), |flags| {
        let handshake = Handshake::with_flags(stage.line(), flags);
        handshake.expect("a greeting").line.ends();
    });
    stage.still_serves();
    stage.stop();
}

#[test]
fn w03_without_fixed_newstyle_only_export_name_is_taken() {
    let stage = Stage::new();
    let options = [
        OPT_ABORT,
        OPT_LIST,
        OPT_INFO,
        OPT_GO,
        OPT_STRUCTURED_REPLY,
        99,
    ];
    let table = options.map(|option| (format!("option {option}"), option));
    cases("w03", table, |option| {
        let mut handshake = Handshake::with_flags(stage.line(), NO_ZEROES).expect("a greeting");
        handshake.send(option, b"").expect("sent");
        handshake.line.ends();
    });
    for (flags, zeroes) in [(0, 124), (NO_ZEROES, 0)] {
        let mut handshake = Handshake::with_flags(stage.line(), flags).expect("a greeting");
        handshake.send(OPT_EXPORT_NAME, b"disk").expect("sent");
        assert_eq!(handshake.line.u64().expect("a size"), SIZE);
        handshake.line.u16().expect("flags");
        assert_eq!(
            handshake.line.bytes(zeroes).expect("zeroes"),
            vec![0; zeroes]
        );
        let mut client = handshake.transmit(Framing::Simple);
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    stage.stop();
}

#[test]
fn w04_w67_a_wrong_option_magic_ends_the_connection() {
    let stage = Stage::new();
    let magics = [
        ("nothing", 0),
        ("of the greeting", 0x4e42_444d_4147_4943),
        ("of a reply to an option", 0x0003_e889_0455_65a9),
        ("one bit off", 0x4948_4156_454f_5055),
        ("swapped", 0x5450_4f45_5641_4849),
        ("of a request", 0x2560_9513_0000_0000),
    ];
    cases("w04", magics, |magic: u64| {
        let mut handshake = stage.handshake();
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, 0, 3, 0, 0, 0, 0]);
        handshake.line.send(&bytes).expect("sent");
        handshake.line.ends();
    });
    // The same behind an option that was right.
    let mut handshake = stage.handshake();
    assert_eq!(handshake.ask(OPT_LIST, b"").expect("a reply"), REP_ACK);
    handshake.line.send(&[0x55; 16]).expect("sent");
    handshake.line.ends();
    stage.still_serves();
    stage.stop();
}

#[test]
fn w07_who_speaks_another_protocol_is_cut_off_with_one_line_in_the_log() {
    let stage = Stage::new();
    let hello = [
        &[
            0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
        ][..],
        &[0xa5; 500],
    ]
    .concat();
    let noise: Vec<u8> = (1..=255).rev().cycle().take(4096).collect();
    let table = [
        (
            "HTTP",
            b"GET / HTTP/1.1\r\nHost: \x1b[31mx\r\n\r\n".to_vec(),
        ),
        ("TLS", hello),
        ("noise", noise),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
    ];
    let lines_before = stage.server.log().lines().count();
    let count = table.len();
    cases("w07", table, |bytes| {
        let mut line = Line::tcp(&stage.server).expect("accepted");
        line.bytes(18).expect("a greeting");
        line.send(&bytes).expect("sent");
        line.ends();
    });
    stage.still_serves();
    std::thread::sleep(Duration::from_millis(200));
    let log = stage.server.log();
    assert!(!log.contains('\x1b'), "an escape of the client in the log");
    assert_eq!(log.lines().count() - lines_before, count, "{log}");
    stage.stop();
}

/// Options that are not spoken, with data that is read over.
#[test]
fn w08_w37_unknown_options_are_refused_and_the_next_one_is_heard() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for option in [0, 4, 12, 99, 0x7fff_ffff, u32::MAX] {
        for length in [0, 1, 4, 4096, 262_144, 1 << 20] {
            table.push((format!("option {option}, {length} bytes"), (option, length)));
        }
    }
    cases("w08", table, |(option, length): (u32, usize)| {
        let mut handshake = stage.handshake();
        let kind = handshake.ask(option, &vec![0x49; length]);
        assert_eq!(kind.expect("a reply"), REP_ERR_UNSUP);
        assert_eq!(handshake.ask(OPT_LIST, b"").expect("a reply"), REP_ACK);
    });
    stage.stop();
}

#[test]
fn w09_w10_w13_data_beyond_reason_ends_the_connection_before_it_is_sent() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for option in [99, OPT_LIST, OPT_GO, OPT_SET_META_CONTEXT, OPT_ABORT] {
        for length in [(1 << 20) + 1, 1 << 31, u32::MAX] {
            table.push((format!("option {option}, {length} bytes"), (option, length)));
        }
    }
    for length in [4097, 65536, u32::MAX - 1, u32::MAX] {
        let name = format!("EXPORT_NAME, {length} bytes");
        table.push((name, (OPT_EXPORT_NAME, length)));
    }
    let before = stage.status("VmRSS");
    cases("w09", table, |(option, length)| {
        let mut handshake = stage.handshake();
        let header = option_header(option, length);
        handshake.line.send(&header).expect("sent");
        handshake.line.ends();
    });
    assert!(stage.status("VmRSS") < before + (8 << 10), "it took memory");
    stage.still_serves();
    stage.stop();
}

#[test]
fn w10_known_options_with_too_much_data_are_refused_in_step() {
    let stage = Stage::new();
    let options = [
        OPT_LIST,
        OPT_INFO,
        OPT_GO,
        OPT_STRUCTURED_REPLY,
        OPT_SET_META_CONTEXT,
    ];
    let mut table = Vec::new();
    for option in options {
        for length in [(256 << 10) + 1, 1 << 20] {
            table.push((format!("option {option}, {length} bytes"), (option, length)));
        }
    }
    cases("w10", table, |(option, length): (u32, usize)| {
        let mut handshake = stage.handshake();
        let kind = handshake.ask(option, &vec![0; length]);
        assert_eq!(kind.expect("a reply"), REP_ERR_TOO_BIG);
        let mut client = handshake.go(Framing::Simple, b"disk").expect("in step");
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    });
    stage.stop();
}

#[test]
fn w10_the_largest_legal_go_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("long.img");
    init_raw(&image, "1Mi");
    let stage = Stage::with("1Mi", |serve| serve.and_raw(&"n".repeat(4096), &image));
    let infos: Vec<u16> = (0..=65534).collect();
    let data = info_query(&[b'n'; 4096], &infos);
    assert_eq!(data.len(), 4 + 4096 + 2 + 2 * 65535);
    let mut handshake = stage.handshake();
    let infos = handshake.agree(OPT_GO, &data).expect("transmission");
    assert_eq!(infos.len(), 4, "each known information once");
    let mut client = handshake.transmit(Framing::Simple);
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    stage.stop();
}

#[test]
fn w11_w20_options_without_end_end_the_connection() {
    let stage = Stage::new();
    let info = info_query(b"disk", &[]);
    let table = [
        ("LIST", (OPT_LIST, &[][..])),
        ("INFO", (OPT_INFO, &info[..])),
        ("unknown", (99, b"abc")),
        ("refused", (OPT_LIST, b"x")),
    ];
    cases("w11", table, |(option, data)| {
        let mut handshake = stage.handshake();
        let answered = (0..1000).take_while(|_| handshake.ask(option, data).is_ok());
        let answered = answered.count();
        assert!((32..=256).contains(&answered), "{answered} were answered");
        handshake.line.rest().expect("it hung up");
    });
    // Sent without waiting, too.
    let mut handshake = stage.handshake();
    let many = option_bytes(OPT_INFO, &info).repeat(1000);
    let _ = handshake.line.send(&many);
    handshake.line.rest().expect("it hung up");
    stage.still_serves();
    stage.stop();
}
