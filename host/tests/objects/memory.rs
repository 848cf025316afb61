//! A large volume, read and written all over: the server's memory has a bound.

use crate::client::{Client, READ, WRITE};
use crate::places::Place;
use crate::rng::Rng;
use crate::server::Server;

const GIB: u64 = 1 << 30;
pub(crate) const MIB: u64 = 1 << 20;
const SHARD: u64 = 4 * MIB;
const CACHE: u64 = 48 * MIB;
/// What the server may have besides.
pub(crate) const REST: u64 = 64 * MIB;
/// What a large write sends.
const PIECE: u64 = 256 << 10;
/// Shards that are written, each somewhere: many times what the cache holds.
const WRITTEN: u64 = 400;

/// A number of `/proc/PID/status`, in bytes.
fn status(server: &Server, name: &str) -> u64 {
    let pid = server.pid().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|text| text.parse::<u64>().ok())
        .expect("a number")
        << 10
}

/// The most memory it ever had that is no file's.
pub(crate) fn peak(server: &Server) -> u64 {
    status(server, "VmHWM:") - status(server, "RssFile:")
}

/// Keeps `depth` requests in flight, reads of 256 KiB among them.
pub(crate) fn drive(
    client: &mut Client,
    depth: usize,
    requests: impl Iterator<Item = (u16, u64, Vec<u8>)>,
) {
    drive_reads_of(256 << 10, client, depth, requests);
}

/// The same with reads of this length.
fn drive_reads_of(
    read_bytes: usize,
    client: &mut Client,
    depth: usize,
    requests: impl Iterator<Item = (u16, u64, Vec<u8>)>,
) {
    let take = |client: &mut Client| {
        let reply = client.receive().expect("a reply");
        assert_eq!(reply.error, 0, "{}", reply.text);
    };
    for (command, offset, payload) in requests {
        let length = if command == READ {
            read_bytes
        } else {
            payload.len()
        };
        let sent = client.send(command, 0, offset, length, &payload);
        sent.expect("sent");
        if client.waiting() >= depth {
            take(client);
        }
    }
    while client.waiting() > 0 {
        take(client);
    }
}

/// A write of two units somewhere in a shard.
fn write(shard: u64, rng: &mut Rng) -> (u16, u64, Vec<u8>) {
    let at = shard * SHARD + rng.next() % 1000 * 4096;
    (WRITE, at, rng.bytes(8192))
}

#[test]
fn a_volume_of_64_gib_read_and_written_all_over_takes_bounded_memory() {
    let mut rng = Rng::for_test("memory");
    let place = Place::own("cache+retry+s3:", "?cache.size=48MiB");
    place.init(64 * GIB as usize, "4Mi");
    let server = place.serve().start();
    let mut client = Client::structured(&server);
    let shards: Vec<u64> = (0..WRITTEN).map(|n| n * 40 + rng.next() % 40).collect();
    let first: Vec<_> = shards.iter().map(|shard| write(*shard, &mut rng)).collect();
    drive(&mut client, 4, first.into_iter());
    let written = peak(&server);
    // Blocks of all shards, many of them next to each other, which is read ahead and fetched whole.
    let read = |n: u64, rng: &mut Rng| {
        let at = shards[(n / 8 % WRITTEN) as usize] * SHARD + n % 8 * (256 << 10);
        match rng.next() % 4 {
            0 => (READ, rng.next() % (64 * GIB - MIB), Vec::new()),
            _ => (READ, at, Vec::new()),
        }
    };
    let reads: Vec<_> = (0..WRITTEN * 8).map(|n| read(n, &mut rng)).collect();
    drive(&mut client, 16, reads.into_iter());
    let scanned = peak(&server);
    // Many shards at once, each of which is fetched, changed and put whole.
    let many: Vec<_> = (0..WRITTEN)
        .map(|_| write(shards[(rng.next() % WRITTEN) as usize], &mut rng))
        .collect();
    drive(&mut client, 100, many.into_iter());
    assert_eq!(client.flush(), 0);
    let crowded = peak(&server);
    // And shards that are filled from end to end: what is put is what the client sent.
    let fill: Vec<_> = (0..40 * SHARD / PIECE)
        .map(|n| (WRITE, 60 * GIB + n * PIECE, vec![n as u8; PIECE as usize]))
        .collect();
    drive(&mut client, 32, fill.into_iter());
    assert_eq!(client.flush(), 0);
    let filled = peak(&server);
    let peaks = [written, scanned, crowded, filled].map(|bytes| bytes / MIB);
    let [written, scanned, crowded, filled] = peaks;
    println!(
        "memory in MiB: {written} written, {scanned} scanned, {crowded} crowded, {filled} filled"
    );
    assert!(scanned < (CACHE + REST) / MIB, "{scanned} MiB");
    assert!(crowded < (CACHE + REST) / MIB, "{crowded} MiB");
    assert!(filled < (CACHE + REST) / MIB, "{filled} MiB");
    server.stop();
}

/// Shards are fetched whole while there is room: many of them at the same time, after a restart.
#[test]
fn cold_reads_of_many_shards_take_bounded_memory() {
    let mut rng = Rng::for_test("cold memory");
    let place = Place::own("cache+retry+s3:", "?cache.size=48MiB");
    place.init(64 * GIB as usize, "4Mi");
    let server = place.serve().start();
    let mut client = Client::structured(&server);
    let shards: Vec<u64> = (0..100).map(|n| n * 160 + rng.next() % 160).collect();
    let written: Vec<_> = shards.iter().map(|shard| write(*shard, &mut rng)).collect();
    drive(&mut client, 4, written.into_iter());
    assert_eq!(client.flush(), 0);
    server.stop();
    for (read_bytes, depth) in [(4096, 64), (256 << 10, 32), (4 << 20, 4)] {
        let server = place.serve().start();
        let mut client = Client::structured(&server);
        let reads = (0..1000).map(|_| {
            let shard = shards[(rng.next() % 100) as usize];
            let inside = rng.next() % (SHARD / read_bytes) * read_bytes;
            (READ, shard * SHARD + inside, Vec::new())
        });
        let reads: Vec<_> = reads.take((GIB / read_bytes) as usize).collect();
        drive_reads_of(read_bytes as usize, &mut client, depth, reads.into_iter());
        let cold = peak(&server) / MIB;
        println!("memory: {cold} MiB for {depth} reads of {read_bytes} at a time");
        assert!(cold < (CACHE + REST) / MIB, "{cold} MiB");
        server.stop();
    }
}
