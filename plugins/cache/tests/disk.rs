//! Copies that survive a restart.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{body, bytes_of, host, logged, Fake, Rng};
use nbd_rs_plugin::{Backend, Condition, GetFlags, Kind, OptionValue, Range};

fn config(dir: &Path, whole: &str) -> Config {
    let option = |(name, value): (&str, &str)| OptionValue {
        name: name.into(),
        value: value.into(),
    };
    let dir = dir.to_str().unwrap();
    let options = [
        ("block", "4KiB"),
        ("size", "16MiB"),
        ("readahead", "0"),
        ("whole", whole),
        ("dir", dir),
        ("disk_size", "16MiB"),
    ];
    Config::new(&options.map(option)).unwrap()
}

async fn open_as(fake: &Fake, dir: &Path, store: &str) -> Cache {
    open_with(fake, config(dir, "0"), store).await
}

async fn open_with(fake: &Fake, config: Config, store: &str) -> Cache {
    let cache = Cache::new(host(), config, fake.next(), store).await;
    let cache = cache.unwrap();
    for _ in 0..1000 {
        if cache.disk().unwrap().is_on() {
            return cache;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the scan does not end");
}

async fn open(fake: &Fake, dir: &Path) -> Cache {
    open_as(fake, dir, "fake://store").await
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

async fn read_all(cache: &Cache, key: &str) -> Vec<u8> {
    let got = cache.get(key, Range::ALL, GetFlags::NONE).await.unwrap();
    bytes_of(&got.data)
}

#[tokio::test]
async fn after_a_restart_one_look_is_all_the_store_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    let (read, put) = (noise(1, 50_000), noise(2, 30_000));
    fake.replace("read", read.clone());
    let cache = open(&fake, &dir).await;
    assert_eq!(read_all(&cache, "read").await, read);
    cache
        .put("put", body(put.clone()), Condition::Always)
        .await
        .unwrap();
    cache.close().await.unwrap();
    fake.take_calls();
    let cache = open(&fake, &dir).await;
    assert_eq!(read_all(&cache, "read").await, read);
    let part = cache
        .get("put", Range::new(5000, 10), GetFlags::WANT_META)
        .await
        .unwrap();
    assert_eq!(bytes_of(&part.data), put[5000..5010]);
    assert_eq!(part.meta.unwrap().size, 30_000);
    assert_eq!(fake.take_calls(), ["head read fresh", "head put fresh"]);
    assert!(cache.try_get("read", Range::ALL, GetFlags::NONE).is_some());
}

#[tokio::test]
async fn what_is_on_disk_is_not_fetched_whole_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    let bytes = noise(1, 60_000);
    fake.replace("k", bytes.clone());
    let cache = open(&fake, &dir).await;
    let got = cache.get("k", Range::new(0, 40_960), GetFlags::NONE).await;
    got.unwrap();
    cache.close().await.unwrap();
    fake.take_calls();
    let cache = open_with(&fake, config(&dir, "8MiB"), "fake://store").await;
    let block = |at: u64| cache.get("k", Range::new(at * 4096, 4096), GetFlags::NONE);
    for at in 0..10 {
        let from = at as usize * 4096;
        let got = block(at).await.unwrap();
        assert_eq!(bytes_of(&got.data), bytes[from..from + 4096]);
    }
    assert_eq!(fake.take_calls(), ["head k fresh"]);
    // What is not there is: as far as it is missing on disk too.
    block(12).await.unwrap();
    assert_eq!(fake.take_calls(), ["get k 40960+19040"]);
}

#[tokio::test]
async fn what_was_replaced_meanwhile_is_not_answered_from_old_copies() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    for key in ["replaced", "gone"] {
        fake.replace(key, noise(3, 20_000));
    }
    let cache = open(&fake, &dir).await;
    read_all(&cache, "replaced").await;
    read_all(&cache, "gone").await;
    cache.close().await.unwrap();
    fake.replace("replaced", noise(4, 20_000));
    fake.remove("gone");
    let cache = open(&fake, &dir).await;
    assert_eq!(read_all(&cache, "replaced").await, noise(4, 20_000));
    let gone = cache.get("gone", Range::ALL, GetFlags::NONE).await;
    assert_eq!(gone.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test]
async fn another_store_in_the_same_directory_is_another_store() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    // Both stores count their versions alike: one name, one ETag, other bytes.
    for seed in [5, 6] {
        let fake = Fake::new();
        fake.replace("k", noise(seed, 20_000));
        let cache = open_as(&fake, &dir, &format!("fake://store{seed}")).await;
        assert_eq!(read_all(&cache, "k").await, noise(seed, 20_000));
        cache.close().await.unwrap();
    }
}

#[tokio::test]
async fn damaged_copies_are_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    let bytes = noise(7, 40_000);
    fake.replace("k", bytes.clone());
    let cache = open(&fake, &dir).await;
    read_all(&cache, "k").await;
    cache.close().await.unwrap();
    let segment = dir.join("segment-0000000000000000");
    let good = std::fs::read(&segment).unwrap();
    let mut rng = Rng::of_test();
    for _ in 0..20 {
        let mut bad = good.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bad.len() as u64) as usize;
            bad[at] ^= 1 << rng.below(8);
        }
        if rng.chance(30) {
            bad.truncate(rng.below(good.len() as u64) as usize);
        }
        std::fs::write(&segment, &bad).unwrap();
        let cache = open(&fake, &dir).await;
        assert!(read_all(&cache, "k").await == bytes);
        // Two flips may meet in one byte.
        assert!(bad == good || cache.disk().unwrap().damaged() > 0);
        cache.close().await.unwrap();
    }
}

