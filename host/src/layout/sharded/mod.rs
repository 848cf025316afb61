//! A volume cut into shards of one size, an object each. What is on the store is described in
//! `docs/volume-format.md`.
//!
//! - pure: `volume`, `owner`, `state`, `index`, `trailer`,
//!   `lent`, `names`, `image`, `page`, `ranges`;
//! - `store`: the chain as it is used here; `probe`: does it obey;
//! - `lease`: who may write; `ticket`: where writes wait; `pages` and `directory`: what was
//!   written; `reaper`: what goes; `changes`: what is under way; `unlisted`: what a dead owner
//!   left open;
//! - `whole` and `in_place`: the two ways to keep a shard;
//! - `manage`: make, open, grow, remove; `check`: compare; `repair`: make lost records again.

mod changes;
pub mod check;
mod directory;
mod fetch;
mod image;
mod in_place;
mod index;
pub(super) mod lease;
mod lent;
pub mod manage;
pub(super) mod names;
mod owner;
mod page;
mod pages;
pub(super) mod probe;
pub(super) mod process;
mod queue;
mod ranges;
mod reaper;
pub mod repair;
mod state;
pub(super) mod store;
pub(super) mod ticket;
mod trailer;
mod trailers;
mod unlisted;
pub(super) mod volume;
mod whole;

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_plugin::{
    Body, Bytes, Capabilities, CapabilityFlags, Data, Extent, ExtentFlags, Piece, ReadFlags,
    ZeroFlags,
};

use super::durability::{Durability, Failed};
use super::ledger::Ledger;
use super::split::{cut, parts, split, Part, Split};
use super::Layout;
use crate::backend::{Answer, Later};
use crate::error::{Error, Kind, Result};
use crate::runtime;
use image::Edit;
use in_place::InPlace;
use pages::Pages;
use state::State;
use ticket::{Book, Tickets};
use trailer::UNIT_BYTES;
use whole::Whole;

pub(super) use super::{frame, uuid};

pub use lease::Timing;
pub use uuid::Uuid;
pub use volume::{VolumeRecord, Way};

/// Shards of one request that are worked on at the same time.
const AT_ONCE: usize = 16;
/// Shards that one extents call looks at, at the most.
const LOOKED_AT: u64 = 1 << 17;
/// So long a close waits for changes that are under way, and then for deletes that are queued.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// A sharded volume.
pub struct Sharded {
    inner: Arc<Inner>,
}

struct Inner {
    pages: Arc<Pages>,
    shards: Shards,
    capabilities: Capabilities,
    durability: Arc<Durability>,
    /// What is acknowledged may be lost before it is flushed, so it is recorded until then.
    may_lose: bool,
}

enum Shards {
    Whole(Arc<Whole>),
    InPlace(Arc<InPlace>),
}

/// So many zeros, as a hole if the caller can use one.
fn zeros(len: u64, flags: ReadFlags) -> Data {
    match flags.has(ReadFlags::LEND_HOLES) {
        true => Data::One(Piece::Hole(len)),
        false => Bytes::from(vec![0; len as usize]).into(),
    }
}

fn given_up() -> Error {
    Error::new(Kind::Io, "the change was given up")
}

/// A change that comes to its end once it has begun, also when nobody waits any more.
fn driven(
    pages: &Arc<Pages>,
    change: impl Future<Output = Result<()>> + Send + 'static,
) -> Answer<()> {
    let pages = pages.clone();
    Answer::later(async move {
        let under_way = pages.writer()?.changes.begin()?;
        let task = runtime::handle().spawn(async move {
            let _under_way = under_way;
            change.await
        });
        task.await.unwrap_or_else(|_| Err(given_up()))
    })
}

