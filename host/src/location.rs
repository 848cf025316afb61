//! Where a volume lives: `cache+retry+s3://...?cache.size=1GiB`, or the same spelt
//! `cache:retry:s3:...`. Pure: what plugins know comes in through a look-up.

mod list;

use std::fmt;
use std::path::Path;

use nbd_rs_plugin::options::{self, decode};
use nbd_rs_plugin::{Description, Error, Kind, OptionSpec, OptionValue, Result, Role};

use crate::error::{printable, quoted};

pub use list::{List, Place};

/// Links that one chain may have.
const MAX_LINKS: usize = 16;

/// A chain as it was typed and checked: links from the outermost in, then the store.
#[derive(Clone)]
pub struct Location {
    /// Links, outermost first.
    pub links: Vec<Hop>,
    /// The store at the end.
    pub store: Hop,
    /// What stands behind the store's scheme, up to the query, still percent-encoded.
    pub target: String,
    /// Options of the layout, which no plugin sees.
    layout: Vec<Given>,
    masked: String,
    secrets: Vec<String>,
}

/// One plugin of a chain with its options.
#[derive(Debug, Clone)]
pub struct Hop {
    /// Its scheme.
    pub scheme: String,
    options: Vec<Given>,
}

/// An option that was given, checked against its description.
#[derive(Clone)]
struct Given {
    name: String,
    value: String,
    secret: bool,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.secret { "***" } else { &self.value };
        write!(f, "{}={value}", self.name)
    }
}

impl Hop {
    /// The options as they cross to the plugin.
    pub fn option_values(&self) -> Vec<OptionValue> {
        let cross = |given: &Given| OptionValue {
            name: given.name.as_str().into(),
            value: given.value.as_str().into(),
        };
        self.options.iter().map(cross).collect()
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

impl fmt::Display for Location {
    /// As it was typed, secrets masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

/// Finds what a plugin says of itself by its scheme.
pub type Lookup<'a> = dyn Fn(&str) -> Result<&'a Description> + 'a;

impl Location {
    /// Takes a location apart, and checks every option against the plugins' descriptions.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the place and a hint; whatever `lookup` says of an unknown scheme.
    pub fn parse(text: &str, lookup: &Lookup<'_>) -> Result<Self> {
        Self::parse_with(text, lookup, &[])
    }

    /// The same for a layout that has options of its own: these names in the query are its.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_with(text: &str, lookup: &Lookup<'_>, layout: &[&str]) -> Result<Self> {
        if text.contains('\0') {
            return Err(invalid("a location can't contain a NUL"));
        }
        let (chain, query) = match text.split_once('?') {
            Some((chain, query)) => (chain, Some(query)),
            None => (text, None),
        };
        let (hops, target) = split_chain(chain, lookup)?;
        let mut location = Self::assemble(hops, target)?;
        if query.is_some() && location.is_cut_in_a_secret() {
            let hint = location.encoding_hint();
            return Err(invalid(format!(
                "no port stands behind the last colon{hint}"
            )));
        }
        let query = location.take_layout_options(query.unwrap_or(""), layout)?;
        location.take_options(&query, lookup)?;
        location.masked = location.mask();
        location.secrets = location.find_secrets();
        Ok(location)
    }

    fn assemble(mut hops: Vec<String>, target: &str) -> Result<Self> {
        let store = hops.pop().ok_or_else(|| invalid("an empty location"))?;
        if hops.len() > MAX_LINKS {
            return Err(invalid(format!("more than {MAX_LINKS} links in one chain")));
        }
        for (at, link) in hops.iter().enumerate() {
            if hops[..at].contains(link) {
                return Err(invalid(format!("the link {link} is named twice")));
            }
        }
        let hop = |scheme| Hop {
            scheme,
            options: Vec::new(),
        };
        Ok(Self {
            links: hops.into_iter().map(hop).collect(),
            store: hop(store),
            target: target.to_owned(),
            layout: Vec::new(),
            masked: String::new(),
            secrets: Vec::new(),
        })
    }

    /// Takes the layout's options out of the query; the rest is the chain's.
    fn take_layout_options(&mut self, query: &str, known: &[&str]) -> Result<String> {
        let mut rest = Vec::new();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&key) {
                rest.push(pair);
                continue;
            }
            if self.layout_option(key).is_some() {
                return Err(invalid(format!("option {key} is given twice")));
            }
            self.layout.push(Given {
                name: key.to_owned(),
                value: decode(value)?,
                secret: false,
            });
        }
        Ok(rest.join("&"))
    }

