//! The store fails, is full, refuses one shard, or has another owner.

use super::*;
use crate::error::Kind;
use crate::layout::sharded::tests::named;
use crate::layout::sharded::tests::rig::Fault;

#[test]
fn c05_a_flush_that_the_store_refused_can_succeed_later_for_nothing_is_lost() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 100).await.unwrap();
        server.rig.fault("/shard/", Fault::Fails(Kind::Denied));
        assert_eq!(server.volume.flush().await.unwrap_err().kind, Kind::Denied);
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, 100).await, [1; 100]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c15_a_store_that_is_away_for_a_moment_is_waited_for() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 100).await.unwrap();
        for _ in 0..5 {
            server.rig.fault("/shard/", Fault::Fails(Kind::Io));
        }
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, 100).await, [1; 100]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c24_a_full_store_refuses_writes_and_flushes_and_takes_all_when_there_is_room() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 100).await.unwrap();
        for _ in 0..1000 {
            server.rig.fault("/shard/", Fault::Fails(Kind::NoSpace));
        }
        assert_eq!(server.volume.flush().await.unwrap_err().kind, Kind::NoSpace);
        let refused = write(&server.volume, SHARD, 2, 100).await;
        assert_eq!(refused.unwrap_err().kind, Kind::NoSpace);
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [1; 100]);
        // What gives space back is taken.
        zero(&server.volume, 2 * SHARD, SHARD, ZeroFlags::TRIM)
            .await
            .unwrap();
        server.rig.no_faults();
        server.volume.flush().await.unwrap();
        write(&server.volume, SHARD, 3, 100).await.unwrap();
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, 100).await, [1; 100]);
        assert_eq!(stored(&store, SHARD, 100).await, [3; 100]);
        server.volume.close().await.unwrap();
    });
}

/// What waits finds no room, and only who is served can give some back.
#[test]
fn c24_a_journal_that_a_full_store_refuses_keeps_nobody_from_making_room() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let held = server.rig.hold("/shard/");
        write(&server.volume, 0, 1, SHARD + 100).await.unwrap();
        server.kill().await;
        drop(held);
        let rig = Rig::new(&store);
        for _ in 0..1000 {
            rig.fault("/shard/", Fault::Fails(Kind::NoSpace));
        }
        let how = how(FlushTo::Remote);
        let started =
            Server::try_start_with(rig.clone(), sharded::how(), &site(&disk, 1), &how).await;
        let server = started.unwrap();
        assert_eq!(read(&server.volume, SHARD, 100).await.unwrap(), [1; 100]);
        assert_eq!(server.volume.flush().await.unwrap_err().kind, Kind::NoSpace);
        zero(&server.volume, 0, SHARD, ZeroFlags::TRIM)
            .await
            .unwrap();
        rig.no_faults();
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, SHARD).await, [0; SHARD as usize]);
        assert_eq!(stored(&store, SHARD, 100).await, [1; 100]);
        server.volume.close().await.unwrap();
    });
}

/// A shard is lost, and somebody writes a part of it: the rest of the volume goes on, and flushes
/// fail until the shard is made whole.
#[test]
fn c21_a_lost_shard_keeps_no_other_from_the_store() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, 2 * SHARD).await.unwrap();
        server.volume.flush().await.unwrap();
        let first = named(&store, "/shard/").remove(0);
        store.remove(&first);
        write(&server.volume, 100, 2, 50).await.unwrap();
        write(&server.volume, SHARD, 3, 100).await.unwrap();
        for _ in 0..2 {
            assert_eq!(server.volume.flush().await.unwrap_err().kind, Kind::Corrupt);
        }
        assert_eq!(stored(&store, SHARD, 100).await, [3; 100]);
        // The journal does not fill up with it.
        let many = 3 * RING_BYTES / 8192;
        for n in 0..many {
            write(&server.volume, SHARD, n as u8, 4096).await.unwrap();
        }
        assert_eq!(read(&server.volume, 100, 50).await.unwrap(), [2; 50]);
        server.kill().await;
        // A restart is not kept from the others, either.
        let server = Server::start(
            &store,
            &disk.after_kill(disk.moment()),
            &how(FlushTo::Remote),
        )
        .await;
        assert_eq!(server.volume.flush().await.unwrap_err().kind, Kind::Corrupt);
        write(&server.volume, 0, 4, SHARD).await.unwrap();
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, SHARD).await, vec![4; SHARD as usize]);
        server.volume.close().await.unwrap();
    });
}

