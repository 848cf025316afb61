//! `nbd-rs check --repair`: makes lost records again from what is known.
//!
//! A page that is made again says that each of its shards was written. Those that have an object are
//! read as ever. Of the others nobody knows whether they were written and are lost, or never were:
//! they read as errors, never as zeros, until they are written or trimmed as a whole.

use std::sync::Arc;

use super::check::expected_bytes;
use super::frame::Stamp;
use super::index::Index;
use super::lease::{Lease, Timing};
use super::names::Names;
use super::state::{State, StatePage, PAGE_SHARDS};
use super::store::{Store, Swapped};
use super::volume::{VolumeRecord, Way};
use super::{manage, probe};
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};
use nbd_rs_plugin::{Condition, Meta, ObjectFlags, ObjectMode};

/// Mends what can be mended of a volume that nobody serves; what that was, a line each. `progress` is
/// told how many of how many records and shards are done.
///
/// # Errors
/// [`Kind::Busy`] while it is served; what keeps the store from being read or changed. What was
/// mended by then stays so, and the repair can be made again.
pub async fn repair(
    chain: &Chain,
    fencing_is_external: bool,
    timing: Timing,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Vec<String>> {
    let store = Store::new(chain.clone(), fencing_is_external);
    let record = manage::record(&store).await?;
    let names = Names::of(record.uuid);
    probe::conditions(&store, &names).await?;
    let mut mended = Vec::new();
    let lease = take(&store, &names, &record, timing, &mut mended).await?;
    let mut repair = Repair {
        store,
        names,
        record,
        lease: lease.clone(),
        mended,
    };
    let repaired = repair.run(progress).await;
    // Whatever became of it: the next one need not wait.
    lease.release().await.and(repaired)?;
    Ok(repair.mended)
}

/// Takes the volume, also where its owner record is lost: an owner that lives finds that at its next
/// heartbeat, and stops.
async fn take(
    store: &Store,
    names: &Names,
    record: &VolumeRecord,
    timing: Timing,
    mended: &mut Vec<String>,
) -> Result<Arc<Lease>> {
    let take =
        |takeover, seen| Lease::take(store, names.owner(), record.uuid, takeover, timing, seen);
    match take(false, None).await {
        Ok(Some(lease)) => return Ok(lease),
        Ok(None) => {}
        Err(error) if error.kind == Kind::Corrupt => {}
        Err(error) => return Err(error),
    }
    let seen = Records::read(store, names, record).await?.last_epoch();
    let taken = take(true, Some(seen)).await?;
    let lease = taken.ok_or_else(|| Error::new(Kind::Io, "the volume could not be taken"))?;
    if record.way == Way::InPlace && lease.shuts_out {
        tokio::time::sleep(timing.shut_out).await;
    }
    mended.push("the owner record was made again".to_owned());
    Ok(lease)
}

/// What is known of the records.
struct Records {
    /// The index and its stamp, unless it is lost.
    index: Option<(Index, Stamp)>,
    index_etag: Option<String>,
    /// State pages that can't be read, with the ETag of what lies there.
    lost: Vec<(u64, Option<String>)>,
    /// The greatest epoch of those that can.
    epoch: u64,
}

impl Records {
    /// Where the index is lost, a page that is not there may have been lost, too.
    async fn read(store: &Store, names: &Names, record: &VolumeRecord) -> Result<Self> {
        let found = store.read(names.index()).await?;
        let index = match &found {
            Some((bytes, _)) => readable(Index::decode(record.uuid, record.pages(), bytes))?,
            None => None,
        };
        let pages: Vec<u64> = match &index {
            Some((index, _)) => index.pages().collect(),
            None => (0..record.pages()).collect(),
        };
        let (mut lost, mut epoch) = (Vec::new(), 0);
        for page in pages {
            let found = store.read(names.page(page)).await?;
            let decoded = match &found {
                Some((bytes, _)) => readable(StatePage::decode(record.uuid, page, bytes))?,
                None => None,
            };
            match decoded {
                Some((_, stamp, _)) => epoch = stamp.epoch.max(epoch),
                None => lost.push((page, found.map(|(_, etag)| etag))),
            }
        }
        Ok(Self {
            index,
            index_etag: found.map(|(_, etag)| etag),
            lost,
            epoch,
        })
    }

    /// An epoch that the volume has reached; 0 for one that nobody has served.
    fn last_epoch(&self) -> u64 {
        let of_index = self.index.as_ref().map_or(1, |(_, stamp)| stamp.epoch);
        self.epoch.max(of_index)
    }
}

/// What was decoded, or nothing if it is damaged.
///
/// # Errors
/// A newer version is nothing to be mended.
fn readable<T>(decoded: Result<T>) -> Result<Option<T>> {
    match decoded {
        Ok(decoded) => Ok(Some(decoded)),
        Err(error) if error.kind == Kind::Corrupt => Ok(None),
        Err(error) => Err(error),
    }
}

struct Repair {
    store: Store,
    names: Names,
    record: VolumeRecord,
    lease: Arc<Lease>,
    mended: Vec<String>,
}

impl Repair {
    async fn run(&mut self, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<()> {
        let records = Records::read(&self.store, &self.names, &self.record).await?;
        let total = records.lost.len() as u64;
        // A page before its bit in the index, as ever.
        for (done, (page, etag)) in records.lost.iter().enumerate() {
            self.page(*page, etag.as_deref()).await?;
            progress(done as u64 + 1, total);
        }
        if records.index.is_none() {
            self.index(records.index_etag.as_deref()).await?;
        }
        if self.record.way == Way::InPlace {
            self.cut_grown(progress).await?;
        }
        Ok(())
    }

    fn condition(&self, etag: Option<&str>) -> Condition {
        etag.map_or(self.store.if_absent(), |etag| self.store.if_match(etag))
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, etag: Option<&str>) -> Result<()> {
        self.lease.held().await?;
        match self.store.swap(key, bytes, self.condition(etag)).await? {
            Swapped::Done(_) => Ok(()),
            Swapped::Other(_) => Err(Error::new(
                Kind::Busy,
                format!("{key} was changed a moment ago"),
            )),
        }
    }

    async fn page(&mut self, page: u64, etag: Option<&str>) -> Result<()> {
        let first = page * PAGE_SHARDS;
        let shards = (self.record.shards() - first).min(PAGE_SHARDS);
        let mut states = StatePage::default();
        (0..shards).for_each(|at| states.set(at, State::Written));
        let bytes = states.encode(self.record.uuid, page, self.lease.stamp(), true);
        self.put(&self.names.page(page), bytes, etag).await?;
        let mut there = 0;
        let each = |meta: &Meta| {
            let shard = self.names.shard_of(&meta.key);
            there += u64::from(shard.is_some_and(|shard| shard < first + shards));
            shard.is_none_or(|shard| shard < first + shards)
        };
        let before = first.checked_sub(1).map(|before| self.names.shard(before));
        self.store.list(&self.names.shards(), before, each).await?;
        self.mended.push(format!(
            "state page {page} was made again: {there} of its {shards} shards are there; the others \
             may have been written or not, and read as errors until they are written or trimmed whole"
        ));
        Ok(())
    }

    async fn index(&mut self, etag: Option<&str>) -> Result<()> {
        let mut index = Index::default();
        (0..self.record.pages()).for_each(|page| index.insert(page));
        let bytes = index.encode(self.record.uuid, self.lease.stamp());
        self.put(&self.names.index(), bytes, etag).await?;
        let text = "the index of state pages was made again";
        self.mended.push(text.to_owned());
        Ok(())
    }

    /// Cuts shards that are longer than they should be: nothing of the volume lies behind their end.
    async fn cut_grown(&mut self, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<()> {
        let (expected, mut after, mut looked_at) = (expected_bytes(&self.record), None, 0);
        loop {
            let (items, next) = self.store.page(&self.names.shards(), after).await?;
            for meta in items {
                let shard = self.names.shard_of(&meta.key);
                if shard.is_some_and(|shard| shard < self.record.shards()) && meta.size > expected {
                    self.lease.held().await?;
                    let mode = ObjectMode::new(ObjectFlags::WRITE);
                    let object = self.store.chain.open_object(&meta.key, mode).await?;
                    object.resize(expected).await?;
                    object.close().await?;
                    let (key, size) = (&meta.key, meta.size);
                    self.mended
                        .push(format!("{key} was cut from {size} to {expected} bytes"));
                }
                looked_at += 1;
                progress(looked_at, self.record.shards());
            }
            match next {
                Some(_) => after = next,
                None => return Ok(()),
            }
        }
    }
}
