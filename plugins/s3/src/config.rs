//! A location and its options, understood, with what the surroundings add. Pure.

use std::path::PathBuf;
use std::time::Duration;

use nbd_rs_plugin::options::Options;
use nbd_rs_plugin::{Error, Kind, OpenFlags, OpenRequest, Result};

use crate::credentials::Keys;
use crate::endpoint::{Endpoint, Scheme};
use crate::location::{invalid, Location};

/// Where AWS sends who names no region.
const DEFAULT_REGION: &str = "us-east-1";

/// How the store checks the bytes of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// By a CRC-32C in a header.
    Crc32c,
    /// Not at all, beyond TLS.
    None,
    /// By a SHA-256 that is signed with the request.
    Signed,
}

/// Whether conditional puts are obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conditions {
    /// Found out when the store is opened for writing.
    Probe,
    /// Believed.
    Yes,
    /// Not used.
    No,
}

/// What the environment and the profile say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The region.
    pub region: Option<String>,
    /// The server.
    pub endpoint: Option<String>,
}

/// What to open, and how.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub endpoint: Endpoint,
    /// Whether the endpoint follows from the region.
    pub aws: bool,
    /// Whether the bucket is in the host's name.
    pub virtual_host: bool,
    pub bucket: String,
    /// Empty, or ending with `/`.
    pub prefix: String,
    pub region: String,
    /// Whether somebody said so; else the store may correct it.
    pub region_is_said: bool,
    pub keys: Option<Keys>,
    pub profile: Option<String>,
    pub storage_class: Option<String>,
    pub checksum: Checksum,
    pub conditions: Conditions,
    pub ca: Option<PathBuf>,
    pub create_bucket: bool,
    pub allow_link_local: bool,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
    pub timeout: Duration,
    pub connections: usize,
    pub flags: OpenFlags,
}

impl Config {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with the target or an option.
    pub(crate) fn new(request: &OpenRequest, surroundings: &Surroundings) -> Result<Self> {
        if request.flags.has(OpenFlags::SINGLE_OBJECT) {
            let text = "an object in a bucket can't be written in place, as the raw layout does: \
                        use sharded";
            return Err(Error::new(Kind::Unsupported, text));
        }
        let options = Options(&request.options);
        let location = Location::parse(&request.target)?;
        let said = options.text("region").or(surroundings.region.as_deref());
        let region = said.unwrap_or(DEFAULT_REGION).to_owned();
        let given = endpoint(&location, options, surroundings)?;
        let aws = given.is_none();
        let endpoint = match given {
            Some(endpoint) => endpoint,
            None => Endpoint::of_region(&region)?,
        };
        let allow_link_local = options.boolean("allow_link_local", false)?;
        check_link_local(&endpoint, allow_link_local)?;
        let class = options.text("storage_class");
        let seconds = Duration::from_secs;
        Ok(Self {
            virtual_host: virtual_host(options.text("style"), aws, &endpoint, &location.bucket)?,
            endpoint,
            aws,
            bucket: location.bucket,
            prefix: location.prefix,
            region,
            region_is_said: said.is_some(),
            keys: location.keys,
            profile: options.text("profile").map(str::to_owned),
            storage_class: class.map(header_text).transpose()?,
            checksum: checksum(options)?,
            conditions: conditions(options)?,
            ca: options.text("ca").map(PathBuf::from),
            create_bucket: options.boolean("create_bucket", false)?,
            allow_link_local,
            connect_timeout: positive(options, "connect_timeout", seconds(5))?,
            read_timeout: positive(options, "read_timeout", seconds(15))?,
            timeout: positive(options, "timeout", seconds(60))?,
            connections: at_least_one(options, "connections", 64, 4096)?,
            flags: request.flags,
        })
    }

    /// Whether secrets or data would cross a network in clear.
    pub(crate) fn is_in_clear(&self) -> bool {
        self.endpoint.scheme == Scheme::Http && !self.endpoint.is_loopback()
    }

