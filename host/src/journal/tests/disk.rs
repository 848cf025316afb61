//! The journal's disk fails, is full, or is somebody else's.

use std::sync::mpsc;

use nbd_rs_recorder_disk::Faults;

use super::super::open::{open, Place};
use super::super::Mode;
use super::*;
use crate::error::Kind;

const EVERYTHING_FAILS: Faults = Faults {
    syncs: u32::MAX,
    writes: u32::MAX,
    creates: u32::MAX,
    name_syncs: u32::MAX,
    errno: 0,
    lies: 0,
};

async fn until_mode(server: &Server, mode: Mode) {
    for _ in 0..1000 {
        if server.volume.core.mode() == mode {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is in mode {:?}", server.volume.core.mode());
}

#[test]
fn f10_writes_go_past_a_journal_whose_disk_is_gone_and_are_durable_in_the_store() {
    runtime::block_on(async {
        for flush_to in [FlushTo::Remote, FlushTo::Local] {
            let (store, disk) = (new_volume().await, empty_disk());
            let server = Server::start(&store, &disk, &how(flush_to)).await;
            write(&server.volume, 0, 1, 100).await.unwrap();
            disk.fail(EVERYTHING_FAILS);
            write(&server.volume, 50, 2, 100).await.unwrap();
            server.volume.flush().await.unwrap();
            until_mode(&server, Mode::Past).await;
            let expected = [[1; 50].as_slice(), &[2; 100]].concat();
            assert_eq!(stored(&store, 0, 150).await, expected);
            write(&server.volume, 0, 3, 10).await.unwrap();
            assert_eq!(stored(&store, 0, 10).await, [3; 10], "before its answer");
            server.kill().await;
        }
    });
}

/// Found by reading: the journal kept records that were older than what had gone past it, and a
/// restart shipped them.
#[test]
fn c12_what_went_past_a_failed_journal_is_not_undone_by_it_after_a_restart() {
    runtime::block_on(async {
        for is_killed in [true, false] {
            let (store, disk) = (new_volume().await, empty_disk());
            let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
            let held = server.rig.hold("/shard/");
            write(&server.volume, 0, 1, 100).await.unwrap();
            disk.fail(EVERYTHING_FAILS);
            drop(held);
            write(&server.volume, 0, 2, 100).await.unwrap();
            server.volume.flush().await.unwrap();
            until_mode(&server, Mode::Past).await;
            match is_killed {
                true => server.kill().await,
                false => {
                    server.volume.close().await.unwrap();
                    server.abandon().await;
                }
            }
            // The disk works again, and has what it had.
            let disk = disk.after_kill(disk.moment());
            let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
            assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
            write(&server.volume, 0, 3, 100).await.unwrap();
            server.kill().await;
            let disk = disk.after_kill(disk.moment());
            let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
            assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [3; 100]);
            server.volume.close().await.unwrap();
        }
    });
}

/// The same with the power, which takes the end of the journal along: the store has everything.
#[test]
fn f21_a_journal_that_was_passed_by_and_lost_its_end_is_not_asked_for() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        for n in 1..20 {
            write(&server.volume, n * 100, 1, 100).await.unwrap();
        }
        disk.fail(EVERYTHING_FAILS);
        write(&server.volume, 0, 2, 100).await.unwrap();
        server.volume.flush().await.unwrap();
        until_mode(&server, Mode::Past).await;
        server.kill().await;
        let left = Recorder::start(disk.power_cut_at_its_worst());
        let (site, how) = (site(&left, 2), how(FlushTo::Remote));
        let server = Server::try_start(&store, &site, &how).await.unwrap();
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
        assert_eq!(read(&server.volume, 1900, 100).await.unwrap(), [1; 100]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn f10_a_journal_whose_disk_works_again_is_used_again() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        disk.fail(EVERYTHING_FAILS);
        write(&server.volume, 0, 1, 100).await.unwrap();
        until_mode(&server, Mode::Past).await;
        disk.fail(Faults::default());
        // It is tried again when somebody has something, too.
        server.volume.core.wake.notify_one();
        until_mode(&server, Mode::Journal).await;
        let _held = server.rig.hold("/shard/");
        write(&server.volume, 0, 2, 100).await.unwrap();
        server.kill().await;
        let disk = disk.after_kill(disk.moment());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c05_with_disk_and_store_gone_nothing_is_called_durable() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Local)).await;
        write(&server.volume, 0, 1, 100).await.unwrap();
        disk.fail(EVERYTHING_FAILS);
        for _ in 0..20 {
            server
                .rig
                .fault("/shard/", sharded::rig::Fault::Fails(Kind::Denied));
        }
        for _ in 0..3 {
            assert_eq!(server.volume.flush().await.unwrap_err().kind, Kind::Denied);
        }
        server.rig.no_faults();
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, 100).await, [1; 100]);
        server.kill().await;
    });
}

