//! Each chain in each spelling, through a volume's whole life.

use crate::client::{Client, TRIM};
use crate::places::{Keeper, Place};

const MIB: usize = 1 << 20;
const SHARD: usize = 4 * MIB;

/// Written at odd places: inside a shard, over the border of two, at the very end.
const WRITES: [(usize, usize); 3] = [(5000, 70_000), (SHARD - 9000, 20_000), (31 * MIB, MIB)];

fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len)
        .map(|at| (at / 7 + at / 4096) as u8)
        .collect()
}

fn expect(client: &mut Client, trimmed: bool) {
    for (at, len) in WRITES {
        let found = client.read(at as u64, len).expect("a READ");
        assert!(found == pattern(at, len), "{len} bytes at {at}");
    }
    let (at, len) = (12 * MIB, SHARD);
    let found = client.read(at as u64, len).expect("a READ");
    let expected = if trimmed {
        vec![0; len]
    } else {
        pattern(at, len)
    };
    assert!(found == expected, "the shard that is trimmed");
}

fn live(place: &Place) {
    println!("{}", place.location);
    let made = place.run("init --size 32Mi");
    assert!(made.contains("32 MiB, all zeros"), "{made}");
    let server = place.serve().start();
    let mut client = Client::structured(&server);
    let zeros = client.read(0, 8 * MIB).expect("a READ");
    assert!(zeros.iter().all(|byte| *byte == 0), "not zeros at first");
    for (at, len) in WRITES.into_iter().chain([(12 * MIB, SHARD)]) {
        assert_eq!(client.write(0, at as u64, &pattern(at, len)), 0);
    }
    assert_eq!(client.flush(), 0);
    expect(&mut client, false);
    server.stop();

    let server = place.serve().start();
    let mut client = Client::structured(&server);
    expect(&mut client, false);
    assert_eq!(client.zero(TRIM, 0, 12 * MIB as u64, SHARD), 0);
    assert_eq!(client.flush(), 0);
    expect(&mut client, true);
    server.stop();
    place.is_clean();

    let grown = place.run("resize --size 48Mi");
    assert!(grown.contains("48 MiB"), "{grown}");
    let info = place.info();
    assert_eq!(info["layout"], "sharded");
    assert_eq!(info["size"], 48 * MIB);
    assert_eq!(info["shard_size"], SHARD);
    assert_eq!(info["shards"]["written"], 3, "{info:#}");
    assert_eq!(info["owner"]["standing"], "gave it back");
    let secret = info["location"].as_str().expect("a location");
    assert!(!secret.contains("secret"), "a secret is printed: {secret}");

    let server = place.serve().start();
    let mut client = Client::structured(&server);
    expect(&mut client, true);
    let new = client.read(32 * MIB as u64, 16 * MIB).expect("a READ");
    assert!(new.iter().all(|byte| *byte == 0), "the new part");
    assert_eq!(client.write(0, 47 * MIB as u64, &pattern(0, 5000)), 0);
    server.stop();
    place.run("destroy");
    assert_eq!(place.names(), [""; 0], "destroy leaves something");
    if let Keeper::Own(server) = &place.keeper {
        assert_eq!(server.broken(), [""; 0]);
    }
}

#[test]
fn a_volume_lives_over_every_chain_to_a_directory() {
    for chain in ["file:", "cache+file:", "retry:file:", "cache:retry:file:"] {
        live(&Place::directory(chain, ""));
    }
    live(&Place::directory("retry+file:", "?way=whole"));
}

#[test]
fn a_volume_lives_over_every_chain_to_s3() {
    for chain in [
        "s3:",
        "retry+s3:",
        "cache+retry+s3:",
        "cache:retry:s3:",
        "retry:cache:s3:",
    ] {
        live(&Place::own(chain, ""));
    }
    live(&Place::named("cache+retry+s3:"));
}

#[test]
fn a_volume_lives_over_every_chain_to_seaweedfs() {
    for (chain, folder) in [
        ("cache+retry+s3:", "chain1"),
        ("cache:retry:s3:", "chain2"),
        ("retry:cache:s3:", "chain3"),
    ] {
        let Some(place) = Place::seaweedfs(chain, folder) else {
            return;
        };
        live(&place);
    }
}