/// What a volume can do over this chain; `shard` is what an opened object can. With `looks`, could.
fn capabilities(pages: &Pages, shard: Option<Capabilities>, looks: bool) -> Capabilities {
    let (mut capabilities, passed_on) = match shard {
        // Holes cost no object, zeros that need none are a matter of the state pages; and a range
        // that must be allocated is put.
        None => {
            let flags = CapabilityFlags::PUNCH_HOLE
                .with(CapabilityFlags::FAST_ZERO)
                .with(CapabilityFlags::ALLOCATE);
            let mut capabilities = Capabilities::new(flags);
            capabilities.preferred_io_bytes = pages.record.shard_bytes as u32;
            capabilities.atomic_unit_bytes = UNIT_BYTES as u32;
            (capabilities, flags)
        }
        Some(shard) => {
            let passed_on = CapabilityFlags::PUNCH_HOLE
                .with(CapabilityFlags::FAST_ZERO)
                .with(CapabilityFlags::ALLOCATE)
                .with(CapabilityFlags::PREFETCH);
            (shard, passed_on)
        }
    };
    let mut flags = CapabilityFlags(capabilities.flags.0 & passed_on.0);
    flags = flags.with(CapabilityFlags::EXTENTS);
    if looks || pages.writer.is_some() {
        flags = flags.with(CapabilityFlags::WRITABLE);
    }
    capabilities.flags = flags;
    capabilities.max_object_bytes = 0;
    capabilities
}

/// All that was acknowledged becomes durable: the shards, then that they were written, and it is
/// certain that nobody else has taken over before.
async fn sync(pages: Arc<Pages>, in_place: Option<Arc<InPlace>>) -> Result<(), Failed> {
    let Some(writer) = &pages.writer else {
        return Ok(());
    };
    let puts = pages.puts();
    if let Some(in_place) = &in_place {
        in_place.sync().await.map_err(Failed::Lost)?;
    }
    if in_place.is_some() || !pages.store.durable {
        let flushed = pages.store.chain.flush().wait().await;
        flushed.map_err(Failed::Lost)?;
    }
    pages.record(puts).await.map_err(Failed::Again)?;
    writer.lease.confirm().await.map_err(Failed::Again)
}

