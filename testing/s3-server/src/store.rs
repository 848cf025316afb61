//! Buckets, objects, conditions, ranges, listings: what S3 does when nothing goes wrong.

use std::collections::{BTreeMap, VecDeque};

use crate::http::Request;
use crate::packed::Packed;

/// Changes that can be taken back.
const REMEMBERED: usize = 64;
/// From here on an ETag is no MD5, as with objects that were put in parts.
const LARGE_BYTES: usize = 1 << 20;

/// An object.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// Its contents.
    pub(crate) bytes: Packed,
    /// Its ETag, with the quotes.
    etag: String,
    /// The checksum that it was put with.
    crc32c: Option<String>,
}

/// Habits of some servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quirks {
    /// If-None-Match and If-Match are ignored.
    pub no_conditions: bool,
    /// Ranges are ignored: the whole object, with 200.
    pub no_ranges: bool,
    /// Bulk deletes are not implemented.
    pub no_bulk_delete: bool,
    /// Listings walk folders: all of `d/` before `d.x`.
    pub folder_order: bool,
    /// No ETag in any answer.
    pub no_etags: bool,
    /// The x-amz-checksum headers are not implemented.
    pub no_checksums: bool,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            status,
            headers: headers.iter().map(own).collect(),
            body: body.to_vec(),
        }
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>as you asked</Message><RequestId>1</RequestId></Error>"
        );
        Self::new(
            status,
            &[("content-type", "application/xml")],
            body.as_bytes(),
        )
    }

    fn xml(body: &str) -> Self {
        Self::new(200, &[("content-type", "application/xml")], body.as_bytes())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(given, _)| given == name)
    }
}

type Bucket = BTreeMap<String, Object>;

/// All buckets, and how to take back what was done.
#[derive(Debug, Default)]
pub(crate) struct Store {
    buckets: BTreeMap<String, Bucket>,
    acknowledged: VecDeque<(String, String, Option<Object>)>,
    puts: u64,
    pub quirks: Quirks,
}

impl Store {
    pub(crate) fn make_bucket(&mut self, name: &str) {
        self.buckets.entry(name.to_owned()).or_default();
    }

    pub(crate) fn remove_bucket(&mut self, name: &str) {
        self.buckets.remove(name);
    }

    pub(crate) fn get(&self, bucket: &str, key: &str) -> Option<&Object> {
        self.buckets.get(bucket)?.get(key)
    }

    pub(crate) fn keys(&self, bucket: &str) -> Vec<String> {
        let bucket = self.buckets.get(bucket);
        bucket
            .map(|bucket| bucket.keys().cloned().collect())
            .unwrap_or_default()
    }

    pub(crate) fn put(&mut self, bucket: &str, key: &str, bytes: Vec<u8>) -> String {
        self.puts += 1;
        let etag = match bytes.len() {
            ..LARGE_BYTES => format!("\"{:x}\"", md5::compute(&bytes)),
            _ => format!("\"{:08x}{:08x}-1\"", crc32c::crc32c(&bytes), self.puts),
        };
        let object = Object {
            bytes: Packed::new(&bytes),
            etag: etag.clone(),
            crc32c: None,
        };
        self.set(bucket, key, Some(object));
        etag
    }

    fn set(&mut self, bucket: &str, key: &str, object: Option<Object>) {
        let Some(found) = self.buckets.get_mut(bucket) else {
            return;
        };
        let old = match object {
            Some(object) => found.insert(key.to_owned(), object),
            None => found.remove(key),
        };
        self.acknowledged
            .push_back((bucket.to_owned(), key.to_owned(), old));
        if self.acknowledged.len() > REMEMBERED {
            self.acknowledged.pop_front();
        }
    }

    pub(crate) fn remove(&mut self, bucket: &str, key: &str) {
        self.set(bucket, key, None);
    }

    /// Changes an object's bytes, and nothing else.
    pub(crate) fn spoil(&mut self, bucket: &str, key: &str, spoil: impl FnOnce(&mut Vec<u8>)) {
        let object = self.buckets.get_mut(bucket).and_then(|it| it.get_mut(key));
        let object = object.unwrap_or_else(|| panic!("no object {key}"));
        let mut bytes = object.bytes.bytes();
        spoil(&mut bytes);
        object.bytes = Packed::new(&bytes);
    }

    pub(crate) fn undo(&mut self, count: usize) {
        for _ in 0..count {
            let Some((bucket, key, old)) = self.acknowledged.pop_back() else {
                return;
            };
            self.set(&bucket, &key, old);
            self.acknowledged.pop_back();
        }
    }

    /// Does what a request asks for.
    pub(crate) fn act(&mut self, request: &Request) -> Answer {
        if crate::signature::is_wrong(request) {
            return Answer::error(403, "SignatureDoesNotMatch");
        }
        let (bucket, key) = request.place();
        let (bucket, key) = (bucket.as_str(), key.as_str());
        if request.method == "PUT" && key.is_empty() {
            self.make_bucket(bucket);
            return Answer::new(200, &[], b"");
        }
        if !self.buckets.contains_key(bucket) {
            return Answer::error(404, "NoSuchBucket");
        }
        let mut answer = match (request.method.as_str(), key) {
            ("GET", "") => self.list(bucket, request),
            ("POST", "") if self.quirks.no_bulk_delete => Answer::error(501, "NotImplemented"),
            ("POST", "") => self.delete_many(bucket, request),
            ("GET" | "HEAD", key) => self.read(bucket, key, request),
            ("PUT", key) => self.write(bucket, key, request),
            ("DELETE", key) => {
                self.set(bucket, key, None);
                Answer::new(204, &[], b"")
            }
            _ => Answer::error(405, "MethodNotAllowed"),
        };
        if self.quirks.no_etags {
            answer.headers.retain(|(name, _)| name != "etag");
        }
        answer
    }

