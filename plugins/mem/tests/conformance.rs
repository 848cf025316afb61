//! What every backend must show, by a store in memory: as objects, and as one volume.

use nbd_rs_mem::backend::Mem;
use nbd_rs_plugin::conformance::host::block_on;
use nbd_rs_plugin::conformance::{run, Options};
use nbd_rs_plugin::{
    export_backend, GetFlags, Next, OpenFlags, OpenRequest, OptionValue, Range, Result,
};

fn open(options: &[(&str, &str)], flags: OpenFlags) -> Result<Next> {
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    let request = OpenRequest {
        scheme: "mem".into(),
        target: "".into(),
        options: options.iter().map(option).collect(),
        flags,
        inner: None.into(),
        reserved: [0; 4],
    };
    Ok(export_backend(Mem::open(&request)?).into())
}

#[test]
fn objects_conform() {
    let next = open(&[], OpenFlags::WRITE).unwrap();
    let report = block_on(run(next, &Options::named("c/", 1)));
    assert!(report.passed(), "{report}");
    assert_eq!(report.passes(), report.checks.len() - 1, "{report}");
}

#[test]
fn a_volume_conforms() {
    let flags = OpenFlags::WRITE | OpenFlags::SINGLE_OBJECT;
    let next = open(&[("size", "1MiB")], flags).unwrap();
    let report = block_on(run(next, &Options::single(1)));
    assert!(report.passed() && report.passes() == 10, "{report}");
}

#[test]
fn opened_to_read_it_changes_nothing() {
    let next = open(&[("size", "1MiB")], OpenFlags::NONE).unwrap();
    let report = block_on(run(next.clone(), &Options::named("", 1)));
    assert!(report.passed(), "{report}");
    assert!(block_on(next.delete(vec![String::new()])).is_err());
    assert!(block_on(next.get("", Range::ALL, GetFlags::NONE)).is_ok());
}
