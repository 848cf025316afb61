//! `--flush local`: what the backends have is what the volume was at some moment (contract C13, C14).

use std::thread;
use std::time::Duration;

use crate::client::Client;
use crate::cluster::{all, kill, Cluster};
use crate::rng::Rng;

const UNIT: usize = 4096;
const UNITS: usize = 256;

/// Writes of one number each, one after the other, so that what was there at each moment is known.
#[test]
fn c13_c14_without_its_journal_the_volume_is_as_it_was_at_some_moment() {
    let cluster = Cluster::new(3, "s3:", 0).journaled("--journal-size 1Mi --flush local");
    cluster.init(UNITS * UNIT, "64Ki");
    let mut rng = Rng::for_test("c14 prefix");
    let mut number = 0_u64;
    let mut history: Vec<usize> = Vec::new();
    let mut start = vec![0_u64; UNITS];
    let mut lost = 0;
    for round in 0..12 {
        let mut server = cluster.serve().start();
        let mut client = Client::unix(&server);
        history.clear();
        let first = number + 1;
        for _ in 0..200 + rng.next() % 300 {
            number += 1;
            let unit = rng.next() as usize % UNITS;
            let mut bytes = vec![0; UNIT];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            assert_eq!(client.write(0, (unit * UNIT) as u64, &bytes), 0);
            history.push(unit);
            if rng.next().is_multiple_of(40) {
                assert_eq!(client.flush(), 0);
            }
        }
        thread::sleep(Duration::from_millis(rng.next() % 400));
        kill(&mut server);
        std::fs::remove_dir_all(cluster.journal()).expect("its journal is lost");
        let server = cluster.serve().words(["--accept-lost-writes"]).start();
        let found = all(&server, UNITS * UNIT);
        let number_of = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
        let found: Vec<u64> = found.chunks(UNIT).map(number_of).collect();
        // The newest that is there says which moment it is.
        let newest = found.iter().copied().max().unwrap_or(0).max(first - 1);
        let mut expected = start.clone();
        for (at, &unit) in history.iter().enumerate() {
            let at = first + at as u64;
            if at <= newest {
                expected[unit] = at;
            }
        }
        assert_eq!(
            found, expected,
            "round {round}: no moment, though {newest} is there"
        );
        lost += number - newest;
        start = found;
        server.stop();
    }
    assert!(lost > 0, "nothing was ever lost, so nothing was shown");
}
