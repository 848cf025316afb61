//! Two servers, one volume (contract C17).

use futures_util::future::join;
use nbd_rs_plugin::Condition;

use super::super::frame::Stamp;
use super::super::owner::Process;
use super::super::process;
use super::*;
use crate::error::Error;
use crate::runtime::{block_on, timeout};

fn modest() -> How {
    How {
        takeover: false,
        ..how()
    }
}

async fn try_open(store: &Store, how: How) -> (Result<Sharded>, Rig) {
    let rig = Rig::new(store);
    (manage::open(rig.chain(), how).await, rig)
}

#[test]
fn c17_of_two_that_start_at_once_exactly_one_gets_the_volume() {
    block_on(async {
        for round in 0..100 {
            let store = store(Way::Whole);
            init(&store, SIZE, Way::Whole).await;
            let racer = || {
                let store = store.clone();
                tokio::spawn(async move { try_open(&store, modest()).await.0 })
            };
            let (one, other) = (racer(), racer());
            let (one, other) = join(one, other).await;
            let busy = |result: &Result<Sharded>| match result {
                Ok(_) => false,
                Err(error) => {
                    assert_eq!(error.kind, Kind::Busy, "{error}");
                    assert!(
                        error.message.contains(&std::process::id().to_string()),
                        "{error}"
                    );
                    true
                }
            };
            let busy = [busy(&one.unwrap()), busy(&other.unwrap())];
            assert!(busy[0] != busy[1], "round {round}: {busy:?}");
        }
    });
}

#[test]
fn c17_after_a_takeover_the_old_server_gets_nothing_acknowledged() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, old, _old_rig) = fresh(way).await;
            write(&old, 0, 1, SHARD).await.unwrap();
            old.flush().await.unwrap();
            let (new, _rig) = open(&store).await;
            // A flush asks; and then everything else knows, too.
            assert_eq!(kind(old.flush().await), Kind::Fenced, "{way}");
            assert_eq!(kind(write(&old, 0, 2, 10).await), Kind::Fenced);
            assert_eq!(kind(read(&old, 0, 10).await), Kind::Fenced);
            assert_eq!(
                kind(zero(&old, 0, SHARD, ZeroFlags::NONE).await),
                Kind::Fenced
            );
            assert_eq!(
                kind(timeout(Duration::from_secs(5), old.lost()).await.unwrap()),
                Kind::Fenced
            );
            assert!(old.close().await.is_err());
            assert_eq!(read(&new, 0, 2).await.unwrap(), [1, 1]);
            write(&new, 0, 3, 10).await.unwrap();
            new.flush().await.unwrap();
        }
    });
}

/// Found by hand: the old server acknowledged writes for as long as it had not looked, and they went
/// over what the new one had flushed.
#[test]
fn c17_a_takeover_of_shards_in_place_waits_until_the_old_server_writes_no_more() {
    block_on(async {
        let (store, old, _old_rig) = fresh(Way::InPlace).await;
        write(&old, 0, 1, SHARD).await.unwrap();
        let mut how = how();
        how.timing.shut_out = 3 * how.timing.heartbeat;
        let (new, _rig) = try_open(&store, how).await;
        // Nobody asked it anything meanwhile.
        assert_eq!(kind(write(&old, 0, 2, 10).await), Kind::Fenced);
        assert_eq!(read(&new.unwrap(), 0, 2).await.unwrap(), [1, 1]);
    });
}

#[test]
fn c17_a_heartbeat_notices_a_takeover_without_a_request() {
    block_on(async {
        let (store, old, _old_rig) = fresh(Way::Whole).await;
        let lost = tokio::spawn(old.lost());
        let (_new, _rig) = open(&store).await;
        let lost = timeout(Duration::from_secs(5), lost)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(kind(lost), Kind::Fenced);
    });
}