#[test]
fn f71_a_journal_that_is_not_the_one_is_refused_with_advice() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let _held = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, 100).await.unwrap();
        server.kill().await;
        let moved = Site {
            host: Uuid([9; 16]),
            ..site(&disk, 1)
        };
        let refused = Server::try_start(&store, &moved, &how(FlushTo::Remote)).await;
        let refused = refused.err().expect("another machine");
        assert!(refused.message.contains("--journal-moved"), "{refused}");
        let told = How {
            moved: true,
            ..how(FlushTo::Remote)
        };
        let server = Server::try_start(&store, &moved, &told).await.unwrap();
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [1; 100]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c24_a_full_journal_makes_writers_wait_and_loses_nothing() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let held = server.rig.hold("/shard/");
        // Twice what the ring holds.
        let count = 2 * RING_BYTES / 8192;
        let write_all = async {
            for n in 0..count {
                let offset = n % (SIZE / 4096) * 4096;
                write(&server.volume, offset, n as u8, 4096).await.unwrap();
            }
        };
        let mut write_all = std::pin::pin!(write_all);
        let early = runtime::timeout(Duration::from_secs(1), write_all.as_mut()).await;
        assert!(early.is_err(), "nothing was shipped");
        assert!(server.volume.core.unshipped.bytes() <= RING_BYTES / 2 + (1 << 20));
        // Reads do not wait with them.
        read(&server.volume, 0, 4096).await.unwrap();
        drop(held);
        write_all.await;
        server.volume.flush().await.unwrap();
        let n = count - 1;
        let offset = n % (SIZE / 4096) * 4096;
        assert_eq!(stored(&store, offset, 4096).await, [n as u8; 4096]);
        server.volume.close().await.unwrap();
    });
}

/// Found by reading: a flush was answered when the store had everything, and before the volume
/// said that the journal is not needed. With the power gone in between, older records that were
/// durable would have been put over it.
#[test]
fn c13_a_flush_past_a_failed_journal_waits_until_the_volume_says_so() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let shards = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, 100).await.unwrap();
        super::super::on_disk(&server.volume.core, nbd_rs_journal::Journal::sync)
            .await
            .unwrap();
        write(&server.volume, 0, 2, 100).await.unwrap();
        let ticket = server.rig.hold("/journal");
        disk.fail(EVERYTHING_FAILS);
        drop(shards);
        let mut flush = server.volume.flush();
        let early = runtime::timeout(Duration::from_millis(500), &mut flush).await;
        assert!(early.is_err(), "a restart would undo it");
        drop(ticket);
        flush.await.unwrap();
        server.kill().await;
        let left = Recorder::start(disk.power_cut_at_its_worst());
        let server = Server::try_start(&store, &site(&left, 2), &how(FlushTo::Remote)).await;
        let server = server.unwrap();
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
        server.volume.close().await.unwrap();
    });
}

