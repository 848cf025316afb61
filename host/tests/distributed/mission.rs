//! The command lines of the project's mission, word for word.

use std::path::Path;
use std::process::{Command, Stdio};

use nbd_rs_s3_server::Server as S3;
use tempfile::tempdir;

use crate::client::Client;
use crate::server::{binary, nbd_rs, text, Serve};

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
    let said = text(&output);
    assert!(output.status.success(), "{line}: {said}");
    assert!(
        !said.contains("key:secret"),
        "the secret is printed: {said}"
    );
    said
}

/// Serves it with nothing said about a journal, and looks whether it keeps a write over a restart.
fn keeps(dir: &Path, config: &str) {
    const SIZE: u64 = 2 << 30;
    let serve = || {
        let mut serve = Serve::distributed("disk", config, &[""; 0]);
        let state = format!("STATE_DIRECTORY={}", dir.join("state").display());
        serve.before = vec!["env".into(), state.into()];
        serve.unix(&dir.join("sock"))
    };
    let server = serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, SIZE - 5000, &[7; 5000]), 0);
    server.stop();
    let server = serve().start();
    let found = Client::unix(&server).read(SIZE - 5000, 5000);
    assert!(found.expect("a READ") == [7; 5000]);
    server.stop();
}

/// The buckets of the examples are some that somebody has made.
fn buckets(port: u16, names: &[&str]) {
    for name in names {
        let at = format!("s3:http://key:secret@127.0.0.1:{port}/{name}?create_bucket=true");
        for command in [&["init", "--size", "1Mi"][..], &["destroy"]] {
            let output = nbd_rs(&[command, &["sharded", &at]].concat());
            assert!(output.status.success(), "{}", text(&output));
        }
    }
}

#[test]
fn the_missions_distributed_volumes_work_word_for_word() {
    let dir = tempdir().expect("a directory");
    let store = S3::start();
    let port = store.address().port();
    buckets(port, &["node0", "node1", "node2", "node3"]);
    let here = dir.path().display();
    let two = format!(
        "cache:s3:http://key:secret@127.0.0.1:{port}/node0,\
         cache:s3:http://key:secret@127.0.0.1:{port}/node1"
    );
    for (backends, copies) in [
        (two.clone(), 2),
        (format!("{two},file:$(pwd)/node2/"), 3),
        (
            format!(
                "{two},cache:s3:http://key:secret@127.0.0.1:{port}/node2,\
                 cache:s3:http://key:secret@127.0.0.1:{port}/node3"
            ),
            3,
        ),
    ] {
        let config = format!("replicas=3;backends={backends};");
        let init = format!("nbd-rs init --size 2Gi distributed \"{config}\"");
        let said = shell(dir.path(), &init);
        let warns = said.contains("replicas=3 with 2 backends");
        assert_eq!(warns, copies == 2, "{said}");
        let info = format!("nbd-rs info distributed \"{config}\"");
        let said = shell(dir.path(), &info);
        assert!(said.contains(&format!("{copies} of each shard")), "{said}");
        assert_eq!(said.contains("replicas=3 with 2 backends"), copies == 2);
        keeps(dir.path(), &config.replace("$(pwd)", &here.to_string()));
        let destroy = format!("nbd-rs destroy distributed \"{config}\"");
        assert!(shell(dir.path(), &destroy).contains("destroyed"));
    }
    assert_eq!(store.broken(), [""; 0]);
}
