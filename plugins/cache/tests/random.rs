//! Random calls against a plain map, on a cache far too small for them, with faults below.

use std::collections::BTreeMap;

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{body, bytes_of, host, Fake, Fault, Rng};
use nbd_rs_plugin::{Backend, Condition, GetFlags, Kind, OptionValue, Range};

fn config(ahead: &str) -> Config {
    let option = |(name, value): (&str, &str)| OptionValue {
        name: name.into(),
        value: value.into(),
    };
    let options = [("block", "4KiB"), ("size", "256KiB"), ("readahead", ahead)];
    Config::new(&options.map(option)).unwrap()
}

fn noise(rng: &mut Rng, len: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes());
    words.take(len as usize).collect()
}

fn range(rng: &mut Rng, size: u64) -> Range {
    let offset = rng.below(size + 1);
    match rng.below(4) {
        0 => Range::new(offset, Range::TO_END),
        _ => Range::new(offset, rng.below(size - offset + 1)),
    }
}

fn flags(rng: &mut Rng) -> GetFlags {
    match rng.below(4) {
        0 => GetFlags::WANT_META,
        1 => GetFlags::FRESH | GetFlags::WANT_META,
        _ => GetFlags::NONE,
    }
}

async fn one_run(rng: &mut Rng, faults: u64, ahead: &str) {
    let fake = Fake::new();
    let cache = Cache::new(host(), config(ahead), fake.next(), "")
        .await
        .unwrap();
    if faults > 0 {
        fake.faults().random(Rng::new(rng.next()), faults);
    }
    // Several possible contents after a put of unknown outcome; none: the object is missing.
    let mut model: BTreeMap<String, Vec<Option<Vec<u8>>>> = BTreeMap::new();
    for _ in 0..1000 {
        let key = format!("k{}", rng.below(6));
        let possible = model.entry(key.clone()).or_insert_with(|| vec![None]);
        match rng.below(10) {
            0 | 1 => {
                let len = rng.below(60_000);
                let bytes = noise(rng, len);
                let put = cache
                    .put(&key, body(bytes.clone()), Condition::Always)
                    .await;
                match put {
                    Ok(_) => *possible = vec![Some(bytes)],
                    Err(error) if error.kind == Kind::Ambiguous => possible.push(Some(bytes)),
                    Err(_) => {}
                }
            }
            2 => match cache.delete(vec![key.clone()]).await {
                Ok(results) if results[0].is_ok() => *possible = vec![None],
                _ => possible.push(None),
            },
            _ => {
                let size = fake.contents(&key).map_or(0, |bytes| bytes.len() as u64);
                let (range, flags) = (range(rng, size), flags(rng));
                let got = match cache.try_get(&key, range, flags) {
                    Some(got) => got,
                    None => cache.get(&key, range, flags).await,
                };
                let got = match got {
                    Ok(got) => Some(bytes_of(&got.data)),
                    Err(error) if error.kind == Kind::NotFound => None,
                    Err(error) => {
                        assert!(faults > 0, "{key} {range:?}: {error}");
                        continue;
                    }
                };
                // Nothing here is carried out late, so what the store has now is the answer.
                let stored = fake.contents(&key);
                assert!(possible.contains(&stored));
                let expected = stored.map(|bytes| {
                    let inside = range.within(bytes.len() as u64).unwrap();
                    bytes[inside].to_vec()
                });
                assert!(got == expected, "{key} {range:?} {flags:?}");
            }
        }
        assert!(cache.used_bytes() <= 256 << 10);
        if rng.chance(20) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_answer_as_a_plain_map_does() {
    let mut rng = Rng::of_test();
    for _ in 0..5 {
        one_run(&mut rng, 0, "0").await;
        one_run(&mut rng, 0, "64KiB").await;
    }
}

#[tokio::test(start_paused = true)]
async fn f72_and_so_do_a_thousand_calls_of_which_many_fail() {
    let mut rng = Rng::of_test();
    for _ in 0..5 {
        one_run(&mut rng, 15, "64KiB").await;
    }
}

/// Readers and one writer on real threads: a reader never sees what was replaced before it asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn c01_readers_on_threads_see_the_last_acknowledged_put_or_a_newer_one() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let fake = Fake::new();
    let cache = Cache::new(host(), config("64KiB"), fake.next(), "").await;
    let cache = std::sync::Arc::new(cache.unwrap());
    let content = |version: u64| version.to_le_bytes().repeat(3000);
    cache
        .put("k", body(content(1)), Condition::Always)
        .await
        .unwrap();
    let (acked, done) = (std::sync::Arc::new(AtomicU64::new(1)), 300u64);
    let mut readers = Vec::new();
    for seed in 0..8 {
        let (cache, acked) = (cache.clone(), acked.clone());
        readers.push(tokio::spawn(async move {
            let (mut rng, mut seen, mut reads) = (Rng::new(seed), 0, 0u64);
            while acked.load(Ordering::SeqCst) < done {
                let least = acked.load(Ordering::SeqCst);
                let range = Range::new(rng.below(2900) * 8, 80);
                let got = match cache.try_get("k", range, GetFlags::NONE) {
                    Some(got) => got.unwrap(),
                    None => cache.get("k", range, GetFlags::NONE).await.unwrap(),
                };
                let bytes = bytes_of(&got.data);
                let version = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert_eq!(bytes, version.to_le_bytes().repeat(10), "a mixture");
                assert!(
                    version >= least.max(seen),
                    "{version} after {least}, {seen}"
                );
                (seen, reads) = (version, reads + 1);
                if rng.chance(3) {
                    tokio::task::yield_now().await;
                }
            }
            reads
        }));
    }
    for version in 2..=done {
        let fault = [Fault::None, Fault::SlowBefore(1), Fault::SlowAfter(1)];
        fake.faults()
            .script("put", [fault[version as usize % 3].clone()]);
        cache
            .put("k", body(content(version)), Condition::Always)
            .await
            .unwrap();
        acked.store(version, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}