#[tokio::test]
async fn sixty_four_waiters_after_a_restart_are_one_look_and_no_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    fake.replace("k", noise(8, 60_000));
    let cache = open(&fake, &dir).await;
    read_all(&cache, "k").await;
    cache.close().await.unwrap();
    let cache = Arc::new(open(&fake, &dir).await);
    fake.take_calls();
    let readers = (0..64).map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { read_all(&cache, "k").await == noise(8, 60_000) })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert!(reader.await.unwrap());
    }
    assert_eq!(fake.take_calls(), ["head k fresh"]);
    // Once for each block, not once for each reader.
    assert_eq!(cache.disk().unwrap().hits.load(Ordering::Relaxed), 15);
}

#[tokio::test]
async fn the_directory_stays_within_its_bound_and_copies_in_it_outlive_those_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    let cache = open(&fake, &dir).await;
    let room = 16_u64 << 20;
    for at in 0..40 {
        fake.replace(&format!("k{at}"), noise(at, 1 << 20));
        // No more at a time than may wait to be written.
        for part in 0..4 {
            let range = Range::new(part * (256 << 10), 256 << 10);
            let got = cache.get(&format!("k{at}"), range, GetFlags::NONE).await;
            got.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let files = std::fs::read_dir(&dir).unwrap();
        let on_disk: u64 = files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(on_disk <= room + room / 20, "{on_disk}");
    }
    cache.close().await.unwrap();
    let cache = open(&fake, &dir).await;
    fake.take_calls();
    assert_eq!(read_all(&cache, "k39").await, noise(39, 1 << 20));
    assert_eq!(fake.take_calls(), ["head k39 fresh"]);
}

/// Reads, writes, restarts, other hosts between them, flipped bytes and torn ends.
#[tokio::test]
async fn f72_whatever_happened_between_two_starts_the_answer_is_what_the_store_has() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    let mut rng = Rng::of_test();
    for _ in 0..60 {
        let cache = open(&fake, &dir).await;
        for _ in 0..20 {
            let key = format!("k{}", rng.below(6));
            match rng.below(6) {
                0 => {
                    let bytes = noise(rng.next(), rng.below(60_000) as usize);
                    let put = cache.put(&key, body(bytes), Condition::Always);
                    put.await.unwrap();
                }
                1 => drop(cache.delete(vec![key]).await.unwrap()),
                _ => read_like_the_store(&fake, &cache, &key, &mut rng).await,
            }
        }
        cache.close().await.unwrap();
        drop(cache);
        let key = format!("k{}", rng.below(6));
        match rng.below(4) {
            0 => drop(fake.replace(&key, noise(rng.next(), rng.below(60_000) as usize))),
            1 => fake.remove(&key),
            2 => hurt(&dir, &mut rng),
            _ => {}
        }
    }
}

async fn read_like_the_store(fake: &Fake, cache: &Cache, key: &str, rng: &mut Rng) {
    let Some(stored) = fake.contents(key) else {
        let got = cache.get(key, Range::ALL, GetFlags::NONE).await;
        assert_eq!(got.unwrap_err().kind, Kind::NotFound);
        return;
    };
    let from = rng.below(stored.len() as u64 + 1);
    let len = rng.below(stored.len() as u64 - from + 1);
    let got = cache.get(key, Range::new(from, len), GetFlags::NONE).await;
    let wanted = &stored[from as usize..(from + len) as usize];
    assert!(bytes_of(&got.unwrap().data) == wanted, "{key} {from}+{len}");
}

/// Flips a bit of a segment, or tears its end off.
fn hurt(dir: &Path, rng: &mut Rng) {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    let segments = files.filter(|file| file.file_name() != "lock");
    let paths: Vec<PathBuf> = segments.map(|file| file.path()).collect();
    let path = &paths[rng.below(paths.len() as u64) as usize];
    let mut bytes = std::fs::read(path).unwrap();
    let at = rng.below(bytes.len() as u64) as usize;
    match rng.chance(50) {
        true => bytes[at] ^= 1 << rng.below(8),
        false => bytes.truncate(at),
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_disk_that_fails_turns_the_tier_off_with_one_warning() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("fails");
    let fake = Fake::new();
    for at in 0..20 {
        fake.replace(&format!("k{at}"), noise(at, 200_000));
    }
    let cache = open(&fake, &dir).await;
    // No segment can be made any more.
    std::fs::remove_dir_all(&dir).unwrap();
    for at in 0..20 {
        assert_eq!(
            read_all(&cache, &format!("k{at}")).await,
            noise(at, 200_000)
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!cache.disk().unwrap().is_on());
    assert_eq!(logged("directory is not used any more").len(), 1);
    cache.close().await.unwrap();
}

#[tokio::test]
async fn one_directory_is_one_cache() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("d");
    let fake = Fake::new();
    let cache = open(&fake, &dir).await;
    let second = Cache::new(host(), config(&dir, "0"), fake.next(), "fake://store").await;
    assert_eq!(second.unwrap_err().kind, Kind::Busy);
    cache.close().await.unwrap();
    open(&fake, &dir).await.close().await.unwrap();
    let unnamed = Cache::new(host(), config(&dir, "0"), fake.next(), "").await;
    assert_eq!(unnamed.unwrap_err().kind, Kind::Unsupported);
}
