//! The XML of answers. Pure.
//!
//! Bounded before it gets here; without document types, so without entities of its own; read into
//! rust-s3's types, so that what is not known is skipped without being kept.

use nbd_rs_plugin::{Error, Kind, Meta, Result};
use s3::serde_types::{DeleteObjectsResult, ListBucketResult, Object};
use serde::de::DeserializeOwned;
use serde::Deserialize;

use crate::location::check_name;
use crate::response::{listed_ms, token};

/// The most XML that is looked at, in bytes.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// What an error's document says. Servers leave out what they like.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ErrorText {
    pub code: String,
    pub message: String,
    /// The right region, when the request was signed for another.
    pub region: String,
}

/// The document as text, if it is one that is read here.
fn text(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let has_types =
        body.len() > MAX_BYTES || text.contains("<!DOCTYPE") || text.contains("<!ENTITY");
    (!has_types).then_some(text)
}

/// The name of the outermost element, without its namespace's prefix.
fn root(text: &str) -> Option<&str> {
    let is_element = |after: &&str| !after.starts_with(['?', '!']);
    let element = text.split('<').skip(1).find(is_element)?;
    let end = element.find(|c: char| c.is_whitespace() || matches!(c, '>' | '/'));
    let name = &element[..end.unwrap_or(element.len())];
    Some(name.rsplit_once(':').map_or(name, |(_, local)| local))
}

fn parse<T: DeserializeOwned>(body: &[u8], name: &str) -> Option<T> {
    let text = text(body).filter(|text| root(text) == Some(name))?;
    quick_xml::de::from_str(text).ok()
}

/// The error in an answer, if there is one.
pub(crate) fn error(body: &[u8]) -> Option<ErrorText> {
    let found: ErrorText = parse(body, "Error")?;
    // A code decides what happens next, and is a word.
    let is_code = |code: &str| !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric());
    is_code(&found.code).then_some(found)
}

/// A page as the store gave it.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The keys in the order in which they came, of anybody's objects.
    pub keys: Vec<String>,
    /// Those that are ours, without our prefix.
    pub items: Vec<Meta>,
    /// Whether there is more, and the store's own word for where.
    pub more: Option<String>,
}

/// A page of a listing; `ours` is the prefix that all names have.
///
/// # Errors
/// If it is not a listing.
pub(crate) fn listing(body: &[u8], ours: &str) -> Result<Listed> {
    let found: ListBucketResult =
        parse(body, "ListBucketResult").ok_or_else(|| unreadable("listing", body))?;
    let items = found
        .contents
        .iter()
        .filter_map(|object| item(object, ours));
    Ok(Listed {
        items: items.collect(),
        more: found
            .is_truncated
            .then(|| found.next_continuation_token.unwrap_or_default()),
        keys: found
            .contents
            .into_iter()
            .map(|object| object.key)
            .collect(),
    })
}

/// An object that this store could have written; markers of folders are none.
fn item(object: &Object, ours: &str) -> Option<Meta> {
    let name = object.key.strip_prefix(ours)?;
    check_name(name).ok()?;
    Some(Meta {
        etag: token(object.e_tag.as_deref().unwrap_or_default()).into(),
        modified_ms: listed_ms(&object.last_modified),
        ..Meta::new(name, object.size)
    })
}

/// What became of a bulk delete.
#[derive(Debug)]
pub(crate) struct Deleted(DeleteObjectsResult);

impl Deleted {
    /// # Errors
    /// If it is not the answer to one.
    pub(crate) fn read(body: &[u8]) -> Result<Self> {
        let found = parse(body, "DeleteResult");
        found
            .map(Self)
            .ok_or_else(|| unreadable("bulk delete", body))
    }

    /// # Errors
    /// Unless it says that this one is gone.
    pub(crate) fn judge(&self, key: &str) -> Result<()> {
        if let Some(error) = self.0.errors.iter().find(|error| error.key == key) {
            let kind = match error.code.as_str() {
                "NoSuchKey" => return Ok(()),
                "AccessDenied" => Kind::Denied,
                "SlowDown" | "ServiceUnavailable" => Kind::Transient,
                "InternalError" => Kind::Ambiguous,
                _ => Kind::Io,
            };
            let (code, text) = (&error.code, excerpt(error.message.as_bytes()));
            return Err(Error::new(kind, format!("DELETE {key}: {code}: {text}")));
        }
        match self.0.deleted.iter().any(|deleted| deleted.key == key) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Ambiguous,
                format!("DELETE {key}: the answer does not name it"),
            )),
        }
    }
}

fn unreadable(what: &str, body: &[u8]) -> Error {
    let text = format!("{what}: no S3 answer: {}", excerpt(body));
    Error::new(Kind::Transient, text)
}