#[test]
fn c17_an_owner_that_was_succeeded_flushes_nothing_and_takes_no_ticket_away() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let old = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&old.volume, 0, 1, 100).await.unwrap();
        old.volume.flush().await.unwrap();
        let lost = How {
            accept_lost_writes: true,
            ..how(FlushTo::Remote)
        };
        let other = empty_disk();
        let new = Server::try_start(&store, &site(&other, 1), &lost)
            .await
            .unwrap();
        write(&new.volume, 0, 2, 100).await.unwrap();
        assert_eq!(old.volume.flush().await.unwrap_err().kind, Kind::Fenced);
        old.volume.close().await.unwrap_err();
        let chain = Rig::new(&store).chain();
        let said = manage::facts(&chain).await.unwrap().journal;
        assert_eq!(said.unwrap().ticket, new.volume.core.journal.ticket());
        new.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, 100).await, [2; 100]);
        new.volume.close().await.unwrap();
    });
}

/// Found by reading: the journal was still in the hands of the server that was shut out.
#[test]
fn c17_a_takeover_on_the_same_machine_waits_for_the_old_server_and_keeps_its_writes() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let old = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        let held = old.rig.hold("/shard/");
        write(&old.volume, 0, 1, 100).await.unwrap();
        let takeover = How {
            takeover: true,
            ..how(FlushTo::Remote)
        };
        let site = site(&disk, 1);
        let new = Server::try_start(&store, &site, &takeover);
        let mut new = std::pin::pin!(new);
        let early = runtime::timeout(Duration::from_millis(300), new.as_mut()).await;
        assert!(early.is_err(), "the old one has the journal");
        drop(held);
        old.kill().await;
        let new = new.await.unwrap();
        assert_eq!(read(&new.volume, 0, 100).await.unwrap(), [1; 100]);
        new.volume.close().await.unwrap();
    });
}

/// Found by reading: the batch behind a refused one was taken for everything up to its number, and
/// a flush that waited for the refused one was answered.
#[test]
fn c04_a_batch_behind_a_refused_one_does_not_stand_for_it() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, SHARD).await.unwrap();
        server.volume.flush().await.unwrap();
        let lost = named(&store, "/shard/").remove(0);
        store.remove(&lost);
        let held = server.rig.hold("/shard/");
        write(&server.volume, SHARD, 2, 100).await.unwrap();
        write(&server.volume, 100, 3, 100).await.unwrap();
        let mut flush = server.volume.flush();
        let early = runtime::timeout(Duration::from_millis(100), &mut flush).await;
        assert!(early.is_err(), "the store is held up");
        // More than a layer behind it, and the next one.
        for n in 0..RING_BYTES / 8 / SHARD + 2 {
            write(&server.volume, (2 + n) * SHARD, 4, SHARD)
                .await
                .unwrap();
        }
        drop(held);
        assert_eq!(flush.await.unwrap_err().kind, Kind::Corrupt);
        server.kill().await;
    });
}

#[test]
fn c24_what_mends_a_lost_shard_is_taken_however_full_the_journal_is_of_it() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let server = Server::start(&store, &disk, &how(FlushTo::Remote)).await;
        write(&server.volume, 0, 1, SIZE / SHARD * SHARD)
            .await
            .unwrap();
        server.volume.flush().await.unwrap();
        for shard in named(&store, "/shard/") {
            store.remove(&shard);
        }
        // Parts of lost shards, until no more are taken at once.
        for n in 0..3 * RING_BYTES / 4096 {
            let offset = n * 4096 % (SIZE / SHARD * SHARD);
            let write = write(&server.volume, offset + 1, 2, 4000);
            if runtime::timeout(Duration::from_secs(1), write)
                .await
                .is_err()
            {
                break;
            }
        }
        zero(&server.volume, 0, SIZE, ZeroFlags::TRIM)
            .await
            .unwrap();
        server.volume.flush().await.unwrap();
        assert_eq!(stored(&store, 0, SIZE).await, vec![0; SIZE as usize]);
        server.volume.close().await.unwrap();
    });
}
