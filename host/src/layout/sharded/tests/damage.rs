//! Bytes that changed, objects that are gone: errors, never zeros and never other data.

use super::super::check::{check, Finding, Report};
use super::super::names::VOLUME;
use super::*;
use crate::runtime::block_on;
use nbd_rs_plugin::ExtentFlags;

async fn found(store: &Store) -> Report {
    let chain = Rig::new(store).chain();
    check(&chain, true, &mut |_, _| ()).await.unwrap()
}

/// A closed volume with data in its first shards.
async fn filled(way: Way) -> Store {
    let (store, volume, _rig) = fresh(way).await;
    write(&volume, 0, 7, 3 * SHARD).await.unwrap();
    volume.flush().await.unwrap();
    volume.close().await.unwrap();
    store
}

#[test]
fn c21_a_lost_shard_is_an_error_and_check_names_it() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = filled(way).await;
            let lost = named(&store, "shard/").remove(1);
            store.remove(&lost);
            let report = found(&store).await;
            assert!(report.has_damage());
            assert_eq!(report.findings.len(), 1);
            assert_eq!(
                (report.findings[0].0, &report.findings[0].1),
                (Finding::Missing, &lost)
            );
            let (volume, _rig) = open(&store).await;
            assert_eq!(kind(read(&volume, SHARD, 1).await), Kind::Corrupt);
            assert_eq!(kind(read(&volume, 0, 2 * SHARD).await), Kind::Corrupt);
            assert_eq!(kind(write(&volume, SHARD + 5, 1, 10).await), Kind::Corrupt);
            assert_eq!(read(&volume, 0, 1).await.unwrap(), [7]);
            if way == Way::Whole {
                // Written anew it is whole again.
                write(&volume, SHARD, 8, SHARD).await.unwrap();
                assert_eq!(read(&volume, SHARD, 1).await.unwrap(), [8]);
            }
        }
    });
}

/// A client that copies a volume asks where the data is, and must come as far as reading it.
#[test]
fn c21_what_is_lost_is_told_as_data_and_its_read_is_an_error() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for lost in ["shard/000000000001", "state/"] {
                let store = filled(way).await;
                store.remove(&named(&store, lost).remove(0));
                let how = How {
                    writes: false,
                    ..how()
                };
                let volume = manage::open(Rig::new(&store).chain(), how).await.unwrap();
                let extents = volume.extents(SHARD, 2 * SHARD, 10).wait().await.unwrap();
                let told: u64 = extents.iter().map(|extent| extent.len).sum();
                assert_eq!(told, 2 * SHARD, "{way} {lost}");
                assert_eq!(extents[0].flags, ExtentFlags::NONE, "{way} {lost}");
                assert!(extents[0].len >= SHARD, "{way} {lost}");
                assert_eq!(kind(read(&volume, SHARD, 1).await), Kind::Corrupt);
            }
        }
    });
}

#[test]
fn c25_a_changed_byte_is_an_error_for_its_unit_alone() {
    block_on(async {
        let store = filled(Way::Whole).await;
        let key = named(&store, "shard/").remove(0);
        let mut object = store.peek(&key).unwrap();
        object[5 * 4096 + 100] ^= 4;
        store.insert(&key, object);
        let report = found(&store).await;
        assert_eq!(report.counts.get(&Finding::Damaged), Some(&1));
        let (volume, _rig) = open(&store).await;
        for again in 0..2 {
            let error = read(&volume, 5 * 4096, 10).await.unwrap_err();
            assert_eq!(error.kind, Kind::Corrupt, "{again}");
            assert!(error.message.contains("offset 20480"), "{error}");
            assert_eq!(read(&volume, 4 * 4096, 4096).await.unwrap(), [7; 4096]);
            assert_eq!(read(&volume, 6 * 4096, 4096).await.unwrap(), [7; 4096]);
        }
        // A change next to it carries the damage along, and does not vouch for it.
        write(&volume, 0, 1, 4096).await.unwrap();
        assert_eq!(kind(read(&volume, 5 * 4096, 10).await), Kind::Corrupt);
        assert_eq!(
            kind(write(&volume, 5 * 4096 + 1, 1, 10).await),
            Kind::Corrupt
        );
        // A change of the whole unit mends it.
        write(&volume, 5 * 4096, 9, 4096).await.unwrap();
        assert_eq!(read(&volume, 5 * 4096, 1).await.unwrap(), [9]);
        volume.close().await.unwrap();
        assert!(!found(&store).await.has_damage());
    });
}

#[test]
fn c25_shards_that_were_swapped_are_noticed() {
    block_on(async {
        let store = filled(Way::Whole).await;
        let keys = named(&store, "shard/");
        let other = store.peek(&keys[1]).unwrap();
        store.insert(&keys[0], other);
        let (volume, _rig) = open(&store).await;
        assert_eq!(kind(read(&volume, 0, 1).await), Kind::Corrupt);
        // Cut short.
        let mut object = store.peek(&keys[2]).unwrap();
        object.pop();
        store.insert(&keys[2], object);
        assert_eq!(kind(read(&volume, 2 * SHARD, 1).await), Kind::Corrupt);
        assert_eq!(kind(write(&volume, 2 * SHARD, 1, 1).await), Kind::Corrupt);
        let report = found(&store).await;
        assert_eq!(report.counts.get(&Finding::Damaged), Some(&2));
    });
}

