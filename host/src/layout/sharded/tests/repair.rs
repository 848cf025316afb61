//! Records that are lost, and made again from what is there: never zeros where data may have been.

use super::super::check::{check, Finding, Report};
use super::super::repair::repair;
use super::*;
use crate::runtime::block_on;

async fn checked(store: &Store) -> Report {
    let chain = Rig::new(store).chain();
    check(&chain, true, &mut |_, _| ()).await.unwrap()
}

async fn repaired(rig: &Rig) -> Result<Vec<String>> {
    repair(&rig.chain(), false, how().timing, &mut |_, _| ()).await
}

/// A closed volume with data in its first shards, but for the second one.
async fn filled(way: Way) -> Store {
    let (store, volume, _rig) = fresh(way).await;
    write(&volume, 0, 7, SHARD).await.unwrap();
    write(&volume, 2 * SHARD, 7, 2 * SHARD).await.unwrap();
    volume.flush().await.unwrap();
    volume.close().await.unwrap();
    store
}

/// Opens it as a server that takes nothing over.
async fn served(store: &Store) -> Result<Sharded> {
    let how = How {
        takeover: false,
        ..how()
    };
    manage::open(Rig::new(store).chain(), how).await
}

fn lose(store: &Store, name: &str, is_damaged: bool) {
    let key = named(store, name).remove(0);
    let mut object = store.remove(&key).unwrap();
    if is_damaged {
        object[60] ^= 1;
        store.insert(&key, object);
    }
}

/// What was there is there, and what was not known reads as an error until somebody says what it is.
async fn assert_known(store: &Store, what: &str) {
    let volume = served(store).await.unwrap();
    for shard in [0, 2, 3] {
        let found = read(&volume, shard * SHARD, SHARD).await.unwrap();
        assert!(found.iter().all(|&byte| byte == 7), "{what}: shard {shard}");
    }
    for shard in [1, 4, 20] {
        let at = shard * SHARD;
        assert_eq!(kind(read(&volume, at, 10).await), Kind::Corrupt, "{what}");
        assert_eq!(kind(write(&volume, at, 1, 10).await), Kind::Corrupt);
    }
    zero(&volume, SHARD, SHARD, ZeroFlags::TRIM).await.unwrap();
    assert_eq!(read(&volume, SHARD, 10).await.unwrap(), [0; 10], "{what}");
    write(&volume, SHARD, 8, 10).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(read(&volume, SHARD, 11).await.unwrap()[9..], [8, 0]);
    volume.close().await.unwrap();
}

#[test]
fn c17_a_lost_owner_record_is_made_again_and_nothing_else_is_touched() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for is_damaged in [false, true] {
                let store = filled(way).await;
                lose(&store, "/owner", is_damaged);
                assert!(served(&store).await.is_err());
                let mended = repaired(&Rig::new(&store)).await.unwrap();
                assert_eq!(mended.len(), 1, "{mended:?}");
                assert!(checked(&store).await.findings.is_empty());
                assert!(owner(&store).stamp.epoch >= 1 << 32);
                let volume = served(&store).await.unwrap();
                assert_eq!(read(&volume, 0, 1).await.unwrap(), [7]);
                assert_eq!(read(&volume, SHARD, 1).await.unwrap(), [0]);
            }
        }
    });
}

#[test]
fn c21_lost_state_pages_and_index_are_made_again_and_what_is_not_known_is_an_error() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for lost in [
                &["/state/"][..],
                &["/state/", "/owner"],
                &["/state/", "/index"],
                &["/state/", "/index", "/owner"],
            ] {
                for is_damaged in [false, true] {
                    let what = format!("{way} {lost:?} {is_damaged}");
                    let store = filled(way).await;
                    lost.iter().for_each(|name| lose(&store, name, is_damaged));
                    assert!(checked(&store).await.has_damage(), "{what}");
                    let mended = repaired(&Rig::new(&store)).await.unwrap();
                    assert_eq!(mended.len(), lost.len(), "{what}: {mended:?}");
                    let report = checked(&store).await;
                    assert!(!report.needs_repair(), "{what}: {report:?}");
                    assert_eq!(report.counts.get(&Finding::Missing), Some(&18));
                    assert_known(&store, &what).await;
                }
            }
        }
    });
}

#[test]
fn c21_an_index_that_is_lost_alone_is_made_again_with_nothing_unknown() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for lost in [&["/index"][..], &["/index", "/owner"]] {
                let store = filled(way).await;
                lost.iter().for_each(|name| lose(&store, name, false));
                let mended = repaired(&Rig::new(&store)).await.unwrap();
                assert_eq!(mended.len(), lost.len(), "{mended:?}");
                assert!(checked(&store).await.findings.is_empty());
                let volume = served(&store).await.unwrap();
                assert_eq!(read(&volume, SHARD - 1, 2).await.unwrap(), [7, 0]);
                // An owner that was before cannot have been later.
                assert!(owner(&store).stamp.epoch > 1, "{lost:?}");
                write(&volume, 5 * SHARD, 1, 10).await.unwrap();
                volume.flush().await.unwrap();
            }
        }
    });
}

#[test]
fn a_shard_that_only_grew_has_lost_nothing_and_is_cut() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = filled(way).await;
            let key = named(&store, "shard/").remove(0);
            let mut object = store.peek(&key).unwrap();
            let bytes = object.len();
            object.extend([9; 100]);
            store.insert(&key, object);
            let report = checked(&store).await;
            assert!(!report.has_damage(), "{way}: {report:?}");
            assert_eq!(report.needs_repair(), way == Way::InPlace);
            if way == Way::InPlace {
                let mended = repaired(&Rig::new(&store)).await.unwrap();
                assert_eq!(mended.len(), 1, "{mended:?}");
                assert_eq!(store.peek(&key).unwrap().len(), bytes);
                assert!(checked(&store).await.findings.is_empty());
            }
            let volume = served(&store).await.unwrap();
            assert_eq!(read(&volume, SHARD - 1, 2).await.unwrap(), [7, 0]);
        }
    });
}

#[test]
fn c17_a_volume_that_is_served_is_not_repaired() {
    block_on(async {
        let store = filled(Way::Whole).await;
        let volume = served(&store).await.unwrap();
        lose(&store, "/state/", false);
        assert_eq!(kind(repaired(&Rig::new(&store)).await), Kind::Busy);
        assert!(named(&store, "/state/").is_empty());
        drop(volume);
    });
}

#[test]
fn c18_a_repair_that_dies_anywhere_can_be_made_again() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for last_happens in [false, true] {
                for change in 1..40 {
                    let store = filled(way).await;
                    for name in ["/state/", "/index", "/owner"] {
                        lose(&store, name, change % 2 == 0);
                    }
                    let rig = Rig::new(&store);
                    rig.die_at(change, last_happens);
                    let ended = repaired(&rig).await.is_ok();
                    let what = format!("{way}, dead at {change}: {last_happens}");
                    // The dead one was of this process, which lives.
                    store.remove(&Names::of(uuid_of(&store)).owner());
                    let again = repaired(&Rig::new(&store)).await;
                    again.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert!(!checked(&store).await.needs_repair(), "{what}");
                    assert_known(&store, &what).await;
                    if ended {
                        assert!(change > 4, "{what}: it changed next to nothing");
                        break;
                    }
                }
            }
        }
    });
}

/// Also where all records are gone.
fn uuid_of(store: &Store) -> Uuid {
    let key = named(store, "shard/").remove(0);
    Uuid::parse(key.split('/').next().unwrap()).unwrap()
}
