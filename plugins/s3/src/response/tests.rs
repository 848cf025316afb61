use http::header::{HeaderName, HeaderValue};
use nbd_rs_plugin::{Body, Bytes};
use proptest::prelude::*;

use super::*;
use crate::config::Checksum;
use crate::request;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        )
    };
    pairs.iter().map(pair).collect()
}

fn put(condition: Condition) -> Call {
    let body = Body::from(Bytes::from(vec![1]));
    request::put("k", &body, &condition, Checksum::None, None).unwrap()
}

fn xml_of(code: &str) -> String {
    match code {
        "" => String::new(),
        _ => format!("<Error><Code>{code}</Code><Message>m</Message></Error>"),
    }
}

/// The kinds for a get and for a put.
fn kinds(status: u16, code: &str) -> (Kind, Kind) {
    let kind = |call| {
        failure(&call, status, &HeaderMap::new(), xml_of(code).as_bytes())
            .error
            .kind
    };
    let get = request::get("k", nbd_rs_plugin::Range::ALL).unwrap();
    (kind(get), kind(put(Condition::Always)))
}

#[test]
fn every_status_has_its_kind() {
    for (status, code, get, put) in [
        (200, "InternalError", Kind::Transient, Kind::Ambiguous),
        (200, "SlowDown", Kind::Transient, Kind::Transient),
        (204, "", Kind::Transient, Kind::Ambiguous),
        (301, "PermanentRedirect", Kind::Io, Kind::Io),
        (307, "TemporaryRedirect", Kind::Transient, Kind::Transient),
        (308, "", Kind::Io, Kind::Io),
        (400, "", Kind::Invalid, Kind::Invalid),
        (400, "RequestTimeout", Kind::Transient, Kind::Transient),
        (400, "BadDigest", Kind::Transient, Kind::Transient),
        (400, "ExpiredToken", Kind::Transient, Kind::Transient),
        (403, "", Kind::Denied, Kind::Denied),
        (
            403,
            "RequestTimeTooSkewed",
            Kind::Transient,
            Kind::Transient,
        ),
        (403, "SignatureDoesNotMatch", Kind::Denied, Kind::Denied),
        (403, "QuotaExceeded", Kind::NoSpace, Kind::NoSpace),
        (404, "NoSuchKey", Kind::NotFound, Kind::NotFound),
        (404, "NoSuchBucket", Kind::Io, Kind::Io),
        (404, "", Kind::Io, Kind::Io),
        (405, "", Kind::Unsupported, Kind::Unsupported),
        (
            409,
            "ConditionalRequestConflict",
            Kind::Transient,
            Kind::Transient,
        ),
        (409, "", Kind::Transient, Kind::Transient),
        (411, "", Kind::Io, Kind::Io),
        (413, "EntityTooLarge", Kind::Invalid, Kind::Invalid),
        (416, "InvalidRange", Kind::Invalid, Kind::Invalid),
        (429, "", Kind::Transient, Kind::Transient),
        (500, "InternalError", Kind::Transient, Kind::Ambiguous),
        (501, "NotImplemented", Kind::Unsupported, Kind::Unsupported),
        (502, "", Kind::Transient, Kind::Ambiguous),
        (503, "SlowDown", Kind::Transient, Kind::Transient),
        (503, "", Kind::Transient, Kind::Ambiguous),
        (507, "", Kind::NoSpace, Kind::NoSpace),
        (600, "", Kind::Io, Kind::Io),
    ] {
        assert_eq!(kinds(status, code), (get, put), "{status} {code}");
    }
}

#[test]
fn c20_a_412_means_what_the_condition_was() {
    for (condition, kind) in [
        (Condition::IfAbsent, Kind::Exists),
        (Condition::IfMatch("e".into()), Kind::Precondition),
        (Condition::Always, Kind::Io),
    ] {
        for code in ["PreconditionFailed", ""] {
            let call = put(condition.clone());
            let failure = failure(&call, 412, &HeaderMap::new(), xml_of(code).as_bytes());
            assert_eq!(failure.error.kind, kind, "{condition:?}");
        }
    }
    let call = put(Condition::IfMatch("e".into()));
    let gone = failure(
        &call,
        404,
        &HeaderMap::new(),
        xml_of("NoSuchKey").as_bytes(),
    );
    assert_eq!(gone.error.kind, Kind::Precondition);
}

