//! Write-back: an acknowledged change is in a journal file on this machine, and goes to the volume
//! in the background (contract C1, C4 to C6, C12 to C14, C24).
//!
//! - `unshipped`: what the volume does not have yet, in memory; reads see it first;
//! - `append`: changes on their way in, and what they wait for;
//! - `ship`: changes on their way out, in batches; `care`: when the store or the journal's disk
//!   fails;
//! - `open`: whose journal it is, and what a crash left in it; `place`: where journals are;
//! - `manage`: look at journals, give them up.

mod append;
mod care;
pub mod manage;
pub mod open;
pub mod place;
mod ship;
mod unshipped;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_journal::change::{Change, What};
use nbd_rs_journal::error::Kind as JournalKind;
use nbd_rs_journal::index::Source;
use nbd_rs_journal::Journal;
use nbd_rs_plugin::{
    Body, Bytes, Capabilities, CapabilityFlags, Data, Extent, ExtentFlags, Piece, ReadFlags,
    ZeroFlags,
};
use tokio::sync::{watch, Notify};
use tokio::task::JoinHandle;

use crate::backend::{Answer, Later};
use crate::error::{Error, Kind, Result};
use crate::layout::ledger::Ledger;
use crate::layout::Layout;
use crate::runtime;
use open::Timing;
use unshipped::Unshipped;

/// Parts of one read that are fetched from the volume at the same time.
const AT_ONCE: usize = 16;
/// Contract C2: what a crash leaves whole.
const UNIT_BYTES: u64 = 4096;

/// What a FLUSH waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushTo {
    /// The store has everything.
    #[default]
    Remote,
    /// The journal has everything, durably.
    Local,
}

/// A volume behind its journal.
pub struct Journaled {
    core: Arc<Core>,
    shipper: Mutex<Option<JoinHandle<()>>>,
}

/// What the calls and the shipper share.
struct Core {
    volume: Arc<dyn Layout>,
    ledger: Arc<dyn Ledger>,
    journal: Journal,
    unshipped: Unshipped,
    flush_to: FlushTo,
    timing: Timing,
    progress: watch::Sender<Progress>,
    /// Somebody has something for the shipper.
    wake: Notify,
    /// The record up to which somebody waits for the store.
    wanted_seq: AtomicU64,
    closing: AtomicBool,
    /// Changes that went to the volume past the journal, and how many of them a flush of it covered.
    went_past: AtomicU64,
    past_flushed: AtomicU64,
    /// The volume's store has all records up to this one, durably; unless it refused some of them,
    /// which are behind it once more, up to the second.
    in_store_seq: AtomicU64,
    refused_seq: AtomicU64,
    /// When the volume was told last how far its store is, and how far that was.
    told: Mutex<(Instant, u64)>,
    /// Bytes of the journal's ring.
    ring_bytes: u64,
    /// Rounds of the shipper that have begun.
    rounds: AtomicU64,
    /// Changes that the volume has answered.
    answers: AtomicU64,
    /// Held by a round, and by all that it sent: nothing is sent beside what an earlier one left.
    round: Arc<tokio::sync::Mutex<()>>,
    /// Held by whoever has the journal synced.
    sync_turn: Arc<tokio::sync::Mutex<()>>,
    /// Bytes appended since a sync was last begun ahead of the shipper.
    ahead_bytes: AtomicU64,
    /// Held to append, and alone by who puts changes that could not be shipped behind all others.
    /// Both write to the disk meanwhile, so nobody takes it on the runtime's own thread.
    order: RwLock<()>,
}

/// How far the shipper is.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// The store has all records up to this one, durably.
    stored_seq: u64,
    /// Rounds that failed in a row.
    failures: u32,
    /// Why the last round failed, until one succeeds.
    failure: Option<Error>,
    /// Which round that was.
    failed_round: u64,
    /// The shipper has panicked, and that is the failure.
    is_dead: bool,
    mode: Mode,
}

