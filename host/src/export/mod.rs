//! What a client sees of a volume: a name, a size, what it can do, and the order of what is done.

pub mod range_lock;

use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use nbd_rs_plugin::{
    Body, Capabilities, CapabilityFlags, Data, Error, Extent, Kind, Mapped, Piece, ReadFlags,
    Result, ZeroFlags,
};

use crate::backend::Answer;
use crate::layout::Layout;
use range_lock::{RangeGuard, RangeLock};

/// The largest payload in either direction, in bytes (proto.md, "Block size constraints").
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// A volume with a name.
pub struct Export {
    /// What a client asks for; exact bytes.
    pub name: String,
    /// One line for a person.
    pub description: String,
    read_only: bool,
    size: u64,
    capabilities: Capabilities,
    layout: Arc<dyn Layout>,
    locks: RangeLock,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Export({:?})", self.name)
    }
}

/// The sizes of requests that an export takes, in bytes (`NBD_INFO_BLOCK_SIZE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Smallest size and alignment.
    pub minimum: u32,
    /// The size that serves best.
    pub preferred: u32,
    /// Largest payload.
    pub maximum: u32,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was made.
    Made,
    /// Its requester was gone before it started, so it never will (contract C3).
    Dropped,
}

/// Whoever asked for a change.
pub trait Requester: Send + Sync {
    /// Whether the connection is dead, asked right before a change starts, while its range is
    /// held. Pending as long as that is being found out: a client that hung up may have said
    /// before that it leaves.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<bool>;
}

/// Reaches the locks through the export that owns them.
#[derive(Debug, Clone)]
pub struct Locks(Arc<Export>);

impl Deref for Locks {
    type Target = RangeLock;
    fn deref(&self) -> &RangeLock {
        &self.0.locks
    }
}

/// What a read that may lend gives.
pub enum Lending {
    /// A mapping, and the hold that keeps writers off it. It must be handed to the kernel before
    /// the hold is dropped, and soon: writers wait for it.
    Lent(Mapped, RangeGuard<Locks>),
    /// An answer like any other.
    Answer(Answer<Data>),
}

