//! Every line of "S3 answers" in the catalogue of bad input: no panic, bounded memory, and the kind
//! of error that makes the right thing happen next.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{block_on, kind, open, Bench, SHORT};
use nbd_rs_plugin::{Condition, GetFlags, Kind, Range};
use nbd_rs_s3_server::{Fault, Quirks, Rule, Server};

const XML: [(&str, &str); 1] = [("content-type", "application/xml")];

#[test]
fn a_truncated_body_is_not_used() {
    let bench = Bench::new();
    assert_eq!(bench.kind_of_get(Fault::CutAnswer), Kind::Transient);
}

#[test]
fn more_body_than_asked_is_not_used() {
    let bench = Bench::new();
    assert_eq!(bench.kind_of_get(Fault::Overlong), Kind::Transient);
}

#[test]
fn a_range_that_was_not_asked_for_is_not_used() {
    let bench = Bench::new();
    for said in [
        "bytes 0-4/10",
        "bytes 3-7/10",
        "bytes 2-5/10",
        "bytes 2-7/10",
        "bytes x",
        "",
    ] {
        let fault = Fault::headers(&[("content-range", said)]);
        assert_eq!(bench.kind_of_get(fault), Kind::Transient, "{said}");
    }
    let missing = Fault::answer(206, &[("etag", "\"e\"")], "23456");
    assert_eq!(bench.kind_of_get(missing), Kind::Transient);
}

#[test]
fn a_200_to_a_ranged_get_is_cut_out_of_the_whole() {
    let bench = Bench::new();
    bench.server.insert("p/k", b"0123456789");
    bench.server.set_quirks(Quirks {
        no_ranges: true,
        ..Quirks::default()
    });
    assert_eq!(bench.get("k", Range::new(2, 5)).unwrap(), b"23456");
    assert_eq!(
        bench.get("k", Range::new(5, Range::TO_END)).unwrap(),
        b"56789"
    );
    assert_eq!(kind(bench.get("k", Range::new(8, 5))), Kind::Invalid);
    let huge = [("etag", "\"e\""), ("content-length", "99999999999")];
    bench.next("GET", Fault::answer(200, &huge, "0123456789"));
    assert_eq!(kind(bench.get("k", Range::new(2, 5))), Kind::Unsupported);
}

#[test]
fn an_etag_is_a_token_and_never_a_hash() {
    let bench = Bench::new();
    for (header, token) in [
        (
            "\"00000000000000000000000000000000\"",
            "00000000000000000000000000000000",
        ),
        (
            "\"d41d8cd98f00b204e9800998ecf8427e-3\"",
            "d41d8cd98f00b204e9800998ecf8427e-3",
        ),
        ("unquoted", "unquoted"),
        ("", ""),
    ] {
        bench.next("PUT", Fault::headers(&[("etag", header)]));
        assert_eq!(bench.put("k", b"x").unwrap().etag.as_str(), token);
        bench.next("GET", Fault::headers(&[("etag", header)]));
        assert_eq!(bench.get("k", Range::ALL).unwrap(), b"x");
    }
    bench.server.set_quirks(Quirks {
        no_etags: true,
        ..Quirks::default()
    });
    assert_eq!(bench.put("k", b"y").unwrap().etag.as_str(), "");
    assert_eq!(bench.get("k", Range::ALL).unwrap(), b"y");
}

#[test]
fn a_quoted_and_an_unquoted_etag_are_the_same() {
    let bench = Bench::new();
    let etag = bench.put("k", b"x").unwrap().etag;
    bench.next("HEAD", Fault::headers(&[("etag", &etag)]));
    let unquoted = block_on(bench.store.head("k", GetFlags::NONE))
        .unwrap()
        .etag;
    let listed = block_on(bench.store.list("k", None)).unwrap().items[0]
        .etag
        .clone();
    assert_eq!((&unquoted, &listed), (&etag, &etag));
    bench
        .put_if("k", b"y", Condition::IfMatch(unquoted))
        .unwrap();
}

