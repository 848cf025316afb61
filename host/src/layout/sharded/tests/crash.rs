//! One script, and the server dies at each of its changes in turn: before it, or right after it.

use super::*;
use crate::runtime::block_on;

/// What is known of a shard after each step: it must hold one of these.
type Allowed = Vec<u8>;

/// Writes, flushes, trims, writes again; stops at the first failure. The bytes that the first
/// shards may be filled with.
async fn script(volume: &Sharded) -> [Allowed; 3] {
    let mut allowed = [vec![0], vec![0], vec![0]];
    for (step, shards) in [(1, 0..3), (2, 1..2), (0, 0..2), (3, 0..1), (4, 2..3)] {
        for shard in shards {
            let change = match step {
                0 => zero(volume, shard as u64 * SHARD, SHARD, ZeroFlags::NONE).await,
                byte => write(volume, shard as u64 * SHARD, byte, SHARD).await,
            };
            match change {
                Ok(()) => allowed[shard] = vec![step],
                Err(_) => {
                    allowed[shard].push(step);
                    return allowed;
                }
            }
        }
        if volume.flush().await.is_err() {
            return allowed;
        }
    }
    let _ = volume.close().await;
    allowed
}

async fn check_all(store: &Store, allowed: &[Allowed; 3], when: &str) {
    // Twice: what was read once stays, also over another death.
    let mut first = Vec::new();
    for again in [false, true] {
        let (volume, rig) = open(store).await;
        for (shard, allowed) in allowed.iter().enumerate() {
            let found = read(&volume, shard as u64 * SHARD, SHARD).await.unwrap();
            assert!(found.iter().all(|&byte| byte == found[0]), "{when}: torn");
            assert!(
                allowed.contains(&found[0]),
                "{when}: shard {shard}: {}",
                found[0]
            );
            match again {
                false => first.push(found[0]),
                true => assert_eq!(first[shard], found[0], "{when}: it changed"),
            }
        }
        let rest = read(&volume, 3 * SHARD, SIZE - 3 * SHARD).await.unwrap();
        assert!(rest.iter().all(|&byte| byte == 0), "{when}");
        // And it can be written.
        let last = 10 * SHARD;
        write(&volume, last, 9, 100).await.unwrap();
        zero(&volume, last, SHARD, ZeroFlags::NONE).await.unwrap();
        volume.flush().await.unwrap();
        rig.kill();
    }
}

async fn die_everywhere(way: Way) -> i64 {
    for change in 1.. {
        for happens in [false, true] {
            let store = store(way);
            init(&store, SIZE, way).await;
            let (volume, rig) = open(&store).await;
            rig.die_at(change, happens);
            let allowed = script(&volume).await;
            let finished = !rig.is_dead();
            rig.kill();
            drop(volume);
            check_all(&store, &allowed, &format!("change {change}, {happens}")).await;
            if finished {
                return change;
            }
        }
    }
    unreachable!()
}

#[test]
fn c13_c18_whole_shards_survive_a_death_at_every_change() {
    let changes = block_on(die_everywhere(Way::Whole));
    assert!(
        changes > 15,
        "only {changes} changes: the script does too little"
    );
}

#[test]
fn c13_shards_in_place_survive_a_death_at_every_change() {
    let changes = block_on(die_everywhere(Way::InPlace));
    assert!(
        changes > 15,
        "only {changes} changes: the script does too little"
    );
}

