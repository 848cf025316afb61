//! `status`, `scrub`, `resync` and `replace-backend`.

use serde_json::Value;

use crate::client::Client;
use crate::cluster::{all, kill, pattern, Cluster};
use crate::server::{nbd_rs, text, Serve};

const SIZE: usize = 4 << 20;

/// Runs a command whose words stand before the volume, with this exit code; what it printed as JSON.
#[track_caller]
fn json(cluster: &Cluster, command: &str, code: i32) -> Value {
    let output = cluster.try_run(command);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command}: {}",
        text(&output)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Images, packs, and what is in records.
fn filled(cluster: &Cluster) -> Vec<u8> {
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    let mut client = Client::unix(&server);
    let mut expected = vec![0; SIZE];
    for (at, len) in [
        (0, 700_000),
        (900_000, 4096),
        (1_000_000, 10_000),
        (3 << 20, 300_000),
    ] {
        let bytes = pattern(len, at as u8 ^ 0x35);
        assert_eq!(client.write(0, at as u64, &bytes), 0);
        expected[at..at + len].copy_from_slice(&bytes);
    }
    server.stop();
    expected
}

/// It is there with any one backend away.
#[track_caller]
fn is_whole_without_any(cluster: &Cluster, location: &str, expected: &[u8]) {
    for away in 0..cluster.stores.len() {
        cluster.stores[away].set_away(true);
        let serve = Serve::distributed("disk", location, &["--no-journal"]);
        let mut server = serve.unix(&cluster.dir().join("whole")).start();
        assert!(all(&server, SIZE) == expected, "without {away}");
        kill(&mut server);
        cluster.stores[away].set_away(false);
    }
}

#[test]
fn status_says_how_each_backend_stands_also_while_it_is_served() {
    let cluster = Cluster::new(3, "s3:", 0);
    filled(&cluster);
    let server = cluster.serve().start();
    let status = json(&cluster, "status --json", 0);
    assert_eq!(status["degraded"], false, "{status:#}");
    let pid = format!("pid {}", server.pid().as_raw_nonzero());
    let backends = status["backends"].as_array().expect("a list");
    for backend in backends {
        assert!(backend["owner"]["who"]
            .as_str()
            .expect("one")
            .contains(&pid));
        assert_eq!(backend["log"]["behind"], 0, "{status:#}");
    }
    cluster.stores[1].set_away(true);
    for at in 0..20 {
        assert_eq!(
            Client::unix(&server).write(0, at * 8192, &[at as u8; 4096]),
            0
        );
    }
    let status = json(&cluster, "status --json", 0);
    assert_eq!(status["degraded"], true);
    assert_eq!(status["backends"][1]["there"], false, "{status:#}");
    let said = cluster.run("status");
    assert!(
        said.contains("degraded") && said.contains("away: "),
        "{said}"
    );
    // It changed nothing: the server is the owner still.
    assert_eq!(Client::unix(&server).flush(), 0);
}

#[test]
fn c25_f46_f54_scrub_finds_what_is_missing_or_damaged_and_puts_it_anew() {
    let cluster = Cluster::new(3, "s3:", 0);
    let expected = filled(&cluster);
    let clean = json(&cluster, "scrub --deep --json", 0);
    assert_eq!(clean["flawed"], 0, "{clean:#}");
    assert!(clean["verified_bytes"].as_u64().expect("a number") > 3 * 900_000);
    let mut flawed = 0;
    for (at, store) in cluster.stores.iter().enumerate() {
        let mut keys = store.keys();
        keys.retain(|key| key.contains("/s/") || key.contains("/b/") || key.contains("/m/"));
        assert!(keys.len() > 8, "{keys:?}");
        // Every third on each backend, another third on the next: whole somewhere.
        for key in keys.iter().skip(at).step_by(3) {
            flawed += 1;
            match flawed % 2 {
                0 => store.remove(key),
                _ => store.spoil(key, |bytes| {
                    let at = 3000 % bytes.len();
                    bytes[at] ^= 4;
                }),
            }
        }
    }
    let found = json(&cluster, "scrub --deep --json", 6);
    // Pages that a new checkpoint put are new.
    let seen = found["flawed"].as_u64().expect("a number");
    assert!(seen > 0 && found["repaired"] == 0 && found["lost"] == Value::Array(vec![]));
    let shallow = json(&cluster, "scrub --json", 6);
    assert!(shallow["flawed"].as_u64() < Some(seen), "{shallow:#}");
    let mended = json(&cluster, "scrub --deep --repair --json", 0);
    assert_eq!(mended["flawed"], mended["repaired"], "{mended:#}");
    let clean = json(&cluster, "scrub --deep --json", 0);
    assert_eq!(clean["flawed"], 0, "{clean:#}");
    is_whole_without_any(&cluster, &cluster.location(), &expected);
}