#[test]
fn a_wrong_checksum_header_is_corruption() {
    let bench = Bench::new();
    bench.put("k", b"0123456789").unwrap();
    assert_eq!(bench.get("k", Range::ALL).unwrap(), b"0123456789");
    bench.next(
        "GET",
        Fault::headers(&[("x-amz-checksum-crc32c", "AAAAAA==")]),
    );
    assert_eq!(kind(bench.get("k", Range::ALL)), Kind::Corrupt);
    bench.next(
        "GET",
        Fault::headers(&[("x-amz-checksum-crc32c", "AAAAAA==-2")]),
    );
    assert_eq!(bench.get("k", Range::ALL).unwrap(), b"0123456789");
}

#[test]
fn gzip_added_by_a_proxy_is_told() {
    let bench = Bench::new();
    assert_eq!(
        bench.kind_of_get(Fault::headers(&[("content-encoding", "gzip")])),
        Kind::Io
    );
    let seen = bench.server.seen().pop().unwrap();
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
}

#[test]
fn f43_a_200_with_an_error_inside_is_a_failure() {
    let bench = Bench::new();
    let error = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>";
    assert_eq!(
        bench.kind_of_put(Fault::answer(200, &XML, error)),
        Kind::Ambiguous
    );
    assert_eq!(
        bench.kind_of_get(Fault::answer(200, &XML, error)),
        Kind::Transient
    );
    let html = Fault::answer(200, &[("content-type", "text/html")], "<html>log in</html>");
    assert_eq!(bench.kind_of_put(html.clone()), Kind::Ambiguous);
    assert_eq!(bench.kind_of_get(html.clone()), Kind::Transient);
    bench.next("GET", html.clone());
    assert_eq!(kind(block_on(bench.store.list("", None))), Kind::Transient);
    bench.next("POST", Fault::answer(200, &XML, error));
    let results = block_on(bench.store.delete(vec!["a".into(), "b".into()])).unwrap();
    for result in results {
        assert_eq!(kind(result), Kind::Ambiguous);
    }
    bench.next("DELETE", html);
    let results = block_on(bench.store.delete(vec!["a".into()])).unwrap();
    assert_eq!(kind(results.into_iter().next().unwrap()), Kind::Ambiguous);
}

#[test]
fn a_204_to_a_put_is_no_acknowledgement() {
    let bench = Bench::new();
    assert_eq!(
        bench.kind_of_put(Fault::answer(204, &[], "")),
        Kind::Ambiguous
    );
    assert_eq!(
        bench.kind_of_get(Fault::answer(204, &[], "")),
        Kind::Transient
    );
}

#[test]
fn f49_redirects_are_not_followed() {
    let bench = Bench::new();
    let other = Server::start();
    let place = format!("http://{}/bucket/p/k", other.address());
    for (status, kind) in [
        (301, Kind::Io),
        (302, Kind::Transient),
        (307, Kind::Transient),
        (308, Kind::Io),
    ] {
        let headers = [
            ("location", place.as_str()),
            ("x-amz-bucket-region", "eu-west-1"),
        ];
        assert_eq!(bench.kind_of_get(Fault::answer(status, &headers, "")), kind);
        assert_eq!(bench.kind_of_put(Fault::answer(status, &headers, "")), kind);
    }
    assert_eq!(other.seen(), [], "the other host has heard nothing");
}

#[test]
fn f49_the_region_that_the_store_names_is_signed_for_at_the_same_host() {
    let server = Server::start();
    let other = Server::start();
    let place = format!("http://{}/bucket", other.address());
    let headers = [
        ("location", place.as_str()),
        ("x-amz-bucket-region", "eu-west-9"),
    ];
    server.script([Rule::next("GET", Fault::answer(301, &headers, ""))]);
    open(&server.target("p"), &SHORT).unwrap();
    let authorization = server
        .seen()
        .pop()
        .unwrap()
        .header("authorization")
        .unwrap()
        .to_owned();
    assert!(authorization.contains("/eu-west-9/s3/"), "{authorization}");
    assert_eq!(other.seen(), []);
    // A region that the user named is not corrected behind their back.
    server.script([Rule::next("GET", Fault::answer(301, &headers, ""))]);
    let error = open(&server.target("p"), &[("region", "us-west-2")]).unwrap_err();
    assert!(error.message.contains("region eu-west-9"), "{error}");
}

