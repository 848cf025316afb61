//! The index of state pages, shared and kept on the store.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::frame::{corrupt, Stamp};
use super::index::Index;
use super::lease::Lease;
use super::names::Names;
use super::store::{read_as, Store, Swapped, ATTEMPTS};
use super::volume::VolumeRecord;
use crate::error::{Error, Kind, Result};
use crate::layout::gather::Gather;

/// Which state pages exist. Clones share it.
#[derive(Clone)]
pub(super) struct Directory {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    key: String,
    record: VolumeRecord,
    state: RwLock<Known>,
    gather: Arc<Gather>,
}

struct Known {
    /// As on the store.
    base: Index,
    /// As it should be.
    target: Index,
    etag: String,
    /// Whose put it was.
    epoch: u64,
    unsure: bool,
}

impl Directory {
    /// Makes that of a new volume.
    pub(super) async fn create(store: &Store, names: &Names, record: &VolumeRecord) -> Result<()> {
        let bytes = Index::default().encode(record.uuid, Stamp::default());
        match store.swap(&names.index(), bytes, store.if_absent()).await? {
            Swapped::Done(_) => Ok(()),
            Swapped::Other(_) => Err(Error::new(Kind::Exists, "the index of state pages exists")),
        }
    }

    /// Reads that of a volume.
    pub(super) async fn open(store: &Store, names: &Names, record: VolumeRecord) -> Result<Self> {
        let Some((bytes, etag)) = store.read(names.index()).await? else {
            return Err(corrupt(format!(
                "{}: the index of state pages is gone, so nothing can be said of any shard",
                names.index()
            )));
        };
        let decoded = Index::decode(record.uuid, record.pages(), &bytes);
        let (index, stamp) = read_as(&names.index(), decoded)?;
        let known = Known {
            base: index.clone(),
            target: index,
            etag,
            epoch: stamp.epoch,
            unsure: false,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                store: store.clone(),
                key: names.index(),
                record,
                state: RwLock::new(known),
                gather: Arc::default(),
            }),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the page is known to the store.
    pub(super) fn contains(&self, page: u64) -> bool {
        self.read().base.contains(page)
    }

    /// The owner who put it last; 0 if it is as it was made.
    pub(super) fn epoch(&self) -> u64 {
        self.read().epoch
    }

    /// The pages that exist.
    pub(super) fn pages(&self) -> Vec<u64> {
        self.read().base.pages().collect()
    }

    /// Makes durable that a page exists.
    pub(super) async fn insert(&self, lease: &Arc<Lease>, page: u64) -> Result<()> {
        if self.contains(page) {
            return Ok(());
        }
        self.write().target.insert(page);
        self.commit(lease).await
    }

    /// Puts it again if an earlier owner could still change it.
    pub(super) async fn take_over(&self, lease: &Arc<Lease>) -> Result<()> {
        if lease.unclean == 0 || self.epoch() > lease.unclean {
            return Ok(());
        }
        self.write().unsure = true;
        self.commit(lease).await
    }

    async fn commit(&self, lease: &Arc<Lease>) -> Result<()> {
        let (directory, lease) = (self.clone(), lease.clone());
        self.shared
            .gather
            .join(move || {
                let (directory, lease) = (directory.clone(), lease.clone());
                Box::pin(async move { directory.put(&lease).await })
            })
            .await
    }

    async fn put(&self, lease: &Lease) -> Result<()> {
        let Shared {
            store, key, record, ..
        } = &*self.shared;
        for _ in 0..ATTEMPTS {
            lease.held().await?;
            let (index, etag) = {
                let known = self.read();
                if !known.unsure && known.base == known.target {
                    return Ok(());
                }
                (known.target.clone(), known.etag.clone())
            };
            self.write().unsure = true;
            let bytes = index.encode(record.uuid, lease.stamp());
            match store.swap(key, bytes, store.if_match(&etag)).await? {
                Swapped::Done(etag) => {
                    let mut known = self.write();
                    (known.base, known.etag, known.unsure) = (index, etag, false);
                    return Ok(());
                }
                Swapped::Other(Some((bytes, etag))) => {
                    let decoded = Index::decode(record.uuid, record.pages(), &bytes);
                    let (theirs, stamp) = read_as(key, decoded)?;
                    if stamp.epoch > lease.epoch() {
                        let text = format!("the index was put by epoch {}", stamp.epoch);
                        return Err(lease.lose(text));
                    }
                    let mut known = self.write();
                    known.target.merge(&theirs);
                    (known.base, known.etag) = (theirs, etag);
                }
                Swapped::Other(None) => return Err(corrupt("the index of state pages is gone")),
            }
        }
        let text = "the index of state pages keeps changing";
        Err(Error::new(Kind::Transient, text))
    }
}