#[test]
fn f38_the_time_to_wait_stands_at_the_end_of_the_message() {
    for (value, suffix) in [
        ("5", " retry-after=5s"),
        (" 7 ", " retry-after=7s"),
        ("99999999", " retry-after=3600s"),
        ("Wed, 25 Nov 2026 14:00:09 GMT", " retry-after=9s"),
        ("Wed, 25 Nov 2026 13:00:00 GMT", " retry-after=0s"),
    ] {
        let headers = headers(&[
            ("retry-after", value),
            ("date", "Wed, 25 Nov 2026 14:00:00 GMT"),
        ]);
        let failure = failure(&put(Condition::Always), 503, &headers, b"");
        assert_eq!(failure.error.kind, Kind::Transient);
        assert!(failure.error.message.ends_with(suffix), "{}", failure.error);
    }
    let headers = headers(&[("retry-after", "soon")]);
    let failure = failure(&put(Condition::Always), 429, &headers, b"");
    assert!(!failure.error.message.contains("retry-after"));
}

#[test]
fn f49_the_region_is_taken_from_the_answer_if_it_is_one() {
    let get = request::list("", request::From::Start, 1);
    let named = headers(&[("x-amz-bucket-region", "eu-west-1")]);
    assert_eq!(
        failure(&get, 301, &named, b"").region.as_deref(),
        Some("eu-west-1")
    );
    let body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-1</Region></Error>";
    let malformed = failure(&get, 400, &HeaderMap::new(), body);
    assert_eq!(malformed.region.as_deref(), Some("eu-1"));
    let evil = headers(&[("x-amz-bucket-region", "evil.example/")]);
    assert_eq!(failure(&get, 301, &evil, b"").region, None);
}

#[test]
fn u13_bodies_in_messages_are_cut_and_flat() {
    let body = format!("<html>\x1b[31m\n{}", "x".repeat(100_000));
    let failure = failure(
        &put(Condition::Always),
        502,
        &HeaderMap::new(),
        body.as_bytes(),
    );
    let message = failure.error.message;
    assert!(
        message.len() < 700 && !message.contains(['\n', '\x1b']),
        "{message}"
    );
    let long = format!(
        "<Error><Code>X</Code><Message>{}</Message></Error>",
        "y".repeat(5000)
    );
    let failure = super::failure(
        &put(Condition::Always),
        400,
        &HeaderMap::new(),
        long.as_bytes(),
    );
    assert!(failure.error.message.len() < 700);
}

#[test]
fn etags_are_kept_without_their_quotes() {
    for (header, kept) in [
        ("\"d41d8-3\"", "d41d8-3"),
        ("d41d8", "d41d8"),
        ("W/\"x\"", "W/\"x\""),
        ("\"", "\""),
        ("", ""),
    ] {
        assert_eq!(token(header), kept);
    }
}

#[test]
fn times_are_read() {
    let meta = meta(
        "k",
        3,
        &headers(&[("last-modified", "Thu, 01 Jan 1970 00:00:02 GMT")]),
    );
    assert_eq!(
        (meta.size, meta.modified_ms, meta.etag.as_str()),
        (3, 2000, "")
    );
    assert_eq!(listed_ms("1970-01-01T00:00:01.500Z"), 1500);
    assert_eq!(listed_ms("yesterday"), 0);
}

proptest! {
    #[test]
    fn any_answer_is_judged(status in 100u16..1000, body in prop::collection::vec(any::<u8>(), 0..100),
                            wait in "[ -~]{0,40}") {
        let headers = headers(&[("retry-after", &wait), ("x-amz-request-id", &wait)]);
        let failure = failure(&put(Condition::Always), status, &headers, &body);
        prop_assert!(!failure.error.message.chars().any(char::is_control));
    }
}