/// The beginning of a body for a message: 512 bytes, nothing in it that moves a cursor.
pub(crate) fn excerpt(body: &[u8]) -> String {
    let cut = &body[..body.len().min(512)];
    let text = String::from_utf8_lossy(cut);
    let flat = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    flat.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_are_read_whatever_they_leave_out() {
        for (text, code) in [
            ("<Error><Code>NoSuchKey</Code></Error>", Some("NoSuchKey")),
            (
                "<?xml version=\"1.0\"?>\n<Error xmlns=\"x\"><Message>a &amp; b</Message>\
                 <Code>SlowDown</Code><Other><Deep/></Other></Error>",
                Some("SlowDown"),
            ),
            ("<Error><Code></Code></Error>", None),
            ("<Error><Code>a b\n</Code></Error>", None),
            ("<html><Code>NoSuchKey</Code></html>", None),
            ("<Error><Code>NoSuchKey</Code>", None),
            ("", None),
            ("<", None),
        ] {
            let found = error(text.as_bytes()).map(|error| error.code);
            assert_eq!(found.as_deref(), code, "{text}");
        }
    }

    #[test]
    fn xml_bombs_are_not_read() {
        let bomb = "<!DOCTYPE b [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY c \"&a;&a;&a;\">]>\
                    <Error><Code>NoSuchKey</Code><Message>&c;&c;</Message></Error>";
        assert!(error(bomb.as_bytes()).is_none());
        let undefined = "<Error><Code>NoSuchKey</Code><Message>&c;</Message></Error>";
        assert!(error(undefined.as_bytes()).is_none());
        let deep = "<a>".repeat(300_000);
        assert!(error(format!("<Error><Code>X</Code>{deep}").as_bytes()).is_none());
        let long = format!(
            "<Error><Code>NoSuchKey</Code>{}</Error>",
            " ".repeat(MAX_BYTES)
        );
        assert!(error(long.as_bytes()).is_none());
    }

    fn listing_of(truncated: bool, keys: &[&str]) -> Vec<u8> {
        let object = |key: &&str| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>1970-01-01T00:00:01.5Z</LastModified>\
                 <ETag>&quot;e-3&quot;</ETag><Size>5</Size></Contents>"
            )
        };
        let objects: String = keys.iter().map(object).collect();
        format!(
            "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name>\
             <IsTruncated>{truncated}</IsTruncated>{objects}</ListBucketResult>"
        )
        .into_bytes()
    }

    #[test]
    fn listings_keep_their_keys_exactly() {
        let body = listing_of(false, &["p/ a&amp;b&#x20;", "p/ä€", "p/&lt;x&gt;"]);
        let page = listing(&body, "p/").unwrap();
        assert_eq!(page.keys, ["p/ a&b ", "p/ä€", "p/<x>"]);
        let first = &page.items[0];
        let found = (
            first.key.as_str(),
            first.size,
            first.etag.as_str(),
            first.modified_ms,
        );
        assert_eq!(found, (" a&b ", 5, "e-3", 1500));
        assert!(page.more.is_none());
    }

    #[test]
    fn listings_hold_only_what_this_store_could_have_written() {
        let body = listing_of(true, &["p/b", "p/", "p/c/", "q/x", "other"]);
        let page = listing(&body, "p/").unwrap();
        let names: Vec<&str> = page.items.iter().map(|meta| meta.key.as_str()).collect();
        assert_eq!(names, ["b"]);
        assert_eq!((page.keys.len(), page.more.is_some()), (5, true));
    }

    #[test]
    fn bulk_deletes_tell_each_key() {
        let text = "<DeleteResult><Deleted><Key>a</Key></Deleted>\
            <Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>\
            <Deleted><Key>e</Key></Deleted>\
            <Error><Key>c</Key><Code>NoSuchKey</Code><Message>no</Message></Error></DeleteResult>";
        let result = Deleted::read(text.as_bytes()).unwrap();
        let kind = |key| result.judge(key).err().map(|error| error.kind);
        assert_eq!(kind("a"), None);
        assert_eq!(kind("b"), Some(Kind::Denied));
        assert_eq!((kind("c"), kind("e")), (None, None));
        assert_eq!(kind("d"), Some(Kind::Ambiguous));
        assert!(Deleted::read(b"<html/>").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (error(&body), listing(&body, "").is_ok(), Deleted::read(&body).is_ok());
            prop_assert!(!excerpt(&body).chars().any(char::is_control));
        }

        #[test]
        fn any_markup_is_read_without_a_panic(text in "[<>/!?a-cE&;\"= ]{0,80}") {
            let _ = error(format!("<Error>{text}</Error>").as_bytes());
        }
    }
}
