//! Every option and the exact bytes of its reply.

use std::path::PathBuf;

use tempfile::tempdir;

use crate::client::handshake::{info_query, meta_query, text, OptionReply};
use crate::client::{
    Framing, BLOCK_STATUS_PAYLOAD, CAN_MULTI_CONN, FRAMINGS, HAS_FLAGS, INFO_BLOCK_SIZE,
    INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS,
    OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY,
    REP_ACK, REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_INFO, REP_META_CONTEXT, REP_SERVER, SEND_CACHE,
    SEND_DF, SEND_FAST_ZERO, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
};
use crate::server::{init_raw, Serve};
use crate::stage::{cases, Stage, SIZE};

/// What a writable image on a file system that punches holes has, whatever is negotiated.
const FLAGS: u16 = HAS_FLAGS
    | SEND_FLUSH
    | SEND_FUA
    | SEND_TRIM
    | SEND_WRITE_ZEROES
    | CAN_MULTI_CONN
    | SEND_CACHE
    | SEND_FAST_ZERO;

/// The bytes of one reply to an option.
fn bytes(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn info(kind: u16, rest: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], rest].concat()
}

fn info_export(size: u64, flags: u16) -> Vec<u8> {
    let rest = [&size.to_be_bytes()[..], &flags.to_be_bytes()].concat();
    info(INFO_EXPORT, &rest)
}

/// What one connection says to one option, and nothing behind it.
fn answer(stage: &Stage, before: &[u32], option: u32, data: &[u8]) -> Vec<u8> {
    let mut handshake = stage.handshake();
    for option in before {
        handshake.agree(*option, b"").expect("agreed");
    }
    handshake.send(option, data).expect("sent");
    handshake.line.half_close();
    handshake.line.rest().expect("a reply, and the end")
}

#[test]
fn every_option_is_answered_with_the_bytes_of_the_specification() {
    let stage = Stage::new();
    let ack = |option| bytes(option, REP_ACK, b"");
    let context = |option, id: u8| {
        let data = [&[0, 0, 0, id][..], b"base:allocation"].concat();
        [bytes(option, REP_META_CONTEXT, &data), ack(option)].concat()
    };
    let export = info_export(SIZE, FLAGS);
    let go = [bytes(OPT_GO, REP_INFO, &export), ack(OPT_GO)].concat();
    let server = bytes(OPT_LIST, REP_SERVER, &text(b"disk"));
    let structured = &[OPT_STRUCTURED_REPLY][..];
    let all = meta_query(b"disk", &[]);
    let allocation = meta_query(b"disk", &[b"base:allocation"]);
    let table = [
        ("ABORT", (&[][..], OPT_ABORT, vec![], ack(OPT_ABORT))),
        (
            "LIST",
            (&[], OPT_LIST, vec![], [server, ack(OPT_LIST)].concat()),
        ),
        ("GO", (&[], OPT_GO, info_query(b"disk", &[]), go.clone())),
        ("GO of the default", (&[], OPT_GO, info_query(b"", &[]), go)),
        ("STRUCTURED_REPLY", (&[], 8, vec![], ack(8))),
        ("STRUCTURED_REPLY again", (structured, 8, vec![], ack(8))),
        ("EXTENDED_HEADERS", (&[], 11, vec![], ack(11))),
        ("EXTENDED_HEADERS again", (&[11], 11, vec![], ack(11))),
        ("EXTENDED_HEADERS on top", (structured, 11, vec![], ack(11))),
        (
            "LIST_META_CONTEXT",
            (structured, 9, all.clone(), context(9, 0)),
        ),
        (
            "the same of one",
            (structured, 9, allocation.clone(), context(9, 0)),
        ),
        (
            "the same, extended",
            (&[11], 9, allocation.clone(), context(9, 0)),
        ),
        (
            "SET_META_CONTEXT",
            (structured, 10, allocation.clone(), context(10, 1)),
        ),
        (
            "the same, extended",
            (&[11], 10, allocation, context(10, 1)),
        ),
        (
            "SET_META_CONTEXT to nothing",
            (structured, 10, all, ack(10)),
        ),
    ];
    cases(
        "replies to options",
        table,
        |(before, option, data, expected)| {
            assert_eq!(answer(&stage, before, option, &data), expected);
        },
    );
    stage.stop();
}

#[test]
fn info_and_go_give_what_is_asked_for_and_the_export_always() {
    let stage = Stage::new();
    let location = format!("raw file:{}", stage.image().display());
    let sizes: Vec<u8> = [1_u32, 4096, 32 << 20]
        .iter()
        .flat_map(|size| size.to_be_bytes())
        .collect();
    let known = [
        info_export(SIZE, FLAGS),
        info(INFO_NAME, b"disk"),
        info(INFO_DESCRIPTION, location.as_bytes()),
        info(INFO_BLOCK_SIZE, &sizes),
    ];
    let mut table = Vec::new();
    for option in [OPT_INFO, OPT_GO] {
        for asked in 0_u16..16 {
            let infos: Vec<u16> = (0..4).filter(|info| asked & (1 << info) != 0).collect();
            table.push((format!("option {option} of {infos:?}"), (option, infos)));
        }
    }
    cases("infos", table, |(option, infos)| {
        let mut handshake = stage.handshake();
        let got = handshake.agree(option, &info_query(b"disk", &infos));
        let expected: Vec<OptionReply> = (0..4)
            .filter(|info| *info == 0 || infos.contains(info))
            .map(|info| OptionReply {
                kind: REP_INFO,
                data: known[usize::from(info)].clone(),
            })
            .collect();
        assert_eq!(got.expect("an answer"), expected);
    });
    stage.stop();
}