/// Found by reading: zeros that take space went to the volume while the journal's disk failed, and
/// a restart put older records over them.
#[test]
fn c09_zeros_that_take_space_wait_until_a_failed_journal_is_out_of_the_way() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 4096).await.unwrap();
        server.volume.flush().await.unwrap();
        let ticket = server.rig.hold("/journal");
        disk.fail(EVERYTHING_FAILS);
        {
            let zeroing = zero(&server.volume, 0, 4096, ZeroFlags::NO_HOLE);
            let mut zeroing = std::pin::pin!(zeroing);
            let early = runtime::timeout(Duration::from_millis(500), zeroing.as_mut()).await;
            assert!(early.is_err(), "a restart would undo it");
            assert_eq!(stored(&store, 0, 4096).await, [1; 4096]);
            drop(ticket);
            zeroing.await.unwrap();
        }
        server.kill().await;
        let disk = disk.after_kill(disk.moment());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        assert_eq!(read(&server.volume, 0, 4096).await.unwrap(), [0; 4096]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn f10_a_disk_that_works_again_before_the_volume_has_everything_is_used_again() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        for _ in 0..1000 {
            server
                .rig
                .fault("/shard/", sharded::rig::Fault::Fails(Kind::Io));
        }
        write(&server.volume, 0, 1, 100).await.unwrap();
        disk.fail(EVERYTHING_FAILS);
        let write_more = write(&server.volume, 200, 2, 100);
        let mut write_more = std::pin::pin!(write_more);
        until_mode_while(&server, Mode::Draining, write_more.as_mut()).await;
        disk.fail(Faults::default());
        write_more.await.unwrap();
        assert_eq!(server.volume.core.mode(), Mode::Journal);
        server.rig.no_faults();
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 200, 100).await, [2; 100]);
        server.volume.close().await.unwrap();
    });
}

/// The same as [`until_mode`] while something goes on that must not come to its end.
async fn until_mode_while(
    server: &Server,
    mode: Mode,
    mut pending: std::pin::Pin<&mut impl std::future::Future<Output = Result<()>>>,
) {
    for _ in 0..1000 {
        if server.volume.core.mode() == mode {
            return;
        }
        let short = Duration::from_millis(10);
        let ended = runtime::timeout(short, pending.as_mut()).await;
        assert!(ended.is_err(), "it has ended: {ended:?}");
    }
    panic!("it is in mode {:?}", server.volume.core.mode());
}

/// Found by reading: a new file was filled under the lock that the runtime's one thread took to see
/// how full the journal is, and the heartbeats of all exports waited with it.
#[test]
fn c17_heartbeats_go_on_while_a_failed_disk_takes_its_time_with_a_new_file() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Local)).await;
        let (made, begins) = mpsc::channel();
        let (go, goes_on) = mpsc::channel::<()>();
        disk.in_next_create(move || {
            made.send(()).unwrap();
            // Also if the test has failed.
            let _ = goes_on.recv();
        });
        disk.fail(Faults {
            syncs: 1,
            ..Faults::default()
        });
        write(&server.volume, 0, 1, 100).await.unwrap();
        let flush = runtime::handle().spawn(server.volume.flush());
        begins.recv().unwrap();
        for _ in 0..10 {
            // The shipper looks at the journal, and then it is the turn of the others.
            server.volume.core.wake.notify_one();
            let (core, (told, tells)) = (server.volume.core.clone(), mpsc::channel());
            runtime::handle().spawn(async move {
                let usage = core.journal.usage();
                core.ledger.held().await.unwrap();
                let _ = told.send((core.journal.ticket(), usage));
            });
            let answer = tells.recv_timeout(Duration::from_secs(20));
            answer.expect("the runtime's thread waits for the disk");
        }
        go.send(()).unwrap();
        flush.await.unwrap().unwrap();
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [1; 100]);
        server.volume.close().await.unwrap();
    });
}

