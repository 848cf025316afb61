//! Options whose data does not add up, or that come at the wrong time (w16 to w36, w78).

use crate::client::handshake::{info_query, meta_query, option_bytes, text};
use crate::client::{
    Framing, BLOCK_STATUS, EINVAL, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO,
    OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_PEEK_EXPORT, OPT_SET_META_CONTEXT, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_POLICY,
    REP_ERR_TOO_BIG, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_META_CONTEXT,
};
use crate::server::init_raw;
use crate::stage::{cases, Stage};

/// A string whose length lies.
fn lying(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], bytes].concat()
}

#[test]
fn w16_w17_w18_go_and_info_with_lengths_that_lie_are_invalid_and_in_step() {
    let stage = Stage::new();
    let name = text(b"disk");
    let with = |tail: &[u8]| [&name[..], tail].concat();
    let bad = vec![
        ("no data", vec![]),
        ("1 byte", vec![0]),
        ("5 bytes", vec![0; 5]),
        ("no number of infos", name.clone()),
        ("half a number of infos", with(&[0])),
        ("a name one too long", lying(5, b"disk\0\0")),
        ("a name to the end", lying(6, b"disk\0\0")),
        ("a name beyond the end", lying(7, b"disk\0\0")),
        ("a name of 2^31", lying(1 << 31, b"disk\0\0")),
        ("a name of 2^32-1", lying(u32::MAX, b"disk\0\0")),
        ("a name of 2^32-6", lying(u32::MAX - 5, b"disk\0\0")),
        ("an info that is not there", with(&[0, 1])),
        ("half an info", with(&[0, 1, 0])),
        ("one info too many", with(&[0, 1, 0, 3, 0, 3])),
        ("one byte too many", with(&[0, 1, 0, 3, 0])),
        ("65535 infos that are not there", with(&[0xff, 0xff, 0, 3])),
        ("something behind no infos", with(&[0, 0, 0])),
    ];
    let mut table = Vec::new();
    for option in [OPT_INFO, OPT_GO] {
        for (what, data) in &bad {
            table.push((format!("option {option}: {what}"), (option, data.clone())));
        }
    }
    cases("w16", table, |(option, data)| {
        let mut handshake = stage.handshake();
        let kind = handshake.ask(option, &data).expect("a reply");
        assert_eq!(kind, REP_ERR_INVALID);
        let mut client = handshake.go(Framing::Extended, b"disk").expect("in step");
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    });
    stage.stop();
}

#[test]
fn w18_infos_that_repeat_or_are_unknown_are_no_harm() {
    let stage = Stage::new();
    let table = [
        ("unknown", (vec![99, 0xffff, 4], 1)),
        ("twice the same", (vec![3, 3, 3], 2)),
        ("65535 times", (vec![1; 65535], 2)),
        ("all there are", ((0..=65534).collect(), 4)),
    ];
    cases("w18", table, |(infos, answers): (Vec<u16>, usize)| {
        let mut handshake = stage.handshake();
        let got = handshake.agree(OPT_INFO, &info_query(b"disk", &infos));
        assert_eq!(got.expect("an answer").len(), answers);
    });
    stage.stop();
}

#[test]
fn w19_an_unknown_export_does_not_end_the_negotiation() {
    let stage = Stage::new();
    let mut handshake = stage.handshake();
    for name in [&b"nobody"[..], b"disk2", b"Disk"] {
        let kind = handshake.ask(OPT_GO, &info_query(name, &[3]));
        assert_eq!(kind.expect("a reply"), REP_ERR_UNKNOWN);
    }
    let mut client = handshake.go(Framing::Simple, b"disk").expect("known");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    stage.stop();
}

#[test]
fn w21_requests_before_go_and_options_after_it_end_the_connection() {
    let stage = Stage::new();
    let mut handshake = stage.handshake();
    let infos = handshake.agree(OPT_INFO, &info_query(b"disk", &[]));
    infos.expect("an answer");
    let read = crate::client::header(0, 0, 1, 0, 512);
    handshake.line.send(&read).expect("sent");
    handshake.line.ends();
    for framing in crate::client::FRAMINGS {
        for option in [OPT_LIST, OPT_GO, OPT_ABORT] {
            let mut client = stage.client(framing);
            client.send_raw(&option_bytes(option, b"")).expect("sent");
            client.line.ends();
        }
    }
    stage.still_serves();
    stage.stop();
}

