//! Names of objects, and what a listing takes. Pure.

use nbd_rs_plugin::{Error, Kind, Result};

/// The directory for files on their way, below the root. No object's name begins with it.
pub const TEMPORARY: &str = ".nbd-rs-tmp";

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// The longest part between two `/`, in bytes: what Linux file systems take.
const MAX_PART_BYTES: usize = 255;

/// A name that leads below the root and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with what is wrong.
    pub fn new(key: &str) -> Result<Self> {
        check(key, key.split('/'))?;
        Ok(Self(key.to_owned()))
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory's name, without a `/` at its end; empty for the root.
    pub fn directory(&self) -> &str {
        directory_of(&self.0)
    }

    /// The last part.
    pub fn leaf(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

/// The directory that a name, or a directory's name, lies in; empty for the root.
pub fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Checks the beginning of names: its last part may go on.
///
/// # Errors
/// [`Kind::Invalid`] if no name can begin like that.
pub fn check_prefix(prefix: &str) -> Result<()> {
    let (whole, part) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    if part.len() > MAX_PART_BYTES {
        return Err(refused(prefix, "a part is longer than 255 bytes"));
    }
    match prefix.len() > part.len() {
        true => check(prefix, whole.split('/')),
        false => check(prefix, std::iter::empty()),
    }
}

fn check<'a>(key: &str, mut parts: impl Iterator<Item = &'a str>) -> Result<()> {
    if key.len() > MAX_NAME_BYTES {
        return Err(refused(key, "it is longer than 1024 bytes"));
    }
    if key.contains('\0') {
        return Err(refused(key, "it contains a NUL"));
    }
    if key.split('/').next() == Some(TEMPORARY) {
        return Err(refused(key, "files on their way are kept there"));
    }
    let wrong = parts.find_map(|part| match part {
        "" => Some("a part of it is empty"),
        "." | ".." => Some("it contains . or .."),
        _ if part.len() > MAX_PART_BYTES => Some("a part is longer than 255 bytes"),
        _ => None,
    });
    match wrong {
        Some(why) => Err(refused(key, why)),
        None => Ok(()),
    }
}

fn refused(key: &str, why: &str) -> Error {
    let shown: String = key.chars().take(60).flat_map(char::escape_debug).collect();
    Error::new(Kind::Invalid, format!("object name \"{shown}\": {why}"))
}

/// What a page of a listing takes: names that begin with `prefix` and come after `after`.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// How names begin.
    pub prefix: &'a str,
    /// Only names behind this one, in byte order.
    pub after: Option<&'a str>,
}

impl Wanted<'_> {
    /// Whether an object is taken.
    pub fn object(&self, name: &str) -> bool {
        name.starts_with(self.prefix) && self.after.is_none_or(|after| name > after)
    }

    /// Whether something in a directory may be; its name ends with `/`.
    pub fn directory(&self, name: &str) -> bool {
        let below = name.starts_with(self.prefix) || self.prefix.starts_with(name);
        below
            && self
                .after
                .is_none_or(|after| name > after || after.starts_with(name))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn u04_names_that_lead_elsewhere_are_refused() {
        let long_part = "p".repeat(256);
        let long = ["p".repeat(204).as_str(); 5].join("/") + "p";
        for name in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "./a",
            "a/.",
            "a\0b",
            ".nbd-rs-tmp",
            ".nbd-rs-tmp/put-0000000000000000",
            &long_part,
            &long,
        ] {
            let error = Name::new(name).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{name}");
            assert!(!error.message.contains('\0'));
        }
    }

    #[test]
    fn odd_names_that_lead_nowhere_else_are_names() {
        let longest = ["p".repeat(255).as_str(); 4].join("/") + "";
        for name in [
            "a",
            "...",
            ".a",
            "a/b/c",
            "a b",
            "é/日本",
            "-",
            "a\nb",
            "a/.nbd-rs-tmp",
            &longest,
        ] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
        let name = Name::new("a/b/c").unwrap();
        assert_eq!((name.directory(), name.leaf()), ("a/b", "c"));
        let name = Name::new("c").unwrap();
        assert_eq!((name.directory(), name.leaf()), ("", "c"));
    }

    #[test]
    fn u04_prefixes_are_checked_up_to_their_last_part() {
        for prefix in ["", "a", "a/", "..", "a/..", "a/b"] {
            check_prefix(prefix).unwrap();
        }
        for prefix in ["/", "/a", "a//", "../", "a/../b", "a\0", ".nbd-rs-tmp/"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }

    fn any_name() -> impl Strategy<Value = String> {
        "[ab./-]{0,6}"
    }

    proptest! {
        #[test]
        fn a_name_is_its_parts_and_none_of_them_leads_up(text in any::<String>()) {
            if let Ok(name) = Name::new(&text) {
                for part in name.as_str().split('/') {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && part.len() <= 255);
                }
                let joined = match name.directory() {
                    "" => name.leaf().to_owned(),
                    directory => format!("{directory}/{}", name.leaf()),
                };
                prop_assert_eq!(joined, text);
            }
        }

        #[test]
        fn what_a_listing_walks_by_holds_nothing_that_it_wants(
            names in proptest::collection::btree_set(any_name(), 0..20),
            prefix in any_name(),
            after in proptest::option::of(any_name()),
        ) {
            let wanted = Wanted { prefix: &prefix, after: after.as_deref() };
            let plain: BTreeSet<&String> = names.iter()
                .filter(|name| name.starts_with(&prefix))
                .filter(|name| after.as_ref().is_none_or(|after| *name > after))
                .collect();
            for name in &names {
                prop_assert_eq!(wanted.object(name), plain.contains(name));
                for (at, _) in name.match_indices('/') {
                    prop_assert!(!plain.contains(name) || wanted.directory(&name[..=at]));
                }
            }
        }
    }
}