    /// Whether writes will come.
    pub(crate) fn writable(&self) -> bool {
        self.flags.has(OpenFlags::WRITE)
    }

    /// The same bucket, in another region.
    pub(crate) fn in_region(mut self, region: &str) -> Result<Self> {
        let endpoint = Endpoint::of_region(region)?;
        if self.aws {
            self.endpoint = endpoint;
        }
        self.region = region.to_owned();
        Ok(self)
    }
}

/// Whether the location and its options can be meant, whatever the surroundings add.
///
/// # Errors
/// What is wrong with the target or an option.
pub(crate) fn check(request: &OpenRequest) -> Result<()> {
    threads(request)?;
    Config::new(request, &Surroundings::default()).map(drop)
}

/// The number of network threads, which is wanted before anything may wait.
///
/// # Errors
/// If it is none.
pub(crate) fn threads(request: &OpenRequest) -> Result<usize> {
    at_least_one(Options(&request.options), "threads", 1, 64)
}

fn endpoint(
    location: &Location,
    options: Options<'_>,
    surroundings: &Surroundings,
) -> Result<Option<Endpoint>> {
    let option = options.text("endpoint");
    if let Some(endpoint) = &location.endpoint {
        return match option {
            Some(_) => Err(invalid(format!(
                "option endpoint: the location names the server {endpoint} already"
            ))),
            None => Ok(Some(endpoint.clone())),
        };
    }
    let text = option.or(surroundings.endpoint.as_deref());
    let parse = |text| Endpoint::from_url(text).map_err(|error| error.context("the endpoint"));
    text.map(parse).transpose()
}

fn check_link_local(endpoint: &Endpoint, allowed: bool) -> Result<()> {
    if endpoint.is_link_local() && !allowed {
        return Err(invalid(format!(
            "{endpoint} is a link-local address, where clouds keep their metadata; say \
             allow_link_local=true if a store is meant"
        )));
    }
    Ok(())
}

/// A bucket with a dot in the host's name matches no certificate; an address has no names before it.
fn virtual_host(style: Option<&str>, aws: bool, endpoint: &Endpoint, bucket: &str) -> Result<bool> {
    let is_name = matches!(endpoint.host, url::Host::Domain(_));
    match style {
        Some("path") => Ok(false),
        Some("virtual") if !is_name => Err(invalid("style=virtual needs a host with a name")),
        Some("virtual") => Ok(true),
        _ => Ok(aws && !bucket.contains(['.', '_'])),
    }
}

fn checksum(options: Options<'_>) -> Result<Checksum> {
    match options.text("checksum") {
        None | Some("crc32c") => Ok(Checksum::Crc32c),
        Some("none") => Ok(Checksum::None),
        Some("signed") => Ok(Checksum::Signed),
        Some(_) => Err(invalid("option checksum: must be crc32c, none or signed")),
    }
}

fn conditions(options: Options<'_>) -> Result<Conditions> {
    match options.text("conditions") {
        None | Some("probe") => Ok(Conditions::Probe),
        Some("yes") => Ok(Conditions::Yes),
        Some("no") => Ok(Conditions::No),
        Some(_) => Err(invalid("option conditions: must be probe, yes or no")),
    }
}

fn header_text(text: &str) -> Result<String> {
    match !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(invalid(
            "option storage_class: must be a word such as STANDARD_IA",
        )),
    }
}

fn positive(options: Options<'_>, name: &str, default: Duration) -> Result<Duration> {
    match options.duration(name, default)? {
        Duration::ZERO => Err(invalid(format!("option {name}: must be more than nothing"))),
        time => Ok(time.min(Duration::from_secs(24 * 3600))),
    }
}

