//! Shards that are put whole: reads are verified, changes of one shard go together in its next put
//! (contract C2, C10, C11, C25).

use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_rs_plugin::{Body, Condition, Data, GetFlags, Range, ReadFlags};
use tokio::sync::Semaphore;

use super::changes::UnderWay;
use super::fetch::{self, damaged, gone, Loaded};
use super::image::{self, Base, Edit, Label};
use super::pages::{Intended, Pages, Writer};
use super::queue::Queues;
use super::state::State;
use super::store::{back_off, may_pass, ATTEMPTS};
use super::trailer::{Trailer, UNIT_BYTES};
use super::trailers::{Known, Trailers};
use super::{given_up, zeros};
use crate::backend::Answer;
use crate::error::{Error, Kind, Result};
use crate::layout::split::Part;
use crate::runtime;

/// Memory for trailers, in bytes.
const TRAILER_BYTES: usize = 8 << 20;
/// Memory for shards that are being changed, in bytes; one is changed whatever its size.
const CHANGING_BYTES: u64 = 16 << 20;
/// Changes that go on at the same time, at the most.
const MOST_CHANGING: u64 = 48;
/// A put waits for company until nobody came for so long.
const COMPANY: Duration = Duration::from_millis(2);
/// It waits so long at the most.
const MOST_COMPANY: Duration = Duration::from_millis(50);
/// How often a change is merged again with what it finds on the store.
const MERGES: u32 = 4;

/// The shards of a volume.
pub(super) struct Whole {
    pages: Arc<Pages>,
    trailers: Trailers,
    queues: Queues,
    /// Memory for shards that are being changed, in parts of `CHANGING_BYTES / MOST_CHANGING`.
    room: Semaphore,
}

/// Why a put did not happen.
enum Refused {
    /// Another object lies there than was expected: look again.
    Conflict,
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Failed(error)
    }
}

impl Whole {
    pub(super) fn new(pages: Arc<Pages>) -> Arc<Self> {
        Arc::new(Self {
            pages,
            trailers: Trailers::new(TRAILER_BYTES),
            queues: Queues::default(),
            room: Semaphore::new(MOST_CHANGING as usize),
        })
    }

    /// A trailer was read from the store: that of a newer owner means that we are out. `false` for
    /// one that is older than another that was put or read before.
    fn learn(&self, known: Known) -> Result<bool> {
        let (shard, epoch) = (known.trailer.shard, known.trailer.stamp.epoch);
        if let Some(writer) = &self.pages.writer {
            if epoch > writer.lease.epoch() {
                let text = format!("shard {shard} was put by epoch {epoch}");
                return Err(writer.lease.lose(text));
            }
        }
        let newer = |last: Known| last.trailer.stamp > known.trailer.stamp;
        if self.trailers.get(shard).is_some_and(newer) {
            return Ok(false);
        }
        self.trailers.insert(shard, known);
        Ok(true)
    }

    /// Reads a part of a shard.
    pub(super) fn read(self: &Arc<Self>, part: Part, flags: ReadFlags) -> Answer<Data> {
        match self.pages.peek(part.shard) {
            Some(State::Never) => Answer::Ready(Ok(zeros(part.len, flags))),
            Some(_) => match self.trailers.get(part.shard) {
                Some(known) => self.read_known(part, &known, flags),
                None => self.read_slowly(part, flags),
            },
            None => self.read_slowly(part, flags),
        }
    }

    /// Reads a part whose checksums are at hand.
    fn read_known(self: &Arc<Self>, part: Part, known: &Known, flags: ReadFlags) -> Answer<Data> {
        let units = fetch::units_of(part);
        let len = (units.end - units.start) * UNIT_BYTES;
        let range = Range::new(units.start * UNIT_BYTES, len);
        let key = self.pages.names.shard(part.shard);
        match self.pages.store.chain.get(key, range, GetFlags::WANT_META) {
            Answer::Ready(Ok(got)) => match fetch::verified(known, part, &got) {
                Some(data) => Answer::Ready(Ok(data)),
                None => self.read_again(part, flags),
            },
            Answer::Ready(Err(_)) => self.read_again(part, flags),
            Answer::Later(later) => {
                let (whole, known) = (self.clone(), known.clone());
                Answer::later(async move {
                    match later.await.map(|got| fetch::verified(&known, part, &got)) {
                        Ok(Some(data)) => Ok(data),
                        _ => whole.read_again(part, flags).wait().await,
                    }
                })
            }
        }
    }

