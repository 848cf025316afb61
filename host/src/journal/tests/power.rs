//! The machine loses power: every image of the journal's disk, with the store as it was then.

use std::sync::Mutex;

use super::rng::Rng;
use super::*;
use crate::layout::sharded::tests::bytes_of;

/// Images that are tried of each world.
const IMAGES: u64 = 20;
/// Operations of a world.
const OPS: u64 = 60;
const UNIT: u64 = 4096;
const UNITS: u64 = SIZE / UNIT;

/// A moment: what was asked for and answered until then, and what the store held.
struct Moment {
    disk: usize,
    objects: Vec<(String, Vec<u8>)>,
    /// Writes begun.
    begun: u64,
    /// Writes that a flush covered.
    flushed: u64,
}

#[derive(Default)]
struct Watch {
    begun: u64,
    flushed: u64,
    moments: Vec<Moment>,
}

fn snapshot(store: &Store) -> Vec<(String, Vec<u8>)> {
    let keys = store.keys().into_iter();
    keys.filter_map(|key| store.peek(&key).map(|bytes| (key, bytes)))
        .collect()
}

/// A moment at which neither the disk nor the store changed, so that both are of one moment.
fn at_rest(disk: &Recorder, store: &Store) -> (usize, Vec<(String, Vec<u8>)>) {
    loop {
        let (moment, objects) = (disk.moment(), snapshot(store));
        if snapshot(store) == objects && disk.moment() == moment {
            return (moment, objects);
        }
    }
}

/// Write `n` (from 1) goes to this unit; each unit says which write it is of.
fn unit_of(n: u64, seed: u64) -> u64 {
    Rng::new(seed ^ n).next() % UNITS
}

/// The volume after the first `n` writes, by unit.
fn after(n: u64, seed: u64) -> Vec<u64> {
    let mut units = vec![0; UNITS as usize];
    for write in 1..=n {
        units[unit_of(write, seed) as usize] = write;
    }
    units
}

async fn units(volume: &dyn Layout) -> Vec<u64> {
    let data = volume.read(0, UNITS * UNIT, nbd_rs_plugin::ReadFlags::NONE);
    let bytes = bytes_of(&data.wait().await.unwrap());
    let number = |unit: &[u8]| {
        let number = u64::from_le_bytes(unit[..8].try_into().unwrap());
        assert!(
            unit.chunks(8).all(|word| word == number.to_le_bytes()),
            "a torn unit"
        );
        number
    };
    bytes.chunks(UNIT as usize).map(number).collect()
}

/// Runs a world, and looks at it again and again from aside.
async fn world(seed: u64, flush_to: FlushTo) -> (Recorder, Vec<Moment>) {
    let mut rng = Rng::new(seed);
    let (store, disk) = (new_volume().await, empty_disk());
    let server = Server::start(&store, &disk, &how(flush_to)).await;
    let watch = Arc::new(Mutex::new(Watch::default()));
    let look = {
        let (watch, store, disk) = (watch.clone(), store.clone(), disk.clone());
        move || {
            let mut watch = watch.lock().unwrap();
            let (disk, objects) = at_rest(&disk, &store);
            let moment = Moment {
                disk,
                objects,
                begun: watch.begun,
                flushed: watch.flushed,
            };
            watch.moments.push(moment);
        }
    };
    for n in 1..=OPS {
        watch.lock().unwrap().begun = n;
        let words = n.to_le_bytes().repeat(UNIT as usize / 8);
        let offset = unit_of(n, seed) * UNIT;
        let written = server.volume.write(offset, sharded::body(words), false);
        written.wait().await.unwrap();
        if rng.next().is_multiple_of(6) {
            let mut flush = server.volume.flush();
            // In the middle of it, too.
            for _ in 0..rng.next() % 3 {
                let pause = Duration::from_micros(rng.next() % 3000);
                if let Ok(flushed) = runtime::timeout(pause, &mut flush).await {
                    flushed.unwrap();
                    flush = Box::pin(std::future::ready(Ok(())));
                }
                look();
            }
            flush.await.unwrap();
            watch.lock().unwrap().flushed = n;
            look();
        }
        if rng.next().is_multiple_of(4) {
            look();
        }
    }
    server.kill().await;
    let moments = std::mem::take(&mut watch.lock().unwrap().moments);
    (disk, moments)
}

async fn restore(objects: &[(String, Vec<u8>)]) -> Store {
    let store = Store::with(LIKE_S3);
    for (key, bytes) in objects {
        store.insert(key, bytes.clone());
    }
    store
}

/// What a flush covered is there, and everything is as it was after some write: a prefix.
fn judge(found: &[u64], moment: &Moment, seed: u64, what: &str) {
    let is_prefix = (moment.flushed..=moment.begun).any(|n| after(n, seed) == found);
    assert!(
        is_prefix,
        "{what}, NBD_RS_TEST_SEED={seed}: neither of the {} writes that were flushed nor of up to {}",
        moment.flushed, moment.begun
    );
}

async fn cut_power(name: &str, flush_to: FlushTo, worlds: u64) {
    let mut rng = Rng::for_test(name);
    for _ in 0..worlds {
        let seed = rng.next();
        let (disk, moments) = world(seed, flush_to).await;
        for image in 0..IMAGES {
            let moment = &moments[(rng.next() % moments.len() as u64) as usize];
            let left = disk.power_cut(moment.disk, &mut || rng.next());
            let store = restore(&moment.objects).await;
            let site = site(&Recorder::start(left), 2);
            let server = Server::try_start(&store, &site, &how(flush_to)).await;
            let server = server.unwrap_or_else(|error| {
                panic!("{name}, image {image}, NBD_RS_TEST_SEED={seed}: {error}")
            });
            judge(&units(&server.volume).await, moment, seed, name);
            server.kill().await;
        }
    }
}

/// C13: 1,000 images each.
#[test]
fn c13_after_a_power_cut_what_was_flushed_to_the_store_is_there() {
    runtime::block_on(cut_power("remote", FlushTo::Remote, 50));
}

#[test]
fn c13_after_a_power_cut_what_was_flushed_to_the_journal_is_there() {
    runtime::block_on(cut_power("local", FlushTo::Local, 50));
}

/// C14: with a remote flush the journal is not needed for what was flushed.
#[test]
fn c14_without_the_journal_what_was_flushed_to_the_store_is_there() {
    runtime::block_on(async {
        let mut rng = Rng::for_test("journal lost");
        for _ in 0..15 {
            let seed = rng.next();
            let (_, moments) = world(seed, FlushTo::Remote).await;
            for _ in 0..IMAGES {
                let moment = &moments[(rng.next() % moments.len() as u64) as usize];
                let store = restore(&moment.objects).await;
                let lost = How {
                    accept_lost_writes: true,
                    ..how(FlushTo::Remote)
                };
                let site = site(&empty_disk(), 2);
                let server = Server::try_start(&store, &site, &lost).await.unwrap();
                let found = units(&server.volume).await;
                // Shards are replaced one by one, so this is no prefix, but nothing is older.
                let least = after(moment.flushed, seed);
                for (unit, (&found, &least)) in found.iter().zip(&least).enumerate() {
                    let is_its_own = found == 0 || unit_of(found, seed) == unit as u64;
                    assert!(
                        found >= least && is_its_own,
                        "unit {unit}, NBD_RS_TEST_SEED={seed}"
                    );
                }
                server.kill().await;
            }
        }
    });
}