impl Progress {
    /// Goes on while there is a shipper.
    fn check(&self) -> Result<()> {
        match self.failure.as_ref().filter(|_| self.is_dead) {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Changes go into the journal.
    #[default]
    Journal,
    /// The journal's disk failed: they wait until the volume has what is in the journal.
    Draining,
    /// They go to the volume.
    Past,
}

/// An error of the journal's disk, for a client.
fn of_disk(error: nbd_rs_journal::error::Error) -> Error {
    let kind = match error.kind {
        JournalKind::Missing => Kind::NotFound,
        JournalKind::Foreign | JournalKind::Moved | JournalKind::Unknown | JournalKind::Invalid => {
            Kind::Invalid
        }
        JournalKind::Newer => Kind::Unsupported,
        JournalKind::Damaged => Kind::Corrupt,
        JournalKind::InUse => Kind::Busy,
        JournalKind::Full | JournalKind::NoSpace => Kind::NoSpace,
        JournalKind::Io => Kind::Io,
    };
    Error {
        errno: error.errno,
        ..Error::new(kind, error.message)
    }
}

/// Does what blocks, elsewhere.
async fn blocking<T: Send + 'static>(
    core: &Arc<Core>,
    call: impl FnOnce(&Arc<Core>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let core = core.clone();
    let task = runtime::handle().spawn_blocking(move || call(&core));
    let given_up = |_| Error::new(Kind::Io, "a call of the journal was given up");
    task.await.map_err(given_up)?
}

/// Does what blocks on the journal's disk, elsewhere.
async fn on_disk<T: Send + 'static>(
    core: &Arc<Core>,
    call: impl FnOnce(&Journal) -> nbd_rs_journal::error::Result<T> + Send + 'static,
) -> Result<T> {
    blocking(core, move |core| call(&core.journal).map_err(of_disk)).await
}

impl Journaled {
    fn new(core: Arc<Core>) -> Self {
        let shipper = runtime::handle().spawn(ship::run(core.clone()));
        Self {
            core,
            shipper: Mutex::new(Some(shipper)),
        }
    }

    fn shipper(&self) -> Option<JoinHandle<()>> {
        let mut shipper = self.shipper.lock().unwrap_or_else(PoisonError::into_inner);
        shipper.take()
    }
}

impl Drop for Journaled {
    /// Without [`close`](Layout::close) it is as after a crash: what is acknowledged is in the file.
    /// What was sent may still arrive, and nobody marks it as shipped.
    fn drop(&mut self) {
        if let Some(shipper) = self.shipper() {
            shipper.abort();
        }
    }
}

impl Core {
    fn mode(&self) -> Mode {
        self.progress.borrow().mode
    }

    /// Goes on while the volume is this server's. Where a flush needs only the journal, a store that
    /// is away is waited for as long as it takes: nothing fails that the journal will keep.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when another took over; [`Kind::Io`] if the store can't be asked for too long,
    /// and a flush needs it, or the volume is being closed.
    async fn held(&self) -> Result<()> {
        loop {
            let held = self.ledger.held().await;
            let waits = self.is_local() && !self.closing.load(Ordering::Relaxed);
            match held {
                Err(error) if waits && error.kind != Kind::Fenced => {
                    tracing::debug!("waiting for the store: {error}");
                }
                held => return held,
            }
        }
    }