impl Export {
    /// Offers `layout` under `name`.
    pub fn new(
        name: String,
        description: String,
        layout: Arc<dyn Layout>,
        read_only: bool,
    ) -> Self {
        let capabilities = layout.capabilities();
        Self {
            name,
            description,
            read_only: read_only || !capabilities.has(CapabilityFlags::WRITABLE),
            size: layout.size(),
            capabilities,
            layout,
            locks: RangeLock::default(),
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the chain can do this.
    pub fn can(&self, flags: CapabilityFlags) -> bool {
        self.capabilities.has(flags)
    }

    /// The sizes of requests that it takes.
    pub fn block_sizes(&self) -> BlockSizes {
        let power = |bytes: u32, most: u32| bytes.clamp(1, most).next_power_of_two();
        let minimum = power(self.capabilities.min_io_bytes, 64 << 10);
        let preferred = power(
            self.capabilities.preferred_io_bytes.max(4096),
            MAX_PAYLOAD_BYTES,
        );
        BlockSizes {
            minimum,
            preferred: preferred.max(minimum),
            maximum: MAX_PAYLOAD_BYTES,
        }
    }

    /// Reads `len` bytes: one state of each unit, not a mixture with a write that is going on.
    pub fn read(self: &Arc<Self>, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        if let Some(quiet) = self.locks.quiet() {
            match self.layout.read(offset, len, flags) {
                Answer::Ready(result) if self.locks.still(quiet) => return Answer::Ready(result),
                // A write began meanwhile, or the read takes its time: keep writers off it.
                Answer::Ready(_) | Answer::Later(_) => {}
            }
        }
        let export = self.clone();
        match self.locks.try_lock(offset..offset + len, false) {
            Some(guard) => {
                let guard = guard.into_owned(Locks(export));
                guarded(self.layout.read(offset, len, flags), guard)
            }
            None => Answer::later(async move {
                let _guard = export.lock(offset..offset + len, false).await;
                export.layout.read(offset, len, flags).wait().await
            }),
        }
    }

    /// Reads `len` bytes, without a copy if that can be done at once.
    pub fn read_or_lend(self: &Arc<Self>, offset: u64, len: u64, flags: ReadFlags) -> Lending {
        let Some(guard) = self.locks.try_lock(offset..offset + len, false) else {
            return Lending::Answer(self.read(offset, len, flags));
        };
        let guard = guard.into_owned(Locks(self.clone()));
        let lend = flags | ReadFlags::LEND_MAPPED;
        match self.layout.read(offset, len, lend) {
            Answer::Ready(Ok(Data::One(Piece::Mapped(mapped)))) => Lending::Lent(mapped, guard),
            // Several pieces at once can't be lent: read them.
            Answer::Ready(Ok(data)) if data.pieces().iter().any(is_mapped) => {
                let answer = self.layout.read(offset, len, flags);
                Lending::Answer(guarded(answer, guard))
            }
            answer => Lending::Answer(guarded(unlent(answer), guard)),
        }
    }

    /// Reads what was lent, this time into memory; `hold` is the hold that came with it.
    pub fn read_held(&self, hold: &RangeGuard<Locks>, offset: u64, len: u64) -> Answer<Data> {
        debug_assert!(hold.covers(offset..offset + len));
        self.layout.read(offset, len, ReadFlags::LEND_HOLES)
    }

    /// Writes `body`; with `fua`, durably.
    pub fn write<R>(
        self: &Arc<Self>,
        offset: u64,
        body: Body,
        fua: bool,
        by: &Arc<R>,
    ) -> Answer<Change>
    where
        R: Requester + 'static,
    {
        let range = offset..offset + body.len();
        self.change(range, by, move |layout| layout.write(offset, body, fua))
    }

    /// Zeroes `len` bytes.
    pub fn zero<R>(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
        by: &Arc<R>,
    ) -> Answer<Change>
    where
        R: Requester + 'static,
    {
        let range = offset..offset + len;
        self.change(range, by, move |layout| layout.zero(offset, len, flags))
    }

    /// Makes a change alone in its range. The requester is looked at once the range is held: what
    /// it sends again on another connection then queues behind (contract C3).
    fn change<R, F>(self: &Arc<Self>, range: Range<u64>, by: &Arc<R>, start: F) -> Answer<Change>
    where
        R: Requester + 'static,
        F: FnOnce(&dyn Layout) -> Answer<()> + Send + 'static,
    {
        let Some(guard) = self.locks.try_lock(range.clone(), true) else {
            let waiting = RangeLock::lock(Locks(self.clone()), range, true);
            let (export, by) = (self.clone(), by.clone());
            return Answer::later(async move {
                let guard = waiting.await;
                export.change_held(guard, &*by, start).await
            });
        };
        match by.poll_gone(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(true) => return Answer::Ready(Ok(Change::Dropped)),
            Poll::Ready(false) => {}
            Poll::Pending => {
                let guard = guard.into_owned(Locks(self.clone()));
                let (export, by) = (self.clone(), by.clone());
                return Answer::later(async move { export.change_held(guard, &*by, start).await });
            }
        }
        match start(&*self.layout) {
            Answer::Ready(result) => Answer::Ready(result.map(|()| Change::Made)),
            later => {
                let later = guarded(later, guard.into_owned(Locks(self.clone())));
                Answer::later(async move { later.wait().await.map(|()| Change::Made) })
            }
        }
    }

    /// Makes a change whose range is held, unless its requester turns out to be gone.
    async fn change_held<F>(
        &self,
        _guard: RangeGuard<Locks>,
        by: &dyn Requester,
        start: F,
    ) -> Result<Change>
    where
        F: FnOnce(&dyn Layout) -> Answer<()>,
    {
        if poll_fn(|cx| by.poll_gone(cx)).await {
            return Ok(Change::Dropped);
        }
        let answer = start(&*self.layout);
        answer.wait().await.map(|()| Change::Made)
    }

    async fn lock(self: &Arc<Self>, range: Range<u64>, exclusive: bool) -> RangeGuard<Locks> {
        RangeLock::lock(Locks(self.clone()), range, exclusive).await
    }

    /// What is allocated, from `offset` on.
    pub fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        self.layout.extents(offset, len, limit)
    }

    /// Reads ahead.
    pub fn prefetch(&self, offset: u64, len: u64) -> Answer<()> {
        self.layout.prefetch(offset, len)
    }

    /// Makes durable all that was acknowledged before, on every connection.
    pub fn flush(&self) -> Answer<()> {
        Answer::Later(self.layout.flush())
    }

    /// Keeps writers off a range.
    #[cfg(test)]
    pub(crate) fn hold(self: &Arc<Self>, range: Range<u64>) -> RangeGuard<Locks> {
        use futures_util::FutureExt;
        let held = self.lock(range, false).now_or_never();
        held.expect("nobody writes there")
    }

    /// Flushes and gives the volume back.
    ///
    /// # Errors
    /// If something acknowledged may not be durable.
    pub async fn close(&self) -> Result<()> {
        let flushed = match self.read_only {
            true => Ok(()),
            false => self.layout.flush_at_end().await,
        };
        self.release().await.and(flushed)
    }

    /// What a flush means, for people.
    pub fn flush_means(&self) -> &'static str {
        self.layout.flush_means()
    }