#[test]
fn a_400_with_an_xml_bomb_is_not_unfolded() {
    let bench = Bench::new();
    let mut bomb = "<!DOCTYPE e [<!ENTITY a0 \"x\">".to_owned();
    for at in 0..30 {
        bomb += &format!("<!ENTITY a{} \"&a{at};&a{at};&a{at};&a{at};\">", at + 1);
    }
    bomb += "]><Error><Code>&a30;</Code></Error>";
    assert_eq!(
        bench.kind_of_put(Fault::answer(400, &XML, &bomb)),
        Kind::Invalid
    );
    bench.next("GET", Fault::answer(200, &XML, bomb));
    assert_eq!(kind(block_on(bench.store.list("", None))), Kind::Transient);
}

#[test]
fn endless_xml_is_read_to_a_mebibyte_and_no_further() {
    let bench = Bench::new();
    let mut endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n<a>".to_vec();
    endless.resize(4 << 20, b'<');
    bench.next("GET", Fault::Raw(endless.clone()));
    let error = block_on(bench.store.list("", None)).unwrap_err();
    assert_eq!(error.kind, Kind::Transient);
    assert!(error.message.contains("mebibyte"), "{error}");
    endless[9..12].copy_from_slice(b"400");
    assert_eq!(bench.kind_of_put(Fault::Raw(endless)), Kind::Invalid);
}

#[test]
fn f50_a_403_for_a_wrong_clock_is_mended_by_the_stores_clock() {
    let bench = Bench::new();
    let skewed = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    let date = [("date", "Mon, 04 May 2037 10:00:00 GMT")];
    bench.next("PUT", Fault::answer(403, &date, skewed));
    bench.put("k", b"x").unwrap();
    let seen = bench.server.seen().pop().unwrap();
    let signed = seen.header("x-amz-date").unwrap();
    let near = ["20370504T0959", "20370504T1000"];
    assert!(
        near.iter().any(|minute| signed.starts_with(minute)),
        "{signed}"
    );
    // Once, and not for ever.
    bench
        .server
        .script((0..2).map(|_| Rule::next("PUT", Fault::answer(403, &date, skewed))));
    assert_eq!(kind(bench.put("k", b"x")), Kind::Transient);
    assert!(bench.server.is_played());
}

#[test]
fn a_404_of_the_bucket_is_not_one_of_the_key() {
    let bench = Bench::new();
    let head = |key| kind(block_on(bench.store.head(key, GetFlags::NONE)));
    assert_eq!(kind(bench.get("none", Range::ALL)), Kind::NotFound);
    assert_eq!(head("none"), Kind::NotFound);
    // Nor is one of somebody else.
    let page = || {
        Fault::answer(
            404,
            &[("content-type", "text/html")],
            "<html>nothing here</html>",
        )
    };
    bench.next("GET", page());
    assert_eq!(kind(bench.get("none", Range::ALL)), Kind::Io);
    bench.next("HEAD", Fault::answer(404, &[], ""));
    bench.next("GET", page());
    assert_eq!(head("none"), Kind::Io);
    bench.server.remove_bucket();
    assert_eq!(kind(bench.get("none", Range::ALL)), Kind::Io);
    assert_eq!(head("none"), Kind::Io);
    assert_eq!(kind(block_on(bench.store.list("", None))), Kind::Io);
    assert_eq!(kind(bench.put("k", b"x")), Kind::Io);
}

#[test]
fn c20_a_409_is_asked_again() {
    let bench = Bench::new();
    let fault = || Fault::Error(409, "ConditionalRequestConflict");
    assert_eq!(bench.kind_of_put(fault()), Kind::Transient);
    bench.next("PUT", fault());
    assert_eq!(
        kind(bench.put_if("k", b"x", Condition::IfAbsent)),
        Kind::Transient
    );
}

#[test]
fn a_411_is_permanent_and_never_ours() {
    let bench = Bench::new();
    assert_eq!(
        bench.kind_of_put(Fault::Error(411, "MissingContentLength")),
        Kind::Io
    );
    bench.put("empty", b"").unwrap();
    assert_eq!(
        bench.server.seen().pop().unwrap().header("content-length"),
        Some("0")
    );
}

#[test]
fn c20_a_412_is_the_condition_that_was_set() {
    let bench = Bench::new();
    let fault = || Fault::Error(412, "PreconditionFailed");
    assert_eq!(bench.kind_of_put(fault()), Kind::Io);
    bench.next("PUT", fault());
    assert_eq!(
        kind(bench.put_if("k", b"x", Condition::IfAbsent)),
        Kind::Exists
    );
    bench.next("PUT", fault());
    let other = Condition::IfMatch("e".into());
    assert_eq!(kind(bench.put_if("k", b"x", other)), Kind::Precondition);
}