    /// Waits until the volume's store has everything up to record `seq`, durably.
    async fn stored(&self, seq: u64) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let rounds = self.rounds.load(Ordering::Acquire);
        let end = Instant::now() + self.timing.flush;
        self.wanted_seq.fetch_max(seq, Ordering::Relaxed);
        self.wake.notify_one();
        loop {
            {
                let now = progress.borrow_and_update();
                now.check()?;
                if now.stored_seq >= seq {
                    return Ok(());
                }
                // One that began before this call says nothing of now.
                if let Some(failure) = now.failure.as_ref().filter(|_| now.failed_round > rounds) {
                    if !care::may_pass(failure) || Instant::now() >= end {
                        return Err(failure.clone());
                    }
                }
            }
            if self.closing.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Io, "the volume is being closed"));
            }
            self.held().await?;
            let left = end.saturating_duration_since(Instant::now());
            let patience = left.max(Duration::from_secs(1));
            // Also without news: whether the volume is still ours may be news.
            let _ = runtime::timeout(patience.min(ship::RETRY), progress.changed()).await;
        }
    }

    /// Makes record `seq` and all before it durable in the journal. One syncs at a time, in one
    /// thread, however many wait; most of them find that it was done for them as well.
    async fn synced(self: &Arc<Self>, seq: u64) -> Result<()> {
        let turn = self.sync_turn.clone().lock_owned().await;
        if self.journal.durable_seq() >= seq {
            return Ok(());
        }
        let sync = move |journal: &Journal| {
            let _turn = turn;
            journal.sync()
        };
        on_disk(self, sync).await
    }

    /// The journal notes durably that the store has everything up to record `seq`.
    async fn note_shipped(self: &Arc<Self>, seq: u64) -> Result<()> {
        let turn = self.sync_turn.clone().lock_owned().await;
        let note = move |journal: &Journal| {
            let _turn = turn;
            journal.shipped(seq).map(drop)
        };
        on_disk(self, note).await
    }

    /// Whether the journal is all that a flush needs.
    fn is_local(&self) -> bool {
        self.flush_to == FlushTo::Local && self.mode() == Mode::Journal
    }

    /// Everything acknowledged before the call is at the declared level.
    async fn flush(self: &Arc<Self>) -> Result<()> {
        self.durable(self.journal.last_seq(), true).await
    }

    /// Whether changes went past the journal that no flush of the volume has covered.
    fn owes_a_flush(&self) -> bool {
        self.went_past.load(Ordering::Acquire) > self.past_flushed.load(Ordering::Acquire)
    }

    /// Record `seq` and all before it are at the declared level; with `all`, what went past the
    /// journal, too.
    async fn durable(self: &Arc<Self>, seq: u64, all: bool) -> Result<()> {
        self.progress.borrow().check()?;
        self.held().await?;
        let went_past = self.went_past.load(Ordering::Acquire);
        let is_local = self.is_local() && self.synced(seq).await.is_ok();
        let was_stored = self.progress.borrow().stored_seq >= seq;
        if !is_local && !was_stored {
            self.stored(seq).await?;
        }
        let owes = self.owes_a_flush();
        // What the shipper stored, it flushed. With nothing to store this still finds out whether
        // the volume is ours.
        if all && (owes || was_stored && !is_local) {
            self.volume.flush().await?;
            self.past_flushed.fetch_max(went_past, Ordering::AcqRel);
        }
        // By the clock it may have been somebody else's meanwhile.
        self.held().await
    }

    /// Reads what waits, and the rest from the volume.
    fn read(self: &Arc<Self>, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        let is_local = self.flush_to == FlushTo::Local;
        let is_empty = self.unshipped.is_empty();
        if is_empty && !is_local {
            return self.volume.read(offset, len, flags);
        }
        if !self.ledger.is_held() {
            let core = self.clone();
            return Answer::later(async move {
                core.held().await?;
                let flags = flags.without(ReadFlags::LEND_MAPPED);
                core.read(offset, len, flags).wait().await
            });
        }
        if is_empty {
            return self.volume.read(offset, len, flags);
        }
        let pieces = self.unshipped.read(offset..offset + len);
        if let [piece] = &pieces[..] {
            if piece.source == Source::Store {
                return self.volume.read(offset, len, flags);
            }
        }
        self.read_pieces(pieces, flags.without(ReadFlags::LEND_MAPPED))
    }

    fn read_pieces(
        &self,
        pieces: Vec<nbd_rs_journal::index::Piece>,
        flags: ReadFlags,
    ) -> Answer<Data> {
        let answers: Vec<Answer<Data>> = pieces
            .into_iter()
            .map(|piece| {
                let len = piece.range.end - piece.range.start;
                match piece.source {
                    Source::Data(data) => Answer::Ready(Ok(Bytes::from_owner(data).into())),
                    Source::Zeros => Answer::Ready(Ok(zeros(len, flags))),
                    Source::Store => self.volume.read(piece.range.start, len, flags),
                }
            })
            .collect();
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
            Ok(together(datas.try_collect().await?))
        })
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        self.held().await?;
        let mut extents: Vec<Extent> = Vec::new();
        for piece in self.unshipped.read(offset..offset + len) {
            let len = piece.range.end - piece.range.start;
            let room = (limit as usize - extents.len()).max(1) as u32;
            let found = match piece.source {
                Source::Data(_) => vec![Extent {
                    len,
                    flags: ExtentFlags::NONE,
                }],
                Source::Zeros => {
                    let flags = ExtentFlags::HOLE | ExtentFlags::ZERO;
                    vec![Extent { len, flags }]
                }
                Source::Store => {
                    let extents = self.volume.extents(piece.range.start, len, room);
                    extents.wait().await?
                }
            };
            let told: u64 = found.iter().map(|extent| extent.len).sum();
            for extent in found {
                let is_full = extents.len() == limit as usize;
                match extents.last_mut() {
                    Some(last) if last.flags == extent.flags => last.len += extent.len,
                    _ if is_full => return Ok(extents),
                    _ => extents.push(extent),
                }
            }
            // What comes next must not stand in the place of what was not told.
            if told < len {
                break;
            }
        }
        Ok(extents)
    }
}

