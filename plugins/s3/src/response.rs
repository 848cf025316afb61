//! What an answer means: a value, or an error of the right kind. Pure.

use http::header::{HeaderMap, CONTENT_LENGTH, ETAG, LAST_MODIFIED, RETRY_AFTER};
use nbd_rs_plugin::{Condition, Error, Kind, Meta, Result};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::request::Call;
use crate::xml::{self, ErrorText};

/// The longest wait that is passed on, in seconds.
const MAX_RETRY_AFTER_S: u64 = 3600;

/// A request that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// 0 if there was no answer.
    pub status: u16,
    pub headers: HeaderMap,
    /// The S3 error code; empty if the answer had none.
    pub code: String,
    /// The region that the store names instead.
    pub region: Option<String>,
    pub error: Error,
}

impl From<Error> for Failure {
    /// Of a request that got no answer.
    fn from(error: Error) -> Self {
        Self {
            status: 0,
            headers: HeaderMap::new(),
            code: String::new(),
            region: None,
            error,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// Whether a status is one of those that such a call succeeds with.
pub(crate) fn is_expected(call: &Call, status: u16) -> bool {
    match call.method.as_str() {
        "GET" => matches!(status, 200 | 206),
        "DELETE" => matches!(status, 200 | 204),
        _ => status == 200,
    }
}

/// What to make of any answer but the expected one.
pub(crate) fn failure(call: &Call, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    let found = xml::error(body);
    let has_code = found.is_some();
    let text = found.unwrap_or_default();
    let wait = retry_after(headers);
    let (kind, hint) = verdict(call, status, &text.code, wait.is_some());
    let region = region(headers, &text);
    let mut message = format!("{}: HTTP {status}", call.what());
    match has_code {
        true => message += &format!(" {}: {}", text.code, xml::excerpt(text.message.as_bytes())),
        false if body.is_empty() => {}
        false => message += &format!(", no S3 error: {}", xml::excerpt(body)),
    }
    if let Some(id) = text_of(headers, "x-amz-request-id") {
        message += &format!(" (request {})", xml::excerpt(id.as_bytes()));
    }
    if let (true, Some(region)) = (is_elsewhere(status, &text.code), &region) {
        message += &format!("; the bucket is in region {region}");
    }
    if !hint.is_empty() {
        message += &format!("; {hint}");
    }
    if let (Kind::Transient, Some(seconds)) = (kind, wait) {
        message += &format!(" retry-after={seconds}s");
    }
    Failure {
        status,
        headers: headers.clone(),
        code: text.code,
        region,
        error: Error::new(kind, message),
    }
}

/// The bucket, or the region that was signed for, is not here.
pub(crate) fn is_elsewhere(status: u16, code: &str) -> bool {
    matches!(status, 301 | 302 | 307 | 308) || code == "AuthorizationHeaderMalformed"
}

/// The kind, and what a person can do.
fn verdict(call: &Call, status: u16, code: &str, asked_to_wait: bool) -> (Kind, &'static str) {
    let by_code = by_code(call, code);
    if by_code.0 != Kind::Io || !by_code.1.is_empty() {
        return by_code;
    }
    // From a server that does not say what it did.
    let unknown = match call.changes() {
        true => Kind::Ambiguous,
        false => Kind::Transient,
    };
    match status {
        // Whatever it was, it was no S3 answer: it may have been done.
        200..=299 => (
            unknown,
            "this is no answer of an S3 store to such a request",
        ),
        301 | 308 => (
            Kind::Io,
            "redirects are not followed: name the right endpoint or region",
        ),
        302 | 307 => (Kind::Transient, "redirects are not followed"),
        401 | 403 => (Kind::Denied, ""),
        // Only the store itself can say that an object does not exist.
        404 => (Kind::Io, "not an S3 store's answer: check the endpoint"),
        405 | 501 => (Kind::Unsupported, ""),
        408 | 425 | 429 => (Kind::Transient, ""),
        409 => (Kind::Transient, ""),
        412 => unmet(call),
        400 | 414 | 416 => (Kind::Invalid, ""),
        413 => (
            Kind::Invalid,
            "the object is too large for the store or a proxy before it",
        ),
        503 if asked_to_wait || !code.is_empty() => (Kind::Transient, ""),
        507 => (Kind::NoSpace, ""),
        500..=599 => (unknown, ""),
        _ => (Kind::Io, ""),
    }
}

/// What the codes mean that mean more than their status (S3 API, "Error responses").
fn by_code(call: &Call, code: &str) -> (Kind, &'static str) {
    let conditional = matches!(call.condition, Condition::IfMatch(_));
    match code {
        // Nothing there that could have the ETag.
        "NoSuchKey" | "NoSuchVersion" if conditional => (Kind::Precondition, ""),
        "NoSuchKey" | "NoSuchVersion" => (Kind::NotFound, ""),
        "NoSuchBucket" => (
            Kind::Io,
            "the bucket does not exist: make it, or say create_bucket=true",
        ),
        "PreconditionFailed" => unmet(call),
        "ConditionalRequestConflict" | "OperationAborted" => (Kind::Transient, ""),
        "InvalidRange" => (Kind::Invalid, ""),
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "TooManyRequests"
        | "ThrottlingException"
        | "ServerBusy" => (Kind::Transient, ""),
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentChecksumMismatch"
        | "IncompleteBody"
        | "XAmzContentSHA256Mismatch" => (Kind::Transient, "the store received other bytes"),
        "RequestTimeTooSkewed" => (Kind::Transient, "set this machine's clock"),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            (Kind::Transient, "the credentials have expired")
        }
        "InvalidAccessKeyId" | "InvalidToken" | "AccessDenied" | "AccountProblem"
        | "AllAccessDisabled" | "UnauthorizedAccess" => (Kind::Denied, ""),
        "SignatureDoesNotMatch" => {
            let hint = "is the secret right, and percent-encoded where the location holds it?";
            (Kind::Denied, hint)
        }
        "AuthorizationHeaderMalformed" => (Kind::Invalid, "name the right region"),
        "InvalidObjectState" => (Kind::Io, "the object is archived: restore it first"),
        "NotImplemented" => (
            Kind::Unsupported,
            "older stores need checksum=none, or conditions=no",
        ),
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" | "InsufficientCapacity" => {
            (Kind::NoSpace, "")
        }
        _ => (Kind::Io, ""),
    }
}

fn unmet(call: &Call) -> (Kind, &'static str) {
    match call.condition {
        Condition::IfAbsent => (Kind::Exists, ""),
        Condition::IfMatch(_) => (Kind::Precondition, ""),
        Condition::Always => (Kind::Io, "no condition was set"),
    }
}

fn region(headers: &HeaderMap, text: &ErrorText) -> Option<String> {
    let header = text_of(headers, "x-amz-bucket-region");
    let region = header
        .or(Some(text.region.as_str()))
        .filter(|region| !region.is_empty())?;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (region.len() <= 64 && region.chars().all(fits)).then(|| region.to_owned())
}

/// `Retry-After` in seconds (RFC 9110, 10.2.3), against the answer's own `Date` if it is a date.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(seconds.min(MAX_RETRY_AFTER_S));
    }
    let wait = http_date(text)? - date(headers)?;
    Some(wait.whole_seconds().clamp(0, MAX_RETRY_AFTER_S as i64) as u64)
}

