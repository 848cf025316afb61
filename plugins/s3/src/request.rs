//! Requests: method, path, query, headers, and the signature over them. Pure.
//!
//! Signing is rust-s3's (AWS Signature Version 4); what is signed is decided here.

use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine as _;
use hmac::Mac;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::Method;
use nbd_rs_plugin::{Body, Condition, Error, Kind, Range, Result};
use s3::serde_types::{DeleteObjectsRequest, ObjectIdentifier};
use s3::signing;
use sha2::{Digest, Sha256};
use time::macros::format_description;
use time::OffsetDateTime;
use url::Url;

use crate::config::{Checksum, Config};
use crate::credentials::Keys;

/// Names of one page: with the longest keys it stays under a mebibyte of XML.
pub(crate) const PAGE_KEYS: usize = 600;
/// Keys of one bulk delete (S3 API, DeleteObjects).
pub(crate) const DELETE_KEYS: usize = 1000;

/// Where the bucket is.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// `https://host` or `https://bucket.host`, without a slash behind.
    origin: String,
    /// The value of the `Host` header.
    authority: String,
    /// `/bucket`, or nothing.
    bucket_path: String,
    region: s3::Region,
}

impl Site {
    /// The server, as a URL without a path.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn new(config: &Config) -> Self {
        let (mut authority, mut bucket_path) = (config.endpoint.authority(), String::new());
        match config.virtual_host {
            true => authority = format!("{}.{authority}", config.bucket),
            false => bucket_path = format!("/{}", config.bucket),
        }
        let endpoint = config.endpoint.to_string();
        let scheme = endpoint.split(':').next().unwrap_or("https");
        Self {
            origin: format!("{scheme}://{authority}"),
            region: s3::Region::Custom {
                region: config.region.clone(),
                endpoint: endpoint.clone(),
            },
            authority,
            bucket_path,
        }
    }

    fn url(&self, call: &Call) -> Result<Url> {
        let mut text = format!("{}{}", self.origin, self.bucket_path);
        if let Some(key) = &call.key {
            text.push('/');
            text += &signing::uri_encode(key, false);
        }
        let mut separator = '?';
        for (name, value) in &call.query {
            text.push(separator);
            separator = '&';
            text += &format!("{name}={}", signing::uri_encode(value, true));
        }
        Url::parse(&text).map_err(|_| Error::new(Kind::Invalid, "the location makes no URL"))
    }
}

/// What the signature says of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Nothing: TLS or a checksum header protects it.
    Unsigned,
    /// Its SHA-256.
    Sha256([u8; 32]),
}

impl Payload {
    /// Over all of a body. Takes milliseconds for mebibytes.
    pub(crate) fn hashed(body: &Body) -> Self {
        let mut hash = Sha256::new();
        body.pieces()
            .iter()
            .for_each(|piece| hash.update(&piece[..]));
        Self::Sha256(hash.finalize().into())
    }

