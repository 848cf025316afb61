//! Opens a chain, from the store outwards; the guard stands before every hop.

use abi_stable::std_types::{RNone, ROption, RSome, RString};
use nbd_rs_plugin::abi::DynBackend;
use nbd_rs_plugin::{Next, ObjectMode, OpenFlags, OpenRequest, Result};

use super::guard::{guard, without_secrets};
use super::Object;
use crate::location::{Hop, Location};
use crate::plugin::Registry;

/// The outer end of an opened chain: all that a layout may ask.
#[derive(Clone, Debug)]
pub struct Chain(Next);

impl From<DynBackend> for Chain {
    /// A chain of one backend that is guarded already.
    fn from(backend: DynBackend) -> Self {
        Self(backend.into())
    }
}

impl Chain {
    /// Opens every plugin of `location`.
    ///
    /// # Errors
    /// The first plugin's that can't be opened, with its scheme.
    pub async fn open(registry: &Registry, location: &Location, flags: OpenFlags) -> Result<Self> {
        let target = location.target.as_str();
        let store = open_hop(registry, &location.store, target, flags, RNone);
        let mut backend = store.await?;
        for link in location.links.iter().rev() {
            backend = open_hop(registry, link, "", flags, RSome(backend)).await?;
        }
        Ok(backend.into())
    }

    /// The outermost backend, with every operation there is.
    pub fn outermost(&self) -> &Next {
        &self.0
    }

    /// Opens one object to read and write inside it.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::open_object`].
    pub async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<Object> {
        self.0.open_object(key, mode).await.map(Object::from)
    }

    /// Deletes one object.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::delete`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        let results = self.0.delete(vec![key.to_owned()]).await?;
        results.into_iter().collect()
    }

    /// Closes every plugin, from the outermost in.
    ///
    /// # Errors
    /// If something acknowledged could not be kept.
    pub async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

async fn open_hop(
    registry: &Registry,
    hop: &Hop,
    target: &str,
    flags: OpenFlags,
    inner: ROption<DynBackend>,
) -> Result<DynBackend> {
    let plugin = registry.get(&hop.scheme)?;
    let request = OpenRequest {
        scheme: RString::from(hop.scheme.as_str()),
        target: target.into(),
        options: hop.option_values().into(),
        flags,
        inner,
        reserved: [0; 4],
    };
    let opened = plugin.open(request).await;
    let backend = opened.map_err(|error| without_secrets(error).context(&hop.scheme))?;
    Ok(guard(backend, &hop.scheme))
}