#[test]
fn a_416_is_a_range_outside_the_object() {
    let bench = Bench::new();
    bench.server.insert("p/short", b"012");
    assert_eq!(kind(bench.get("short", Range::new(3, 1))), Kind::Invalid);
    assert_eq!(kind(bench.get("short", Range::new(2, 2))), Kind::Invalid);
    assert_eq!(
        bench.get("short", Range::new(3, Range::TO_END)).unwrap(),
        b""
    );
}

#[test]
fn f38_a_429_or_503_says_how_long_to_wait() {
    let bench = Bench::new();
    for status in [429, 503] {
        let fault = || Fault::answer(status, &[("retry-after", "7")], "");
        assert_eq!(bench.kind_of_get(fault()), Kind::Transient);
        assert_eq!(bench.kind_of_put(fault()), Kind::Transient);
        bench.next("PUT", fault());
        let error = bench.put("k", b"x").unwrap_err();
        assert!(error.message.ends_with(" retry-after=7s"), "{error}");
    }
    assert_eq!(
        bench.kind_of_put(Fault::Error(503, "SlowDown")),
        Kind::Transient
    );
}

#[test]
fn a_5xx_page_leaves_a_put_in_doubt() {
    let bench = Bench::new();
    for status in [500, 502, 503, 504, 520] {
        let fault = || Fault::answer(status, &[], "<html><h1>Bad Gateway</h1></html>");
        assert_eq!(bench.kind_of_get(fault()), Kind::Transient, "{status}");
        assert_eq!(bench.kind_of_put(fault()), Kind::Ambiguous, "{status}");
    }
}

#[test]
fn two_answers_do_not_become_the_answer_to_the_next_request() {
    let bench = Bench::new();
    bench.server.insert("p/a", b"AAAAAAAAAA");
    bench.server.insert("p/b", b"BBBBBBBBBB");
    for _ in 0..20 {
        bench.next("GET", Fault::TwoAnswers);
        // The first answer is right, or the connection is seen to be out of step.
        match bench.get("a", Range::new(2, 5)) {
            Ok(bytes) => assert_eq!(bytes, b"AAAAA"),
            Err(error) => assert_eq!(error.kind, Kind::Transient),
        }
        match bench.get("b", Range::new(2, 5)) {
            Ok(bytes) => assert_eq!(bytes, b"BBBBB"),
            Err(error) => assert_eq!(error.kind, Kind::Transient),
        }
    }
}

#[test]
fn headers_are_bounded() {
    let bench = Bench::new();
    let line = format!("x-long: {}\r\n", "y".repeat(1000));
    let raw = format!("HTTP/1.1 206 OK\r\n{}\r\n", line.repeat(2000)).into_bytes();
    assert_eq!(bench.kind_of_get(Fault::Raw(raw.clone())), Kind::Transient);
    assert_eq!(bench.kind_of_put(Fault::Raw(raw)), Kind::Ambiguous);
}

#[test]
fn chunks_with_bad_sizes_are_not_used() {
    let bench = Bench::new();
    for size in ["zz", "ffffffffffffffff", "-5", "5 5"] {
        let raw = format!(
            "HTTP/1.1 206 OK\r\netag: \"e\"\r\ncontent-range: bytes 2-6/10\r\n\
             transfer-encoding: chunked\r\n\r\n{size}\r\n23456\r\n0\r\n\r\n"
        );
        assert_eq!(
            bench.kind_of_get(Fault::Raw(raw.into_bytes())),
            Kind::Transient,
            "{size}"
        );
    }
}

#[test]
fn a_100_continue_is_never_waited_for_and_does_no_harm() {
    let bench = Bench::new();
    bench.put("k", b"0123456789").unwrap();
    assert_eq!(bench.server.seen().pop().unwrap().header("expect"), None);
    bench.next("PUT", Fault::Continue);
    bench.put("k", b"0123456789").unwrap();
    bench.next("GET", Fault::Continue);
    assert_eq!(bench.get("k", Range::ALL).unwrap(), b"0123456789");
}