    fn text(&self) -> String {
        match self {
            Self::Unsigned => "UNSIGNED-PAYLOAD".to_owned(),
            Self::Sha256(hash) => hex(hash),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request before it is signed.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub method: Method,
    /// The key, prefix included; nothing for the bucket itself.
    pub key: Option<String>,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    pub payload: Payload,
    /// What a 412 means.
    pub condition: Condition,
}

impl Call {
    fn new(method: Method, key: Option<&str>) -> Self {
        Self {
            method,
            key: key.map(str::to_owned),
            query: Vec::new(),
            headers: HeaderMap::new(),
            payload: Payload::Sha256(Sha256::digest([]).into()),
            condition: Condition::Always,
        }
    }

    fn header(mut self, name: &'static str, value: &str) -> Result<Self> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::new(Kind::Invalid, format!("{name}: not the value of a header")))?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Whether it may change something.
    pub(crate) fn changes(&self) -> bool {
        self.method == Method::PUT || self.method == Method::DELETE || self.method == Method::POST
    }

    /// Whether a body goes with it, perhaps an empty one.
    pub(crate) fn has_body(&self) -> bool {
        self.method == Method::PUT || self.method == Method::POST
    }

    /// What is tried, for messages.
    pub(crate) fn what(&self) -> String {
        let verb = match (&self.key, self.method.as_str()) {
            (None, "GET") => "listing",
            (None, "POST") => "bulk delete",
            (None, _) => "making the bucket",
            (_, verb) => verb,
        };
        match &self.key {
            Some(key) => format!("{verb} {key}"),
            None => verb.to_owned(),
        }
    }
}

/// Reads a range, not empty.
pub(crate) fn get(key: &str, range: Range) -> Result<Call> {
    let call = Call::new(Method::GET, Some(key));
    if range == Range::ALL {
        // Whole objects come with the checksum that they were stored with.
        return call.header("x-amz-checksum-mode", "ENABLED");
    }
    let bytes = match range.len {
        Range::TO_END => format!("bytes={}-", range.offset),
        len => {
            let last = range.offset.checked_add(len.saturating_sub(1));
            let last = last.ok_or_else(|| {
                Error::new(Kind::Invalid, format!("{range:?} ends behind any object"))
            })?;
            format!("bytes={}-{last}", range.offset)
        }
    };
    call.header("range", &bytes)
}

pub(crate) fn head(key: &str) -> Call {
    Call::new(Method::HEAD, Some(key))
}

pub(crate) fn delete(key: &str) -> Call {
    Call::new(Method::DELETE, Some(key))
}

/// Stores an object; with [`Checksum::Signed`] the caller fills in the payload's hash.
pub(crate) fn put(
    key: &str,
    body: &Body,
    condition: &Condition,
    checksum: Checksum,
    class: Option<&str>,
) -> Result<Call> {
    let mut call = Call::new(Method::PUT, Some(key));
    call.payload = Payload::Unsigned;
    call.condition = condition.clone();
    call = call.header("content-type", "application/octet-stream")?;
    if checksum == Checksum::Crc32c {
        call = call.header("x-amz-checksum-crc32c", &crc32c_text(body))?;
    }
    if let Some(class) = class {
        call = call.header("x-amz-storage-class", class)?;
    }
    match condition {
        Condition::Always => Ok(call),
        Condition::IfAbsent => call.header("if-none-match", "*"),
        Condition::IfMatch(etag) => call.header("if-match", &quoted(etag)?),
    }
}

fn crc32c_text(body: &Body) -> String {
    let pieces = body.pieces().iter();
    let crc = pieces.fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
    BASE64.encode(crc.to_be_bytes())
}

/// An ETag as it stands in a header; kept without its quotes.
fn quoted(etag: &str) -> Result<String> {
    if etag.is_empty() || etag == "*" {
        return Err(Error::new(Kind::Invalid, "an empty ETag matches nothing"));
    }
    Ok(match etag.starts_with("W/") {
        true => etag.to_owned(),
        false => format!("\"{etag}\""),
    })
}

/// Deletes up to [`DELETE_KEYS`] objects; gives the body as well.
pub(crate) fn delete_many(keys: &[String]) -> Result<(Call, Body)> {
    let request = DeleteObjectsRequest {
        objects: keys.iter().map(ObjectIdentifier::new).collect(),
        quiet: false,
    };
    let xml = request.to_string().into_bytes();
    let md5 = BASE64.encode(md5::compute(&xml).0);
    let mut call = Call::new(Method::POST, None)
        .query("delete", "")
        .header("content-md5", &md5)?
        .header("content-type", "application/xml")?;
    let body = Body::from(nbd_rs_plugin::Bytes::from(xml));
    call.payload = Payload::hashed(&body);
    Ok((call, body))
}

/// Where a listing begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From<'a> {
    /// At the first name.
    Start,
    /// After this key.
    After(&'a str),
    /// Where the page before ended, in the store's own words.
    Token(&'a str),
}

/// One page of the keys that begin with `prefix`.
pub(crate) fn list(prefix: &str, from: From<'_>, keys: usize) -> Call {
    let mut call = Call::new(Method::GET, None)
        .query("list-type", "2")
        .query("max-keys", keys.to_string());
    if !prefix.is_empty() {
        call = call.query("prefix", prefix);
    }
    match from {
        From::Start => call,
        From::After(key) => call.query("start-after", key),
        From::Token(token) => call.query("continuation-token", token),
    }
}

/// Makes the bucket; `region` only where AWS wants to be told.
pub(crate) fn create_bucket(region: Option<&str>) -> (Call, Body) {
    let xml = region.map(|region| {
        format!(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        )
    });
    let body = Body::from(nbd_rs_plugin::Bytes::from(
        xml.unwrap_or_default().into_bytes(),
    ));
    let mut call = Call::new(Method::PUT, None);
    call.payload = Payload::hashed(&body);
    (call, body)
}

/// The URL and the headers to send, `Authorization` among them.
///
/// # Errors
/// [`Kind::Invalid`] if something does not fit into a header.
pub(crate) fn sign(
    site: &Site,
    call: &Call,
    keys: &Keys,
    now: OffsetDateTime,
) -> Result<(Url, HeaderMap)> {
    let url = site.url(call)?;
    let mut headers = call.headers.clone();
    let payload = call.payload.text();
    let date = now.format(format_description!(
        "[year][month][day]T[hour][minute][second]Z"
    ));
    let mut insert = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).map_err(unsignable)?;
        headers.insert(HeaderName::from_static(name), value);
        Ok::<_, Error>(())
    };
    insert("host", &site.authority)?;
    insert("x-amz-content-sha256", &payload)?;
    insert("x-amz-date", &date.map_err(unsignable)?)?;
    if let Some(token) = &keys.token {
        insert("x-amz-security-token", token)?;
    }
    let canonical = signing::canonical_request(call.method.as_str(), &url, &headers, &payload)
        .map_err(unsignable)?;
    let text = signing::string_to_sign(&now, &site.region, &canonical).map_err(unsignable)?;
    let key = signing::signing_key(&now, &keys.secret, &site.region, "s3").map_err(unsignable)?;
    let mut mac = signing::HmacSha256::new_from_slice(&key).map_err(unsignable)?;
    mac.update(text.as_bytes());
    let authorization = signing::authorization_header(
        &keys.access,
        &now,
        &site.region,
        &signing::signed_header_string(&headers),
        &hex(&mac.finalize().into_bytes()),
    );
    let mut value =
        HeaderValue::from_str(&authorization.map_err(unsignable)?).map_err(unsignable)?;
    value.set_sensitive(true);
    headers.insert("authorization", value);
    // The client sends its own, which is the same.
    headers.remove("host");
    Ok((url, headers))
}

/// No text of the cause: it could hold a header's value.
fn unsignable<E>(_: E) -> Error {
    Error::new(Kind::Invalid, "the request can't be signed")
}

#[cfg(test)]
mod tests;