#[test]
fn c13_what_was_flushed_survives_the_loss_of_power_in_place() {
    block_on(async {
        let (store, volume, rig) = fresh(Way::InPlace).await;
        write(&volume, 100, 1, 3 * SHARD).await.unwrap();
        volume.flush().await.unwrap();
        write(&volume, 0, 2, 50).await.unwrap();
        write(&volume, 7 * SHARD, 2, SHARD).await.unwrap();
        rig.lose_power();
        let (volume, _rig) = open(&store).await;
        assert_eq!(read(&volume, 0, 50).await.unwrap(), [0; 50]);
        let found = read(&volume, 100, 3 * SHARD).await.unwrap();
        assert!(found.iter().all(|&byte| byte == 1));
        // Intended, and lost: zeros, and no error.
        let found = read(&volume, 7 * SHARD, SHARD).await.unwrap();
        assert!(found.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn c08_a_leftover_of_a_trim_is_never_seen_again() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, volume, rig) = fresh(way).await;
            write(&volume, 5 * SHARD, 7, SHARD).await.unwrap();
            volume.flush().await.unwrap();
            // The states get there, the delete does not.
            rig.fault("shard/000000000005", rig::Fault::Fails(Kind::Denied));
            zero(&volume, 5 * SHARD, SHARD, ZeroFlags::NONE)
                .await
                .unwrap();
            volume.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(named(&store, "shard/").len(), 1, "the leftover lies there");
            // A neighbour's write reserves a group: not this one along with it.
            write(&volume, 4 * SHARD, 8, SHARD).await.unwrap();
            volume.flush().await.unwrap();
            rig.kill();
            let (volume, rig) = open(&store).await;
            let found = read(&volume, 4 * SHARD, 2 * SHARD).await.unwrap();
            assert!(found[..SHARD as usize].iter().all(|&byte| byte == 8));
            assert!(
                found[SHARD as usize..].iter().all(|&byte| byte == 0),
                "{way}"
            );
            // A write of a part finds no old bytes around it, whenever the server dies.
            write(&volume, 5 * SHARD + 4096, 9, 4096).await.unwrap();
            rig.kill();
            let (volume, _rig) = open(&store).await;
            let found = read(&volume, 5 * SHARD, SHARD).await.unwrap();
            let expected = |at: usize| if (4096..8192).contains(&at) { 9 } else { 0 };
            assert!(
                found
                    .iter()
                    .enumerate()
                    .all(|(at, &byte)| byte == expected(at)),
                "{way}"
            );
        }
    });
}

/// A volume whose server died, and had not been able to delete the objects of shards 3 and 5 of 8.
async fn died_with_leftovers(way: Way) -> Store {
    let (store, volume, rig) = fresh(way).await;
    write(&volume, 0, 7, 8 * SHARD).await.unwrap();
    volume.flush().await.unwrap();
    for shard in [3, 5] {
        rig.fault("shard/", rig::Fault::Fails(Kind::Denied));
        zero(&volume, shard * SHARD, SHARD, ZeroFlags::NONE)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(named(&store, "shard/").len(), 8, "leftovers lie there");
    rig.kill();
    store
}

#[test]
fn c12_the_first_write_after_a_death_is_not_deleted_in_the_place_of_a_leftover() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = died_with_leftovers(way).await;
            let (volume, rig) = open(&store).await;
            // Nothing was read before, so nobody knows of leftovers yet; one delete takes its time.
            let first = rig.hold("shard/000000000003");
            write(&volume, 5 * SHARD, 9, 512).await.unwrap();
            volume.flush().await.unwrap();
            drop(first);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let expected = [vec![9; 512], vec![0]].concat();
            assert_eq!(
                read(&volume, 5 * SHARD, 513).await.unwrap(),
                expected,
                "{way}"
            );
            rig.kill();
            let (volume, _rig) = open(&store).await;
            assert_eq!(
                read(&volume, 5 * SHARD, 513).await.unwrap(),
                expected,
                "{way}"
            );
        }
    });
}

#[test]
fn c12_f45_a_listing_that_lags_behind_hides_nothing_that_was_acknowledged() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for reads_first in [true, false] {
                let (store, volume, rig) = fresh(way).await;
                // Acknowledged; that it was written is not recorded before the next flush.
                write(&volume, 3 * SHARD, 7, SHARD).await.unwrap();
                write(&volume, 5 * SHARD, 7, SHARD).await.unwrap();
                rig.kill();
                let rig = Rig::new(&store);
                rig.hide("shard/");
                let volume = manage::open(rig.chain(), how()).await.unwrap();
                if reads_first {
                    let found = read(&volume, 3 * SHARD, SHARD).await.unwrap();
                    assert!(found.iter().all(|&byte| byte == 7), "{way}");
                }
                write(&volume, 3 * SHARD, 8, 512).await.unwrap();
                let found = read(&volume, 3 * SHARD, 513).await.unwrap();
                assert_eq!(found[511..], [8, 7], "{way}");
                // Its group was meant to be put along with it, and was not.
                let empty = read(&volume, 4 * SHARD, SHARD).await.unwrap();
                assert!(empty.iter().all(|&byte| byte == 0), "{way}");
                write(&volume, 4 * SHARD + 512, 9, 512).await.unwrap();
                // In time all of them are known, and the volume is given back as a settled one.
                until_known(&volume).await;
                volume.close().await.unwrap();
                let (volume, rig) = open(&store).await;
                for (shard, byte) in [(3, 7), (4, 0), (5, 7), (6, 0)] {
                    let found = read(&volume, shard * SHARD + 5000, 1).await.unwrap();
                    assert_eq!(found, [byte], "{way} {shard}");
                }
                assert_eq!(
                    rig.listings(),
                    0,
                    "{way}: a settled page was looked through"
                );
            }
        }
    });
}

