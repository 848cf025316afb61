//! Opens a chain, from the store outwards; the guard stands before every hop.

use std::time::{Duration, Instant};

use abi_stable::std_types::{RNone, ROption, RSome, RString};
use nbd_rs_plugin::abi::DynBackend;
use nbd_rs_plugin::{
    options, Body, Capabilities, Condition, GetFlags, Got, Kind, Meta, Next, ObjectMode, OpenFlags,
    OpenRequest, Page, Put, Range, Result,
};

use super::guard::{guard, without_secrets};
use super::{Answer, Object};
use crate::location::{Hop, Location};
use crate::plugin::{call, Plugin, Registry};

/// No attempt to open a store begins later than this after the first, if nothing says otherwise.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between the first two attempts; twice as long after each further one, up to the second.
const PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(2);

/// Links that work and serve badly when the first stands outside of the second, and why.
const ODD_ORDERS: [(&str, &str, &str); 1] = [(
    "retry",
    "cache",
    "what the cache fetches ahead is not asked for again when it fails, the readers that shared a \
     failed fetch each ask again, and an object is without copies after a write whose outcome was \
     unknown at first; write cache+retry",
)];

/// What is odd about the order of links, outermost first.
fn odd_orders<'l>(links: &[&'l str]) -> impl Iterator<Item = String> + use<'l> {
    let at = |name: &str| links.iter().position(|link| *link == name);
    let found = ODD_ORDERS.map(|(outer, inner, why)| {
        let is_odd = at(outer)? < at(inner)?;
        is_odd.then(|| format!("the link {outer} stands outside of {inner}: {why}"))
    });
    found.into_iter().flatten()
}

/// The outer end of an opened chain: all that a layout may ask.
#[derive(Clone, Debug)]
pub struct Chain(Next);

impl From<DynBackend> for Chain {
    /// A chain of one backend that is guarded already.
    fn from(backend: DynBackend) -> Self {
        Self(backend.into())
    }
}

/// A chain that can be opened, and opened again.
#[derive(Clone, Debug)]
pub struct Opener {
    location: Location,
    /// Outermost first.
    links: Vec<Plugin>,
    store: Plugin,
    store_name: String,
}

impl Opener {
    /// Of that location.
    ///
    /// # Errors
    /// If there is no plugin for a scheme.
    pub fn new(registry: &Registry, location: &Location) -> Result<Self> {
        let plugin = |hop: &Hop| registry.get(&hop.scheme).cloned();
        Ok(Self {
            links: location.links.iter().map(plugin).collect::<Result<_>>()?,
            store: plugin(&location.store)?,
            store_name: store_name(location),
            location: location.clone(),
        })
    }

    /// Opens every plugin, from the store outwards.
    ///
    /// # Errors
    /// The first plugin's that can't be opened, with its scheme.
    pub async fn open(&self, flags: OpenFlags) -> Result<Chain> {
        let outermost = self.open_bare(flags).await?;
        Ok(guard(outermost, self.location.outermost()).into())
    }

    /// The same: the outermost plugin itself, without the guard before it. For who wants to see what
    /// the guard would hide.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_bare(&self, flags: OpenFlags) -> Result<DynBackend> {
        let Location { links, store, .. } = &self.location;
        let schemes: Vec<&str> = links.iter().map(|link| link.scheme.as_str()).collect();
        for advice in odd_orders(&schemes) {
            tracing::warn!("{advice}");
        }
        let mut backend = self.open_store(flags).await?;
        let mut scheme = &store.scheme;
        for (link, plugin) in links.iter().zip(&self.links).rev() {
            let inner = RSome(guard(backend, scheme));
            backend = open_hop(plugin, link, &self.store_name, flags, inner).await?;
            scheme = &link.scheme;
        }
        Ok(backend)
    }

    /// Opens the store; again after an error that may pass: the link that would ask again is not there
    /// yet, and opening changes nothing that counts.
    async fn open_store(&self, flags: OpenFlags) -> Result<DynBackend> {
        let Location { store, target, .. } = &self.location;
        let end = Instant::now() + self.patience();
        let mut pause = PAUSE;
        loop {
            match open_hop(&self.store, store, target, flags, RNone).await {
                Err(error) if may_pass(error.kind) && Instant::now() + pause < end => {
                    tracing::warn!("{error}; trying again");
                    tokio::time::sleep(pause).await;
                    pause = MOST_PAUSE.min(2 * pause);
                }
                outcome => return outcome,
            }
        }
    }

    /// For how long the store is asked again: as long as the link `retry` would, where there is one.
    fn patience(&self) -> Duration {
        let time = || {
            let mut links = self.location.links.iter().zip(&self.links);
            let (link, plugin) = links.find(|(link, _)| link.scheme == "retry")?;
            let mut known = plugin.description.options.iter();
            let default = known.find(|option| option.name == "time")?.default.as_ref();
            let default = options::duration(default.into_option()?).ok()?;
            let given = link.option_values();
            options::Options(&given).duration("time", default).ok()
        };
        time().unwrap_or(PATIENCE)
    }
}