    /// Reads a part whose checksums must be fetched first.
    fn read_slowly(self: &Arc<Self>, part: Part, flags: ReadFlags) -> Answer<Data> {
        let whole = self.clone();
        Answer::later(async move {
            let pages = &whole.pages;
            if pages.state(part.shard).await? == State::Never {
                return Ok(zeros(part.len, flags));
            }
            // Most of it: all of it, and the checksums come along.
            if part.len * 2 > pages.record.shard_bytes {
                if let Ok(Some((data, known))) = fetch::most(pages, part).await {
                    if whole.learn(known)? {
                        return Ok(data);
                    }
                }
            } else if let Ok(Some(known)) = fetch::trailer(pages, part.shard, GetFlags::NONE).await
            {
                if whole.learn(known.clone())? {
                    return whole.read_known(part, &known, flags).wait().await;
                }
            }
            whole.read_again(part, flags).wait().await
        })
    }

    /// Reads from the store itself while no put of the shard is going on: what is wrong then is
    /// wrong there. A task of its own, so that the turn comes to its end.
    fn read_again(self: &Arc<Self>, part: Part, flags: ReadFlags) -> Answer<Data> {
        let whole = self.clone();
        Answer::later(async move {
            let task = runtime::handle().spawn(async move {
                let _turn = whole.queues.turn(part.shard).await;
                let mut attempt = 0;
                while let Some((data, known)) = fetch::part(&whole.pages, part).await? {
                    if whole.learn(known)? {
                        return Ok(data);
                    }
                    wait_for_newer(part.shard, &mut attempt).await?;
                }
                match whole.pages.state(part.shard).await? {
                    State::Written => Err(gone(part.shard)),
                    _ => {
                        whole.pages.is_absent(part.shard);
                        Ok(zeros(part.len, flags))
                    }
                }
            });
            task.await.unwrap_or_else(|_| Err(given_up()))
        })
    }

    /// Changes parts of shards; nothing starts before the first poll, and then all of it comes to
    /// its end, whether or not somebody waits.
    pub(super) fn change(self: &Arc<Self>, edits: Vec<(u64, Edit)>) -> Answer<()> {
        let whole = self.clone();
        Answer::later(async move {
            let under_way = whole.pages.writer()?.changes.begin()?;
            let mut answers = Vec::with_capacity(edits.len());
            for (shard, edit) in edits {
                let (answer, serve) = whole.queues.push(shard, edit);
                if serve {
                    let serving = whole.clone().serve(shard, under_way.clone());
                    runtime::handle().spawn(serving);
                }
                answers.push(answer);
            }
            let mut outcome = Ok(());
            for answer in answers {
                outcome = outcome.and(answer.await.unwrap_or_else(|| Err(given_up())));
            }
            outcome
        })
    }

    #[cfg(test)]
    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Waits until nobody is at these shards.
    pub(super) async fn quiesce(&self, shards: &std::ops::Range<u64>) {
        for shard in self.queues.busy(shards) {
            drop(self.queues.turn(shard).await);
        }
    }

    /// Carries out what waits for a shard, until nothing does.
    async fn serve(self: Arc<Self>, shard: u64, _under_way: UnderWay) {
        let mut serving = self.queues.serve(shard);
        loop {
            let _turn = self.queues.turn(shard).await;
            let (mut edits, mut waiters) = (Vec::new(), Vec::new());
            // That may take long, so it comes before there is memory for it.
            let cleared = match self.queues.are_zeroes(shard) {
                true => Ok(()),
                false => self.pages.clear(shard).await,
            };
            self.wait_for_company(shard).await;
            let room = self.room.acquire_many(self.room_for(shard)).await;
            let mut more = || {
                let from = edits.len();
                for (edit, waiter) in self.queues.take(shard) {
                    edits.push(edit);
                    waiters.push(waiter);
                }
                edits[from..].to_vec()
            };
            let outcome = match cleared.and(room.map_err(|_| given_up())) {
                Ok(_room) => self.commit(shard, &mut more).await,
                Err(error) => {
                    more();
                    Err(error)
                }
            };
            for waiter in waiters {
                // Who went away does not want to know.
                let _ = waiter.send(outcome.clone());
            }
            if serving.leave() {
                return;
            }
        }
    }

