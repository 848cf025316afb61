//! What stands behind `s3:`, taken apart: endpoint, keys, bucket, prefix. Pure.

use nbd_rs_plugin::options::decode;
use nbd_rs_plugin::{Error, Kind, Result};

use crate::credentials::Keys;
use crate::endpoint::{Endpoint, Scheme};

/// The longest name of an object, in bytes, prefix included (S3 API, "Object key names").
const MAX_KEY_BYTES: usize = 1024;

/// A location as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// The server, if the location names one.
    pub endpoint: Option<Endpoint>,
    /// Access key and secret, if the location holds them.
    pub keys: Option<Keys>,
    /// The bucket.
    pub bucket: String,
    /// What every key begins with: empty, or ending with `/`.
    pub prefix: String,
}

/// A mistake in the location or an option.
pub(crate) fn invalid(text: impl AsRef<str>) -> Error {
    Error::new(Kind::Invalid, text)
}

impl Location {
    /// Takes `//...`, `http://...` or `https://...` apart. Nothing of a secret is in the errors.
    pub(crate) fn parse(target: &str) -> Result<Self> {
        let (scheme, rest) = split_scheme(target)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let keys = user.map(keys).transpose()?;
        let has_port = host.rsplit_once(':').is_some() && !host.ends_with(']');
        if scheme.is_none() && keys.is_none() && !has_port {
            return Self::new(None, None, host, path);
        }
        let endpoint = Endpoint::parse(scheme, host)?;
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        Self::new(Some(endpoint), keys, bucket, prefix)
    }

    fn new(
        endpoint: Option<Endpoint>,
        keys: Option<Keys>,
        bucket: &str,
        prefix: &str,
    ) -> Result<Self> {
        Ok(Self {
            endpoint,
            keys,
            bucket: check_bucket(decode(bucket)?)?,
            prefix: check_prefix(decode(prefix)?)?,
        })
    }
}

fn split_scheme(target: &str) -> Result<(Option<Scheme>, &str)> {
    if let Some(rest) = target.strip_prefix("//") {
        return Ok((None, rest));
    }
    if let Some(rest) = target.strip_prefix("https://") {
        return Ok((Some(Scheme::Https), rest));
    }
    if let Some(rest) = target.strip_prefix("http://") {
        return Ok((Some(Scheme::Http), rest));
    }
    Err(invalid(
        "an S3 location is s3://bucket/prefix, s3://KEY:SECRET@host:port/bucket/prefix, or \
         s3:http://host:port/bucket/prefix",
    ))
}

/// `KEY:SECRET`, each percent-decoded once.
fn keys(user: &str) -> Result<Keys> {
    let (access, secret) = user.split_once(':').unwrap_or((user, ""));
    let part = |text: &str| {
        // The decoder's own error would show the text.
        decode(text).map_err(|_| invalid("the key or secret does not percent-decode to UTF-8"))
    };
    let (access, secret) = (part(access)?, part(secret)?);
    if access.is_empty() || secret.is_empty() {
        return Err(invalid(
            "the location has a key without its secret: write KEY:SECRET@host, or leave both to \
             the environment or a profile",
        ));
    }
    Keys::new(&access, &secret, None)
}

