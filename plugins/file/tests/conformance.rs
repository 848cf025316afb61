//! What every backend must show, shown by this one: on a directory of objects, and on one file.

mod common;

use common::open;
use nbd_rs_plugin::conformance::host::block_on;
use nbd_rs_plugin::conformance::{run, Options, Outcome, Report};
use nbd_rs_plugin::{CapabilityFlags, OpenFlags};

fn seed() -> u64 {
    let given = std::env::var("NBD_RS_TEST_SEED");
    given.map_or(1, |text| text.parse().expect("a number"))
}

/// Nothing failed, and nothing was left out but what is meant to be.
fn assert_conforms(report: &Report, skipped: &[&str]) {
    assert!(report.passed(), "{report}");
    let left_out: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::Skipped(_)))
        .map(|check| check.name)
        // Not every file system zeroes fast.
        .filter(|name| *name != "fast_zero")
        .collect();
    if skipped != ["by name"] {
        assert_eq!(left_out, skipped, "{report}");
    }
    println!("{report}");
}

#[test]
fn a_directory_of_objects_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("made/for/it");
    let next = open(&root, OpenFlags::WRITE | OpenFlags::CREATE);
    let report = block_on(run(next.clone(), &Options::named("conformance/", seed())));
    assert_conforms(&report, &["reads_agree"]);
    block_on(next.close()).expect("close");
    let left: Vec<_> = std::fs::read_dir(&root).expect("the root").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn one_file_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let next = open(
        &path,
        OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::SINGLE_OBJECT,
    );
    let report = block_on(run(next.clone(), &Options::single(seed())));
    assert_conforms(&report, &["by name"]);
    let fast_zero = usize::from(next.capabilities().has(CapabilityFlags::FAST_ZERO));
    assert_eq!(report.passes(), 9 + fast_zero, "{report}");
}