    /// What the change of a shard takes, in parts of the room. A shard is in memory once: it is
    /// copied into the buffer that it is changed in and put from, and that twice for a moment only,
    /// on the one thread that works in the background. What clients sent is theirs.
    fn room_for(&self, shard: u64) -> u32 {
        let shard_bytes = self.pages.record.shard_bytes;
        let bytes = match self.queues.are_lent(shard, shard_bytes) {
            true => 0,
            false => shard_bytes,
        };
        let part_bytes = CHANGING_BYTES / MOST_CHANGING;
        bytes.div_ceil(part_bytes).clamp(1, MOST_CHANGING) as u32
    }

    /// A put of a few bytes costs as much as one of the whole shard, so the neighbours of a change
    /// that are on their way are waited for.
    async fn wait_for_company(&self, shard: u64) {
        let len = self.shard_len(shard);
        let latest = Instant::now() + MOST_COMPANY;
        let (mut before, mut complete) = self.queues.waiting(shard, len);
        while !complete && Instant::now() < latest {
            tokio::time::sleep(COMPANY).await;
            let (now, covered) = self.queues.waiting(shard, len);
            if now == before {
                return;
            }
            (before, complete) = (now, covered);
        }
    }

    /// Makes the changes that `more` gives; it is asked as late as can be.
    async fn commit(&self, shard: u64, more: &mut (dyn FnMut() -> Vec<Edit> + Send)) -> Result<()> {
        let mut edits = more();
        let writer = self.pages.writer()?;
        writer.lease.held().await?;
        let zeroes = edits.iter().all(|edit| matches!(edit, Edit::Zero(_)));
        if zeroes && self.pages.state(shard).await? == State::Never {
            return Ok(());
        }
        let intended = self.pages.intend(shard).await?;
        for attempt in 0..MERGES {
            let (base, condition) = self.base(shard, &intended, &edits, attempt > 0).await?;
            edits.extend(more());
            if let Some(unit) = base.as_ref().and_then(|base| spoilt(base, &edits)) {
                return Err(damaged(&self.pages, shard, unit));
            }
            let label = Label {
                uuid: self.pages.record.uuid,
                shard,
                stamp: writer.lease.stamp(),
            };
            let base = base.map_or(Base::Zeros, |base| {
                Base::Shard(base.data, base.known.trailer.checksums.clone())
            });
            let shard_bytes = self.pages.record.shard_bytes;
            let (data, trailer) = image::build(label, shard_bytes, base, &edits);
            intended.putting()?;
            match self.put(writer, data, &trailer, condition).await {
                Ok(etag) => {
                    self.pages.was_put(&intended);
                    let (etag, trailer) = (etag.as_str().into(), Arc::new(trailer));
                    self.trailers.insert(shard, Known { etag, trailer });
                    return writer.lease.held().await;
                }
                Err(Refused::Conflict) => self.trailers.remove(shard),
                Err(Refused::Failed(error)) => {
                    self.trailers.remove(shard);
                    return Err(error);
                }
            }
        }
        let text = format!("shard {shard}: others keep putting it");
        Err(Error::new(Kind::Io, text))
    }

    /// What the shard holds, if that matters, and the condition under which it may be replaced.
    async fn base(
        &self,
        shard: u64,
        intended: &Intended,
        edits: &[Edit],
        again: bool,
    ) -> Result<(Option<Loaded>, Condition)> {
        let store = &self.pages.store;
        let never = intended.before == State::Never;
        if never && !again {
            return Ok((None, store.if_absent()));
        }
        if never || image::covers(edits, self.shard_len(shard)) {
            let etag = self.etag(shard, again).await?;
            let condition = etag.map_or(store.if_absent(), |etag| store.if_match(&etag));
            return Ok((None, condition));
        }
        match self.load(shard, again).await? {
            Some(loaded) => {
                let condition = store.if_match(&loaded.known.etag);
                Ok((Some(loaded), condition))
            }
            None if intended.before == State::Written => Err(gone(shard)),
            None => Ok((None, store.if_absent())),
        }
    }

