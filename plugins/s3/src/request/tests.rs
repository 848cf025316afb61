use nbd_rs_plugin::{Bytes, OpenFlags, OpenRequest};
use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::config::Surroundings;

fn site(target: &str) -> Site {
    let request = OpenRequest {
        scheme: "s3".into(),
        target: target.into(),
        options: Vec::new().into(),
        flags: OpenFlags::WRITE,
        inner: None.into(),
        reserved: [0; 4],
    };
    Site::new(&Config::new(&request, &Surroundings::default()).unwrap())
}

fn body(bytes: &[u8]) -> Body {
    Bytes::from(bytes.to_vec()).into()
}

/// Keys, bucket and time of "Signature Calculations for the Authorization Header", Amazon S3 API
/// Reference.
fn example(mut call: Call, extra: &[(&'static str, &str)]) -> String {
    for (name, value) in extra {
        call = call.header(name, value).unwrap();
    }
    let site = Site {
        origin: "https://examplebucket.s3.amazonaws.com".into(),
        authority: "examplebucket.s3.amazonaws.com".into(),
        bucket_path: String::new(),
        region: "us-east-1".parse().unwrap(),
    };
    let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    let keys = Keys::new("AKIAIOSFODNN7EXAMPLE", secret, None).unwrap();
    let now = datetime!(2013-05-24 00:00 UTC);
    let (_, headers) = sign(&site, &call, &keys, now).unwrap();
    let text = headers["authorization"].to_str().unwrap();
    text.rsplit_once("Signature=").unwrap().1.to_owned()
}

#[test]
fn signatures_are_those_of_the_published_examples() {
    let range = Range::new(0, 10);
    assert_eq!(
        example(get("test.txt", range).unwrap(), &[]),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
    let body = body(b"Welcome to Amazon S3.");
    let mut put = Call::new(Method::PUT, Some("test$file.text"));
    put.payload = Payload::hashed(&body);
    let extra = [
        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ];
    assert_eq!(
        example(put, &extra),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    );
    let bucket = |query: &[(&'static str, &str)]| {
        let call = Call::new(Method::GET, None);
        query
            .iter()
            .fold(call, |call, (name, value)| call.query(name, *value))
    };
    assert_eq!(
        example(bucket(&[("lifecycle", "")]), &[]),
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    );
    assert_eq!(
        example(bucket(&[("max-keys", "2"), ("prefix", "J")]), &[]),
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    );
}

#[test]
fn the_bucket_is_in_the_path_or_in_the_host() {
    for (target, url) in [
        (
            "//b/p",
            "https://b.s3.us-east-1.amazonaws.com/p/k%20%2B%C3%A4",
        ),
        ("//k:s@h:9/b/p", "https://h:9/b/p/k%20%2B%C3%A4"),
        (
            "http://127.0.0.1:80/b/p",
            "http://127.0.0.1/b/p/k%20%2B%C3%A4",
        ),
    ] {
        assert_eq!(site(target).url(&head("p/k +ä")).unwrap().as_str(), url);
    }
    let listing = list("p/a b", From::After("p/a+b"), 5);
    assert_eq!(
        site("//h:9/b").url(&listing).unwrap().query(),
        Some("list-type=2&max-keys=5&prefix=p%2Fa%20b&start-after=p%2Fa%2Bb")
    );
}

#[test]
fn puts_carry_their_condition_and_checksum() {
    let body = body(b"123456789");
    let put = |condition: Condition, checksum| put("k", &body, &condition, checksum, Some("IA"));
    let call = put(Condition::IfAbsent, Checksum::Crc32c).unwrap();
    assert_eq!(call.headers["if-none-match"], "*");
    // The check value of CRC-32C (RFC 3720, B.4; catalogue of parametrised CRC algorithms).
    assert_eq!(
        BASE64
            .decode(&call.headers["x-amz-checksum-crc32c"])
            .unwrap(),
        0xe306_9283_u32.to_be_bytes()
    );
    assert_eq!(call.headers["x-amz-storage-class"], "IA");
    assert_eq!(call.payload, Payload::Unsigned);
    for (etag, header) in [("a-3", "\"a-3\""), ("W/\"a\"", "W/\"a\"")] {
        let call = put(Condition::IfMatch(etag.into()), Checksum::None).unwrap();
        assert_eq!(call.headers["if-match"], header);
        assert!(!call.headers.contains_key("x-amz-checksum-crc32c"));
    }
    // A store without ETags must not make a conditional put an unconditional one.
    assert!(put(Condition::IfMatch("".into()), Checksum::None).is_err());
    assert!(put(Condition::IfMatch("a\r\nb".into()), Checksum::None).is_err());
}

#[test]
fn ranges_do_not_wrap() {
    assert_eq!(
        get("k", Range::new(5, 10)).unwrap().headers["range"],
        "bytes=5-14"
    );
    assert_eq!(
        get("k", Range::new(5, Range::TO_END)).unwrap().headers["range"],
        "bytes=5-"
    );
    assert!(!get("k", Range::ALL).unwrap().headers.contains_key("range"));
    assert!(get("k", Range::new(u64::MAX, 2)).is_err());
}

#[test]
fn secrets_do_not_leave_but_in_the_signature() {
    let keys = Keys::new("AKID", "CANARY", Some("TOKEN")).unwrap();
    let now = datetime!(2026-01-02 03:04:05 UTC);
    let (url, headers) = sign(&site("//h:9/b"), &head("k"), &keys, now).unwrap();
    assert_eq!(headers["x-amz-date"], "20260102T030405Z");
    assert_eq!(headers["x-amz-security-token"], "TOKEN");
    let shown = format!("{url} {:?}", headers["authorization"]);
    assert!(
        !shown.contains("CANARY") && !shown.contains("Signature"),
        "{shown}"
    );
}

proptest! {
    /// What is sent is what is signed: the path and query survive the URL library unchanged.
    #[test]
    fn urls_are_signed_as_they_are_sent(name in "[ -~äß€\u{10348}]{1,60}") {
        prop_assume!(crate::location::check_name(&name).is_ok());
        let site = site("//h:9/b");
        let url = site.url(&head(&name)).unwrap();
        prop_assert_eq!(signing::canonical_uri_string(&url), url.path());
        let url = site.url(&list(&name, From::After(&name), 9)).unwrap();
        prop_assert_eq!(signing::canonical_query_string(&url), url.query().unwrap());
    }

    #[test]
    fn bulk_deletes_name_each_key_once(names in prop::collection::vec("[ -~ä€]{1,20}", 1..20)) {
        let (_, body) = delete_many(&names).unwrap();
        let text = String::from_utf8(body.pieces()[0].to_vec()).unwrap();
        prop_assert_eq!(text.matches("<Key>").count(), names.len());
    }
}