#[test]
fn f62_scrub_names_the_bytes_that_are_whole_nowhere() {
    let cluster = Cluster::new(3, "s3:", 0);
    filled(&cluster);
    for store in &cluster.stores {
        let mut keys = store.keys();
        keys.retain(|key| key.contains("/s/00000002/"));
        for key in keys {
            store.spoil(&key, |bytes| bytes[5 * 4096 + 7] ^= 1);
        }
    }
    let found = json(&cluster, "scrub --deep --repair --json", 5);
    let lost = found["lost"].as_array().expect("a list");
    assert_eq!(lost.len(), 1, "{found:#}");
    assert_eq!(lost[0]["offset"], 2 * 65_536 + 5 * 4096);
    assert_eq!(lost[0]["length"], 4096);
}

#[test]
fn f46_f54_f64_a_backend_that_was_emptied_is_a_full_copy_again_after_resync() {
    let cluster = Cluster::new(3, "s3:", 0);
    let expected = filled(&cluster);
    for key in cluster.stores[1].keys() {
        cluster.stores[1].remove(&key);
    }
    // Without it the volume is served, and it is told.
    let server = cluster.serve().start();
    assert!(server.log().contains("resync"), "{}", server.log());
    assert!(all(&server, SIZE) == expected);
    server.stop();
    let backend = cluster.backend(1).to_owned();
    let command = format!("resync --json {backend}");
    let report = json(&cluster, &command, 0);
    assert_eq!(report["away"], Value::Array(vec![]), "{report:#}");
    // Again is nothing new.
    assert_eq!(json(&cluster, &command, 0)["flawed"], 0);
    is_whole_without_any(&cluster, &cluster.location(), &expected);
    let clean = json(&cluster, "scrub --deep --json", 0);
    assert_eq!(clean["flawed"], 0, "{clean:#}");
}

#[test]
fn f64_a_backend_is_replaced_by_another_while_it_is_there_and_when_it_is_gone() {
    for is_there in [true, false] {
        let cluster = Cluster::new(3, "s3:", 1).with("replicas=2;");
        // The fourth is the new one.
        let location = cluster.location();
        let (list, new) = location.rsplit_once(',').expect("four");
        let new = new.trim_end_matches(';').to_owned();
        let three = format!("{list};");
        let run = |words: &[&str]| {
            let output = nbd_rs(&[words, &["distributed", &three]].concat());
            assert!(output.status.success(), "{words:?}: {}", text(&output));
        };
        run(&["init", "--size", "4Mi", "--shard-size", "64Ki"]);
        let serve = |location: &str| {
            let serve = Serve::distributed("disk", location, &["--no-journal"]);
            serve.unix(&cluster.dir().join("replaced"))
        };
        let server = serve(&three).start();
        let expected = pattern(SIZE, 0x11);
        assert_eq!(Client::unix(&server).write(0, 0, &expected), 0);
        server.stop();
        let old = cluster.backend(0).to_owned();
        cluster.stores[0].set_away(!is_there);
        run(&["replace-backend", &old, &new]);
        let replaced = three.replace(&old, &new);
        let server = serve(&replaced).start();
        assert!(all(&server, SIZE) == expected);
        server.stop();
        cluster.stores[0].set_away(false);
        // The old list is refused: what lies there is not the volume any more.
        let said = serve(&three).refused();
        assert!(said.contains("was replaced"), "{said}");
        let output = nbd_rs(&["scrub", "--deep", "--json", "distributed", &replaced]);
        assert!(output.status.success(), "{}", text(&output));
        for away in 1..3 {
            cluster.stores[away].set_away(true);
            let mut server = serve(&replaced).start();
            assert!(all(&server, SIZE) == expected, "without {away}");
            kill(&mut server);
            cluster.stores[away].set_away(false);
        }
    }
}

#[test]
fn commands_of_distributed_volumes_say_what_they_are_for() {
    let cluster = Cluster::new(0, "", 3);
    cluster.init(SIZE, "64Ki");
    cluster.refused(
        "resync file:/nowhere/",
        2,
        &["none of the volume's backends"],
    );
    cluster.refused("check", 2, &["scrub"]);
    let output = nbd_rs(&["scrub", "raw", "file:/nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("no copies"), "{}", text(&output));
    let server = cluster.serve().start();
    let pid = format!("pid {}", server.pid().as_raw_nonzero());
    cluster.refused("scrub", 1, &[&pid]);
    cluster.run("takeover");
    let mut server = server;
    let ended = server.wait(std::time::Duration::from_secs(40));
    assert_eq!(ended.expect("it ends").code(), Some(75), "{}", server.log());
    cluster.run("resize --size 6Mi");
    assert_eq!(cluster.info()["size"], 6 << 20);
    cluster.run("destroy");
    assert_eq!(cluster.names(), [""; 0]);
}