#[test]
fn w22_w33_options_that_have_no_data_refuse_some_and_stay_in_step() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for option in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
        for length in [1, 4, 4096, 262_144] {
            table.push((format!("option {option}, {length} bytes"), (option, length)));
        }
    }
    cases("w22", table, |(option, length): (u32, usize)| {
        let mut handshake = stage.handshake();
        let kind = handshake.ask(option, &vec![0x49; length]);
        assert_eq!(kind.expect("a reply"), REP_ERR_INVALID);
        // It had no effect: a simple session follows.
        let mut client = handshake.go(Framing::Simple, b"disk").expect("in step");
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    });
    stage.stop();
}

#[test]
fn w24_abort_is_acknowledged_whatever_it_carries() {
    let stage = Stage::new();
    let before = stage.server.log();
    let table = [0, 1, 4096, 100_000].map(|length| (format!("{length} bytes"), length));
    cases("w24", table, |length: usize| {
        let mut handshake = stage.handshake();
        let kind = handshake.ask(OPT_ABORT, &vec![7; length]);
        assert_eq!(kind.expect("a reply"), REP_ACK);
        handshake.line.ends();
        // Gone without waiting for the reply.
        let mut handshake = stage.handshake();
        handshake.send(OPT_ABORT, &vec![7; length]).expect("sent");
    });
    stage.still_serves();
    assert_eq!(stage.server.log(), before, "a farewell is nothing to log");
    stage.stop();
}

#[test]
fn w25_w26_starttls_where_there_is_none_is_refused_and_nothing_demands_it() {
    let stage = Stage::new();
    let table = [0, 1, 500].map(|length| (format!("{length} bytes"), length));
    cases("w26", table, |length: usize| {
        let mut handshake = stage.handshake();
        let kind = handshake.ask(OPT_STARTTLS, &vec![0x16; length]);
        let kind = kind.expect("a reply");
        let allowed = [REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID];
        assert!(allowed.contains(&kind), "{kind:#x}");
        let mut client = handshake.go(Framing::Structured, b"disk").expect("clear");
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    });
    stage.stop();
}

#[test]
fn w34_w37_what_needs_another_option_first_is_refused() {
    let stage = Stage::new();
    let query = meta_query(b"disk", &[b"base:allocation"]);
    let table = [
        ("SET_META_CONTEXT", (OPT_SET_META_CONTEXT, REP_ERR_INVALID)),
        (
            "LIST_META_CONTEXT",
            (OPT_LIST_META_CONTEXT, REP_ERR_INVALID),
        ),
        ("PEEK_EXPORT", (OPT_PEEK_EXPORT, REP_ERR_UNSUP)),
    ];
    cases("w34", table, |(option, error)| {
        let mut handshake = stage.handshake();
        assert_eq!(handshake.ask(option, &query).expect("a reply"), error);
        let kind = handshake.ask(OPT_STRUCTURED_REPLY, b"");
        assert_eq!(kind.expect("a reply"), REP_ACK);
    });
    stage.stop();
}

/// What a session that went through `options` may do with BLOCK_STATUS.
fn block_status_after(stage: &Stage, options: &[(u32, &[u8])]) -> u32 {
    let mut handshake = stage.handshake();
    let mut framing = Framing::Simple;
    for (option, data) in options {
        let ended = handshake.ask(*option, data).expect("a reply");
        match (*option, ended) {
            (OPT_STRUCTURED_REPLY, REP_ACK) => framing = Framing::Structured,
            (OPT_EXTENDED_HEADERS, REP_ACK) => framing = Framing::Extended,
            _ => {}
        }
    }
    let go = handshake.agree(OPT_GO, &info_query(b"disk", &[]));
    go.expect("transmission");
    let mut client = handshake.transmit(framing);
    client.ask(BLOCK_STATUS, 0, 0, 4096, &[]).error
}

/// A SET_META_CONTEXT, how it ends, and whether `base:allocation` is chosen then.
type Query = (Vec<u8>, u32, bool);
/// Options before GO, and the error of BLOCK_STATUS behind it.
type Session<'d> = (Vec<(u32, &'d [u8])>, u32);

