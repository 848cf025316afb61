//! What things cost in requests to the store, which says more than time on a busy machine.

use crate::client::{Client, Framing, READ, TRIM, WRITE_ZEROES};
use crate::places::Place;
use crate::rng::Rng;

const TIB: u64 = 1 << 40;

/// Requests that the store sees while a server starts, a client connects, and it stops.
fn requests_of_opening(place: &Place, size: &str) -> usize {
    place.run(&format!("init --size {size}"));
    let before = place.s3().seen().len();
    let server = place.serve().start();
    let opened = place.s3().seen().len() - before;
    server.stop();
    opened
}

#[test]
fn opening_costs_the_same_for_1_gib_and_for_64_tib() {
    let place = || Place::own("cache+retry+s3:", "");
    let journaled = || place().journaled("");
    let small = requests_of_opening(&place(), "1Gi");
    let large = requests_of_opening(&place(), "64Ti");
    let with_journal = requests_of_opening(&journaled(), "64Ti");
    println!("requests of opening: {small}, {large}, with a journal {with_journal}");
    // A heartbeat may fall into one of them.
    assert!(large <= small + 2, "{small} requests, and {large}");
    // One asks whether writes wait in a journal; with one, another says that they may.
    assert!(large <= 28, "{large} requests");
    assert!(with_journal <= large + 4, "{with_journal} requests");
}

#[test]
fn a_trim_of_2_tib_is_a_matter_of_few_requests() {
    let place = Place::own("cache+retry+s3:", "");
    place.run("init --size 8Ti");
    let server = place.serve().start();
    let mut client = Client::over_unix(&server, Framing::Extended);
    let requests = |client: &mut Client, command, at| {
        let before = place.s3().seen().len();
        assert_eq!(client.zero(command, 0, at, 2 * TIB as usize), 0);
        assert_eq!(client.flush(), 0);
        place.s3().seen().len() - before
    };
    let empty = requests(&mut client, TRIM, TIB) + requests(&mut client, WRITE_ZEROES, 5 * TIB);
    println!("requests of 2 TiB of nothing, twice: {empty}");
    assert!(empty <= 8, "{empty} requests");

    // With something in it: far from each other, so that they are on state pages of their own.
    let places = [TIB + 5000, TIB + 400_000_000_000, 2 * TIB + 7777];
    for at in places {
        assert_eq!(client.write(0, at, &[1; 10_000]), 0);
    }
    assert_eq!(client.flush(), 0);
    let full = requests(&mut client, TRIM, TIB);
    println!("requests of 2 TiB with three shards in them: {full}");
    assert!(full <= 20, "{full} requests");
    for at in places {
        assert_eq!(client.read(at, 10_000), Ok(vec![0; 10_000]));
    }
    server.stop();
    // The shards' objects are gone: the record, the owner, the index and three pages are left.
    let names = place.names();
    assert!(
        !names.iter().any(|name| name.contains("/shard/")),
        "{names:?}"
    );
    place.is_clean();
}

/// A volume of 64 shards of 1 MiB that were written, served anew.
fn cold(place: &Place) -> (crate::server::Server, Client) {
    place.init(64 << 20, "1Mi");
    let server = place.serve().start();
    let mut client = Client::structured(&server);
    for shard in 0..64 {
        assert_eq!(client.write(0, shard << 20, &vec![shard as u8; 1 << 20]), 0);
    }
    assert_eq!(client.flush(), 0);
    server.stop();
    let server = place.serve().start();
    let client = Client::structured(&server);
    (server, client)
}

/// Gets of shards while these are read, 16 at a time.
fn gets_of_shards(place: &Place, client: &mut Client, reads: &[(u64, usize)]) -> usize {
    let gets = || {
        let seen = place.s3().seen();
        let of_shard =
            |one: &&nbd_rs_s3_server::Seen| one.method == "GET" && one.target.contains("/shard/");
        seen.iter().filter(of_shard).count()
    };
    let before = gets();
    let take = |client: &mut Client| {
        let reply = client.receive().expect("a reply");
        assert_eq!(reply.error, 0, "{}", reply.text);
    };
    for &(offset, length) in reads {
        client.send(READ, 0, offset, length, &[]).expect("sent");
        if client.waiting() >= 16 {
            take(client);
        }
    }
    while client.waiting() > 0 {
        take(client);
    }
    gets() - before
}

#[test]
fn cold_random_reads_cost_little_more_than_one_get_a_shard() {
    let place = Place::own("cache+retry+s3:", "");
    let (server, mut client) = cold(&place);
    let mut rng = Rng::for_test("cold random reads");
    let reads: Vec<_> = (0..2000)
        .map(|_| (rng.next() % (64 << 8) * 4096, 4096))
        .collect();
    let gets = gets_of_shards(&place, &mut client, &reads);
    println!("gets of 64 shards for 2,000 random reads: {gets}");
    assert!(gets <= 64 + 48, "{gets}");
    server.stop();
}

#[test]
fn a_cold_scan_costs_little_more_than_one_get_a_shard_though_the_cache_is_small() {
    for (cache, length) in [
        ("16MiB", 1 << 20),
        ("256MiB", 256 << 10),
        ("256MiB", 64 << 10),
    ] {
        let place = Place::own("cache+retry+s3:", &format!("?cache.size={cache}"));
        let (server, mut client) = cold(&place);
        let reads: Vec<_> = (0..(64 << 20) / length)
            .map(|n| (n * length, length as usize))
            .collect();
        let gets = gets_of_shards(&place, &mut client, &reads);
        println!("gets of 64 shards for a scan by {length} bytes, with {cache}: {gets}");
        assert!(gets <= 64 + 48, "{gets}");
        server.stop();
    }
}
