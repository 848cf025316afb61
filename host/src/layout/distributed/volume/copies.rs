//! Brings to a backend what a checkpoint names, before it gets the checkpoint.
//!
//! The checkpoint's own object comes last. So a backend that has it is complete up to there, and where
//! the one before is, only what differs between the two is looked at.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_commit_log::Position;
use nbd_rs_plugin::{Body, Bytes};

use super::super::format::changes::{Changes, Part};
use super::super::format::map::{Base, MapPage, PAGE_SHARDS};
use super::super::format::names::Object;
use super::super::format::root::Root;
use super::super::format::Named;
use super::super::log::Prepare;
use super::replicas::Replicas;
use crate::backend::Later;
use crate::error::Result;
use crate::layout::frame::corrupt;

/// Memory for images that are copied at the same time, in bytes; one is copied whatever its size.
const COPYING_BYTES: u64 = 16 << 20;
/// Images that are looked at or copied at the same time, at the most.
const AT_ONCE: u64 = 16;

/// See the module.
pub(super) struct Copies {
    replicas: Arc<Replicas>,
    shard_bytes: u64,
    /// The checkpoint of this owner that is being made: nobody has it yet.
    offered: Mutex<Option<(Named, Bytes)>>,
}

/// A checkpoint that a backend has, to compare with.
struct Former {
    root: Root,
}

impl Copies {
    pub(super) fn new(replicas: Arc<Replicas>, shard_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            replicas,
            shard_bytes,
            offered: Mutex::default(),
        })
    }

    /// A checkpoint that is about to be appended.
    pub(super) fn offer(&self, named: Named, root: Bytes) {
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        *offered = Some((named, root));
    }

    fn offered(&self, named: Named) -> Option<Bytes> {
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, root) = offered.as_ref()?;
        (*known == named).then(|| root.clone())
    }

    async fn root(&self, named: Named) -> Result<(Bytes, Root)> {
        match self.offered(named) {
            Some(bytes) => {
                let root = Root::decode(self.replicas.volume, &named, &bytes)?;
                Ok((bytes, root))
            }
            None => self.replicas.anywhere().root(named).await,
        }
    }

    async fn prepare(&self, backend: usize, payload: Bytes) -> Result<()> {
        let replicas = &self.replicas;
        let named = root_of(&Changes::decode(replicas.volume, &payload)?)?;
        let object = Object::Root(named.version);
        if replicas.asked(backend, &object).await? {
            return Ok(());
        }
        let (bytes, root) = self.root(named).await?;
        let former = self.former(backend, &root).await?;
        self.pages(backend, &root, former.as_ref()).await?;
        self.packs(backend, &root, former.as_ref()).await?;
        replicas.put_to(backend, object, Body::One(bytes)).await
    }

    /// The checkpoint before, if the backend has it.
    async fn former(&self, backend: usize, root: &Root) -> Result<Option<Former>> {
        let Some(previous) = root.previous else {
            return Ok(None);
        };
        let object = Object::Root(previous.version);
        if !self.replicas.asked(backend, &object).await? {
            return Ok(None);
        }
        match self.replicas.anywhere().root(previous).await {
            Ok((_, root)) => Ok(Some(Former { root })),
            // Then there is nothing to compare with.
            Err(error) if Replicas::is_lost(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn pages(&self, backend: usize, root: &Root, former: Option<&Former>) -> Result<()> {
        for &(number, named) in &root.pages {
            let pages = former.map_or(&[][..], |former| &former.root.pages[..]);
            let old = pages.iter().find(|(page, _)| *page == number);
            if old == Some(&(number, named)) {
                continue;
            }
            let (bytes, page) = self.replicas.anywhere().page(number, named).await?;
            let old = match old {
                Some(&(_, named)) => match self.replicas.anywhere().page(number, named).await {
                    Ok((_, page)) => page,
                    Err(error) if Replicas::is_lost(&error) => MapPage::default(),
                    Err(error) => return Err(error),
                },
                None => MapPage::default(),
            };
            self.images(backend, number, &page, &old).await?;
            let version = named.version;
            let object = Object::Map {
                page: number,
                version,
            };
            if !self.replicas.is_at(backend, &object).await? {
                let body = Body::One(bytes);
                self.replicas.put_to(backend, object, body).await?;
            }
        }
        Ok(())
    }

    async fn images(
        &self,
        backend: usize,
        number: u32,
        page: &MapPage,
        old: &MapPage,
    ) -> Result<()> {
        let mut brings = Vec::new();
        for at in 0..PAGE_SHARDS {
            if let Base::Image(image) = page.get(at) {
                let shard = number * PAGE_SHARDS as u32 + at as u32;
                if old.get(at) != Base::Image(image) {
                    brings.push(self.image(backend, shard, image));
                }
            }
        }
        let at_once = (COPYING_BYTES / self.shard_bytes).clamp(1, AT_ONCE);
        let brings = stream::iter(brings).buffer_unordered(at_once as usize);
        brings.try_collect::<Vec<()>>().await?;
        Ok(())
    }

    async fn image(&self, backend: usize, shard: u32, image: Named) -> Result<()> {
        let version = image.version;
        let object = Object::Image { shard, version };
        if !self.lacks(backend, &object).await? {
            return Ok(());
        }
        let image = self
            .replicas
            .anywhere()
            .image(shard, self.shard_bytes, image)
            .await;
        self.bring(backend, object, image).await
    }

    async fn packs(&self, backend: usize, root: &Root, former: Option<&Former>) -> Result<()> {
        let known = former.map_or(&[][..], |former| &former.root.packs[..]);
        for pack in &root.packs {
            let object = Object::Pack(pack.version);
            let is_known = known.iter().any(|it| it.version == pack.version);
            if is_known || !self.lacks(backend, &object).await? {
                continue;
            }
            let bytes = self.replicas.anywhere().pack(pack).await;
            self.bring(backend, object, bytes).await?;
        }
        Ok(())
    }

    async fn lacks(&self, backend: usize, object: &Object) -> Result<bool> {
        let is_home = self.replicas.is_home(object, backend);
        Ok(is_home && !self.replicas.is_at(backend, object).await?)
    }

    /// What no backend has whole can't be brought. That must not keep the log from going on: who
    /// reads it gets an error, here as on the other backends.
    async fn bring(&self, backend: usize, object: Object, found: Result<Bytes>) -> Result<()> {
        match found {
            Ok(bytes) => {
                let body = Body::One(bytes);
                self.replicas.put_to(backend, object, body).await
            }
            Err(error) if Replicas::is_lost(&error) => {
                tracing::error!("{object:?} is whole on no backend: {error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// The checkpoint that a record is.
pub(super) fn root_of(changes: &Changes) -> Result<Named> {
    match changes.parts[..] {
        [Part::Root(named)] => Ok(named),
        _ => Err(corrupt("the record of a checkpoint names none")),
    }
}

/// What a lane of the log holds of it.
pub(super) struct Preparing(pub(super) Arc<Copies>);

impl Prepare for Preparing {
    fn checkpoint(&self, backend: usize, _: Position, payload: Bytes) -> Later<()> {
        let copies = self.0.clone();
        Box::pin(async move { copies.prepare(backend, payload).await })
    }
}