/// What a volume is read as, or that it is not.
async fn all(store: &Store) -> Result<Vec<u8>> {
    all_by(store, how()).await
}

async fn all_by(store: &Store, how: How) -> Result<Vec<u8>> {
    let chain = Rig::new(store).chain();
    let volume = manage::open(chain, how).await?;
    read(&volume, 0, 4 * SHARD).await
}

#[test]
fn c11_every_byte_of_the_metadata_flipped_is_an_error_and_never_other_data() {
    block_on(async {
        let store = filled(Way::Whole).await;
        let expected = all(&store).await.unwrap();
        let (volume, _rig) = open(&store).await;
        volume.close().await.unwrap();
        for name in [VOLUME, "/owner", "/index", "/state/"] {
            let key = named(&store, name).remove(0);
            let object = store.peek(&key).unwrap();
            let mut how = how();
            // Who takes over says that nobody else has the volume, whatever its owner record is.
            how.takeover = name != "/owner";
            // Every byte of the small ones; of a page every 13th, the header and the checksum.
            let step = if object.len() > 1000 { 13 } else { 1 };
            let ends = (0..80).chain(object.len() - 8..object.len());
            let bytes = (0..object.len()).step_by(step).chain(ends);
            for at in bytes.filter(|&at| at < object.len()) {
                let mut flipped = object.clone();
                flipped[at] ^= 1 << (at % 8);
                store.insert(&key, flipped);
                match all_by(&store, how).await {
                    Err(error) => assert!(
                        matches!(error.kind, Kind::Corrupt | Kind::Unsupported),
                        "{name}, byte {at}: {error}"
                    ),
                    Ok(_) => panic!("{name}, byte {at}: served"),
                }
            }
            store.insert(&key, object);
        }
        assert_eq!(all(&store).await.unwrap(), expected);
    });
}

#[test]
fn c21_a_lost_state_page_or_index_is_an_error_and_never_zeros() {
    block_on(async {
        for name in ["/state/", "/index"] {
            let store = filled(Way::Whole).await;
            let key = named(&store, name).remove(0);
            store.remove(&key);
            assert_eq!(kind(all(&store).await), Kind::Corrupt, "{name}");
            let report = found(&store).await;
            assert_eq!(report.counts.get(&Finding::Missing), Some(&1), "{name}");
        }
    });
}

#[test]
fn c21_check_calls_no_shard_a_leftover_whose_state_is_lost() {
    block_on(async {
        for name in ["/state/", "/index"] {
            let store = filled(Way::Whole).await;
            let key = named(&store, name).remove(0);
            let mut object = store.peek(&key).unwrap();
            object[40] ^= 1;
            for damaged in [Some(object), None] {
                store.remove(&key);
                if let Some(object) = damaged {
                    store.insert(&key, object);
                }
                let report = found(&store).await;
                assert!(report.has_damage(), "{name}");
                assert_eq!(report.findings.len(), 1, "{name}: {report:?}");
            }
        }
    });
}

#[test]
fn c21_a_state_page_that_is_lost_while_it_is_served_is_an_error_for_changes() {
    block_on(async {
        let (store, volume, _rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, 10).await.unwrap();
        store.remove(&named(&store, "/state/").remove(0));
        assert_eq!(kind(volume.flush().await), Kind::Corrupt);
    });
}

#[test]
fn leftovers_and_foreign_objects_are_told_from_damage() {
    block_on(async {
        let store = filled(Way::Whole).await;
        let key = named(&store, "shard/").remove(0);
        let object = store.peek(&key).unwrap();
        store.insert(&key.replace("000000000000", "000000000009"), object.clone());
        store.insert(&key.replace("000000000000", "000000009999"), object);
        store.insert(&key.replace("shard/000000000000", "notes.txt"), vec![]);
        let report = found(&store).await;
        assert!(!report.has_damage());
        assert_eq!(report.counts.get(&Finding::Orphan), Some(&1));
        assert_eq!(report.counts.get(&Finding::Foreign), Some(&2));
        assert_eq!((report.shards, report.verified), (3, 3));
    });
}

#[test]
fn a_volume_of_the_older_program_is_recognised_and_named() {
    block_on(async {
        let store = store(Way::Whole);
        store.insert("size", b"1048576".to_vec());
        store.insert("block-0", vec![0; 10]);
        let open = manage::open(store.chain(), how()).await.err().unwrap();
        assert!(open.message.contains("rainlab-inc"), "{open}");
        let plan = plan(SIZE, Way::Whole);
        let init = manage::create(store.chain(), plan, false, &mut |_| ()).await;
        assert_eq!(kind(init), Kind::Exists);
        assert_eq!(store.keys(), ["block-0", "size"]);
    });
}

