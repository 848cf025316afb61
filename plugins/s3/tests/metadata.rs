//! Keys of a machine's role, from a metadata service. A test of its own process: where the service
//! is stands in the environment.

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{block_on, body, open};
use nbd_rs_plugin::{Condition, Kind};
use nbd_rs_s3_server::{Fault, Rule, Server, BUCKET};
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// One time that all questions are asked and answered.
fn answers(access: &str, lasting: Duration) -> [Rule; 3] {
    let ends = OffsetDateTime::from(SystemTime::now() + lasting);
    let ends = ends.format(&Rfc3339).unwrap();
    let json = format!(
        "{{\"Code\":\"Success\",\"AccessKeyId\":\"{access}\",\"SecretAccessKey\":\"CANARY\",\
         \"Token\":\"token-of-{access}\",\"Expiration\":\"{ends}\"}}"
    );
    [
        Rule::on(
            "PUT",
            "/latest/api/token",
            Fault::answer(200, &[], "session"),
        ),
        Rule::on("GET", ROLES, Fault::answer(200, &[], "the-role\n")),
        Rule::on("GET", "the-role", Fault::answer(200, &[], json)),
    ]
}

#[test]
fn f50_a_machines_own_keys_are_renewed_before_they_expire() {
    let (service, server) = (Server::start(), Server::start());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        std::env::remove_var(name);
    }
    std::env::set_var("HOME", "/nonexistent");
    let address = format!("http://{}", service.address());
    std::env::set_var("AWS_EC2_METADATA_SERVICE_ENDPOINT", address);
    let target = format!("http://{}/{BUCKET}/p", server.address());

    // Nothing there for the role.
    service.script([Rule::next("PUT", Fault::answer(404, &[], ""))]);
    let error = open(&target, &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    assert!(error.message.contains("no role"), "{error}");

    service.script(answers("AKI1", Duration::from_secs(60)));
    service.script(answers("AKI2", Duration::from_secs(3600)));
    let store = open(&target, &[("conditions", "yes")]).unwrap();
    let put = || {
        block_on(store.put("k", body(b"1"), Condition::Always)).unwrap();
        let seen = server.seen().pop().unwrap();
        seen.header("x-amz-security-token").unwrap().to_owned()
    };
    // A minute is left: the new ones are asked for while the old ones are still used.
    let until = Instant::now() + Duration::from_secs(20);
    while put() != "token-of-AKI2" {
        assert!(Instant::now() < until, "no new keys");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(service.is_played());
    let asked = service.seen();
    let session =
        |seen: &nbd_rs_s3_server::Seen| seen.header("x-aws-ec2-metadata-token") == Some("session");
    assert!(asked
        .iter()
        .filter(|seen| seen.method == "GET")
        .all(session));
}