#[test]
fn c17_a_put_of_an_old_owner_fails_on_the_shards_that_the_new_one_has_put() {
    block_on(async {
        let (store, old, _old_rig) = fresh(Way::Whole).await;
        write(&old, 0, 1, 100).await.unwrap();
        let (new, _rig) = open(&store).await;
        write(&new, 0, 2, 100).await.unwrap();
        assert_eq!(kind(write(&old, 50, 3, 100).await), Kind::Fenced);
        assert_eq!(
            read(&new, 0, 150).await.unwrap(),
            [vec![2; 100], vec![0; 50]].concat()
        );
    });
}

/// By an owner who hears of nothing by itself as long as a test takes.
fn how_without_heartbeats() -> How {
    let mut how = how();
    how.timing.heartbeat = Duration::from_secs(600);
    how.timing.lease = Duration::from_secs(1200);
    how
}

#[test]
fn c17_every_owner_has_a_higher_epoch_than_the_one_before_it() {
    block_on(async {
        let (store, first, _rig) = fresh(Way::Whole).await;
        let mut epochs = vec![0, owner(&store).stamp.epoch];
        // From one that lives.
        let (second, _rig) = open(&store).await;
        epochs.push(owner(&store).stamp.epoch);
        second.close().await.unwrap();
        // After one that left.
        let (third, _rig) = try_open(&store, modest()).await;
        epochs.push(owner(&store).stamp.epoch);
        assert_eq!(kind(first.flush().await), Kind::Fenced);
        // After one that died.
        let here = process::this().unwrap();
        plant(&store, |record| {
            record.stamp.epoch = epochs[3] + 1;
            record.process = here.clone();
            record.process.started_ticks = 1;
        });
        epochs.push(owner(&store).stamp.epoch);
        let (_fourth, _rig) = try_open(&store, modest()).await;
        epochs.push(owner(&store).stamp.epoch);
        assert!(epochs.windows(2).all(|two| two[0] < two[1]), "{epochs:?}");
        assert_eq!(kind(third.unwrap().flush().await), Kind::Fenced);
    });
}

#[test]
fn c17_a_takeover_shows_in_the_shards_and_pages_that_the_new_owner_has_put() {
    block_on(async {
        for touched in ["a shard", "a page"] {
            let store = store(Way::Whole);
            init(&store, SIZE, Way::Whole).await;
            let (old, _old_rig) = try_open(&store, how_without_heartbeats()).await;
            let old = old.unwrap();
            write(&old, 0, 1, 100).await.unwrap();
            old.flush().await.unwrap();
            let (new, _rig) = open(&store).await;
            write(&new, 0, 2, 100).await.unwrap();
            new.flush().await.unwrap();
            // By the clock its lease is valid, and it did not ask who the owner is.
            let told = match touched {
                "a shard" => read(&old, 0, 100).await.map(drop),
                _ => zero(&old, 0, SHARD, ZeroFlags::NONE).await,
            };
            assert_eq!(kind(told), Kind::Fenced, "{touched}");
            assert_eq!(read(&new, 0, 100).await.unwrap(), [2; 100]);
        }
    });
}

#[test]
fn c17_a_server_that_was_shut_out_deletes_nothing_before_it_writes() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = store(way);
            init(&store, SIZE, way).await;
            let (old, old_rig) = try_open(&store, how_without_heartbeats()).await;
            let old = old.unwrap();
            write(&old, 5 * SHARD, 1, SHARD).await.unwrap();
            old.flush().await.unwrap();
            // The object stays for now: whoever writes there next deletes it first.
            old_rig.fault("shard/", rig::Fault::Fails(Kind::Denied));
            zero(&old, 5 * SHARD, SHARD, ZeroFlags::NONE).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(named(&store, "shard/").len(), 1, "the leftover lies there");
            let (new, _rig) = open(&store).await;
            write(&new, 5 * SHARD, 2, 512).await.unwrap();
            new.flush().await.unwrap();
            let late = write(&old, 5 * SHARD, 3, 512).await;
            assert_eq!(kind(late), Kind::Fenced, "{way}");
            assert_eq!(named(&store, "shard/").len(), 1, "{way}");
            assert_eq!(read(&new, 5 * SHARD, 512).await.unwrap(), [2; 512], "{way}");
        }
    });
}