    /// Waits until the volume may not be served any longer: why.
    pub async fn lost(&self) -> Error {
        match self.layout.lost().await {
            Err(error) => error,
            Ok(()) => Error::new(Kind::Io, "the volume is gone"),
        }
    }

    /// Gives the volume back as it is.
    ///
    /// # Errors
    /// If something acknowledged could not be kept.
    pub async fn release(&self) -> Result<()> {
        self.layout.close().await
    }
}

/// An answer that keeps its range until it is there.
fn guarded<T: Send + 'static>(answer: Answer<T>, guard: RangeGuard<Locks>) -> Answer<T> {
    match answer {
        Answer::Ready(result) => Answer::Ready(result),
        Answer::Later(later) => Answer::later(async move {
            let result = later.await;
            drop(guard);
            result
        }),
    }
}

/// An answer that comes later can't be lent: a mapping in it would be sent as something else.
fn unlent(answer: Answer<Data>) -> Answer<Data> {
    match answer {
        Answer::Ready(result) => Answer::Ready(result),
        Answer::Later(later) => Answer::later(async move {
            let data = later.await?;
            match data.pieces().iter().any(is_mapped) {
                true => Err(Error::new(Kind::Io, "a mapping was lent too late")),
                false => Ok(data),
            }
        }),
    }
}