impl Sharded {
    /// Over these pages. `shard` is what an opened object can do, where shards are opened; with
    /// `looks` the volume only says what it could do.
    fn new(pages: Arc<Pages>, shard: Option<Capabilities>, looks: bool) -> Self {
        let shards = match pages.record.way {
            Way::Whole => Shards::Whole(Whole::new(pages.clone())),
            Way::InPlace => Shards::InPlace(InPlace::new(pages.clone())),
        };
        let in_place = match &shards {
            Shards::Whole(_) => None,
            Shards::InPlace(in_place) => Some(in_place.clone()),
        };
        let (of_sync, its_shards) = (pages.clone(), in_place.clone());
        let durability = Durability::new(move || sync(of_sync.clone(), its_shards.clone()));
        let may_lose = in_place.is_some() || !pages.store.durable;
        if let Some(in_place) = in_place {
            in_place.report_to(&durability);
        }
        let inner = Inner {
            capabilities: capabilities(&pages, shard, looks),
            pages,
            shards,
            durability,
            may_lose,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    #[cfg(test)]
    fn open_objects(&self) -> usize {
        match &self.inner.shards {
            Shards::Whole(_) => 0,
            Shards::InPlace(in_place) => in_place.open_objects(),
        }
    }

    #[cfg(test)]
    fn queues(&self) -> usize {
        match &self.inner.shards {
            Shards::Whole(whole) => whole.queues(),
            Shards::InPlace(_) => 0,
        }
    }

    /// What the volume is.
    pub fn record(&self) -> &VolumeRecord {
        &self.inner.pages.record
    }
}

impl Inner {
    /// Whether nobody else can have taken the volume; without a lease nobody asks.
    fn is_held(&self) -> bool {
        let writer = self.pages.writer.as_ref();
        writer.is_none_or(|writer| writer.lease.is_valid())
    }

    async fn held(&self) -> Result<()> {
        match &self.pages.writer {
            Some(writer) => writer.lease.held().await,
            None => Ok(()),
        }
    }

    fn shard_bytes(&self) -> u64 {
        self.pages.record.shard_bytes
    }

    fn read_part(&self, part: Part, flags: ReadFlags) -> Answer<Data> {
        match &self.shards {
            Shards::Whole(whole) => whole.read(part, flags),
            Shards::InPlace(in_place) => in_place.read(part, flags),
        }
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        let mut all = parts(self.shard_bytes(), offset, len);
        match (all.next(), all.next()) {
            (Some(part), None) => self.read_part(part, flags),
            _ => self.read_parts(parts(self.shard_bytes(), offset, len), flags),
        }
    }

    /// Several shards: nothing of them is lent, since not all of it can be at once.
    fn read_parts(&self, parts: impl Iterator<Item = Part>, flags: ReadFlags) -> Answer<Data> {
        let flags = flags.without(ReadFlags::LEND_MAPPED);
        let answers: Vec<Answer<Data>> = parts.map(|part| self.read_part(part, flags)).collect();
        let together = |datas: Vec<Data>| {
            let pieces = datas.iter().flat_map(|data| data.pieces().iter().cloned());
            Data::Many(pieces.collect())
        };
        if answers
            .iter()
            .all(|answer| matches!(answer, Answer::Ready(_)))
        {
            let ready = answers.into_iter().filter_map(|answer| match answer {
                Answer::Ready(result) => Some(result),
                Answer::Later(_) => None,
            });
            return Answer::Ready(ready.collect::<Result<Vec<Data>>>().map(together));
        }
        Answer::later(async move {
            let datas = stream::iter(answers).map(Answer::wait).buffered(AT_ONCE);
            let datas: Vec<Data> = datas.try_collect().await?;
            Ok(together(datas))
        })
    }

    fn write(&self, offset: u64, body: &Body) -> Answer<()> {
        let len = body.len();
        let pieces = parts(self.shard_bytes(), offset, len).map(|part| {
            let at = part.shard * self.shard_bytes() + part.offset - offset;
            (part, cut(body, at, part.len))
        });
        match &self.shards {
            Shards::Whole(whole) => {
                let edit =
                    |(part, body): (Part, Body)| (part.shard, Edit::Write(part.offset, body));
                whole.change(pieces.map(edit).collect())
            }
            Shards::InPlace(in_place) => all(pieces
                .map(|(part, body)| in_place.write(part, body))
                .collect()),
        }
    }

    /// Zeroes a range: shards that are covered whole are given up, the rest is written.
    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.held().await?;
        let record = &self.pages.record;
        if flags.has(ZeroFlags::NO_HOLE) {
            return self.fill(offset, len, flags).await;
        }
        let Split { whole, edges } = split(record.shard_bytes, record.size_bytes, offset, len);
        self.zero_edges(edges, flags).await?;
        if whole.is_empty() {
            return Ok(());
        }
        if let Shards::Whole(shards) = &self.shards {
            shards.quiesce(&whole).await;
        }
        let given_up = self.pages.give_up(whole.clone()).await;
        // Also when some of them could not be.
        if let Shards::InPlace(in_place) = &self.shards {
            in_place.forget(whole);
        }
        given_up
    }

    /// Zeroes parts of shards. What can't be fast is refused before anything has changed.
    async fn zero_edges(&self, edges: Vec<Part>, flags: ZeroFlags) -> Result<()> {
        match &self.shards {
            Shards::Whole(whole) => {
                let mut edits = Vec::new();
                for part in edges {
                    if self.pages.state(part.shard).await? == State::Never {
                        continue;
                    }
                    if flags.has(ZeroFlags::FAST) {
                        return Err(slow());
                    }
                    let ends = part.shard * self.shard_bytes() + part.offset + part.len;
                    let range = match flags.has(ZeroFlags::TRIM) {
                        true => whole_units(part, ends == self.pages.record.size_bytes),
                        false => part.range(),
                    };
                    if !range.is_empty() {
                        edits.push((part.shard, Edit::Zero(range)));
                    }
                }
                whole.change(edits).wait().await
            }
            Shards::InPlace(in_place) => {
                let mut flags = flags;
                for part in edges {
                    in_place.zero(part, flags).wait().await?;
                    // From here on something has changed.
                    flags = flags.without(ZeroFlags::FAST);
                }
                Ok(())
            }
        }
    }

    /// Zeros that take space.
    async fn fill(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let parts = parts(self.shard_bytes(), offset, len);
        match &self.shards {
            Shards::Whole(_) if flags.has(ZeroFlags::FAST) => Err(slow()),
            Shards::Whole(whole) => {
                let zeros = Bytes::from(vec![0; self.shard_bytes().min(len) as usize]);
                let fill = |part: Part| {
                    let body = Body::One(zeros.clone().slice(0..part.len as usize));
                    whole.change(vec![(part.shard, Edit::Write(part.offset, body))])
                };
                let filled = stream::iter(parts.map(Ok));
                let filled = filled.try_for_each_concurrent(AT_ONCE, |part| fill(part).wait());
                filled.await
            }
            Shards::InPlace(in_place) => {
                let mut flags = flags;
                for part in parts {
                    in_place.zero(part, flags).wait().await?;
                    flags = flags.without(ZeroFlags::FAST);
                }
                Ok(())
            }
        }
    }

    /// Extents from `offset` on, as far as it can be told in good time.
    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let end = offset + len;
        let (mut at, mut looked_at) = (offset, 0);
        while at < end && looked_at < LOOKED_AT {
            let shard = at / self.shard_bytes();
            let empty = self.pages.never_from(shard);
            let state = match empty {
                0 => self.pages.state(shard).await,
                _ => Ok(State::Never),
            };
            // Where the state page is lost all of its shards are data, which can't be read.
            let lost = matches!(&state, Err(error) if error.kind == Kind::Corrupt);
            let alike = match lost {
                true => state::PAGE_SHARDS - shard % state::PAGE_SHARDS,
                false => empty.max(1),
            };
            let until = ((shard + alike) * self.shard_bytes()).min(end);
            let part = Part {
                shard,
                offset: at % self.shard_bytes(),
                len: until - at,
            };
            let room = (limit as usize - extents.len()).max(1);
            let found = match lost {
                true => one_extent(part.len, ExtentFlags::NONE),
                false => self.extents_of(part, state?, room as u32).await?,
            };
            let told: u64 = found.iter().map(|extent| extent.len).sum();
            for extent in found {
                let full = extents.len() == limit as usize;
                match extents.last_mut() {
                    Some(last) if last.flags == extent.flags => last.len += extent.len,
                    _ if full => return Ok(extents),
                    _ => extents.push(extent),
                }
            }
            // What comes next must not stand in the place of what was not told.
            if told < part.len {
                break;
            }
            (at, looked_at) = (until, looked_at + 1);
        }
        Ok(extents)
    }