#[test]
fn c17_a_server_that_was_shut_out_deletes_nothing_that_waits_to_be_deleted() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = store(way);
            init(&store, SIZE, way).await;
            let (old, old_rig) = try_open(&store, how_without_heartbeats()).await;
            let old = old.unwrap();
            write(&old, 0, 1, 10 * SHARD).await.unwrap();
            old.flush().await.unwrap();
            // The first delete takes its time, the second one waits behind it.
            let first = old_rig.hold("shard/000000000005");
            for shard in [5, 8] {
                zero(&old, shard * SHARD, SHARD, ZeroFlags::NONE)
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let (new, _rig) = open(&store).await;
            write(&new, 8 * SHARD, 2, 512).await.unwrap();
            new.flush().await.unwrap();
            assert_eq!(named(&store, "shard/000000000008").len(), 1, "before");
            drop(first);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let key = named(&store, "shard/000000000008");
            assert_eq!(key.len(), 1, "{way}: it was deleted by the old server");
            assert_eq!(read(&new, 8 * SHARD, 512).await.unwrap(), [2; 512], "{way}");
        }
    });
}

#[test]
fn c17_a_destroy_that_was_shut_out_stops() {
    block_on(async {
        let store = filled_with(2500).await;
        let old = uuid(&store);
        let key = Names::of(old).owner();
        let chain = Rig::new(&store).chain();
        let mut rounds = 0;
        let mut takeover = |_| {
            rounds += 1;
            let record = store.peek(&key).unwrap();
            let mut record = OwnerRecord::decode(old, &record).unwrap();
            record.stamp.epoch += 1;
            record.id = Uuid::random().unwrap();
            store.insert(&key, record.encode(old));
        };
        let destroyed = manage::destroy(chain, false, &mut takeover).await;
        assert_eq!(kind(destroyed), Kind::Fenced);
        assert_eq!(rounds, 1);
        assert!(named(&store, "shard/").len() >= 1500);
    });
}

/// A closed volume with so many objects for shards.
async fn filled_with(objects: u64) -> Store {
    let store = store(Way::Whole);
    init(&store, objects * SHARD, Way::Whole).await;
    let names = Names::of(uuid(&store));
    for shard in 0..objects {
        store.insert(&names.shard(shard), vec![1]);
    }
    store
}

#[test]
fn c17_a_late_put_of_an_old_owner_is_found_and_merged_with() {
    block_on(async {
        let (store, old, old_rig) = fresh(Way::Whole).await;
        write(&old, 0, 1, SHARD).await.unwrap();
        old.flush().await.unwrap();
        // What the old one has on its way, to arrive when the new one knows the shard already.
        let key = named(&store, "shard/").remove(0);
        let at_takeover = store.peek(&key).unwrap();
        write(&old, 4096, 2, 4096).await.unwrap();
        let late = store.peek(&key).unwrap();
        store.insert(&key, at_takeover);
        old_rig.kill();
        let (new, rig) = open(&store).await;
        assert_eq!(read(&new, 4096, 1).await.unwrap(), [1]);
        let put = |bytes: Vec<u8>| {
            rig.chain()
                .put(key.clone(), body(bytes), Condition::Always)
                .wait()
        };
        put(late).await.unwrap();
        write(&new, 0, 3, 100).await.unwrap();
        let found = read(&new, 0, 8192).await.unwrap();
        assert_eq!((found[0], found[100], found[4096]), (3, 1, 2));
    });
}