#[test]
fn a_connection_closed_between_headers_and_body_is_seen() {
    let bench = Bench::new();
    let head = "HTTP/1.1 206 OK\r\netag: \"e\"\r\ncontent-range: bytes 2-6/10\r\n\
                content-length: 5\r\n\r\n";
    assert_eq!(bench.kind_of_get(Fault::Raw(head.into())), Kind::Transient);
    assert_eq!(bench.kind_of_get(Fault::CutHead), Kind::Transient);
    assert_eq!(bench.kind_of_put(Fault::CutHead), Kind::Ambiguous);
    assert_eq!(
        bench.kind_of_get(Fault::Raw(b"SSH-2.0-OpenSSH\r\n".to_vec())),
        Kind::Transient
    );
}

#[test]
fn tls_of_another_host_or_an_unknown_ca_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open_at = |server: &Server, host: &str, ca: bool| {
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, server.ca().unwrap()).unwrap();
        let port = server.address().port();
        let target = format!("https://k:s@{host}:{port}/bucket/p");
        let path = path.to_str().unwrap();
        let option = [("ca", path)];
        open(&target, if ca { &option } else { &[] })
    };
    let right = Server::start_tls("localhost");
    open_at(&right, "localhost", true).unwrap();
    let error = open_at(&right, "localhost", false).unwrap_err();
    assert_eq!(error.kind, Kind::Io);
    assert!(error.message.contains("ca=FILE"), "{error}");
    let wrong = Server::start_tls("store.example.com");
    let error = open_at(&wrong, "localhost", true).unwrap_err();
    assert!(error.message.contains("not valid for name"), "{error}");
    assert_eq!(wrong.seen(), [], "nothing was sent");
}

/// They named no server, and https spoken to an http port was a riddle.
#[test]
fn f51_an_error_of_a_connection_names_the_server_and_a_wrong_scheme() {
    // What servers of http answer to the beginning of TLS.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in plain.incoming().map_while(|client| client.ok()) {
            let mut client = client;
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let error = open(&format!("https://k:CANARY@{at}/bucket/p"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Io, "{error}");
    for word in [
        &format!("at https://{at}"),
        "does not speak https",
        "s3:http://",
    ] {
        assert!(error.message.contains(word), "{word}: {error}");
    }
    assert!(!error.message.contains("CANARY"), "{error}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = nobody.local_addr().unwrap();
    drop(nobody);
    let error = open(&format!("http://k:CANARY@{at}/bucket/p"), &[]).unwrap_err();
    let expected = format!("listing at http://{at}: ");
    assert!(error.message.contains(&expected), "{error}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    let error = open(&format!("http://k:CANARY@{at}/bucket/p"), &SHORT).unwrap_err();
    let expected = format!("listing at http://{at}: no answer in time");
    assert!(error.message.contains(&expected), "{error}");
}

#[test]
fn an_answer_in_drops_ends_in_time() {
    let bench = Bench::new();
    let start = std::time::Instant::now();
    let drip = Fault::Drip(Duration::from_millis(300));
    assert_eq!(bench.kind_of_get(drip), Kind::Transient);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn f42_a_length_that_does_not_fit_the_range_or_the_body_is_not_used() {
    let bench = Bench::new();
    let raw = |status: &str, length: &str, body: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\netag: \"e\"\r\ncontent-length: {length}\r\n\
             connection: close\r\n"
        );
        Fault::Raw(format!("{head}content-range: bytes 2-6/10\r\n\r\n{body}").into_bytes())
    };
    for (status, length, body) in [
        ("206 x", "4", "2345"),
        ("206 x", "6", "234567"),
        ("206 x", "5", "234"),
        ("206 x", "0", ""),
        ("206 x", "x", "23456"),
        ("200 x", "10", "0123456789"),
    ] {
        let got = bench.kind_of_get(raw(status, length, body));
        assert_eq!(got, Kind::Transient, "{status} {length} {body}");
    }
    // Of a whole object the length is all that is known.
    bench.next(
        "GET",
        Fault::Raw(b"HTTP/1.1 200 x\r\netag: \"e\"\r\ncontent-length: 10\r\n\r\n01234".to_vec()),
    );
    assert_eq!(kind(bench.get("k", Range::ALL)), Kind::Transient);
}
