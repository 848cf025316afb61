//! Names to addresses, without those where a cloud keeps its metadata.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::endpoint::is_link_local;

/// The system's resolver; link-local answers are refused unless allowed.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub allow_link_local: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow = self.allow_link_local;
        Box::pin(async move {
            if is_below_localhost(name.as_str()) {
                let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                let both = both.map(|address| SocketAddr::new(address, 0));
                return Ok(Box::new(both.into_iter()) as Addrs);
            }
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| allow || !is_link_local(address.ip()))
                .collect();
            if allowed.is_empty() {
                let text = format!("{} has no address that may be used", name.as_str());
                return Err(text.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether the name is this machine's by definition (RFC 6761, 6.3), as `bucket.localhost` is. Few
/// resolvers know, and it is spoken to in clear, so nobody else may be asked what it means.
fn is_below_localhost(name: &str) -> bool {
    name.ends_with(".localhost")
}