#[test]
fn c17_changes_wait_for_a_late_heartbeat_but_are_not_acknowledged_without() {
    block_on(async {
        let store = store(Way::Whole);
        init(&store, SIZE, Way::Whole).await;
        let how = how_with_short_lease(400);
        let (volume, rig) = try_open(&store, how).await;
        let volume = volume.unwrap();
        write(&volume, 0, 1, 10).await.unwrap();
        for _ in 0..200 {
            rig.fault("owner", rig::Fault::Fails(Kind::Io));
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(kind(write(&volume, 0, 2, 10).await), Kind::Io);
        rig.no_faults();
        write(&volume, 0, 3, 10).await.unwrap();
        assert_eq!(read(&volume, 0, 1).await.unwrap(), [3]);
    });
}

/// Somebody else's owner record in the volume's place for it.
fn plant(store: &Store, change: impl Fn(&mut OwnerRecord)) -> Uuid {
    let uuid = uuid(store);
    let mut record = OwnerRecord {
        stamp: Stamp {
            epoch: 7,
            sequence: 1,
        },
        id: Uuid::random().unwrap(),
        process: Process {
            host: "elsewhere".to_owned(),
            boot_id: Uuid::random().unwrap(),
            pid: 4711,
            ..process::this().unwrap()
        },
        released: false,
        unclean: 0,
    };
    change(&mut record);
    store.insert(&Names::of(uuid).owner(), record.encode(uuid));
    uuid
}

#[test]
fn c17_a_silent_owner_on_another_host_is_succeeded_after_the_lease_and_not_before() {
    block_on(async {
        let store = store(Way::Whole);
        init(&store, SIZE, Way::Whole).await;
        plant(&store, |_| ());
        let mut how = modest();
        how.timing.heartbeat = Duration::from_millis(50);
        how.timing.lease = Duration::from_millis(300);
        let began = std::time::Instant::now();
        let (volume, _rig) = try_open(&store, how).await;
        assert!(volume.is_ok());
        assert!(began.elapsed() >= Duration::from_millis(300));
    });
}

#[test]
fn c17_an_owner_on_another_host_whose_heart_beats_is_named() {
    block_on(async {
        let store = store(Way::Whole);
        init(&store, SIZE, Way::Whole).await;
        plant(&store, |_| ());
        let mut how = modest();
        how.timing.heartbeat = Duration::from_millis(50);
        how.timing.lease = Duration::from_secs(20);
        let opening = tokio::spawn({
            let store = store.clone();
            async move { try_open(&store, how).await.0.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        plant(&store, |record| record.stamp.sequence = 2);
        let error: Error = opening.await.unwrap().unwrap_err();
        assert_eq!(error.kind, Kind::Busy);
        for word in ["elsewhere", "4711", "epoch 7", "--takeover"] {
            assert!(error.message.contains(word), "{error}");
        }
    });
}

#[test]
fn c17_a_dead_owner_on_this_machine_and_one_that_left_are_succeeded_at_once() {
    block_on(async {
        let here = process::this().unwrap();
        for released in [false, true] {
            let store = store(Way::Whole);
            init(&store, SIZE, Way::Whole).await;
            let here = here.clone();
            plant(&store, |record| {
                record.released = released;
                if !released {
                    // This process, but it started at another time: so it is dead.
                    record.process = Process {
                        started_ticks: 1,
                        ..here.clone()
                    };
                }
            });
            let (volume, _rig) = try_open(&store, modest()).await;
            let volume = volume.unwrap();
            write(&volume, 0, 1, 10).await.unwrap();
            volume.close().await.unwrap();
            // And who closed is succeeded at once, though its process lives.
            let (volume, _rig) = try_open(&store, modest()).await;
            assert_eq!(read(&volume.unwrap(), 0, 1).await.unwrap(), [1]);
        }
    });
}

#[test]
fn c22_a_store_that_does_not_obey_conditions_is_refused_unless_fencing_is_external() {
    block_on(async {
        let none = LIKE_S3.without(CapabilityFlags::IF_MATCH);
        let store = Store::with(none);
        let refused =
            manage::create(store.chain(), plan(SIZE, Way::Whole), false, &mut |_| ()).await;
        assert_eq!(kind(refused), Kind::Unsupported);
        assert!(named(&store, "volume").is_empty());
        manage::create(store.chain(), plan(SIZE, Way::Whole), true, &mut |_| ())
            .await
            .unwrap();
        let how = How {
            fencing_is_external: true,
            ..modest()
        };
        let volume = manage::open(store.chain(), how).await.unwrap();
        write(&volume, 5, 1, 2 * SHARD).await.unwrap();
        volume.flush().await.unwrap();
        assert_eq!(read(&volume, 4, 2).await.unwrap(), [0, 1]);
        volume.close().await.unwrap();
        // One that only claims to, and one that looks and then puts whatever came in between.
        for (looks, word) in [(false, "put if absent"), (true, "at once")] {
            let liar = rig::Liar::over(&Store::with(LIKE_S3), looks);
            let refused = manage::create(liar, plan(SIZE, Way::Whole), false, &mut |_| ()).await;
            let error = refused.unwrap_err();
            assert_eq!(error.kind, Kind::Unsupported);
            assert!(error.message.contains("does not obey"), "{error}");
            assert!(error.message.contains(word), "{error}");
        }
    });
}

#[test]
fn c22_a_store_that_may_show_old_data_is_refused_whoever_fences() {
    block_on(async {
        let flags = LIKE_S3.without(CapabilityFlags::STRONG_READ_AFTER_WRITE);
        let store = Store::with(flags);
        for external in [false, true] {
            let plan = plan(SIZE, Way::Whole);
            let made = manage::create(store.chain(), plan, external, &mut |_| ()).await;
            let error = made.unwrap_err();
            assert_eq!(error.kind, Kind::Unsupported);
            assert!(error.message.contains("old data"), "{error}");
        }
        assert_eq!(store.keys(), Vec::<String>::new());
    });
}

#[test]
fn c17_f48_of_two_that_a_racy_store_lets_in_one_can_flush() {
    block_on(async {
        let mut both = 0;
        for _ in 0..20 {
            let store = store(Way::Whole);
            init(&store, SIZE, Way::Whole).await;
            let racer = || {
                let chain = rig::Liar::over(&store, true);
                tokio::spawn(async move {
                    let volume = manage::open(chain, modest()).await?;
                    write(&volume, 0, 1, 100).await.map(|()| volume)
                })
            };
            let (one, other) = join(racer(), racer()).await;
            let opened: Vec<Sharded> = [one, other]
                .into_iter()
                .filter_map(|r| r.unwrap().ok())
                .collect();
            both += u32::from(opened.len() == 2);
            let mut flushed = 0;
            for volume in &opened {
                flushed += u32::from(volume.flush().await.is_ok());
            }
            assert!(flushed <= 1, "{flushed} servers could flush");
        }
        assert!(both > 0, "the store was never racy");
    });
}

#[test]
fn init_force_destroy_and_resize_are_refused_while_a_server_lives() {
    block_on(async {
        let (store, volume, _rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, 10).await.unwrap();
        let chain = || Rig::new(&store).chain();
        let again = plan(SIZE, Way::Whole);
        assert_eq!(
            kind(manage::create(chain(), again, false, &mut |_| ()).await),
            Kind::Exists
        );
        let force = Plan {
            force: true,
            ..again
        };
        assert_eq!(
            kind(manage::create(chain(), force, false, &mut |_| ()).await),
            Kind::Busy
        );
        assert_eq!(
            kind(manage::destroy(chain(), false, &mut |_| ()).await),
            Kind::Busy
        );
        assert_eq!(
            kind(manage::grow(chain(), 2 * SIZE, false).await),
            Kind::Busy
        );
        let facts = manage::facts(&chain()).await.unwrap();
        assert_eq!(facts.owner.unwrap().1, "serves it");
        volume.close().await.unwrap();
        assert_eq!(
            kind(manage::grow(chain(), SIZE, false).await),
            Kind::Invalid
        );
        let grown = manage::grow(chain(), 2 * SIZE, false).await.unwrap();
        assert_eq!(grown.size_bytes, 2 * SIZE);
        let (volume, _rig) = open(&store).await;
        assert_eq!(read(&volume, 0, 11).await.unwrap()[9..], [1, 0]);
        let rest = read(&volume, SIZE - 10, SIZE).await.unwrap();
        assert!(rest.iter().all(|&byte| byte == 0));
        write(&volume, 2 * SIZE - 5, 4, 5).await.unwrap();
        volume.close().await.unwrap();
        // Nothing of the old volume is left, and nothing of it is seen.
        let old = named(&store, "/index").remove(0);
        manage::create(chain(), force, false, &mut |_| ())
            .await
            .unwrap();
        assert!(named(&store, &old[..36]).is_empty());
        store.insert("volume-of-somebody-else", vec![1]);
        manage::destroy(chain(), false, &mut |_| ()).await.unwrap();
        assert_eq!(store.keys(), ["volume-of-somebody-else"]);
        assert_eq!(
            kind(manage::destroy(chain(), false, &mut |_| ()).await),
            Kind::NotFound
        );
    });
}

#[test]
fn c17_a_lost_owner_record_needs_a_takeover_which_shuts_everybody_out() {
    block_on(async {
        for is_gone in [true, false] {
            let (store, old, _rig) = fresh(Way::Whole).await;
            write(&old, 0, 1, 100).await.unwrap();
            old.flush().await.unwrap();
            let key = named(&store, "/owner").remove(0);
            let mut record = store.peek(&key).unwrap();
            match is_gone {
                true => drop(store.remove(&key)),
                false => {
                    record[20] ^= 1;
                    store.insert(&key, record);
                }
            }
            let refused = try_open(&store, modest()).await.0.unwrap_err();
            assert_eq!(refused.kind, Kind::Corrupt);
            assert!(refused.message.contains("--takeover"), "{refused}");
            let (new, _rig) = open(&store).await;
            assert_eq!(read(&new, 0, 100).await.unwrap(), [1; 100]);
            write(&new, 0, 2, 50).await.unwrap();
            new.flush().await.unwrap();
            assert_eq!(kind(old.flush().await), Kind::Fenced);
            new.close().await.unwrap();
            let (newest, _rig) = try_open(&store, modest()).await;
            let newest = newest.unwrap();
            assert_eq!(read(&newest, 49, 2).await.unwrap(), [2, 1]);
        }
    });
}

#[test]
fn c17_a_damaged_owner_record_says_nothing_of_epochs_even_if_nothing_was_written() {
    block_on(async {
        let (store, old, _rig) = fresh(Way::Whole).await;
        let key = named(&store, "/owner").remove(0);
        let mut record = store.peek(&key).unwrap();
        record[20] ^= 1;
        store.insert(&key, record);
        let refused = try_open(&store, modest()).await.0.unwrap_err();
        assert_eq!(refused.kind, Kind::Corrupt);
        let (_new, _rig) = open(&store).await;
        assert!(owner(&store).stamp.epoch >= 1 << 32);
        assert_eq!(kind(old.flush().await), Kind::Fenced);
    });
}

#[test]
fn a_destroy_that_died_before_its_last_object_can_be_repeated() {
    block_on(async {
        let (store, volume, _rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, 100).await.unwrap();
        volume.close().await.unwrap();
        for key in named(&store, "/") {
            store.remove(&key);
        }
        let chain = Rig::new(&store).chain();
        manage::destroy(chain, false, &mut |_| ()).await.unwrap();
        assert_eq!(store.keys(), Vec::<String>::new());
    });
}
