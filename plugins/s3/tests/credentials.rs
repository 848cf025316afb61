//! Keys from a container's agent, and new ones when the store no longer takes the old. A test of
//! its own process: where keys are found is in the environment.

mod common;

use common::{block_on, body, open};
use nbd_rs_plugin::{Condition, Kind};
use nbd_rs_s3_server::{Fault, Rule, Server, BUCKET};

fn keys(access: &str, expires: &str) -> Rule {
    let json = format!(
        "{{\"RoleArn\":\"r\",\"AccessKeyId\":\"{access}\",\"SecretAccessKey\":\"CANARY\",\
         \"Token\":\"token-of-{access}\",\"Expiration\":\"{expires}\"}}"
    );
    let kind = [("content-type", "application/json")];
    Rule::on("GET", "/agent", Fault::answer(200, &kind, json))
}

#[test]
fn f50_keys_the_store_no_longer_takes_are_replaced_and_the_put_is_whole() {
    let agent = Server::start();
    let server = Server::start();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        std::env::remove_var(name);
    }
    std::env::set_var("HOME", "/nonexistent");
    let address = format!("http://{}/agent", agent.address());
    std::env::set_var("AWS_CONTAINER_CREDENTIALS_FULL_URI", address);
    agent.script([keys("AKI1", "2999-01-01T00:00:00Z")]);
    let target = format!("http://{}/{BUCKET}/p", server.address());
    let store = open(&target, &[]).unwrap();
    let put = |bytes: &[u8]| block_on(store.put("k", body(bytes), Condition::Always));
    let token = || {
        server
            .seen()
            .pop()
            .unwrap()
            .header("x-amz-security-token")
            .unwrap()
            .to_owned()
    };
    put(b"1").unwrap();
    assert_eq!(token(), "token-of-AKI1");

    agent.script([keys("AKI2", "2000-01-01T00:00:00Z")]);
    server.script([Rule::next("PUT", Fault::Error(400, "ExpiredToken"))]);
    agent.script([keys("AKI3", "2999-01-01T00:00:00Z")]);
    put(b"22").unwrap();
    // The second pair was old when it came, so a third was asked for before anything was sent.
    assert_eq!(token(), "token-of-AKI3");
    assert_eq!(server.object("p/k").unwrap(), b"22");

    // No agent: the puts fail for now, without a secret in the text.
    server.script([Rule::next("PUT", Fault::Error(400, "ExpiredToken"))]);
    let error = put(b"333").unwrap_err();
    assert_eq!(error.kind, Kind::Transient);
    assert!(!error.message.contains("CANARY"), "{error}");
    assert_eq!(server.object("p/k").unwrap(), b"22");
    put(b"333").unwrap();
    assert_eq!(server.broken(), Vec::<String>::new());
}