    /// An option of the layout, if it was given.
    pub fn layout_option(&self, name: &str) -> Option<&str> {
        let given = self.layout.iter().find(|given| given.name == name)?;
        Some(&given.value)
    }

    fn take_options(&mut self, query: &str, lookup: &Lookup<'_>) -> Result<()> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let hint = self.encoding_hint();
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                let shown = shown(pair);
                invalid(format!("option {shown} has no value{hint}"))
            })?;
            let bad = |_| invalid(format!("option {} is badly encoded{hint}", shown(key)));
            let (key, value) = (decode(key).map_err(bad)?, decode(value).map_err(bad)?);
            let shown = shown(&key);
            let (hop, name) = self.hop_of(&key);
            let description = lookup(&hop.scheme)?;
            let spec = find_option(description, &hop.scheme, &shown, name, hint)?;
            let typed = OptionSpec {
                name: key.as_str().into(),
                ..spec.clone()
            };
            options::check(&typed, &value).map_err(|error| match spec.secret {
                true => invalid(format!("option {key}: not a {}", spec.kind.name())),
                false => error,
            })?;
            if hop.options.iter().any(|given| given.name == name) {
                return Err(invalid(format!("option {key} is given twice")));
            }
            hop.options.push(Given {
                name: name.to_owned(),
                value,
                secret: spec.secret,
            });
        }
        Ok(())
    }

    /// `link.option` belongs to that link, everything else to the store.
    fn hop_of<'k>(&mut self, key: &'k str) -> (&mut Hop, &'k str) {
        if let Some((scheme, name)) = key.split_once('.') {
            let is_it = |hop: &Hop| hop.scheme == scheme;
            if let Some(at) = self.links.iter().position(is_it) {
                return (&mut self.links[at], name);
            }
            if is_it(&self.store) {
                return (&mut self.store, name);
            }
        }
        (&mut self.store, key)
    }

    fn encoding_hint(&self) -> &'static str {
        if self.store.scheme == "file" {
            "; if the ? is part of the path, write it as %3F"
        } else if self.is_cut_in_a_secret() {
            "; if the ? is part of a secret, write it as %3F"
        } else {
            ""
        }
    }

    /// What stands before the query looks like the first half of `//KEY:SECRET@host`.
    fn is_cut_in_a_secret(&self) -> bool {
        !self.target.contains('@') && mask_target(&self.target) != self.target
    }

    /// The scheme that is asked first.
    pub fn outermost(&self) -> &str {
        &self.links.first().unwrap_or(&self.store).scheme
    }

    /// Whether it was typed with a secret in it.
    pub fn has_secrets(&self) -> bool {
        !self.secrets.is_empty()
    }

    /// The secrets that were typed, each as it was typed and decoded.
    pub fn secrets(&self) -> &[String] {
        &self.secrets
    }

    fn find_secrets(&self) -> Vec<String> {
        let options = self.hops().flat_map(|(hop, _)| &hop.options);
        let options = options.filter(|given| given.secret);
        let mut found: Vec<String> = options.map(|given| given.value.clone()).collect();
        if let Some(part) = secret_part(&self.target) {
            let typed = &self.target[part];
            found.push(typed.to_owned());
            found.extend(decode(typed));
        }
        found
    }

    /// The store with its options, secrets masked: what tells one store from another. A relative
    /// path is another one in another working directory.
    pub fn store_name(&self, working_dir: &Path) -> String {
        let mut text = format!("{}:", self.store.scheme);
        if self.store.scheme == "file" && !self.target.starts_with('/') {
            text += &format!("{}/", working_dir.display());
        }
        text += &mask_target(&self.target);
        for (at, given) in self.store.options.iter().enumerate() {
            text.push(if at == 0 { '?' } else { '&' });
            text += &format!("{given:?}");
        }
        text
    }

    /// Whether it is certainly the same store as that of another: the options may tell them apart.
    fn is_same_store(&self, other: &Self) -> bool {
        let options = |hop: &Hop| format!("{:?}", hop.options);
        self.store.scheme == other.store.scheme
            && self.target == other.target
            && options(&self.store) == options(&other.store)
    }

    fn mask(&self) -> String {
        let mut text = String::new();
        for hop in &self.links {
            text += &hop.scheme;
            text.push(':');
        }
        text += &self.store.scheme;
        text.push(':');
        text += &mask_target(&self.target);
        let mut separator = '?';
        for (hop, is_link) in self.hops() {
            for given in &hop.options {
                text.push(separator);
                separator = '&';
                if is_link {
                    text += &hop.scheme;
                    text.push('.');
                }
                text += &format!("{given:?}");
            }
        }
        for given in &self.layout {
            text.push(separator);
            separator = '&';
            text += &format!("{given:?}");
        }
        printable(&text, 4096)
    }

    fn hops(&self) -> impl Iterator<Item = (&Hop, bool)> {
        let links = self.links.iter().map(|hop| (hop, true));
        links.chain([(&self.store, false)])
    }
}