    async fn extents_of(&self, part: Part, state: State, limit: u32) -> Result<Vec<Extent>> {
        let flags = match (&self.shards, state) {
            (_, State::Never) => ExtentFlags::HOLE | ExtentFlags::ZERO,
            (Shards::InPlace(in_place), state) => {
                return in_place.extents(part, state, limit).await
            }
            (Shards::Whole(_), _) => ExtentFlags::NONE,
        };
        Ok(one_extent(part.len, flags))
    }

    async fn close(&self) -> Result<()> {
        let closed = match &self.pages.writer {
            Some(writer) => self.give_back(writer).await,
            None => Ok(()),
        };
        let shards = match &self.shards {
            Shards::InPlace(in_place) => in_place.close().await,
            Shards::Whole(_) => Ok(()),
        };
        let chain = self.pages.store.chain.close().await;
        closed.and(shards).and(chain)
    }

    /// Gives the volume back with nothing open, so that the next owner need not look for it.
    async fn give_back(&self, writer: &pages::Writer) -> Result<()> {
        // Those who asked for them may be gone: no flush has waited for these.
        let is_quiet = writer.changes.are_none();
        let changed = writer.changes.close(CLOSE_TIME).await;
        let flushed = match is_quiet {
            true => Ok(()),
            false => self.durability.flush().await,
        };
        let deleted = writer.reaper.stop(CLOSE_TIME).await;
        self.pages.settle().await?;
        if !changed || !deleted {
            // What is under way might come late: nobody may take over before the lease.
            let what = if changed { "deletes" } else { "changes" };
            tracing::warn!("the store is still at work on {what}: the volume is not given back");
            return flushed;
        }
        writer.lease.release().await.and(flushed)
    }
}

fn one_extent(len: u64, flags: ExtentFlags) -> Vec<Extent> {
    vec![Extent { len, flags }]
}

fn slow() -> Error {
    Error::new(
        Kind::Unsupported,
        "parts of shards that hold data can't be zeroed fast",
    )
}

/// The units that lie in a part whole. The last one of a volume may be short: a part that reaches
/// the volume's end has it.
fn whole_units(part: Part, reaches_end: bool) -> Range<u64> {
    let range = part.range();
    let start = range.start.div_ceil(UNIT_BYTES) * UNIT_BYTES;
    let end = match reaches_end {
        true => range.end,
        false => range.end / UNIT_BYTES * UNIT_BYTES,
    };
    start..end.max(start)
}