fn at_least_one(options: Options<'_>, name: &str, default: u64, most: u64) -> Result<usize> {
    match options.count(name, default)? {
        count if (1..=most).contains(&count) => Ok(count as usize),
        _ => Err(invalid(format!("option {name}: must be from 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::OptionValue;

    use super::*;

    fn config(target: &str, options: &[(&str, &str)], env: &Surroundings) -> Result<Config> {
        let option = |(name, value): &(&str, &str)| OptionValue {
            name: (*name).into(),
            value: (*value).into(),
        };
        let request = OpenRequest {
            scheme: "s3".into(),
            target: target.into(),
            options: options.iter().map(option).collect(),
            flags: OpenFlags::WRITE,
            inner: None.into(),
            reserved: [0; 4],
        };
        Config::new(&request, env)
    }

    #[test]
    fn the_server_is_in_the_location_the_option_the_surroundings_or_of_the_region() {
        let env = Surroundings {
            region: Some("eu-north-1".into()),
            endpoint: Some("http://env:1".into()),
        };
        let none = Surroundings::default();
        for (target, options, env, server, region) in [
            (
                "//b/p",
                &[][..],
                &none,
                "https://s3.us-east-1.amazonaws.com",
                "us-east-1",
            ),
            (
                "//b/p",
                &[("region", "eu-west-1")],
                &none,
                "https://s3.eu-west-1.amazonaws.com",
                "eu-west-1",
            ),
            ("//b/p", &[], &env, "http://env:1", "eu-north-1"),
            (
                "//b/p",
                &[("endpoint", "https://o:2"), ("region", "r")],
                &env,
                "https://o:2",
                "r",
            ),
            ("//k:s@h:3/b", &[], &env, "https://h:3", "eu-north-1"),
        ] {
            let config = config(target, options, env).unwrap();
            let found = (config.endpoint.to_string(), config.region);
            assert_eq!(found, (server.to_owned(), region.to_owned()), "{target}");
        }
    }

    #[test]
    fn the_bucket_is_in_the_hosts_name_on_aws_alone() {
        let none = Surroundings::default();
        for (target, options, expected) in [
            ("//b/p", &[][..], true),
            ("//b.c/p", &[], false),
            ("//b/p", &[("style", "path")], false),
            ("//k:s@h/b", &[], false),
            ("//k:s@h/b", &[("style", "virtual")], true),
        ] {
            let config = config(target, options, &none).unwrap();
            assert_eq!(config.virtual_host, expected, "{target} {options:?}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let none = Surroundings::default();
        for (target, name, value) in [
            ("//k:s@h/b", "endpoint", "https://h"),
            ("//b", "endpoint", "h/b"),
            ("//b", "checksum", "md5"),
            ("//b", "conditions", "maybe"),
            ("//b", "storage_class", "A\r\nB"),
            ("//b", "region", "a/b"),
            ("//b", "timeout", "0s"),
            ("//b", "connections", "0"),
            ("http://127.0.0.1/b", "style", "virtual"),
        ] {
            assert!(
                config(target, &[(name, value)], &none).is_err(),
                "{name}={value}"
            );
        }
    }

    #[test]
    fn u16_a_link_local_endpoint_is_refused_unless_allowed() {
        let none = Surroundings::default();
        let error = config("http://169.254.169.254/b", &[], &none).unwrap_err();
        assert!(error.message.contains("allow_link_local"), "{error}");
        let allow = [("allow_link_local", "true")];
        assert!(config("http://169.254.169.254/b", &allow, &none).is_ok());
    }

    #[test]
    fn u15_http_is_told_from_http_on_this_machine() {
        let none = Surroundings::default();
        for (target, in_clear) in [
            ("http://k:s@h/b", true),
            ("http://k:s@127.0.0.1/b", false),
            ("//k:s@h/b", false),
        ] {
            assert_eq!(config(target, &[], &none).unwrap().is_in_clear(), in_clear);
        }
    }

    #[test]
    fn u1_no_secret_in_debug_output() {
        let config = config("//key:CANARY@h/b", &[], &Surroundings::default()).unwrap();
        assert!(!format!("{config:?}").contains("CANARY"));
    }
}