/// A part of the query for an error, unless it may be a part of a secret.
fn shown(text: &str) -> String {
    match text.contains('@') {
        true => "***".to_owned(),
        false => quoted(text, 40),
    }
}

fn invalid(text: impl AsRef<str>) -> Error {
    Error::new(Kind::Invalid, text)
}

/// The schemes from the outermost in, and what is left for the store.
fn split_chain<'t>(chain: &'t str, lookup: &Lookup<'_>) -> Result<(Vec<String>, &'t str)> {
    let mut hops = Vec::new();
    let mut rest = chain;
    loop {
        let Some((schemes, behind)) = rest.split_once(':') else {
            let rest = printable(rest, 80);
            // Whatever has an @ may be half of a location with a secret.
            let rest = if rest.contains('@') { "***" } else { &rest };
            let is_link =
                |scheme: &str| lookup(scheme).is_ok_and(|known| known.role != Role::STORE);
            let text = match rest.split('+').any(is_link) {
                true => format!(
                    "no store stands behind {rest:?}, as in cache+retry+s3://bucket/prefix/"
                ),
                false => format!("{rest:?} has no scheme: write file:{rest} for a file"),
            };
            return Err(invalid(text));
        };
        let mut ended = false;
        for scheme in schemes.split('+') {
            if ended {
                let store = hops.pop().unwrap_or_default();
                return Err(invalid(format!(
                    "{store} is a store, so nothing can stand behind it, but {scheme} does"
                )));
            }
            check_scheme(scheme, chain.len() - rest.len())?;
            ended = lookup(scheme)?.role == Role::STORE;
            hops.push(scheme.to_owned());
            if hops.len() > MAX_LINKS + 1 {
                return Err(invalid(format!("more than {MAX_LINKS} links in one chain")));
            }
        }
        if ended {
            return Ok((hops, behind));
        }
        rest = behind;
        if rest.is_empty() || rest.starts_with('/') {
            let link = hops.pop().unwrap_or_default();
            return Err(invalid(format!(
                "{link} is a link: a store must stand behind it, as in {link}:file:/path"
            )));
        }
    }
}

fn check_scheme(scheme: &str, at: usize) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.chars().all(fits) {
        return Ok(());
    }
    let scheme = printable(scheme, 40);
    Err(invalid(format!(
        "{scheme:?} at position {at} is no scheme; write file:PATH for a path"
    )))
}

fn find_option<'d>(
    description: &'d Description,
    scheme: &str,
    shown: &str,
    name: &str,
    hint: &str,
) -> Result<&'d OptionSpec> {
    let known = &description.options;
    known.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|spec| spec.name.as_str()).collect();
        let names = match names.is_empty() {
            true => format!("{scheme} takes none"),
            false => format!("{scheme} takes {}", names.join(", ")),
        };
        invalid(format!("unknown option {shown}: {names}{hint}"))
    })
}

/// Where a password stands: from the first `:` behind `//` to the last `@`. Without an `@`, what
/// would be a port and is none: a password with an unencoded `?` in it ends there.
fn secret_part(target: &str) -> Option<std::ops::Range<usize>> {
    let authority = target.find("//")? + 2;
    let rest = &target[authority..];
    let first = match rest.starts_with(['/', '[']) && !rest.contains('@') {
        true => return None,
        false => rest.find(':')? + 1,
    };
    let end = match rest.rfind('@') {
        Some(at) => at,
        None => rest.find('/').unwrap_or(rest.len()),
    };
    let part = rest.get(first..end)?;
    let is_port = !rest.contains('@') && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_path = rest.starts_with('/');
    (!is_port && !is_path).then_some(authority + first..authority + end)
}