/// Queries that can't be read.
fn malformed_queries() -> Vec<(&'static str, Query)> {
    let name = text(b"disk");
    let with = |tail: &[u8]| [&name[..], tail].concat();
    let allocation = text(b"base:allocation");
    let bad = REP_ERR_INVALID;
    vec![
        ("no data", (vec![], bad, false)),
        ("no number of queries", (name.clone(), bad, false)),
        ("2^32-1 queries", (with(&[0xff; 4]), bad, false)),
        (
            "2^32-1 queries and one",
            (with(&[&[0xff; 4], &allocation[..]].concat()), bad, false),
        ),
        (
            "a query beyond the end",
            (
                with(&[&[0, 0, 0, 1], &lying(99, b"base:")[..]].concat()),
                bad,
                false,
            ),
        ),
        (
            "a query of 2^32-1 bytes",
            (
                with(&[&[0, 0, 0, 1], &lying(u32::MAX, b"base:")[..]].concat()),
                bad,
                false,
            ),
        ),
        (
            "something behind the last query",
            (
                with(&[&[0, 0, 0, 1], &allocation[..], b"x"].concat()),
                bad,
                false,
            ),
        ),
        (
            "a name beyond the end",
            (lying(400, b"disk\0\0\0\0"), bad, false),
        ),
        (
            "a query of 4097 bytes",
            (meta_query(b"disk", &[&[b'a'; 4097]]), bad, false),
        ),
    ]
}

/// Queries that can be read, and whether they choose the one context that there is.
fn odd_queries() -> Vec<(&'static str, Query)> {
    let many = vec![&b"base:nothing"[..]; 10_000];
    vec![
        (
            "no colon",
            (meta_query(b"disk", &[b"base"]), REP_ACK, false),
        ),
        ("no text", (meta_query(b"disk", &[b""]), REP_ACK, false)),
        (
            "unknown namespace",
            (meta_query(b"disk", &[b"qemu:dirty"]), REP_ACK, false),
        ),
        (
            "only the namespace",
            (meta_query(b"disk", &[b"base:"]), REP_ACK, false),
        ),
        (
            "unknown leaf",
            (meta_query(b"disk", &[b"base:alloc"]), REP_ACK, false),
        ),
        (
            "longer leaf",
            (meta_query(b"disk", &[b"base:allocation2"]), REP_ACK, false),
        ),
        (
            "NUL behind",
            (meta_query(b"disk", &[b"base:allocation\0"]), REP_ACK, false),
        ),
        (
            "invalid UTF-8",
            (meta_query(b"disk", &[b"\xff:\xfe"]), REP_ACK, false),
        ),
        (
            "10,000 queries",
            (meta_query(b"disk", &many), REP_ACK, false),
        ),
        (
            "among others",
            (
                meta_query(b"disk", &[b"x-a:b", b"base:allocation", b"base:"]),
                REP_ACK,
                true,
            ),
        ),
        (
            "twice the same",
            (
                meta_query(b"disk", &[&b"base:allocation"[..]; 2]),
                REP_ACK,
                true,
            ),
        ),
    ]
}

#[test]
fn w35_bad_queries_are_invalid_and_unknown_ones_ignored() {
    let stage = Stage::new();
    let table = malformed_queries().into_iter().chain(odd_queries());
    cases("w35", table, |(data, expected, chosen)| {
        for headers in [OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
            let mut handshake = stage.handshake();
            handshake.agree(headers, b"").expect("agreed");
            handshake.send(OPT_SET_META_CONTEXT, &data).expect("sent");
            let replies = handshake.replies(OPT_SET_META_CONTEXT).expect("replies");
            let contexts = replies
                .iter()
                .filter(|reply| reply.kind == REP_META_CONTEXT);
            assert_eq!(contexts.count(), usize::from(chosen));
            assert_eq!(replies[replies.len() - 1].kind, expected);
            let options = [(headers, &b""[..]), (OPT_SET_META_CONTEXT, &data)];
            let error = if chosen { 0 } else { EINVAL };
            assert_eq!(block_status_after(&stage, &options), error);
        }
    });
    stage.stop();
}