fn check_bucket(bucket: String) -> Result<String> {
    if bucket.is_empty() {
        return Err(invalid("the location names no bucket"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let dots = bucket.starts_with('.') || bucket.contains("..");
    if bucket.len() > 255 || dots || !bucket.chars().all(fits) {
        return Err(invalid(
            "a bucket's name is letters, digits, dots and hyphens; a secret with a / in it is \
             written with %2F",
        ));
    }
    Ok(bucket)
}

/// A prefix is a folder: it ends with `/`.
fn check_prefix(mut prefix: String) -> Result<String> {
    if prefix.is_empty() {
        return Ok(prefix);
    }
    if !prefix.ends_with('/') {
        prefix.push('/');
    }
    check_name(&prefix[..prefix.len() - 1]).map_err(|error| error.context("the prefix"))?;
    Ok(prefix)
}

/// The key of the object `name`.
///
/// # Errors
/// For names that a store or something on the way there could take for another one.
pub(crate) fn key(prefix: &str, name: &str) -> Result<String> {
    check_name(name)?;
    let key = format!("{prefix}{name}");
    if key.len() > MAX_KEY_BYTES {
        return Err(invalid(format!(
            "a name of {} bytes; 1024 is the most",
            key.len()
        )));
    }
    Ok(key)
}

/// Whether an object may have this name: no part empty, `.` or `..` (URL libraries drop those, and
/// some servers make folders of them), nothing that XML can't carry.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    if name.split('/').any(odd) {
        return Err(invalid(format!(
            "{name:?}: a part of the name is empty, . or .."
        )));
    }
    let unfit = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    if name.chars().any(unfit) {
        return Err(invalid(format!(
            "{name:?}: a name can't hold control characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(target: &str) -> String {
        let location = Location::parse(target).unwrap();
        let endpoint = location.endpoint.map(|e| e.to_string()).unwrap_or_default();
        format!("{endpoint} {} {}", location.bucket, location.prefix)
    }

    #[test]
    fn locations_name_an_endpoint_or_a_bucket() {
        for (target, expected) in [
            ("//bucket/a/b", " bucket a/b/"),
            ("//bucket", " bucket "),
            ("//bucket/", " bucket "),
            ("//k:s@host/bucket/p/", "https://host bucket p/"),
            ("//host:9000/bucket", "https://host:9000 bucket "),
            (
                "//k:s@localhost:9000/bucket/p",
                "http://localhost:9000 bucket p/",
            ),
            ("//127.0.0.1:9000/bucket", "http://127.0.0.1:9000 bucket "),
            ("//[::1]:9000/bucket", "http://[::1]:9000 bucket "),
            ("//k:s@10.0.0.1/bucket", "https://10.0.0.1 bucket "),
            ("http://k:s@minio.lan:9000/b", "http://minio.lan:9000 b "),
            (
                "https://localhost:9000/b/p%20q",
                "https://localhost:9000 b p q/",
            ),
            ("http://host:80/b", "http://host b "),
        ] {
            assert_eq!(shown(target), expected, "{target}");
        }
    }

    #[test]
    fn mistakes_in_locations_have_a_hint_and_no_secret() {
        for (target, words) in [
            ("bucket", "s3://bucket"),
            ("/bucket", "s3://bucket"),
            ("ftp://h/b", "s3://bucket"),
            ("//", "no bucket"),
            ("http://host", "no bucket"),
            ("//k:CANARY@host", "no bucket"),
            ("//k@host/b", "without its secret"),
            ("//:CANARY@host/b", "without its secret"),
            ("//k:CAN/ARY@host/b", "%2F"),
            ("//k:99/CANARY@host/b", "%2F"),
            ("//k:CANARY%ff@host/b", "UTF-8"),
            ("//k:CANARY%0d@host/b", "characters"),
            ("//k:CANARY@host:0x/b", "port"),
            ("//b/../x", "empty, . or .."),
            ("//b//x", "empty, . or .."),
            ("//b/%2e%2e/x", "empty, . or .."),
            ("//b/%00", "NUL"),
            ("//buc ket/x", "bucket's name"),
        ] {
            let error = Location::parse(target).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.message.contains(words), "{target}: {error}");
            assert!(!error.message.contains("CANARY"), "{target}: {error}");
        }
    }

    #[test]
    fn u2_any_character_of_a_secret_can_be_encoded() {
        let target = "//ke%3Ay:a%40b%2Fc%3Ad%25e+f%23g%3Fh%252F@host/b";
        let keys = Location::parse(target).unwrap().keys.unwrap();
        assert_eq!(keys, Keys::new("ke:y", "a@b/c:d%e+f#g?h%2F", None).unwrap());
        // What has no meaning there needs no encoding.
        let keys = Location::parse("//k:a@b:c+d#e@host/b")
            .unwrap()
            .keys
            .unwrap();
        assert_eq!(keys, Keys::new("k", "a@b:c+d#e", None).unwrap());
    }

    #[test]
    fn u4_names_that_mean_something_else_elsewhere_are_refused() {
        let long = "x".repeat(1020);
        for name in [
            "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", "a\n", "a\0", &long,
        ] {
            assert_eq!(
                key("p/q/r/", name).unwrap_err().kind,
                Kind::Invalid,
                "{name}"
            );
        }
        assert_eq!(key("p/", "a b/…%&+=?#~").unwrap(), "p/a b/…%&+=?#~");
    }

    proptest! {
        #[test]
        fn u2_every_secret_goes_round(secret in "[ -~äß€]{1,40}", access in "[A-Za-z0-9]{1,20}") {
            let encoded = s3::signing::uri_encode(&secret, true);
            let location = Location::parse(&format!("//{access}:{encoded}@host/b/p")).unwrap();
            prop_assert_eq!(location.keys.unwrap(), Keys::new(&access, &secret, None).unwrap());
            prop_assert_eq!(location.bucket, "b");
        }

        #[test]
        fn any_text_is_taken_or_refused(target in "\\PC{0,60}") {
            let _ = Location::parse(&target);
            let _ = Location::parse(&format!("//{target}"));
        }
    }
}