fn mask_target(target: &str) -> String {
    match secret_part(target) {
        Some(part) => format!("{}***{}", &target[..part.start], &target[part.end..]),
        None => target.to_owned(),
    }
}

/// A word of a command line that could not be understood, fit to print: what may be a secret in it
/// is masked.
pub fn redact(word: &str) -> String {
    match word.split_once('?') {
        Some((target, _)) => mask_target(target) + "?***",
        None => mask_target(word),
    }
}

#[cfg(test)]
pub(in crate::location) mod tests {
    use super::*;
    use nbd_rs_plugin::OptionKind;

    /// What the plugins of these tests say of themselves.
    pub(super) fn descriptions(scheme: &str) -> Result<&'static Description> {
        let known = match scheme {
            "cache" => Description::link("cache", "1").option(OptionSpec::new(
                "size",
                OptionKind::SIZE,
                "",
            )),
            "retry" => Description::link("retry", "1").option(OptionSpec::new(
                "attempts",
                OptionKind::COUNT,
                "",
            )),
            "s3" => Description::store("s3", "1")
                .option(OptionSpec::new("region", OptionKind::TEXT, ""))
                .option(OptionSpec::new("token", OptionKind::TEXT, "").secret()),
            "file" => Description::store("file", "1"),
            _ => return Err(Error::new(Kind::Unsupported, "unknown scheme")),
        };
        Ok(Box::leak(Box::new(known)))
    }

    fn parse(text: &str) -> Result<Location> {
        Location::parse(text, &descriptions)
    }

    fn shape(text: &str) -> (String, String) {
        let location = parse(text).unwrap();
        let mut hops: Vec<&str> = location.links.iter().map(|l| l.scheme.as_str()).collect();
        hops.push(&location.store.scheme);
        (hops.join(" "), location.target)
    }

    #[test]
    fn both_spellings_mean_the_same() {
        for (text, hops, target) in [
            ("file:/abs/raw.bin", "file", "/abs/raw.bin"),
            ("file:rel.bin", "file", "rel.bin"),
            ("file:///abs/dir/", "file", "///abs/dir/"),
            ("file:a:b+c", "file", "a:b+c"),
            (
                "cache+retry+s3://k:s@h:9/b/",
                "cache retry s3",
                "//k:s@h:9/b/",
            ),
            (
                "cache:retry:s3:http://k:s@h:9/b",
                "cache retry s3",
                "http://k:s@h:9/b",
            ),
            ("cache:retry+s3://b/p", "cache retry s3", "//b/p"),
        ] {
            assert_eq!(shape(text), (hops.to_owned(), target.to_owned()), "{text}");
        }
    }

    #[test]
    fn options_go_to_their_link_or_the_store() {
        let location =
            parse("cache+retry+s3://b/p?cache.size=1GiB&retry.attempts=8&region=eu%2Dwest")
                .unwrap();
        assert_eq!(format!("{:?}", location.links[0].options), "[size=1GiB]");
        assert_eq!(format!("{:?}", location.links[1].options), "[attempts=8]");
        assert_eq!(format!("{:?}", location.store.options), "[region=eu-west]");
    }

    #[test]
    fn options_of_the_layout_are_not_shown_to_the_chain() {
        let text = "s3://b/p?region=a&fencing=external&cache=no";
        assert!(parse(text).is_err());
        let lookup = |_: &str| {
            let s3 = Description::store("s3", "1");
            let s3 = s3.option(OptionSpec::new("region", OptionKind::TEXT, ""));
            Ok(&*Box::leak(Box::new(s3)))
        };
        let parse = |text: &str| Location::parse_with(text, &lookup, &["fencing", "way"]);
        let location = parse("s3://b/p?region=a&fencing=ext%65rnal").unwrap();
        assert_eq!(location.layout_option("fencing"), Some("external"));
        assert_eq!(location.layout_option("way"), None);
        assert_eq!(location.store.option_values().len(), 1);
        assert_eq!(location.to_string(), "s3://b/p?region=a&fencing=external");
        assert!(parse("s3://b/p?fencing=a&fencing=b").is_err());
        assert!(parse("s3://b/p?fencing=a&shape=b").is_err());
    }

    #[test]
    fn mistakes_are_told_with_a_hint() {
        let links = "cache:".repeat(1000);
        for (text, words) in [
            ("/abs/raw.bin", "write file:"),
            ("", "no scheme"),
            ("File:/x", "no scheme"),
            ("cache:/x", "cache is a link"),
            ("cache://b", "cache is a link"),
            ("cache+retry", "no store stands behind"),
            ("cache+cache+file:/x", "named twice"),
            ("file+cache:/x", "file is a store"),
            ("gopher://x", "unknown scheme"),
            ("file:/a?b", "write it as %3F"),
            ("file:/a?b=1", "write it as %3F"),
            ("s3://b?colour=1", "s3 takes region, token"),
            ("s3://b?region=a&region=b", "twice"),
            (
                "cache+file:/x?cache.size=10GB",
                "option cache.size: size \"10GB\"",
            ),
            ("cache+file:/x?cache.size=10GB", "write Gi"),
            ("file:/a\0b", "NUL"),
            (&format!("{links}file:/x"), "more than 16 links"),
        ] {
            let error = parse(text).unwrap_err().message.to_lowercase();
            assert!(error.contains(&words.to_lowercase()), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_store_is_told_from_another_without_links_and_secrets() {
        let name_in = |dir: &str, text| parse(text).unwrap().store_name(Path::new(dir));
        let name = |text| name_in("/here", text);
        let plain = name("s3://key:CANARY@host:9000/b?region=a&token=CANARY");
        assert_eq!(plain, "s3://key:***@host:9000/b?region=a&token=***");
        let linked = "cache+s3://key:CANARY@host:9000/b?cache.size=1GiB&region=a&token=CANARY";
        assert_eq!(name(linked), plain);
        assert_eq!(name("file:/a/b/"), name_in("/other", "file:/a/b/"));
        assert_eq!(name("file:b/"), "file:/here/b/");
        assert_eq!(name_in("/other", "file:b/"), "file:/other/b/");
    }

    #[test]
    fn u1_secrets_are_masked_wherever_a_location_is_printed() {
        for text in [
            "s3://key:CANARY@host:9000/b",
            "cache:s3:http://key:CA/NA@RY%2F@host/b",
            "s3://b/p?token=CANARY",
        ] {
            let location = parse(text).unwrap();
            assert!(location.has_secrets());
            let shown = format!("{location} {location:?}");
            assert!(!shown.contains("CA") && shown.contains("***"), "{shown}");
        }
        for plain in [
            "///abs/user:name@dir",
            "//host:9000/b",
            "//[::1]:9000/b",
            "//b/p",
        ] {
            assert_eq!(mask_target(plain), plain);
        }
        assert_eq!(mask_target("//key:half/b"), "//key:***/b");
    }

    #[test]
    fn u1_errors_show_no_part_of_a_secret() {
        for text in [
            "s3://b?token=CANARY%ff",
            "s3://b?token=CANARY&token=CANARY",
            "s3://key:secret?CANARY@host/b",
            "s3://key:secret?CANARY=a@host/b",
            "s3://key:pa?region=CANARY@host/b",
            "s3://key:secret?a%ff=CANARY@host/b",
            "cache:CANARY@host",
            "CANARY@host",
        ] {
            let error = parse(text).unwrap_err().message;
            assert!(!error.contains("CANARY"), "{text}: {error}");
        }
        let error = parse("s3://key:secret?CANARY@host/b").unwrap_err().message;
        assert!(error.contains("write it as %3F"), "{error}");
    }

    #[test]
    fn u2_secrets_are_known_as_typed_and_decoded() {
        let location = parse("s3://key:p%40%2F%252Fq%3A%23+%25@host:9000/b").unwrap();
        let expected = ["p%40%2F%252Fq%3A%23+%25", "p@/%2Fq:#+%"];
        assert_eq!(location.secrets(), expected);
        assert_eq!(location.to_string(), "s3://key:***@host:9000/b");
    }
}
