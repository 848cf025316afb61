//! The shipper is not answered, is given up, or panics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nbd_rs_plugin::{Body, Capabilities, Data, Extent, ReadFlags};

use super::super::care;
use super::super::open::Timing;
use super::*;
use crate::backend::{Answer, Later};
use crate::error::Kind;
use crate::layout::ledger::Ledger;

/// Whoever waits longer hangs.
const LONG: Duration = Duration::from_secs(60);

pub(super) fn impatient(flush_to: FlushTo) -> How {
    let short = Duration::from_millis(300);
    How {
        timing: Timing {
            flush: short,
            close: short,
            sent: short,
            give_back: short,
        },
        ..how(flush_to)
    }
}

/// Found by reading: nobody was told, and flushes waited for ever.
#[test]
fn c05_flushes_are_told_of_a_store_that_never_answers() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &impatient(FlushTo::Remote)).await;
        let held = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, 100).await.unwrap();
        for _ in 0..2 {
            let flush = runtime::timeout(LONG, server.volume.flush()).await;
            let error = flush.expect("it does not hang").unwrap_err();
            assert_eq!(error.kind, Kind::Timeout, "{error}");
        }
        // Writers need no store, and nothing was sent beside what is on its way.
        write(&server.volume, 0, 2, 50).await.unwrap();
        drop(held);
        server.volume.flush().await.unwrap();
        let expected = [[2; 50], [1; 50]].concat();
        assert_eq!(stored(&store, 0, 100).await, expected);
        server.volume.close().await.unwrap();
    });
}

/// Found by reading: what a shipper that was given up had sent went on beside what was sent anew.
#[test]
fn c23_nothing_is_sent_or_marked_while_what_was_given_up_is_on_its_way() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &impatient(FlushTo::Local)).await;
        let core = server.volume.core.clone();
        let held = server.rig.hold("/shard/");
        // Enough for a batch.
        for n in 0..RING_BYTES / 8 / SHARD + 1 {
            write(&server.volume, n * SHARD, 1, SHARD).await.unwrap();
        }
        while core.round.try_lock().is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let until = Instant::now() + core.timing.close;
        assert!(!care::end(&core, server.volume.shipper(), until).await);
        let beside = core.ship_all(true).await.unwrap_err();
        assert_eq!(beside.kind, Kind::Busy);
        drop(held);
        drop(core.round.lock().await);
        // It has arrived, and nobody has taken note.
        assert_eq!(stored(&store, 0, 100).await, [1; 100]);
        let marked = (core.progress.borrow().stored_seq, core.journal.ticket());
        assert_eq!((marked.0, marked.1.shipped_seq), (0, 0));
        assert!(care::end(&core, None, until).await);
        drop(core);
        server.volume.close().await.unwrap();
        server.abandon().await;
        let server = Server::start(&store, &disk, &how(FlushTo::Local)).await;
        let read = read(&server.volume, 0, 2 * SHARD).await.unwrap();
        assert!(read == vec![1; 2 * SHARD as usize]);
        server.volume.close().await.unwrap();
    });
}

/// A volume with a bug in its writes.
struct Buggy {
    volume: Arc<dyn Layout>,
    panics: AtomicBool,
}

impl Layout for Buggy {
    fn size(&self) -> u64 {
        self.volume.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.volume.capabilities()
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        self.volume.read(offset, len, flags)
    }

    fn write(&self, offset: u64, body: Body, fua: bool) -> Answer<()> {
        assert!(!self.panics.load(Ordering::Relaxed), "this is the bug");
        self.volume.write(offset, body, fua)
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
        self.volume.zero(offset, len, flags)
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        self.volume.extents(offset, len, limit)
    }

    fn prefetch(&self, offset: u64, len: u64) -> Answer<()> {
        self.volume.prefetch(offset, len)
    }

    fn flush(&self) -> Later<()> {
        self.volume.flush()
    }

    fn close(&self) -> Later<()> {
        self.volume.close()
    }

    fn flush_means(&self) -> &'static str {
        self.volume.flush_means()
    }

    fn ledger(&self) -> Option<Arc<dyn Ledger>> {
        self.volume.ledger()
    }
}

#[test]
fn c05_a_panic_of_the_shipper_is_told_to_all_who_write_and_flush() {
    runtime::block_on(async {
        for flush_to in [FlushTo::Remote, FlushTo::Local] {
            let (store, disk) = (new_volume().await, empty_disk());
            let chain = Rig::new(&store).chain();
            let buggy = Arc::new(Buggy {
                volume: Arc::new(manage::open(chain, sharded::how()).await.unwrap()),
                panics: AtomicBool::new(false),
            });
            let volume: Arc<dyn Layout> = buggy.clone();
            let ledger = volume.ledger().unwrap();
            let (how, site) = (how(flush_to), site(&disk, 1));
            let journaled = open_at(&volume, ledger, &how, &site).await.unwrap();
            write(&journaled, 0, 1, 100).await.unwrap();
            buggy.panics.store(true, Ordering::Relaxed);
            let shipped = runtime::timeout(LONG, journaled.core.stored(1)).await;
            let told = shipped.expect("it does not hang").unwrap_err();
            assert_eq!(told.kind, Kind::Panic, "{told}");
            // For good.
            buggy.panics.store(false, Ordering::Relaxed);
            for _ in 0..2 {
                assert_eq!(journaled.flush().await.unwrap_err(), told);
                let refused = write(&journaled, 0, 2, 100).await;
                assert_eq!(refused.unwrap_err(), told);
            }
            assert_eq!(read(&journaled, 0, 100).await.unwrap(), [1; 100]);
            assert_eq!(journaled.close().await.unwrap_err(), told);
            drop(journaled);
            // The next start has it all.
            let server = Server::start(&store, &disk, &how).await;
            assert_eq!(stored(&store, 0, 100).await, [1; 100]);
            server.volume.close().await.unwrap();
        }
    });
}