#[test]
fn c21_check_does_not_call_missing_what_a_server_gives_up_meanwhile() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = filled(way).await;
            let page = named(&store, "/state/").remove(0);
            let before = store.peek(&page).unwrap();
            let (volume, rig) = open(&store).await;
            zero(&volume, SHARD, SHARD, ZeroFlags::TRIM).await.unwrap();
            volume.close().await.unwrap();
            assert_eq!(named(&store, "/shard/").len(), 2);
            let after = store.peek(&page).unwrap();
            // It reads the page before the trim, and the list of objects after it.
            store.insert(&page, before);
            let mut trim = |_, _| store.insert(&page, after.clone());
            let report = check(&rig.chain(), false, &mut trim).await.unwrap();
            assert!(!report.has_damage(), "{report:?}");
        }
    });
}

#[test]
fn f45_check_calls_nothing_missing_that_only_the_listing_does_not_have() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = filled(way).await;
            let rig = Rig::new(&store);
            rig.hide("shard/000000000001");
            let report = check(&rig.chain(), true, &mut |_, _| ()).await.unwrap();
            assert!(report.findings.is_empty(), "{report:?}");
        }
    });
}

/// The server gives a shard up between the two questions: is it written, and is it there.
#[test]
fn c21_check_looks_at_the_state_again_before_it_calls_a_shard_missing() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = filled(way).await;
            let (volume, _rig) = open(&store).await;
            let rig = Rig::new(&store);
            // The listing that it starts with does not tell.
            rig.hide("shard/000000000001");
            let asked = rig.hold("head 000000000001");
            let chain = rig.chain();
            let checked = tokio::spawn(async move { check(&chain, false, &mut |_, _| ()).await });
            while rig.waiting() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            zero(&volume, SHARD, SHARD, ZeroFlags::NONE).await.unwrap();
            while !named(&store, "shard/000000000001").is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(asked);
            let report = checked.await.unwrap().unwrap();
            assert!(report.findings.is_empty(), "{way}: {report:?}");
        }
    });
}

/// What a server writes after its state page was read is no leftover.
#[test]
fn check_calls_no_leftover_what_a_server_writes_meanwhile() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = filled(way).await;
            let (volume, _rig) = open(&store).await;
            let rig = Rig::new(&store);
            let listed = rig.hold("list");
            let chain = rig.chain();
            let checked = tokio::spawn(async move { check(&chain, false, &mut |_, _| ()).await });
            while rig.waiting() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            write(&volume, 9 * SHARD, 1, SHARD).await.unwrap();
            volume.flush().await.unwrap();
            drop(listed);
            let report = checked.await.unwrap().unwrap();
            assert!(report.findings.is_empty(), "{way}: {report:?}");
        }
    });
}

#[test]
fn c16_f44_f46_an_older_version_of_a_shard_than_the_one_put_last_is_never_given() {
    block_on(async {
        let (store, volume, _rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, SHARD).await.unwrap();
        let key = named(&store, "shard/").remove(0);
        let older = store.peek(&key).unwrap();
        write(&volume, 0, 2, SHARD).await.unwrap();
        let newer = store.peek(&key).unwrap();
        // The store lost the last put, or does not show it yet.
        store.insert(&key, older);
        let part = (4096, 100);
        assert_eq!(kind(read(&volume, part.0, part.1).await), Kind::Io);
        assert_eq!(kind(read(&volume, 0, SHARD).await), Kind::Io);
        assert_eq!(kind(write(&volume, part.0, 3, 10).await), Kind::Io);
        // In a moment it does.
        let reading = tokio::spawn(volume.read(0, SHARD, ReadFlags::NONE).wait());
        tokio::time::sleep(Duration::from_millis(30)).await;
        store.insert(&key, newer);
        let found = bytes_of(&reading.await.unwrap().unwrap());
        assert!(found.iter().all(|&byte| byte == 2));
        write(&volume, part.0, 3, 10).await.unwrap();
        assert_eq!(read(&volume, part.0 + 9, 2).await.unwrap(), [3, 2]);
    });
}

#[test]
fn c17_check_names_an_owner_record_that_is_lost_or_damaged() {
    block_on(async {
        let store = filled(Way::Whole).await;
        let key = named(&store, "/owner").remove(0);
        let record = store.remove(&key).unwrap();
        let finding = |report: Report| (report.findings.len(), report.findings[0].clone());
        let report = found(&store).await;
        assert!(!report.has_damage() && report.needs_repair());
        let (count, (what, object, text)) = finding(report);
        assert_eq!((count, what, &object), (1, Finding::Mendable, &key));
        assert!(text.contains("--takeover"), "{text}");
        let flipped = record.iter().map(|byte| byte ^ 1);
        store.insert(&key, flipped.collect());
        let (count, (what, object, text)) = finding(found(&store).await);
        assert_eq!((count, what, &object), (1, Finding::Mendable, &key));
        assert!(text.contains("--takeover"), "{text}");
        // One that nobody has served yet has none.
        let store = super::store(Way::Whole);
        init(&store, SIZE, Way::Whole).await;
        assert!(found(&store).await.findings.is_empty());
    });
}
