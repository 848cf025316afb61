//! Backends that are away, come back, hang, and are not what they were.

use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, EIO};
use crate::cluster::{all, pattern, until, Cluster};

const SIZE: usize = 8 << 20;

#[test]
fn c15_f56_one_of_three_away_everything_goes_on_and_it_catches_up() {
    let cluster = Cluster::new(3, "cache:s3:", 0);
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    let mut client = Client::unix(&server);
    let mut expected = vec![0; SIZE];
    let write = |client: &mut Client, expected: &mut Vec<u8>, salt: u8| {
        for part in (0..SIZE).step_by(SIZE / 16) {
            let bytes = pattern(40_000, salt ^ (part >> 16) as u8);
            assert_eq!(client.write(0, part as u64, &bytes), 0);
            expected[part..part + bytes.len()].copy_from_slice(&bytes);
        }
        assert_eq!(client.flush(), 0);
    };
    write(&mut client, &mut expected, 1);
    cluster.stores[1].set_away(true);
    write(&mut client, &mut expected, 2);
    assert!(all(&server, SIZE) == expected);
    until("it is told", || server.log().contains("degraded"));
    cluster.stores[1].set_away(false);
    until("it catches up", || server.log().contains("all backends"));
    // Now others may go.
    cluster.stores[0].set_away(true);
    write(&mut client, &mut expected, 3);
    assert!(all(&server, SIZE) == expected);
    cluster.stores[0].set_away(false);
    server.stop();
    for away in 0..3 {
        cluster.stores[away].set_away(true);
        let server = cluster.serve().start();
        assert!(all(&server, SIZE) == expected, "without {away}");
        // Orderly, as far as that is possible.
        drop(server);
        cluster.stores[away].set_away(false);
    }
}

#[test]
fn c15_f56_a_directory_that_is_not_there_at_the_start_is_taken_in_when_it_comes() {
    let cluster = Cluster::new(0, "", 3);
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    assert_eq!(Client::unix(&server).write(0, 0, &pattern(100_000, 1)), 0);
    server.stop();
    let (here, elsewhere) = (cluster.directory(2), cluster.dir().join("elsewhere"));
    std::fs::rename(&here, &elsewhere).expect("renamed");
    let server = cluster.serve().start();
    assert!(server.log().contains("degraded"), "{}", server.log());
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 50_000, &pattern(100_000, 2)), 0);
    assert!(!here.exists(), "an empty one was made in its place");
    std::fs::rename(&elsewhere, &here).expect("renamed");
    until("it is back", || server.log().contains("is there again"));
    until("it catches up", || server.log().contains("all backends"));
    server.stop();
    // Without another one, all is there.
    std::fs::rename(cluster.directory(0), &elsewhere).expect("renamed");
    let server = cluster.serve().start();
    let mut expected = pattern(100_000, 1);
    expected.truncate(50_000);
    expected.extend(pattern(100_000, 2));
    assert!(all(&server, 150_000) == expected);
}

#[test]
fn c15_f57_two_of_three_away_is_an_error_in_time_and_no_start() {
    let cluster = Cluster::new(3, "s3:", 0);
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    cluster.stores[0].set_away(true);
    cluster.stores[2].set_away(true);
    let begin = Instant::now();
    assert_eq!(client.write(0, 0, &[2; 4096]), EIO);
    let waited = begin.elapsed();
    assert!(waited > Duration::from_secs(5), "{waited:?}");
    // Reads end with the lease.
    assert_eq!(client.read(4096, 4096).unwrap_err(), EIO);
    cluster.stores[0].set_away(false);
    until("it goes on", || Client::unix(&server).flush() == 0);
    let found = all(&server, 4096);
    assert!(found == [1; 4096] || found == [2; 4096]);
    drop(server);
    cluster.stores[0].set_away(true);
    let said = cluster.serve().refused();
    assert!(said.contains("too few backends"), "{said}");
    cluster.stores[0].set_away(false);
    cluster.stores[2].set_away(false);
    let server = cluster.serve().start();
    assert!(all(&server, 4096) == found, "what was read has flipped");
}

#[test]
fn c16_f55_f60_the_wrong_places_are_refused() {
    let cluster = Cluster::new(0, "", 3);
    cluster.init(SIZE, "64Ki");
    let other = Cluster::new(0, "", 3);
    other.init(SIZE, "64Ki");
    let serve = |location: &str| {
        let serve = crate::server::Serve::distributed("disk", location, &["--no-journal"]);
        serve.unix(&cluster.dir().join("wrong")).refused()
    };
    for (location, says) in [
        (cluster.location_with(1, other.backend(1)), "two volumes"),
        (
            cluster.location_with(1, &format!("{}./", cluster.backend(0))),
            "same backend",
        ),
    ] {
        let said = serve(&location);
        assert!(said.contains(says), "{location}: {said}");
    }
    cluster.refused("init --size 1Mi", 1, &["exists already", "--force"]);
    cluster.run("init --force --size 2Mi");
    assert_eq!(cluster.info()["size"], 2 << 20);
    thread::sleep(Duration::from_millis(1));
}