impl Chain {
    /// Asks every plugin of `location` whether target and options can be meant. Nothing is opened.
    ///
    /// # Errors
    /// The outermost plugin's that says no, with its scheme.
    pub fn check(registry: &Registry, location: &Location, flags: OpenFlags) -> Result<()> {
        let store_name = store_name(location);
        let links = location.links.iter().map(|link| (link, &*store_name));
        for (hop, target) in links.chain([(&location.store, &*location.target)]) {
            let checked = registry.get(&hop.scheme)?;
            let checked = checked.check(request(hop, target, flags, RNone));
            checked.map_err(|error| without_secrets(error).context(&hop.scheme))?;
        }
        Ok(())
    }

    /// Opens every plugin of `location`.
    ///
    /// # Errors
    /// The first plugin's that can't be opened, with its scheme.
    pub async fn open(registry: &Registry, location: &Location, flags: OpenFlags) -> Result<Self> {
        Opener::new(registry, location)?.open(flags).await
    }

    /// The outermost backend, with every operation there is.
    pub fn outermost(&self) -> &Next {
        &self.0
    }

    /// What the whole chain can do and promises.
    pub fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    /// Reads a part of an object.
    pub fn get(&self, key: String, range: Range, flags: GetFlags) -> Answer<Got> {
        call::get(&self.0, key, range, flags)
    }

    /// Stores a whole object.
    pub fn put(&self, key: String, body: Body, condition: Condition) -> Answer<Put> {
        call::put(&self.0, key, body, condition)
    }

    /// Size and ETag of an object.
    pub fn head(&self, key: String, flags: GetFlags) -> Answer<Meta> {
        call::head(&self.0, key, flags)
    }

    /// Deletes objects: a result for each.
    pub fn delete(&self, keys: Vec<String>) -> Answer<Vec<Result<()>>> {
        let next = self.0.clone();
        Answer::later(async move { next.delete(keys).await })
    }

    /// A page of the names that begin with `prefix` and come after `after`.
    pub fn list(&self, prefix: String, after: Option<String>) -> Answer<Page> {
        let next = self.0.clone();
        Answer::later(async move { next.list(&prefix, after.as_deref()).await })
    }

    /// Makes durable all that was acknowledged before it.
    pub fn flush(&self) -> Answer<()> {
        let next = self.0.clone();
        Answer::later(async move { next.flush().await })
    }

    /// Opens one object to read and write inside it.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::open_object`].
    pub async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<Object> {
        self.0.open_object(key, mode).await.map(Object::from)
    }

    /// Closes every plugin, from the outermost in.
    ///
    /// # Errors
    /// If something acknowledged could not be kept.
    pub async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

fn store_name(location: &Location) -> String {
    let working_dir = std::env::current_dir().unwrap_or_default();
    location.store_name(&working_dir)
}

fn request(hop: &Hop, target: &str, flags: OpenFlags, inner: ROption<DynBackend>) -> OpenRequest {
    OpenRequest {
        scheme: RString::from(hop.scheme.as_str()),
        target: target.into(),
        options: hop.option_values().into(),
        flags,
        inner,
        reserved: [0; 4],
    }
}

fn may_pass(kind: Kind) -> bool {
    matches!(kind, Kind::Transient | Kind::Timeout | Kind::Ambiguous)
}

async fn open_hop(
    plugin: &Plugin,
    hop: &Hop,
    target: &str,
    flags: OpenFlags,
    inner: ROption<DynBackend>,
) -> Result<DynBackend> {
    let opened = plugin.open(request(hop, target, flags, inner)).await;
    opened.map_err(|error| without_secrets(error).context(&hop.scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_the_wrong_way_round_are_told() {
        let told = |links: &[&str]| odd_orders(links).count();
        assert_eq!(told(&["retry", "cache"]), 1);
        assert_eq!(told(&["retry", "other", "cache"]), 1);
        for fine in [&["cache", "retry"][..], &["retry"], &["cache"], &[]] {
            assert_eq!(told(fine), 0, "{fine:?}");
        }
    }
}