    /// The ETag of a shard that is replaced; `None` if there is no object.
    async fn etag(&self, shard: u64, again: bool) -> Result<Option<String>> {
        if !again {
            if let Some(known) = self.trailers.get(shard) {
                return Ok(Some(known.etag.to_string()));
            }
        }
        match fetch::trailer(&self.pages, shard, GetFlags::FRESH).await {
            Ok(Some(known)) => {
                let etag = known.etag.to_string();
                match self.learn(known)? {
                    true => Ok(Some(etag)),
                    false => Err(older(shard)),
                }
            }
            Ok(None) => Ok(None),
            // What is damaged may be replaced by its owner, who is asked for.
            Err(error) if error.kind == Kind::Corrupt => {
                self.pages.writer()?.lease.confirm().await?;
                let meta = self.pages.store.head(self.pages.names.shard(shard)).await?;
                Ok(meta.map(|meta| meta.etag.into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes of a shard that the volume has.
    fn shard_len(&self, shard: u64) -> u64 {
        let record = &self.pages.record;
        (record.size_bytes - shard * record.shard_bytes).min(record.shard_bytes)
    }

    /// The whole shard; if something is wrong with it, once more from the store itself.
    async fn load(&self, shard: u64, fresh: bool) -> Result<Option<Loaded>> {
        if !fresh {
            match fetch::load(&self.pages, shard, GetFlags::NONE).await {
                Ok(Some(loaded)) if loaded.damaged.is_empty() => {
                    if self.learn(loaded.known.clone())? {
                        return Ok(Some(loaded));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind == Kind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        let mut attempt = 0;
        loop {
            match fetch::load(&self.pages, shard, GetFlags::FRESH).await? {
                Some(loaded) if !self.learn(loaded.known.clone())? => {
                    wait_for_newer(shard, &mut attempt).await?;
                }
                loaded => return Ok(loaded),
            }
        }
    }

    /// Puts a shard. An unknown outcome is asked again until it is known: no two puts have the
    /// same stamp, so what is found there is ours or not.
    async fn put(
        &self,
        writer: &Writer,
        data: Body,
        trailer: &Trailer,
        condition: Condition,
    ) -> Result<String, Refused> {
        let store = &self.pages.store;
        let key = self.pages.names.shard(trailer.shard);
        let object = image::object(&data, trailer);
        let mut attempt = 0;
        loop {
            let put = store.put(&key, object.clone(), condition.clone());
            match put.await {
                Ok(etag) => return Ok(etag),
                Err(error) if may_pass(&error) && attempt + 1 < ATTEMPTS => {
                    back_off(attempt).await;
                    attempt += 1;
                    writer.lease.held().await?;
                }
                Err(error) if matches!(error.kind, Kind::Exists | Kind::Precondition) => {
                    return self.whose(writer, trailer).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The condition did not hold. Is it our own put that lies there, or are we out?
    async fn whose(&self, writer: &Writer, ours: &Trailer) -> Result<String, Refused> {
        let found = fetch::trailer(&self.pages, ours.shard, GetFlags::FRESH).await;
        match found {
            Ok(Some(known)) if known.trailer.stamp == ours.stamp => Ok(known.etag.to_string()),
            Ok(Some(known)) => {
                if !self.learn(known)? {
                    return Err(older(ours.shard).into());
                }
                writer.lease.confirm().await?;
                Err(Refused::Conflict)
            }
            Err(error) if error.kind != Kind::Corrupt => Err(error.into()),
            _ => {
                writer.lease.confirm().await?;
                Err(Refused::Conflict)
            }
        }
    }
}

/// The store gave an older version of a shard than before: it lost a put that it acknowledged, or
/// does not show it yet. Old data is no answer, so it gets some time, and not for ever.
async fn wait_for_newer(shard: u64, attempt: &mut u32) -> Result<()> {
    if *attempt == ATTEMPTS {
        return Err(older(shard));
    }
    back_off(*attempt).await;
    *attempt += 1;
    Ok(())
}

fn older(shard: u64) -> Error {
    let text = format!("shard {shard}: the store gives an older version than the last one");
    Error::new(Kind::Io, text)
}

/// A damaged unit that would be changed in part: its checksum would then vouch for the damage.
/// One that is not changed keeps its checksum, and stays damaged; one that is replaced is mended.
fn spoilt(base: &Loaded, edits: &[Edit]) -> Option<u64> {
    let in_part = |unit: u64| {
        let (start, end) = (unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES);
        let touches = |edit: &Edit| edit.range().start < end && edit.range().end > start;
        let touching: Vec<Edit> = edits.iter().filter(|edit| touches(edit)).cloned().collect();
        !touching.is_empty() && !image::covers_range(&touching, start..end)
    };
    base.damaged.iter().copied().find(|&unit| in_part(unit))
}