#[test]
fn transmission_flags_follow_what_was_negotiated_also_for_export_name() {
    let stage = Stage::new();
    let meta = meta_query(b"disk", &[b"base:allocation"]);
    let table = [
        ("simple", (vec![], FLAGS)),
        ("structured", (vec![(8, vec![])], FLAGS | SEND_DF)),
        (
            "with a context",
            (vec![(8, vec![]), (10, meta.clone())], FLAGS | SEND_DF),
        ),
        ("extended", (vec![(11, vec![])], FLAGS | SEND_DF)),
        (
            "extended with a context",
            (
                vec![(11, vec![]), (10, meta)],
                FLAGS | SEND_DF | BLOCK_STATUS_PAYLOAD,
            ),
        ),
    ];
    cases(
        "transmission flags",
        table,
        |(before, flags): (Vec<(u32, Vec<u8>)>, u16)| {
            let extended = before
                .iter()
                .any(|(option, _)| *option == OPT_EXTENDED_HEADERS);
            let mut handshake = stage.handshake();
            for (option, data) in &before {
                handshake.agree(*option, data).expect("agreed");
            }
            let infos = handshake.agree(OPT_INFO, &info_query(b"disk", &[]));
            assert_eq!(infos.expect("an answer")[0].data, info_export(SIZE, flags));
            handshake.send(OPT_EXPORT_NAME, b"disk").expect("sent");
            if extended {
                // W78: with extended headers EXPORT_NAME is not allowed.
                handshake.line.ends();
                return;
            }
            assert_eq!(handshake.line.u64().expect("a size"), SIZE);
            assert_eq!(handshake.line.u16().expect("flags"), flags);
        },
    );
    stage.stop();
}

#[test]
fn without_no_zeroes_only_export_name_is_padded() {
    use crate::client::handshake::Handshake;
    let stage = Stage::new();
    let mut handshake = Handshake::with_flags(stage.line(), 1).expect("a greeting");
    handshake.send(OPT_EXPORT_NAME, b"").expect("sent");
    handshake.line.half_close();
    let rest = handshake.line.rest().expect("a reply, and the end");
    let expected = [&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes(), &[0; 124]].concat();
    assert_eq!(rest, expected);
    let mut handshake = Handshake::with_flags(stage.line(), 1).expect("a greeting");
    handshake
        .agree(OPT_GO, &info_query(b"", &[]))
        .expect("agreed");
    assert_eq!(handshake.transmit(Framing::Simple).read(0, 1), Ok(vec![0]));
    stage.stop();
}

/// Exports with names that a path or a terminal would take for something else.
const NAMES: [&str; 7] = ["first", "second", "../etc", "a b", "ä", "a/b", "\u{1b}[31m"];

fn many_exports() -> (tempfile::TempDir, crate::server::Server) {
    let dir = tempdir().expect("a directory");
    let image = |n: usize| -> PathBuf { dir.path().join(format!("{n}.img")) };
    let mut serve: Option<Serve> = None;
    for (n, name) in NAMES.iter().enumerate() {
        init_raw(&image(n), &format!("{}Mi", n + 1));
        serve = Some(match serve {
            None => Serve::raw(name, &image(n)),
            Some(serve) => serve.and_raw(name, &image(n)),
        });
    }
    let serve = serve.expect("at least one").unix(&dir.path().join("sock"));
    let server = serve.start();
    (dir, server)
}

#[test]
fn w15_w23_many_exports_are_listed_and_found_by_their_exact_names() {
    use crate::client::handshake::Handshake;
    use crate::client::line::Line;
    let (_dir, server) = many_exports();
    let handshake = || Handshake::begin(Line::unix(&server).expect("accepted")).expect("greeting");
    let mut twice = handshake();
    for _ in 0..2 {
        let listed = twice.agree(OPT_LIST, b"").expect("a list");
        let names: Vec<Vec<u8>> = listed.iter().map(|reply| reply.data.clone()).collect();
        let expected: Vec<Vec<u8>> = NAMES.iter().map(|name| text(name.as_bytes())).collect();
        assert_eq!(names, expected, "in the order of the command line");
    }
    let size = |infos: &[OptionReply]| {
        u64::from_be_bytes(infos[0].data[2..10].try_into().expect("8 bytes"))
    };
    let named = NAMES.iter().enumerate();
    let table = named.map(|(n, name)| (format!("{name:?}"), (name.as_bytes(), n as u64 + 1)));
    let default = [("the default".to_owned(), (&b""[..], 1))];
    cases("w15", table.chain(default), |(name, mebibytes)| {
        let infos = handshake().agree(OPT_INFO, &info_query(name, &[]));
        assert_eq!(size(&infos.expect("known")), mebibytes << 20);
        let framings = FRAMINGS.map(|framing| handshake().go(framing, name));
        for client in framings {
            let mut client = client.expect("transmission");
            let last = (mebibytes << 20) - 1;
            assert_eq!(client.read(last, 1), Ok(vec![0]));
            assert_eq!(client.read(last, 2), Err(22));
        }
    });
    server.stop();
}