/// The server's clock.
pub(crate) fn date(headers: &HeaderMap) -> Option<OffsetDateTime> {
    http_date(text_of(headers, "date")?)
}

fn http_date(text: &str) -> Option<OffsetDateTime> {
    let form = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    PrimitiveDateTime::parse(text.trim(), form)
        .ok()
        .map(PrimitiveDateTime::assume_utc)
}

fn millis(time: OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// A listing's time in milliseconds since 1970; 0 if it is none.
pub(crate) fn listed_ms(text: &str) -> u64 {
    OffsetDateTime::parse(text, &Rfc3339).map_or(0, millis)
}

/// The text of a header.
pub(crate) fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// An ETag as it is kept: a token to compare and to send back, never a hash of anything.
pub(crate) fn token(etag: &str) -> &str {
    let inner = etag
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or(etag)
}

/// The ETag of an answer; empty if it has none.
pub(crate) fn etag(headers: &HeaderMap) -> &str {
    let text = headers.get(ETAG).and_then(|value| value.to_str().ok());
    token(text.unwrap_or_default())
}

/// `Content-Length`, if it is there and a number.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What the headers say of an object of `size` bytes.
pub(crate) fn meta(name: &str, size: u64, headers: &HeaderMap) -> Meta {
    let modified = headers
        .get(LAST_MODIFIED)
        .and_then(|value| value.to_str().ok());
    Meta {
        etag: etag(headers).into(),
        modified_ms: modified.and_then(http_date).map_or(0, millis),
        ..Meta::new(name, size)
    }
}

/// Whether headers are those of an object, and not of somebody's page of excuses.
pub(crate) fn check_is_object(headers: &HeaderMap) -> Result<()> {
    let kind = text_of(headers, "content-type").unwrap_or_default();
    let is_page = kind.starts_with("text/html") || kind.contains("xml");
    let (tag, time) = (
        headers.contains_key(ETAG),
        headers.contains_key(LAST_MODIFIED),
    );
    if !tag && (is_page || !time) {
        let text = "the answer has neither ETag nor time: it is not the store's object";
        return Err(Error::new(Kind::Transient, text));
    }
    let encoding = text_of(headers, "content-encoding").unwrap_or("identity");
    match encoding
        .split(',')
        .map(str::trim)
        .all(|it| matches!(it, "identity" | "aws-chunked" | ""))
    {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Io,
            format!(
                "something on the way encodes answers ({}): turn that off",
                xml::excerpt(encoding.as_bytes())
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