/// So many zeros, as a hole if the caller can use one.
fn zeros(len: u64, flags: ReadFlags) -> Data {
    match flags.has(ReadFlags::LEND_HOLES) {
        true => Data::One(Piece::Hole(len)),
        false => Bytes::from(vec![0; len as usize]).into(),
    }
}

fn together(datas: Vec<Data>) -> Data {
    let pieces = datas.iter().flat_map(|data| data.pieces().iter().cloned());
    Data::Many(pieces.collect())
}

impl Layout for Journaled {
    fn size(&self) -> u64 {
        self.core.volume.size()
    }

    /// To zero is to append a record, which is fast; past the journal the volume says whether it is.
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.core.volume.capabilities();
        capabilities.flags = capabilities.flags.with(CapabilityFlags::FAST_ZERO);
        capabilities
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        self.core.read(offset, len, flags)
    }

    fn write(&self, offset: u64, body: Body, fua: bool) -> Answer<()> {
        let change = Change::write(offset, append::kept(&body));
        let flags = match fua {
            true => ZeroFlags::FUA,
            false => ZeroFlags::NONE,
        };
        self.core.change(change, flags)
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
        let fua = flags.has(ZeroFlags::FUA);
        if flags.has(ZeroFlags::NO_HOLE) {
            return self.core.allocate(offset, len, flags);
        }
        let mut range = offset..offset + len;
        let mut what = What::Zero;
        if flags.has(ZeroFlags::TRIM) {
            what = What::Trim;
            range = append::whole_units(range, self.size());
        }
        if range.is_empty() {
            return match fua {
                true => Answer::Later(self.flush()),
                false => Answer::Ready(Ok(())),
            };
        }
        let change = Change {
            offset: range.start,
            len: range.end - range.start,
            what,
        };
        self.core.change(change, flags.without(ZeroFlags::TRIM))
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        if self.core.unshipped.is_empty() {
            return self.core.volume.extents(offset, len, limit);
        }
        let core = self.core.clone();
        Answer::later(async move { core.extents(offset, len, limit).await })
    }

    fn prefetch(&self, offset: u64, len: u64) -> Answer<()> {
        self.core.volume.prefetch(offset, len)
    }

    fn flush(&self) -> Later<()> {
        let core = self.core.clone();
        Box::pin(async move { core.flush().await })
    }

    /// Where that is the journal's affair, a store that is away has no part in it: whether the volume
    /// is still this server's is found out when it is given back.
    fn flush_at_end(&self) -> Later<()> {
        let core = self.core.clone();
        Box::pin(async move {
            let synced = core.is_local() && core.synced(core.journal.last_seq()).await.is_ok();
            match synced && !core.owes_a_flush() {
                true => core.progress.borrow().check(),
                false => core.flush().await,
            }
        })
    }

    fn close(&self) -> Later<()> {
        let (core, shipper) = (self.core.clone(), self.shipper());
        Box::pin(async move { care::close(&core, shipper).await })
    }

    fn flush_means(&self) -> &'static str {
        match self.core.flush_to {
            FlushTo::Remote => "every acknowledged write durable in the store; until a flush they may wait in this machine's journal",
            FlushTo::Local if self.core.volume.together().is_some() => "every acknowledged write durable in this machine's journal; the store follows, and is always as the volume was at some moment",
            FlushTo::Local => "every acknowledged write durable in this machine's journal; the store follows, shard by shard",
        }
    }

    fn lost(&self) -> Later<()> {
        self.core.volume.lost()
    }
}
