//! The command lines of the project's mission, word for word.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::tempdir;

use nbd_rs_s3_server::Server as S3;

use crate::client::Client;
use crate::server::{binary, Serve};

/// Runs a line in a shell in `dir`, with `nbd-rs` first in PATH and its state in there, too; gives
/// what it printed.
fn shell(dir: &Path, line: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let here = binary()
        .parent()
        .expect("a directory")
        .display()
        .to_string();
    let output = Command::new("timeout")
        .args(["60", "sh", "-ec", line])
        .env("PATH", format!("{here}:{path}"))
        .env("STATE_DIRECTORY", dir.join("state"))
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

/// Serves it with nothing said about a journal, and looks whether it keeps a write over a restart.
fn keeps(dir: &Path, location: &str, bytes: u64) {
    let serve = || {
        let mut serve = Serve::gathering("disk", location, &[""; 0]);
        let state = format!("STATE_DIRECTORY={}", dir.join("state").display());
        serve.before = vec!["env".into(), state.into()];
        serve.unix(&dir.join("sock"))
    };
    let server = serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, bytes - 5000, &[7; 5000]), 0);
    server.stop();
    let server = serve().start();
    let found = Client::unix(&server).read(bytes - 5000, 5000);
    assert!(found.expect("a READ") == [7; 5000]);
    server.stop();
}

/// How many journals there are.
fn journals(dir: &Path) -> usize {
    let Ok(names) = std::fs::read_dir(dir.join("state/journal")) else {
        return 0;
    };
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let journals = names.filter(|name| name.to_string_lossy().ends_with(".journal"));
    journals.count()
}

#[test]
fn the_missions_sharded_volumes_work_word_for_word() {
    let dir = tempdir().expect("a directory");
    let here = dir.path().display();
    shell(
        dir.path(),
        "nbd-rs init --size 2Gi sharded \"file:$(pwd)/disk1/chunks/\"",
    );
    keeps(dir.path(), &format!("file:{here}/disk1/chunks/"), 2 << 30);
    shell(
        dir.path(),
        "nbd-rs init --size 2Gi sharded \"cache+file:$(pwd)/disk2/chunks/\"",
    );
    keeps(
        dir.path(),
        &format!("cache+file:{here}/disk2/chunks/"),
        2 << 30,
    );
    let destroy = "nbd-rs destroy sharded \"file:$(pwd)/disk1/chunks/\"";
    assert!(shell(dir.path(), destroy).contains("destroyed"));
    assert_eq!(journals(dir.path()), 0, "shards that change in place");
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
        keeps(dir.path(), &location, 2 << 30);
        assert_eq!(journals(dir.path()), 1, "shards that are put whole");
        shell(
            dir.path(),
            &format!("nbd-rs destroy sharded \"{location}\""),
        );
        assert_eq!(journals(dir.path()), 0, "a destroyed volume's journal");
    }
}
