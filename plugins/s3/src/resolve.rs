//! Names to addresses, without those where a cloud keeps its metadata.

use std::net::SocketAddr;

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