#[test]
fn w35_a_set_that_fails_clears_the_earlier_choice() {
    let stage = Stage::new();
    let good = meta_query(b"disk", &[b"base:allocation"]);
    let table = [
        ("malformed", (vec![1, 2, 3], REP_ERR_INVALID)),
        (
            "another export",
            (meta_query(b"nobody", &[]), REP_ERR_UNKNOWN),
        ),
        ("no queries", (meta_query(b"disk", &[]), REP_ACK)),
        ("unknown queries", (meta_query(b"disk", &[b"x:y"]), REP_ACK)),
        ("too big", (vec![0; 300 << 10], REP_ERR_TOO_BIG)),
    ];
    cases("w35 clears", table, |(second, expected)| {
        let mut handshake = stage.handshake();
        handshake.agree(OPT_STRUCTURED_REPLY, b"").expect("agreed");
        handshake
            .agree(OPT_SET_META_CONTEXT, &good)
            .expect("agreed");
        let kind = handshake.ask(OPT_SET_META_CONTEXT, &second);
        assert_eq!(kind.expect("a reply"), expected);
        let go = handshake.agree(OPT_GO, &info_query(b"disk", &[]));
        go.expect("transmission");
        let mut client = handshake.transmit(Framing::Structured);
        assert_eq!(client.extents(0, 0, 4096), Err(EINVAL));
    });
    // A LIST_META_CONTEXT between is no harm.
    let options = [
        (OPT_STRUCTURED_REPLY, &b""[..]),
        (OPT_SET_META_CONTEXT, &good),
        (OPT_LIST_META_CONTEXT, b"x"),
        (OPT_STRUCTURED_REPLY, b""),
    ];
    assert_eq!(block_status_after(&stage, &options), 0);
    stage.stop();
}

#[test]
fn w36_w55_contexts_of_another_export_or_none_are_not_for_block_status() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("b.img");
    init_raw(&image, "1Mi");
    let stage = Stage::with("1Mi", |serve| serve.and_raw("other", &image));
    let (one, other) = (
        meta_query(b"disk", &[b"base:allocation"]),
        meta_query(b"other", &[b"base:allocation"]),
    );
    let default = meta_query(b"", &[b"base:allocation"]);
    let set = OPT_SET_META_CONTEXT;
    let table: Vec<(&str, Session)> = vec![
        ("of the other", (vec![(8, b""), (set, &other)], EINVAL)),
        (
            "of the other, extended",
            (vec![(11, b""), (set, &other)], EINVAL),
        ),
        (
            "of this, then the other",
            (vec![(8, b""), (set, &one), (set, &other)], EINVAL),
        ),
        (
            "of the other, then this",
            (vec![(8, b""), (set, &other), (set, &one)], 0),
        ),
        (
            "of the default, which it is",
            (vec![(8, b""), (set, &default)], 0),
        ),
        ("none", (vec![(8, b"")], EINVAL)),
        ("none, extended", (vec![(11, b"")], EINVAL)),
        ("simple replies", (vec![], EINVAL)),
        (
            "refused before structured replies",
            (vec![(set, &one), (8, b"")], EINVAL),
        ),
    ];
    cases("w36", table, |(options, error)| {
        assert_eq!(block_status_after(&stage, &options), error);
    });
    stage.stop();
}

#[test]
fn w78_extended_headers_take_precedence() {
    let stage = Stage::new();
    let mut handshake = stage.handshake();
    handshake.agree(OPT_STRUCTURED_REPLY, b"").expect("agreed");
    handshake.agree(OPT_EXTENDED_HEADERS, b"").expect("agreed");
    let kind = handshake.ask(OPT_STRUCTURED_REPLY, b"");
    assert_eq!(kind.expect("a reply"), REP_ERR_EXT_HEADER_REQD);
    let mut client = handshake.go(Framing::Extended, b"disk").expect("extended");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    let mut handshake = stage.handshake();
    handshake.agree(OPT_EXTENDED_HEADERS, b"").expect("agreed");
    handshake.send(OPT_EXPORT_NAME, b"disk").expect("sent");
    handshake.line.ends();
    stage.still_serves();
    stage.stop();
}
