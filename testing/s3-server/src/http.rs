//! HTTP/1.1, as much of it as S3 needs.

use std::io::{self, Read, Write};

use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine as _;
use sha2::{Digest, Sha256};

use crate::store::Answer;
use crate::tls::Wire;

const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_BODY_BYTES: usize = 64 << 20;

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `PUT`, ...
    pub method: String,
    /// The path and query, as sent.
    pub target: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// What came of the body.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The announced length of the body.
    pub(crate) fn content_length(&self) -> usize {
        let length = self
            .header("content-length")
            .and_then(|text| text.parse().ok());
        length.unwrap_or(0).min(MAX_BODY_BYTES)
    }

    /// The bucket and the key that it names: the bucket in the host (`bucket.localhost`), or at the
    /// beginning of the path.
    pub(crate) fn place(&self) -> (String, String) {
        let host = self.header("host").unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let path = self.path();
        let path = path.trim_start_matches('/');
        let (bucket, key) = match name.strip_suffix(".localhost") {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        (bucket.to_owned(), key.to_owned())
    }

    /// The path, decoded.
    pub fn path(&self) -> String {
        decode(self.target.split('?').next().unwrap_or_default())
    }

    /// A parameter of the query, decoded.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        let pairs = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let found = pairs.into_iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| decode(value))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The next request without its body; nothing at the end of the connection.
pub(crate) fn read_head(wire: &mut Wire, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if buffer.len() > MAX_HEAD_BYTES || read_more(wire, buffer)? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = buffer.drain(..end + 4).collect();
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (method, target) = (word(), word());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    Ok(Some(Request {
        method,
        target,
        headers: lines.filter_map(header).collect(),
        body: Vec::new(),
    }))
}

fn read_more(wire: &mut Wire, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 64 << 10];
    let read = wire.read(&mut chunk)?;
    buffer.extend_from_slice(&chunk[..read]);
    Ok(read)
}

/// `length` bytes of the body, or what there is of them.
pub(crate) fn read_body(
    wire: &mut Wire,
    buffer: &mut Vec<u8>,
    request: &mut Request,
    length: usize,
) -> io::Result<()> {
    while buffer.len() < length {
        if read_more(wire, buffer)? == 0 {
            break;
        }
    }
    let have = buffer.len().min(length);
    request.body = buffer.drain(..have).collect();
    Ok(())
}

/// What is wrong with a request whose body should be there.
pub(crate) fn check(request: &Request) -> Vec<String> {
    let mut found = Vec::new();
    let name = format!("{} {}", request.method, request.target);
    let mut when = |wrong: bool, text: &str| {
        if wrong {
            found.push(format!("{name}: {text}"));
        }
    };
    let sends = matches!(request.method.as_str(), "PUT" | "POST");
    let has = |name| request.header(name).is_some();
    when(sends && !has("content-length"), "no length");
    when(has("transfer-encoding"), "chunked");
    when(has("expect"), "asks for 100 Continue");
    when(!has("authorization"), "not signed");
    when(crate::signature::is_wrong(request), "not its signature");
    let body = &request.body;
    when(
        body.len() != request.content_length(),
        "the body is not whole",
    );
    if let Some(sum) = request.header("x-amz-checksum-crc32c") {
        let ours = BASE64.encode(crc32c::crc32c(body).to_be_bytes());
        when(sum != ours, "the body is not that of its CRC-32C");
    }
    if let Some(sum) = request.header("content-md5") {
        when(
            sum != BASE64.encode(md5::compute(body).0),
            "the body is not that of its MD5",
        );
    }
    let hash = request.header("x-amz-content-sha256").unwrap_or_default();
    if hash != "UNSIGNED-PAYLOAD" {
        let ours: String = Sha256::digest(body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        when(hash != ours, "the body is not that of its SHA-256");
    }
    found
}

/// Writes an answer; the one to HEAD keeps its body.
pub(crate) fn write_answer(wire: &mut Wire, request: &Request, answer: &Answer) -> io::Result<()> {
    let mut bytes = head(answer, answer.body.len());
    if request.method != "HEAD" {
        bytes.extend_from_slice(&answer.body);
    }
    wire.write_all(&bytes)?;
    wire.flush()
}

/// The head of an answer that announces `length` bytes.
pub(crate) fn head(answer: &Answer, length: usize) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} It\r\n", answer.status);
    if !answer.has("content-length") && !answer.has("transfer-encoding") && answer.status != 204 {
        text += &format!("content-length: {length}\r\n");
    }
    for (name, value) in &answer.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    text.into_bytes()
}