/// One answer for many.
fn all(answers: Vec<Answer<()>>) -> Answer<()> {
    let mut later = Vec::new();
    let mut outcome = Ok(());
    for answer in answers {
        match answer {
            Answer::Ready(result) => outcome = outcome.and(result),
            Answer::Later(waiting) => later.push(waiting),
        }
    }
    if later.is_empty() {
        return Answer::Ready(outcome);
    }
    Answer::later(async move {
        let results = stream::iter(later).buffer_unordered(AT_ONCE);
        let results: Vec<Result<()>> = results.collect().await;
        results.into_iter().fold(outcome, Result::and)
    })
}

impl Sharded {
    /// Makes a change and waits for durability if that was asked for. Where the store may lose
    /// what it acknowledged, the change is recorded until it is durable.
    fn change(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
        start: impl FnOnce(Arc<Inner>) -> Answer<()> + Send + 'static,
    ) -> Answer<()> {
        let inner = self.inner.clone();
        if let Err(error) = inner.pages.writer() {
            return Answer::Ready(Err(error));
        }
        let durability = inner.durability.clone();
        let recorded = inner.may_lose.then(|| durability.writing(offset, len));
        let written = {
            let durability = durability.clone();
            move || {
                if let Some(began) = recorded {
                    durability.written(offset, len, began);
                }
            }
        };
        let answer = match inner.is_held() {
            true => start(inner),
            false => Answer::later(async move {
                inner.held().await?;
                start(inner).wait().await
            }),
        };
        match answer {
            Answer::Ready(Ok(())) if !fua => {
                written();
                Answer::Ready(Ok(()))
            }
            Answer::Ready(Err(error)) => Answer::Ready(Err(error)),
            answer => Answer::later(async move {
                answer.wait().await?;
                written();
                match fua {
                    true => durability.flush().await,
                    false => Ok(()),
                }
            }),
        }
    }
}

impl std::fmt::Debug for Sharded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sharded({})", self.record().uuid)
    }
}

impl Layout for Sharded {
    fn size(&self) -> u64 {
        self.record().size_bytes
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        if self.inner.is_held() {
            return self.inner.read(offset, len, flags);
        }
        let inner = self.inner.clone();
        Answer::later(async move {
            inner.held().await?;
            let flags = flags.without(ReadFlags::LEND_MAPPED);
            inner.read(offset, len, flags).wait().await
        })
    }

    fn write(&self, offset: u64, body: Body, fua: bool) -> Answer<()> {
        let len = body.len();
        self.change(offset, len, fua, move |inner| inner.write(offset, &body))
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
        let fua = flags.has(ZeroFlags::FUA);
        let flags = flags.without(ZeroFlags::FUA);
        self.change(offset, len, fua, move |inner| {
            let pages = inner.pages.clone();
            driven(&pages, async move { inner.zero(offset, len, flags).await })
        })
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        let inner = self.inner.clone();
        Answer::later(async move {
            inner.held().await?;
            inner.extents(offset, len, limit).await
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> Answer<()> {
        let inner = self.inner.clone();
        Answer::later(async move {
            let Shards::InPlace(in_place) = &inner.shards else {
                return Ok(());
            };
            for part in parts(inner.shard_bytes(), offset, len) {
                in_place.prefetch(part).await?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Later<()> {
        Box::pin(self.inner.durability.flush())
    }

    fn flush_means(&self) -> &'static str {
        match self.record().way {
            Way::Whole => "every shard, and the record that it was written, durable in the store",
            Way::InPlace => "every shard synced by the store, and the record that it was written",
        }
    }

    fn close(&self) -> Later<()> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.close().await })
    }

    fn ledger(&self) -> Option<Arc<dyn Ledger>> {
        let pages = &self.inner.pages;
        // Shards in place are in the page cache, which survives the process: nothing is to gain.
        let writer = pages
            .writer
            .as_ref()
            .filter(|_| pages.record.way == Way::Whole)?;
        let (store, key) = (pages.store.clone(), pages.names.journal());
        let tickets = Tickets::new(store, key, pages.record.uuid, writer.lease.clone());
        Some(Arc::new(Book(tickets)))
    }

    fn lost(&self) -> Later<()> {
        let inner = self.inner.clone();
        Box::pin(async move {
            match &inner.pages.writer {
                Some(writer) => Err(writer.lease.until_lost().await),
                None => std::future::pending().await,
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