/// Until nothing of the first page is unlisted any more.
async fn until_known(volume: &Sharded) {
    let page = volume.inner.pages.load(0).await.unwrap();
    for _ in 0..1000 {
        if page.read().unlisted.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("shards that nobody asks for");
}

/// Opens to write; deletes of the one before may come for so long.
async fn open_with_late_deletes(store: &Store, late: Duration) -> (Sharded, Rig) {
    let rig = Rig::new(store);
    let mut how = how();
    how.timing.late = late;
    (manage::open(rig.chain(), how).await.unwrap(), rig)
}

#[test]
fn c12_a_delete_that_comes_after_the_death_of_its_server_hits_nothing_that_was_put_since() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, volume, rig) = fresh(way).await;
            write(&volume, 0, 7, 8 * SHARD).await.unwrap();
            volume.flush().await.unwrap();
            let late = rig.hold("shard/");
            zero(&volume, 5 * SHARD, SHARD, ZeroFlags::NONE)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            // It dies with the delete on its way, and is succeeded at once.
            rig.kill();
            let (volume, rig) = open_with_late_deletes(&store, Duration::from_secs(60)).await;
            // What changes nothing does not wait for it.
            assert_eq!(read(&volume, 5 * SHARD, 1).await.unwrap(), [0]);
            zero(&volume, 5 * SHARD + 512, 512, ZeroFlags::NONE)
                .await
                .unwrap();
            let body = body(vec![9; 512]);
            let writing = tokio::spawn(volume.write(5 * SHARD, body, false).wait());
            tokio::time::sleep(Duration::from_millis(50)).await;
            // Nobody else waits for it.
            write(&volume, 6 * SHARD, 8, 512).await.unwrap();
            assert_eq!(read(&volume, 5 * SHARD, 1).await.unwrap(), [0]);
            assert!(!writing.is_finished(), "{way}");
            drop(late);
            writing.await.unwrap().unwrap();
            volume.flush().await.unwrap();
            rig.kill();
            let (volume, _rig) = open(&store).await;
            let found = read(&volume, 5 * SHARD, 513).await.unwrap();
            assert_eq!(found, [vec![9; 512], vec![0]].concat(), "{way}");
            assert_eq!(read(&volume, 6 * SHARD, 1).await.unwrap(), [8], "{way}");
        }
    });
}

#[test]
fn a_delete_that_was_never_sent_is_not_waited_for_for_ever() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = died_with_leftovers(way).await;
            let (volume, _rig) = open_with_late_deletes(&store, Duration::from_millis(300)).await;
            write(&volume, 5 * SHARD, 9, 512).await.unwrap();
            let found = read(&volume, 5 * SHARD, 513).await.unwrap();
            assert_eq!(found, [vec![9; 512], vec![0]].concat(), "{way}");
            volume.close().await.unwrap();
            // And the one that nobody wrote to went by itself.
            assert_eq!(named(&store, "shard/").len(), 7, "{way}");
        }
    });
}

#[test]
fn c12_a_delete_of_unknown_outcome_hits_nothing_that_was_put_since() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = store(way);
            init(&store, SIZE, way).await;
            let (volume, rig) = open_with_late_deletes(&store, Duration::from_secs(60)).await;
            write(&volume, 0, 7, 8 * SHARD).await.unwrap();
            volume.flush().await.unwrap();
            let shard = named(&store, "shard/").remove(5);
            rig.fault("shard/", rig::Fault::UnknownNot);
            zero(&volume, 5 * SHARD, SHARD, ZeroFlags::NONE)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let body = body(vec![9; 512]);
            let writing = tokio::spawn(volume.write(5 * SHARD, body, false).wait());
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!writing.is_finished(), "{way}");
            // It comes into effect all the same.
            store.remove(&shard).unwrap();
            writing.await.unwrap().unwrap();
            let found = read(&volume, 5 * SHARD, 513).await.unwrap();
            assert_eq!(found, [vec![9; 512], vec![0]].concat(), "{way}");
            volume.close().await.unwrap();
        }
    });
}
