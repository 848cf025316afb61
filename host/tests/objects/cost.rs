//! What things cost in requests to the store, which says more than time on a busy machine.

use crate::client::{Client, Framing, TRIM, WRITE_ZEROES};
use crate::places::Place;

const TIB: u64 = 1 << 40;

/// Requests that the store sees while a server starts, a client connects, and it stops.
fn requests_of_opening(size: &str) -> usize {
    let place = Place::own("cache+retry+s3:", "");
    place.run(&format!("init --size {size}"));
    let before = place.s3().seen().len();
    let server = place.serve().start();
    let opened = place.s3().seen().len() - before;
    server.stop();
    opened
}

#[test]
fn opening_costs_the_same_for_1_gib_and_for_64_tib() {
    let (small, large) = (requests_of_opening("1Gi"), requests_of_opening("64Ti"));
    println!("requests of opening: {small}, {large}");
    // A heartbeat may fall into one of them.
    assert!(large <= small + 2, "{small} requests, and {large}");
    assert!(large <= 25, "{large} requests");
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
