//! Several locations in one text, with options of the layout before and behind them:
//! `replicas=3;backends=URL,URL,URL;`. Pure.

use std::fmt;

use super::{invalid, shown, Location, Lookup};
use crate::error::Result;

/// Where a volume lies: what was typed behind the layout's name.
#[derive(Debug, Clone)]
pub enum Place {
    /// In one place.
    One(Location),
    /// In several.
    Many(List),
}

/// A list as it was typed.
#[derive(Debug, Clone)]
pub struct List {
    options: Vec<(String, String)>,
    /// At least one.
    pub backends: Vec<Location>,
}

/// The field that has the locations.
const BACKENDS: &str = "backends";

impl List {
    /// Takes a list apart. `known` are the other fields that there are.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind::Invalid) with a hint; that of a location.
    pub fn parse(text: &str, lookup: &Lookup<'_>, known: &[&str]) -> Result<Self> {
        let mut list = Self {
            options: Vec::new(),
            backends: Vec::new(),
        };
        for field in text.split(';').filter(|field| !field.is_empty()) {
            let unknown = || {
                let fields = known.join(", ");
                invalid(format!(
                    "{} is no field of a distributed volume, which has {BACKENDS}, {fields}; a ; or , \
                     inside a location is written %3B or %2C",
                    shown(field.split('=').next().unwrap_or_default())
                ))
            };
            let (name, value) = field.split_once('=').ok_or_else(unknown)?;
            let twice = || Err(invalid(format!("the field {name} is given twice")));
            match name {
                BACKENDS if !list.backends.is_empty() => return twice(),
                BACKENDS => list.backends = backends(value, lookup)?,
                _ if !known.contains(&name) => return Err(unknown()),
                _ if list.option(name).is_some() => return twice(),
                _ => list.options.push((name.to_owned(), value.to_owned())),
            }
        }
        match list.backends.is_empty() {
            false => Ok(list),
            true => Err(invalid(
                "no backends: a distributed volume is typed as \
                 \"replicas=3;backends=URL,URL,URL;\"",
            )),
        }
    }

    /// Which of the backends that is.
    pub fn place_of(&self, location: &Location) -> Option<usize> {
        let mut backends = self.backends.iter();
        backends.position(|backend| backend.is_same_store(location))
    }

    /// A field, if it was given.
    pub fn option(&self, name: &str) -> Option<&str> {
        let given = self.options.iter().find(|(given, _)| given == name)?;
        Some(&given.1)
    }
}

fn backends(text: &str, lookup: &Lookup<'_>) -> Result<Vec<Location>> {
    let mut backends: Vec<Location> = Vec::new();
    for text in text.split(',').filter(|text| !text.is_empty()) {
        let location = Location::parse(text, lookup)?;
        if backends.iter().any(|other| other.is_same_store(&location)) {
            return Err(invalid(format!(
                "{location} is given twice: each backend is a place of its own"
            )));
        }
        backends.push(location);
    }
    Ok(backends)
}

impl fmt::Display for List {
    /// As it was typed, secrets masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.options {
            write!(f, "{name}={value};")?;
        }
        let backends: Vec<String> = self.backends.iter().map(Location::to_string).collect();
        write!(f, "{BACKENDS}={};", backends.join(","))
    }
}

impl Place {
    /// All of them.
    pub fn locations(&self) -> &[Location] {
        match self {
            Self::One(location) => std::slice::from_ref(location),
            Self::Many(list) => &list.backends,
        }
    }

    /// The secrets that were typed, each as it was typed and decoded.
    pub fn secrets(&self) -> impl Iterator<Item = &String> {
        self.locations().iter().flat_map(Location::secrets)
    }

    /// Whether it was typed with a secret in it.
    pub fn has_secrets(&self) -> bool {
        self.locations().iter().any(Location::has_secrets)
    }

    /// An option of the layout, if it was given.
    pub fn layout_option(&self, name: &str) -> Option<&str> {
        match self {
            Self::One(location) => location.layout_option(name),
            Self::Many(list) => list.option(name),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(location) => location.fmt(f),
            Self::Many(list) => list.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::descriptions;
    use super::*;

    fn parse(text: &str) -> Result<List> {
        List::parse(text, &descriptions, &["replicas", "write_quorum"])
    }

    #[test]
    fn a_list_is_read_and_shown_without_its_secrets() {
        let text = "replicas=3;backends=cache:s3:http://key:CANARY@127.0.0.1:8333/node0,\
                    cache:s3:http://key:CANARY@127.0.0.1:8333/node1,file:/a/node2/?;";
        let list = parse(text).unwrap();
        assert_eq!(list.backends.len(), 3);
        assert_eq!(list.option("replicas"), Some("3"));
        assert_eq!(list.option("write_quorum"), None);
        let shown = list.to_string();
        assert_eq!(
            shown,
            "replicas=3;backends=cache:s3:http://key:***@127.0.0.1:8333/node0,\
             cache:s3:http://key:***@127.0.0.1:8333/node1,file:/a/node2/;"
        );
        assert!(parse("backends=file:a/,file:b/")
            .unwrap()
            .option("replicas")
            .is_none());
        let place = Place::Many(list);
        assert!(place.has_secrets() && place.secrets().all(|secret| secret == "CANARY"));
    }

    #[test]
    fn mistakes_are_told_with_a_hint_and_without_a_secret() {
        for (text, says) in [
            ("", "no backends"),
            ("replicas=3;", "no backends"),
            ("backends=;", "no backends"),
            ("file:/a/", "replicas, write_quorum"),
            ("replica=3;backends=file:a/", "replicas, write_quorum"),
            ("replicas=3;replicas=3;backends=file:a/", "twice"),
            ("backends=file:a/;backends=file:b/", "twice"),
            ("backends=file:a/,file:a/;", "given twice"),
            ("backends=file:a/,gopher:b;", "unknown scheme"),
            ("backends=s3://key:half;CANARY@host/b;", "%3B"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("CANARY"), "{text}: {error}");
        }
    }
}
