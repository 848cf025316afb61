//! What a hit costs: figures to read (`--nocapture`), not to fail on.

use std::hint::black_box;
use std::time::Instant;

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{host, Fake, Rng};
use nbd_rs_plugin::{export_backend, GetFlags, Next, Range};

const ROUNDS: u32 = 2000;

#[tokio::test]
async fn what_a_hit_costs() {
    let fake = Fake::new();
    fake.replace("volume/shards/00000001", vec![7; 4 << 20]);
    let cache = Cache::new(host(), Config::new(&[]).unwrap(), fake.next(), "");
    let cache = cache.await.unwrap();
    let cache: Next = export_backend(cache).into();
    let key = "volume/shards/00000001";
    cache.get(key, Range::ALL, GetFlags::NONE).await.unwrap();
    let mut rng = Rng::new(1);
    for (what, len) in [("4 KiB", 4096), ("64 KiB", 65_536), ("1 MiB", 1 << 20)] {
        let mut best = f64::MAX;
        for _ in 0..200 {
            let started = Instant::now();
            for _ in 0..ROUNDS {
                let range = Range::new(rng.below((4 << 20) / len) * len, len);
                let got = cache.try_get(key, range, GetFlags::NONE);
                assert!(black_box(got).is_some());
            }
            best = best.min(started.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS));
        }
        println!("a hit of {what}: {best:.0} ns");
    }
}