fn is_mapped(piece: &Piece) -> bool {
    matches!(piece, Piece::Mapped(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::{self, Faults};
    use crate::layout::raw::Raw;
    use crate::runtime::block_on;
    use futures_util::FutureExt;
    use nbd_rs_plugin::{Bytes, ObjectFlags, ObjectMode};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Client {
        gone: AtomicBool,
        unknown: AtomicBool,
    }

    impl Client {
        fn set_gone(&self) {
            self.gone.store(true, Ordering::Relaxed);
        }

        fn set_unknown(&self, unknown: bool) {
            self.unknown.store(unknown, Ordering::Relaxed);
        }
    }

    impl Requester for Client {
        fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<bool> {
            if self.unknown.load(Ordering::Relaxed) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(self.gone.load(Ordering::Relaxed))
        }
    }

    fn export() -> (Arc<Export>, Arc<Faults>) {
        let (chain, faults) = memory::chain(vec![0; 8192]);
        let layout = block_on(async {
            let mode = ObjectMode::new(ObjectFlags::WRITE);
            let object = chain.open_object("", mode).await.unwrap();
            Raw::new(chain, object).await.unwrap()
        });
        let export = Export::new("x".into(), String::new(), Arc::new(layout), false);
        (Arc::new(export), faults)
    }

    fn body(byte: u8, len: usize) -> Body {
        Body::One(Bytes::from(vec![byte; len]))
    }

    fn read(export: &Arc<Export>, offset: u64, len: u64) -> Vec<u8> {
        let data = block_on(export.read(offset, len, ReadFlags::NONE).wait()).unwrap();
        let pieces = data.pieces().iter().map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.to_vec(),
            other => panic!("not asked for: {other:?}"),
        });
        pieces.collect::<Vec<_>>().concat()
    }

    #[test]
    fn c03_a_change_whose_client_is_gone_before_it_starts_never_happens() {
        let (export, faults) = export();
        let gone = Arc::new(Client::default());
        gone.set_gone();
        let answer = block_on(export.write(0, body(1, 512), false, &gone).wait());
        assert_eq!(answer.unwrap(), Change::Dropped);
        // The same for one that had to wait for another.
        faults.slow.store(true, Ordering::Relaxed);
        let (first, second) = (Arc::new(Client::default()), Arc::new(Client::default()));
        let slow = export.write(0, body(2, 512), false, &first).wait();
        let queued = export.write(256, body(3, 512), false, &second).wait();
        second.set_gone();
        assert_eq!(block_on(slow).unwrap(), Change::Made);
        assert_eq!(block_on(queued).unwrap(), Change::Dropped);
        assert_eq!(read(&export, 0, 768), [vec![2; 512], vec![0; 256]].concat());
    }

    #[test]
    fn c03_overlapping_changes_take_effect_in_the_order_they_came() {
        let (export, faults) = export();
        faults.slow.store(true, Ordering::Relaxed);
        let client = Arc::new(Client::default());
        let first = export.write(0, body(1, 1024), false, &client);
        faults.slow.store(false, Ordering::Relaxed);
        let second = export.zero(512, 1024, ZeroFlags::NONE, &client);
        let apart = export.write(4096, body(4, 512), false, &client);
        assert!(matches!(apart, Answer::Ready(Ok(Change::Made))));
        let mut second = Box::pin(second.wait());
        assert!((&mut second).now_or_never().is_none());
        block_on(first.wait()).unwrap();
        block_on(second).unwrap();
        assert_eq!(
            read(&export, 0, 1024),
            [vec![1; 512], vec![0; 512]].concat()
        );
    }

    /// Found by fuzzing: a client wrote twice to one place, said goodbye and hung up. The first
    /// write had come to its turn before the goodbye was read, gave the turn back to look for it,
    /// and was made behind the second.
    #[test]
    fn c03_a_change_keeps_its_turn_while_its_clients_fate_is_found_out() {
        let (export, faults) = export();
        faults.slow.store(true, Ordering::Relaxed);
        let (other, client) = (Arc::new(Client::default()), Arc::new(Client::default()));
        let before = export.write(0, body(1, 512), false, &other).wait();
        let mut first = Box::pin(export.write(0, body(2, 512), false, &client).wait());
        let mut second = Box::pin(export.zero(0, 256, ZeroFlags::NONE, &client).wait());
        client.set_unknown(true);
        block_on(before).unwrap();
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        // One that finds its range free waits as well, and keeps others out.
        let mut third = Box::pin(export.write(4096, body(3, 512), false, &client).wait());
        assert!((&mut third).now_or_never().is_none());
        let mut fourth = Box::pin(export.write(4096, body(4, 256), false, &other).wait());
        assert!((&mut fourth).now_or_never().is_none());
        client.set_unknown(false);
        let all = futures_util::future::join4(fourth, third, second, first);
        let (fourth, third, second, first) = block_on(all);
        for made in [first, second, third, fourth] {
            assert_eq!(made.unwrap(), Change::Made);
        }
        assert_eq!(read(&export, 0, 512), [[0; 256], [2; 256]].concat());
        assert_eq!(read(&export, 4096, 512), [[4; 256], [3; 256]].concat());
    }

    #[test]
    fn c01_a_read_waits_for_a_write_that_has_begun_there() {
        let (export, faults) = export();
        faults.slow.store(true, Ordering::Relaxed);
        let client = Arc::new(Client::default());
        let write = export.write(0, body(7, 512), false, &client);
        let mut read = Box::pin(export.read(0, 512, ReadFlags::NONE).wait());
        assert!((&mut read).now_or_never().is_none());
        block_on(write.wait()).unwrap();
        assert_eq!(block_on(read).unwrap().len(), 512);
        assert_eq!(super::tests::read(&export, 0, 1), [7]);
    }

    #[test]
    fn c06_fua_answers_only_when_the_sync_has_succeeded() {
        let (export, faults) = export();
        let client = Arc::new(Client::default());
        faults.failing_syncs.store(1, Ordering::Relaxed);
        let failed = block_on(export.write(0, body(1, 512), true, &client).wait());
        assert!(failed.is_err());
        // Another range does not mend it, the same one does.
        assert!(block_on(export.write(512, body(1, 512), true, &client).wait()).is_err());
        block_on(export.write(0, body(1, 512), true, &client).wait()).unwrap();
        block_on(export.flush().wait()).unwrap();
    }
}
