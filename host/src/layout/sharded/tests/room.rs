//! A store that is full (contract C24).

use super::super::state::PAGE_SHARDS;
use super::rig::Fault;
use super::*;
use crate::runtime::block_on;

/// A closed volume of two state pages; with data in its first shards, or none.
async fn closed(way: Way, has_data: bool) -> Store {
    let store = store(way);
    init(&store, 2 * PAGE_SHARDS * SHARD, way).await;
    let (volume, _rig) = open(&store).await;
    if has_data {
        write(&volume, 0, 7, 3 * SHARD).await.unwrap();
    }
    volume.close().await.unwrap();
    store
}

#[test]
fn c24_a_destroy_needs_no_room() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for has_data in [true, false] {
                let store = closed(way, has_data).await;
                let rig = Rig::new(&store);
                rig.fill();
                let destroyed = manage::destroy(rig.chain(), false, &mut |_| ()).await;
                destroyed.unwrap_or_else(|error| panic!("{way} {has_data}: {error}"));
                assert_eq!(store.keys(), Vec::<String>::new(), "{way} {has_data}");
            }
        }
    });
}

#[test]
fn c24_c17_a_destroy_without_room_spares_a_volume_that_is_served() {
    block_on(async {
        let (store, volume, _rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, SHARD).await.unwrap();
        volume.flush().await.unwrap();
        let before = store.keys();
        let rig = Rig::new(&store);
        rig.fill();
        let destroyed = manage::destroy(rig.chain(), false, &mut |_| ()).await;
        assert_eq!(kind(destroyed), Kind::Busy);
        assert_eq!(store.keys(), before);
    });
}

#[test]
fn c24_c22_a_volume_is_opened_where_there_is_no_room_for_a_probe() {
    block_on(async {
        let store = closed(Way::InPlace, true).await;
        let rig = Rig::new(&store);
        rig.fault("/probe-", Fault::Fails(Kind::NoSpace));
        let volume = manage::open(rig.chain(), how()).await.unwrap();
        write(&volume, 0, 8, 10).await.unwrap();
        assert_eq!(read(&volume, 9, 2).await.unwrap(), [8, 7]);
        volume.close().await.unwrap();
        // A new one needs it.
        let store = super::store(Way::InPlace);
        init(&store, SIZE, Way::InPlace).await;
        let rig = Rig::new(&store);
        rig.fault("/probe-", Fault::Fails(Kind::NoSpace));
        let opened = manage::open(rig.chain(), how()).await;
        assert_eq!(opened.err().map(|error| error.kind), Some(Kind::NoSpace));
    });
}

#[test]
fn c24_a_volume_is_given_back_though_there_is_no_room_for_a_new_state_page() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let store = closed(way, true).await;
            let (volume, rig) = open(&store).await;
            let new = PAGE_SHARDS * SHARD;
            for _ in 0..2 {
                rig.fault("/state/00000001", Fault::Fails(Kind::NoSpace));
                assert_eq!(kind(write(&volume, new, 1, 10).await), Kind::NoSpace);
            }
            assert_eq!(read(&volume, new, 10).await.unwrap(), [0; 10]);
            write(&volume, 5, 8, 10).await.unwrap();
            volume.flush().await.unwrap();
            rig.fault("/state/00000001", Fault::Fails(Kind::NoSpace));
            volume.close().await.unwrap();
            assert!(owner(&store).released, "{way}");
            let (volume, _rig) = open(&store).await;
            assert_eq!(read(&volume, new, 10).await.unwrap(), [0; 10]);
            assert_eq!(read(&volume, 14, 2).await.unwrap(), [8, 7]);
        }
    });
}
