//! Copies that are gone or not as they were put.

use crate::client::{Client, EIO};
use crate::cluster::{all, pattern, Cluster};

const SIZE: usize = 4 << 20;

#[test]
fn c11_c16_c25_f46_f62_damaged_copies_are_passed_over_and_damage_everywhere_is_an_error() {
    let cluster = Cluster::new(3, "s3:", 0);
    cluster.init(SIZE, "64Ki");
    let server = cluster.serve().start();
    let written = pattern(SIZE / 2, 5);
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &written), 0);
    assert_eq!(client.flush(), 0);
    server.stop();
    let images = |at: usize| {
        let mut keys = cluster.stores[at].keys();
        keys.retain(|key| key.contains("/s/00000003/"));
        keys
    };
    let (middle, len) = (3 * 65_536 + 30_000, SIZE / 2);
    for (at, store) in cluster.stores.iter().enumerate() {
        let server = cluster.serve().start();
        assert!(all(&server, len) == written, "with {at} damaged");
        server.stop();
        for key in images(at) {
            match at {
                0 => store.remove(&key),
                _ => store.spoil(&key, |bytes| bytes[30_000] ^= 1),
            }
        }
    }
    let server = cluster.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(middle, 1).unwrap_err(), EIO);
    // What is whole is read.
    let behind = 4 * 65_536;
    assert!(client.read(behind as u64, len - behind).expect("a READ") == written[behind..]);
    // And what is written again.
    assert_eq!(client.write(0, 3 * 65_536, &[8; 65_536]), 0);
    assert_eq!(client.read(middle, 1).expect("a READ"), [8]);
    server.stop();
}