/// Found by reading: each flush took a thread, and with as many as there are nothing else that
/// blocks was done any more.
#[test]
fn c04_one_thread_syncs_however_many_local_flushes_wait() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Local)).await;
        write(&server.volume, 0, 1, 100).await.unwrap();
        let (made, begins) = mpsc::channel();
        let (go, goes_on) = mpsc::channel::<()>();
        disk.in_next_sync(move || {
            made.send(()).unwrap();
            let _ = goes_on.recv();
        });
        let before = disk.syncs();
        let flush = |_| runtime::handle().spawn(server.volume.flush());
        let flushes: Vec<_> = (0..300).map(flush).collect();
        begins.recv().unwrap();
        // Behind this one all of them wait.
        runtime::handle().spawn(async {}).await.unwrap();
        let (told, tells) = mpsc::channel();
        runtime::handle().spawn_blocking(move || told.send(()));
        let answer = tells.recv_timeout(Duration::from_secs(20));
        answer.expect("there is a thread for others");
        go.send(()).unwrap();
        for flush in flushes {
            flush.await.unwrap().unwrap();
        }
        assert_eq!(disk.syncs() - before, 1);
        server.volume.close().await.unwrap();
    });
}

/// Found by reading: past a failed journal zeros were written out although they had to be fast.
#[test]
fn c09_fast_zeros_are_fast_or_refused_without_the_journal_too() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 2 * SHARD).await.unwrap();
        // These go to the store, behind all that waits.
        let flags = ZeroFlags::FAST | ZeroFlags::NO_HOLE;
        let slow = zero(&server.volume, 0, SHARD, flags).await;
        assert_eq!(slow.unwrap_err().kind, Kind::Unsupported);
        disk.fail(EVERYTHING_FAILS);
        write(&server.volume, 0, 2, 100).await.unwrap();
        until_mode(&server, Mode::Past).await;
        let slow = zero(&server.volume, 0, 100, ZeroFlags::FAST).await;
        assert_eq!(slow.unwrap_err().kind, Kind::Unsupported);
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
        zero(&server.volume, SHARD, SHARD, ZeroFlags::FAST)
            .await
            .unwrap();
        assert_eq!(stored(&store, SHARD, 100).await, [0; 100]);
        zero(&server.volume, 0, 100, ZeroFlags::NONE).await.unwrap();
        assert_eq!(stored(&store, 0, 100).await, [0; 100]);
        server.kill().await;
    });
}

/// Serves once without a journal, and writes there.
async fn serve_without(store: &Store, fill: u8, accept_lost_writes: bool) {
    let rig = Rig::new(store);
    let volume = manage::open(rig.chain(), sharded::how()).await.unwrap();
    let how = How {
        place: Place::None,
        accept_lost_writes,
        ..How::default()
    };
    let volume = open(Arc::new(volume), &how).await.unwrap();
    let body = sharded::body(vec![fill; 100]);
    volume.write(0, body, true).wait().await.unwrap();
    volume.close().await.unwrap();
}

/// Found by reading: a start without a journal took away what the volume said of it, and the journal
/// was refused later for what is in it, although the store has all of that.
#[test]
fn c12_a_journal_that_is_not_needed_is_not_refused_after_a_start_without_it() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let held = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, 100).await.unwrap();
        disk.fail(EVERYTHING_FAILS);
        drop(held);
        server.volume.flush().await.unwrap();
        until_mode(&server, Mode::Past).await;
        server.kill().await;
        serve_without(&store, 2, false).await;
        let disk = disk.after_kill(disk.moment());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c12_a_journal_whose_writes_were_given_up_is_refused_with_what_helps() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let _held = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, 100).await.unwrap();
        server.kill().await;
        serve_without(&store, 2, true).await;
        let refused = Server::try_start(&store, &site(&disk, 1), &how(FlushTo::Remote)).await;
        let refused = refused.err().expect("it would undo what was written since");
        for words in ["journal discard --force", "--accept-lost-writes"] {
            assert!(refused.message.contains(words), "{refused}");
        }
        assert!(!refused.message.contains("--journal-moved"), "{refused}");
        let lost = How {
            accept_lost_writes: true,
            ..how(FlushTo::Remote)
        };
        let server = Server::start(&store, &disk, &lost).await;
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [2; 100]);
        server.volume.close().await.unwrap();
    });
}
