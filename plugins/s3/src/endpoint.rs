//! The server: its address as a URL, and which addresses it may not have. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use nbd_rs_plugin::Result;
use url::Host;

use crate::location::invalid;

/// How to speak to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// In clear.
    Http,
    /// Under TLS.
    Https,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// In clear or under TLS.
    pub scheme: Scheme,
    /// Its name or address.
    pub host: Host,
    /// Its port, if it is not the scheme's own.
    pub port: Option<u16>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.authority())
    }
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Endpoint {
    /// `host` or `host:port`; without a scheme: TLS, except to this machine itself.
    pub(crate) fn parse(scheme: Option<Scheme>, authority: &str) -> Result<Self> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(parse_port(port)?)),
            _ => (authority, None),
        };
        let host = Host::parse(host).map_err(|_| invalid("the host's name is not valid"))?;
        let scheme = scheme.unwrap_or(match is_loopback(&host) {
            true => Scheme::Http,
            false => Scheme::Https,
        });
        let port = port.filter(|port| *port != scheme.port());
        Ok(Self { scheme, host, port })
    }

    /// `https://host:port`, as an option or the environment gives it.
    pub(crate) fn from_url(text: &str) -> Result<Self> {
        let text = text.trim_end_matches('/');
        let (scheme, authority) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(invalid("an endpoint begins with http:// or https://")),
            None => (None, text),
        };
        if authority.contains(['/', '@', '?', '#']) {
            return Err(invalid(
                "an endpoint is https://host or https://host:port, no more",
            ));
        }
        Self::parse(scheme, authority)
    }

    /// The server of AWS for a region.
    ///
    /// Names of other providers' regions that rust-s3 knows (`fra1`, `wa-eu-west-1`) lead there.
    pub(crate) fn of_region(region: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if region.is_empty() || region.len() > 64 || !region.chars().all(fits) {
            return Err(invalid("a region's name is letters, digits and hyphens"));
        }
        let known = match region.parse::<s3::Region>() {
            Ok(s3::Region::Custom { .. }) | Err(_) => None,
            Ok(known) => Some(known.endpoint()).filter(|host| !host.contains("amazonaws")),
        };
        let country = if region.starts_with("cn-") { ".cn" } else { "" };
        let aws = || format!("s3.{region}.amazonaws.com{country}");
        Self::parse(Some(Scheme::Https), &known.unwrap_or_else(aws))
    }

    /// `host` or `host:port`, as the `Host` header has it.
    pub(crate) fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }

    /// Whether it is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// Whether its address is one where machines of a cloud are told secrets.
    pub(crate) fn is_link_local(&self) -> bool {
        match &self.host {
            Host::Domain(_) => false,
            Host::Ipv4(ip) => is_link_local((*ip).into()),
            Host::Ipv6(ip) => is_link_local((*ip).into()),
        }
    }
}

fn parse_port(text: &str) -> Result<u16> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| {
        invalid(
            "the port is not a number from 1 to 65535; if it is the beginning of a secret with a \
             / in it, write that as %2F",
        )
    })
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    }
}

/// Link-local addresses, and the metadata service's fixed IPv6 address.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => mapped.is_link_local(),
            None => {
                let metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
                ip.is_unicast_link_local() || ip == metadata
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u16_every_spelling_of_a_link_local_address_is_seen() {
        for host in [
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "0251.0376.0251.0376",
            "[fe80::1]",
            "[::ffff:169.254.169.254]",
            "[fd00:ec2::254]",
        ] {
            assert!(
                Endpoint::parse(None, host).unwrap().is_link_local(),
                "{host}"
            );
        }
        for host in ["127.0.0.1", "[::1]", "10.0.0.1", "example.com"] {
            assert!(
                !Endpoint::parse(None, host).unwrap().is_link_local(),
                "{host}"
            );
        }
    }

    #[test]
    fn regions_have_a_server() {
        for (region, server) in [
            ("us-east-1", "https://s3.us-east-1.amazonaws.com"),
            ("eu-west-1", "https://s3.eu-west-1.amazonaws.com"),
            ("xx-new-9", "https://s3.xx-new-9.amazonaws.com"),
            ("cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn"),
            ("fra1", "https://fra1.digitaloceanspaces.com"),
        ] {
            assert_eq!(Endpoint::of_region(region).unwrap().to_string(), server);
        }
        for region in ["", "evil.example/", "a@b", "a.b"] {
            assert!(Endpoint::of_region(region).is_err(), "{region}");
        }
    }

    #[test]
    fn endpoints_are_a_scheme_a_host_and_a_port() {
        for (text, shown) in [
            ("https://host", "https://host"),
            ("http://host:9000/", "http://host:9000"),
            ("localhost:8333", "http://localhost:8333"),
            ("s3.example.com", "https://s3.example.com"),
            ("HTTPS.example.com:443", "https://https.example.com"),
        ] {
            assert_eq!(
                Endpoint::from_url(text).unwrap().to_string(),
                shown,
                "{text}"
            );
        }
        for text in [
            "",
            "ftp://h",
            "https://h/path",
            "https://k:s@h",
            "https://h:0",
            "https://a b",
        ] {
            assert!(Endpoint::from_url(text).is_err(), "{text}");
        }
    }
}