    fn read(&self, bucket: &str, key: &str, request: &Request) -> Answer {
        let Some(object) = self.get(bucket, key) else {
            return Answer::error(404, "NoSuchKey");
        };
        let common = [
            ("etag", object.etag.as_str()),
            ("last-modified", "Wed, 25 Nov 2026 12:00:00 GMT"),
            ("content-type", "application/octet-stream"),
        ];
        let range = request.header("range").filter(|_| !self.quirks.no_ranges);
        let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
            let mut answer = Answer::new(200, &common, &object.bytes.bytes());
            let sum = object
                .crc32c
                .clone()
                .map(|sum| ("x-amz-checksum-crc32c".to_owned(), sum));
            answer.headers.extend(sum);
            return answer;
        };
        let size = object.bytes.len();
        let (first, last) = range.split_once('-').unwrap_or((range, ""));
        let first: usize = first.parse().unwrap_or(0);
        let last: usize = last
            .parse()
            .unwrap_or(usize::MAX)
            .min(size.saturating_sub(1));
        if first >= size {
            let mut answer = Answer::error(416, "InvalidRange");
            answer
                .headers
                .push(("content-range".to_owned(), format!("bytes */{size}")));
            return answer;
        }
        let said = format!("bytes {first}-{last}/{size}");
        let mut answer = Answer::new(206, &common, &object.bytes.range(first..last + 1));
        answer.headers.push(("content-range".to_owned(), said));
        answer
    }

    fn write(&mut self, bucket: &str, key: &str, request: &Request) -> Answer {
        if !crate::http::check(request).is_empty() {
            return Answer::error(400, "BadDigest");
        }
        let sum = request.header("x-amz-checksum-crc32c");
        if sum.is_some() && self.quirks.no_checksums {
            return Answer::error(501, "NotImplemented");
        }
        let old = self.get(bucket, key);
        if !self.quirks.no_conditions {
            if request.header("if-none-match").is_some() && old.is_some() {
                return Answer::error(412, "PreconditionFailed");
            }
            if let Some(wanted) = request.header("if-match") {
                match old {
                    None => return Answer::error(404, "NoSuchKey"),
                    Some(old) if old.etag != wanted => {
                        return Answer::error(412, "PreconditionFailed")
                    }
                    Some(_) => {}
                }
            }
        }
        let etag = self.put(bucket, key, request.body.clone());
        let sum = sum.map(str::to_owned);
        if let Some(object) = self.buckets.get_mut(bucket).and_then(|it| it.get_mut(key)) {
            object.crc32c = sum;
        }
        Answer::new(200, &[("etag", &etag)], b"")
    }

    fn list(&self, bucket: &str, request: &Request) -> Answer {
        let prefix = request.query("prefix").unwrap_or_default();
        let after = request.query("continuation-token");
        let after = after
            .or_else(|| request.query("start-after"))
            .unwrap_or_default();
        let most = request.query("max-keys").and_then(|text| text.parse().ok());
        let most: usize = most.unwrap_or(1000).min(1000);
        let order = |one: &str, other: &str| match self.quirks.folder_order {
            true => one.split('/').cmp(other.split('/')),
            false => one.cmp(other),
        };
        let mut found: Vec<(&String, &Object)> = self.buckets[bucket]
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix) && order(key, &after).is_gt())
            .collect();
        found.sort_by(|(one, _), (other, _)| order(one, other));
        found.truncate(most + 1);
        let truncated = found.len() > most;
        let mut body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>{bucket}</Name><IsTruncated>{truncated}</IsTruncated>"
        );
        found.truncate(most);
        if let (true, Some((last, _))) = (truncated, found.last()) {
            let last = escape(last);
            body += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        for (key, object) in found {
            body += &format!(
                "<Contents><Key>{}</Key><LastModified>2026-11-25T12:00:00.000Z</LastModified>\
                 <ETag>{}</ETag><Size>{}</Size></Contents>",
                escape(key),
                escape(&object.etag),
                object.bytes.len()
            );
        }
        body += "</ListBucketResult>";
        Answer::xml(&body)
    }

    fn delete_many(&mut self, bucket: &str, request: &Request) -> Answer {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let mut body = "<DeleteResult>".to_owned();
        for part in text.split("<Key>").skip(1) {
            let key = unescape(part.split("</Key>").next().unwrap_or_default());
            let shown = escape(&key);
            if key.contains("undeletable") {
                body += &format!(
                    "<Error><Key>{shown}</Key><Code>AccessDenied</Code>\
                     <Message>no</Message></Error>"
                );
                continue;
            }
            self.set(bucket, &key, None);
            body += &format!("<Deleted><Key>{shown}</Key></Deleted>");
        }
        body += "</DeleteResult>";
        Answer::xml(&body)
    }
}

fn escape(text: &str) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&apos;")
}

fn unescape(text: &str) -> String {
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"");
    text.replace("&apos;", "'").replace("&amp;", "&")
}