#[test]
fn w14_names_are_bytes_to_look_up_and_never_paths_or_patterns() {
    use crate::client::handshake::Handshake;
    use crate::client::line::Line;
    let (dir, server) = many_exports();
    let path = dir.path().join("0.img").display().to_string();
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("NUL behind", b"first\0".to_vec()),
        ("NUL before", b"\0first".to_vec()),
        ("only NUL", b"\0".to_vec()),
        ("a prefix", b"firs".to_vec()),
        ("another case", b"FIRST".to_vec()),
        ("a blank behind", b"first ".to_vec()),
        ("invalid UTF-8", b"\xff\xfe\xc0\xaf".to_vec()),
        ("decomposed", "a\u{308}".as_bytes().to_vec()),
        ("a path", path.into_bytes()),
        ("another path", b"/etc/passwd".to_vec()),
        ("a path up", b"../first".to_vec()),
        ("a pattern", b"*".to_vec()),
        ("terminal escapes", b"\x1b]0;x\x07\x1b[2J".to_vec()),
        ("format", b"%s%n{}".to_vec()),
        ("4096 bytes", vec![0xf0; 4096]),
        ("percent", b"%66irst".to_vec()),
    ];
    cases("w14", table, |name| {
        let line = Line::unix(&server).expect("accepted");
        let mut handshake = Handshake::begin(line).expect("a greeting");
        for option in [OPT_INFO, OPT_GO] {
            let kind = handshake.ask(option, &info_query(&name, &[]));
            assert_eq!(kind.expect("a reply"), REP_ERR_UNKNOWN, "option {option}");
        }
        handshake.agree(OPT_STRUCTURED_REPLY, b"").expect("agreed");
        for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
            let kind = handshake.ask(option, &meta_query(&name, &[]));
            assert_eq!(kind.expect("a reply"), REP_ERR_UNKNOWN, "option {option}");
        }
        // W12: EXPORT_NAME has no way to say so.
        handshake.send(OPT_EXPORT_NAME, &name).expect("sent");
        handshake.line.ends();
    });
    let line = Line::unix(&server).expect("accepted");
    let mut handshake = Handshake::begin(line).expect("a greeting");
    let kind = handshake.ask(OPT_GO, &info_query(&[b'a'; 4097], &[]));
    assert_eq!(kind.expect("a reply"), REP_ERR_INVALID);
    assert!(!server.log().contains('\x1b'), "{:?}", server.log());
    server.stop();
}

/// qemu-nbd --list asks for the list, and then two or three things about each export, all on one
/// connection. A fixed number of options cut it off at the thirty-second export.
#[test]
fn w11_a_client_may_ask_about_every_one_of_many_exports() {
    use crate::client::handshake::Handshake;
    use crate::client::line::Line;
    const EXPORTS: usize = 60;
    let dir = tempdir().expect("a directory");
    let image = |n: usize| dir.path().join(format!("{n}.img"));
    let name = |n: usize| format!("export-{n}");
    init_raw(&image(0), "1Mi");
    let mut serve = Serve::raw(&name(0), &image(0));
    for n in 1..EXPORTS {
        std::fs::copy(image(0), image(n)).expect("a copy");
        serve = serve.and_raw(&name(n), &image(n));
    }
    let server = serve.unix(&dir.path().join("sock")).start();
    let line = Line::unix(&server).expect("accepted");
    let mut handshake = Handshake::begin(line).expect("a greeting");
    handshake.agree(OPT_STRUCTURED_REPLY, b"").expect("agreed");
    let listed = handshake.agree(OPT_LIST, b"").expect("a list");
    assert_eq!(listed.len(), EXPORTS);
    for n in 0..EXPORTS {
        let name = name(n);
        let info = info_query(name.as_bytes(), &[INFO_NAME, INFO_BLOCK_SIZE]);
        handshake.agree(OPT_INFO, &info).expect("infos");
        for query in [&[][..], &[&b"qemu:"[..]]] {
            let query = meta_query(name.as_bytes(), query);
            handshake
                .agree(OPT_LIST_META_CONTEXT, &query)
                .expect("contexts");
        }
    }
    assert_eq!(handshake.ask(OPT_ABORT, b"").expect("a reply"), REP_ACK);
    server.stop();
}
