//! The command lines of the project's mission, word for word.

use std::process::{Command, Stdio};

use tempfile::tempdir;

use nbd_rs_s3_server::Server as S3;

use crate::client::Client;
use crate::server::{binary, Serve};

/// Runs a line in a shell in `dir`, with `nbd-rs` first in PATH; gives what it printed.
fn shell(dir: &std::path::Path, line: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let here = binary()
        .parent()
        .expect("a directory")
        .display()
        .to_string();
    let output = Command::new("timeout")
        .args(["60", "sh", "-ec", line])
        .env("PATH", format!("{here}:{path}"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("timeout(1) can be run");
    let said = crate::server::text(&output);
    assert!(output.status.success(), "{line}: {said}");
    assert!(
        !said.contains("minio:minio"),
        "the secret is printed: {said}"
    );
    said
}

/// Serves it, and looks whether it keeps a write over a restart.
fn keeps(location: &str, bytes: u64) {
    let dir = tempdir().expect("a directory");
    let serve = || Serve::sharded("disk", location).unix(&dir.path().join("sock"));
    let server = serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, bytes - 5000, &[7; 5000]), 0);
    server.stop();
    let server = serve().start();
    let found = Client::unix(&server).read(bytes - 5000, 5000);
    assert!(found.expect("a READ") == [7; 5000]);
    server.stop();
}

#[test]
fn the_missions_sharded_volumes_work_word_for_word() {
    let dir = tempdir().expect("a directory");
    let here = dir.path().display();
    shell(
        dir.path(),
        "nbd-rs init --size 2Gi sharded \"file:$(pwd)/disk1/chunks/\"",
    );
    keeps(&format!("file:{here}/disk1/chunks/"), 2 << 30);
    shell(
        dir.path(),
        "nbd-rs init --size 2Gi sharded \"cache+file:$(pwd)/disk2/chunks/\"",
    );
    keeps(&format!("cache+file:{here}/disk2/chunks/"), 2 << 30);
    let destroy = "nbd-rs destroy sharded \"file:$(pwd)/disk1/chunks/\"";
    assert!(shell(dir.path(), destroy).contains("destroyed"));
    let store = S3::start();
    let port = store.address().port();
    // The bucket of the example is one that somebody has made.
    for links in ["", "cache+", "cache+retry+"] {
        let location = format!(
            "{links}s3://minio:minio@localhost:{port}/diskbucket/disk1/chunks/?create_bucket=true"
        );
        shell(
            dir.path(),
            &format!("nbd-rs init --size 2Gi sharded \"{location}\""),
        );
        keeps(&location, 2 << 30);
        shell(
            dir.path(),
            &format!("nbd-rs destroy sharded \"{location}\""),
        );
    }
}
