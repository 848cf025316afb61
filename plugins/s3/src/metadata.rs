//! Keys of the machine's own role, from the metadata service of the cloud that it runs in.
//!
//! Only with a session token (IMDSv2; EC2 User Guide, "Use the Instance Metadata Service"), never
//! by way of a proxy, never by a redirect.

use std::time::{Duration, SystemTime};

use http::Method;
use nbd_rs_plugin::{Error, Kind, Result};
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

use crate::credentials::{Fetched, Keys, Lookup};
use crate::endpoint::Endpoint;

/// Where it is, unless `AWS_EC2_METADATA_SERVICE_ENDPOINT` names another place.
const ENDPOINT: &str = "http://169.254.169.254";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// It is next door: who does not answer in this time is not there.
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The answer's fields that are used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: String,
}

/// The service's URL, if there is any reason to think that there is one.
///
/// # Errors
/// If the environment names a place that can't be one.
pub(crate) fn endpoint(env: Lookup) -> Result<Option<String>> {
    if env("AWS_EC2_METADATA_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    if let Some(said) = env("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        let endpoint = Endpoint::from_url(&said)
            .map_err(|error| error.context("AWS_EC2_METADATA_SERVICE_ENDPOINT"))?;
        return Ok(Some(endpoint.to_string()));
    }
    Ok(is_instance().then(|| ENDPOINT.to_owned()))
}

/// Whether the firmware says that this is a machine of EC2; elsewhere nobody is asked.
fn is_instance() -> bool {
    let begins = |path: &str, with: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(with))
    };
    begins("/sys/class/dmi/id/board_vendor", "Amazon EC2")
        || begins("/sys/class/dmi/id/sys_vendor", "Amazon EC2")
        || begins("/sys/hypervisor/uuid", "ec2")
}

/// The keys of the machine's role. Blocks; to be called where that may be.
///
/// # Errors
/// If the service does not answer, or the machine has no role.
pub(crate) fn fetch(endpoint: &str) -> Result<Fetched> {
    let runtime = tokio::runtime::Handle::current();
    runtime
        .block_on(ask_all(endpoint))
        .map_err(|error| error.context(format_args!("the metadata service {endpoint}")))
}

async fn ask_all(endpoint: &str) -> Result<Fetched> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(unanswered)?;
    let get = |method, path: &str, header, value: &str| {
        let url = format!("{endpoint}{path}");
        text(http.request(method, url).header(header, value))
    };
    let ttl = "x-aws-ec2-metadata-token-ttl-seconds";
    let token = get(Method::PUT, "/latest/api/token", ttl, "21600").await?;
    let header = "x-aws-ec2-metadata-token";
    let roles = get(Method::GET, ROLES, header, &token).await?;
    let role = roles.lines().next().unwrap_or_default().trim();
    if role.is_empty() || role.contains(['/', '?', '#', '%']) {
        return Err(Error::new(Kind::Denied, "the machine has no role"));
    }
    let path = format!("{ROLES}{role}");
    keys(&get(Method::GET, &path, header, &token).await?)
}

async fn text(request: reqwest::RequestBuilder) -> Result<String> {
    let mut answer = request.send().await.map_err(unanswered)?;
    match answer.status().as_u16() {
        200 => {}
        404 => return Err(Error::new(Kind::Denied, "the machine has no role")),
        status => return Err(Error::new(Kind::Denied, format!("HTTP {status}"))),
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(unanswered)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Error::new(Kind::Denied, "an answer without an end"));
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| Error::new(Kind::Denied, "the answer is no text"))
}

fn unanswered(error: reqwest::Error) -> Error {
    Error::new(Kind::Denied, error.without_url().to_string())
}

/// The keys in an answer; nothing of them is in an error.
fn keys(json: &str) -> Result<Fetched> {
    let unread = || Error::new(Kind::Denied, "the answer holds no keys");
    let answer: Answer = serde_json::from_str(json).map_err(|_| unread())?;
    let ends = OffsetDateTime::parse(&answer.expiration, &Rfc3339).map_err(|_| unread())?;
    let keys = Keys::new(
        &answer.access_key_id,
        &answer.secret_access_key,
        Some(&answer.token),
    )?;
    Ok(Fetched {
        keys: keys.into(),
        expires: Some(SystemTime::from(ends)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_a_broken_answer_shows_none_of_them() {
        let good = r#"{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"CANARY",
            "Token":"T","Expiration":"2999-01-01T00:00:00Z"}"#;
        assert_eq!(keys(good).unwrap().keys.access, "A");
        for (from, to) in [
            ("2999", "CANARY"),
            ("}", ""),
            ("AccessKeyId", "X"),
            ("\"A\"", "\"a b\""),
        ] {
            let error = keys(&good.replace(from, to)).unwrap_err();
            assert!(!error.message.contains("CANARY"), "{error}");
        }
    }

    #[test]
    fn nobody_is_asked_where_the_service_is_off_or_elsewhere() {
        let off = |name: &str| (name == "AWS_EC2_METADATA_DISABLED").then(|| "TRUE".to_owned());
        assert_eq!(endpoint(off).unwrap(), None);
        let named = |name: &str| {
            let there = "http://127.0.0.1:1/".to_owned();
            (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then_some(there)
        };
        assert_eq!(endpoint(named).unwrap().unwrap(), "http://127.0.0.1:1");
        let wrong = |name: &str| {
            (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| "file:///etc".to_owned())
        };
        assert!(endpoint(wrong).is_err());
    }
}
