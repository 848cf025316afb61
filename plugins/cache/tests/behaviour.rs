//! The link before a store in memory: what is answered from where.

use std::time::Duration;

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{body, bytes_of, host, Fake, Fault, Rng, STORE};
use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    Backend, Capabilities, CapabilityFlags, Condition, GetFlags, Got, Kind, Object, ObjectFlags,
    ObjectMode, OptionValue, Range, ReadFlags, Result, WriteFlags,
};

const NONE: GetFlags = GetFlags::NONE;
const FRESH: GetFlags = GetFlags::FRESH;
const META: GetFlags = GetFlags::WANT_META;

fn config(options: &[(&str, &str)]) -> Config {
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    Config::new(&options.iter().map(option).collect::<Vec<_>>()).unwrap()
}

/// Small blocks, and nothing fetched that was not asked for.
fn plain() -> Config {
    config(&[
        ("block", "4KiB"),
        ("size", "4MiB"),
        ("readahead", "0"),
        ("whole", "0"),
    ])
}

async fn cache(fake: &Fake) -> Cache {
    Cache::new(host(), plain(), fake.next(), "").await.unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

async fn get(cache: &Cache, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
    match cache.try_get(key, range, flags) {
        Some(answer) => answer,
        None => cache.get(key, range, flags).await,
    }
}

async fn read(cache: &Cache, key: &str, offset: u64, len: u64) -> Vec<u8> {
    let got = get(cache, key, Range::new(offset, len), NONE)
        .await
        .unwrap();
    bytes_of(&got.data)
}

async fn read_all(cache: &Cache, key: &str) -> Vec<u8> {
    bytes_of(&get(cache, key, Range::ALL, NONE).await.unwrap().data)
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_answered_without_a_future() {
    let fake = Fake::new();
    let bytes = noise(1, 20_000);
    fake.replace("k", bytes.clone());
    let cache = cache(&fake).await;
    assert!(cache.try_get("k", Range::ALL, NONE).is_none());
    assert_eq!(read_all(&cache, "k").await, bytes);
    fake.take_calls();
    for (offset, len) in [
        (0, 20_000),
        (1, 1),
        (4095, 2),
        (8192, 4096),
        (19_999, 1),
        (7, 0),
    ] {
        let hit = cache
            .try_get("k", Range::new(offset, len), META)
            .unwrap()
            .unwrap();
        assert_eq!(
            bytes_of(&hit.data),
            bytes[offset as usize..(offset + len) as usize]
        );
        assert_eq!(hit.meta.unwrap().size, 20_000);
    }
    assert!(cache.try_get("k", Range::ALL, NONE).is_some());
    assert!(fake.take_calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn hits_are_lent_not_copied() {
    let fake = Fake::new();
    fake.replace("k", noise(1, 8192));
    let cache = cache(&fake).await;
    read_all(&cache, "k").await;
    let range = Range::new(100, 50);
    let [one, two] = [0, 1].map(|_| cache.try_get("k", range, NONE).unwrap().unwrap());
    let address = |got: &Got| match &got.data.pieces()[0] {
        nbd_rs_plugin::Piece::Bytes(bytes) => bytes.as_ptr(),
        _ => panic!("not memory"),
    };
    assert_eq!(address(&one), address(&two));
}

#[tokio::test(start_paused = true)]
async fn only_what_is_missing_is_fetched_in_whole_blocks() {
    let fake = Fake::new();
    let bytes = noise(2, 40_000);
    fake.replace("k", bytes.clone());
    let cache = cache(&fake).await;
    // The size is not known yet: just what was asked for.
    assert_eq!(read(&cache, "k", 5000, 10).await, bytes[5000..5010]);
    assert_eq!(fake.take_calls(), ["get k 5000+10"]);
    assert_eq!(read(&cache, "k", 5000, 10).await, bytes[5000..5010]);
    assert_eq!(fake.take_calls(), ["get k 4096+4096"]);
    assert_eq!(read(&cache, "k", 0, 40_000).await, bytes);
    assert_eq!(fake.take_calls(), ["get k 0+4096", "get k 8192+31808"]);
    // Another object is likely to be as large: whole blocks at once, and the last one is shorter.
    fake.replace("j", bytes.clone());
    assert_eq!(read(&cache, "j", 39_990, 10).await, bytes[39_990..]);
    assert_eq!(fake.take_calls(), ["get j 36864+3136"]);
    // Or it is not.
    fake.replace("i", bytes[..5000].to_vec());
    assert_eq!(read(&cache, "i", 4097, 10).await, bytes[4097..4107]);
    assert_eq!(fake.take_calls(), ["get i 4096+4096", "get i 4097+10"]);
}

#[tokio::test(start_paused = true)]
async fn sixty_four_waiters_are_one_fetch() {
    let fake = Fake::new();
    let bytes = noise(3, 65_536);
    fake.replace("k", bytes.clone());
    let cache = std::sync::Arc::new(cache(&fake).await);
    for round in 0..2 {
        fake.faults().script("get", [Fault::SlowBefore(50)]);
        let wait = |_| {
            let cache = cache.clone();
            tokio::spawn(async move { read(&cache, "k", 8192 * (round + 1), 4096).await })
        };
        let waiters: Vec<_> = (0..64).map(wait).collect();
        for waiter in waiters {
            let from = 8192 * (round as usize + 1);
            assert_eq!(waiter.await.unwrap(), bytes[from..from + 4096]);
        }
        assert_eq!(fake.take_calls().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_does_not_end_the_fetch() {
    let fake = Fake::new();
    fake.replace("k", noise(4, 8192));
    let cache = cache(&fake).await;
    fake.faults().script("get", [Fault::SlowBefore(100)]);
    let impatient = cache.get("k", Range::new(0, 4096), NONE);
    let left = tokio::time::timeout(Duration::from_millis(10), impatient).await;
    assert!(left.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(cache.try_get("k", Range::new(0, 4096), NONE).is_some());
    assert_eq!(fake.take_calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_is_told_to_all_and_not_remembered() {
    let fake = Fake::new();
    fake.replace("k", noise(4, 8192));
    let cache = cache(&fake).await;
    let failure = Fault::Before(Kind::Transient, "503");
    fake.faults().script("get", [failure]);
    let (one, two) = (
        cache.get("k", Range::ALL, NONE),
        cache.get("k", Range::ALL, NONE),
    );
    let (one, two) = tokio::join!(one, two);
    assert_eq!(one.unwrap_err().kind, Kind::Transient);
    assert_eq!(two.unwrap_err().kind, Kind::Transient);
    assert_eq!(fake.take_calls().len(), 1);
    assert_eq!(read_all(&cache, "k").await, noise(4, 8192));
}

#[tokio::test(start_paused = true)]
async fn absence_is_never_remembered() {
    let fake = Fake::new();
    let cache = cache(&fake).await;
    for _ in 0..2 {
        assert_eq!(
            get(&cache, "k", Range::ALL, NONE).await.unwrap_err().kind,
            Kind::NotFound
        );
        assert_eq!(
            cache.head("k", NONE).await.unwrap_err().kind,
            Kind::NotFound
        );
    }
    assert_eq!(fake.take_calls().len(), 4);
    fake.replace("k", *b"now");
    assert_eq!(read_all(&cache, "k").await, b"now");
    fake.remove("k");
    // A copy may be answered; asked for the truth, the truth.
    assert_eq!(
        get(&cache, "k", Range::ALL, FRESH).await.unwrap_err().kind,
        Kind::NotFound
    );
    // And then the copy is gone too.
    assert_eq!(
        get(&cache, "k", Range::ALL, NONE).await.unwrap_err().kind,
        Kind::NotFound
    );
}

#[tokio::test(start_paused = true)]
async fn fresh_goes_to_the_store_and_refreshes_the_copy() {
    let fake = Fake::new();
    let (old, new) = (noise(5, 12_288), noise(6, 12_288));
    fake.replace("k", old.clone());
    let cache = cache(&fake).await;
    assert_eq!(read_all(&cache, "k").await, old);
    let etag = fake.replace("k", new.clone());
    // Replaced behind our back: the copy is still the old version, all of it, with its own ETag.
    let held = get(&cache, "k", Range::new(0, 12_288), META).await.unwrap();
    assert_eq!(bytes_of(&held.data), old);
    assert_ne!(held.meta.unwrap().etag, etag.as_str());
    let fresh = get(&cache, "k", Range::new(4096, 4096), FRESH | META)
        .await
        .unwrap();
    assert_eq!(bytes_of(&fresh.data), new[4096..8192]);
    // No block of the old version is left.
    let now = get(&cache, "k", Range::ALL, META).await.unwrap();
    assert_eq!(bytes_of(&now.data), new);
    assert_eq!(now.meta.unwrap().etag, etag.as_str());
    assert_eq!(cache.head("k", NONE).await.unwrap().etag, etag.as_str());
}

#[tokio::test(start_paused = true)]
async fn one_answer_is_of_one_version() {
    let fake = Fake::new();
    let (old, new) = (noise(7, 16_384), noise(8, 16_384));
    fake.replace("k", old);
    let cache = cache(&fake).await;
    read(&cache, "k", 0, 4096).await;
    fake.replace("k", new.clone());
    // Block 0 is held of the old version, the rest comes of the new one.
    let got = get(&cache, "k", Range::new(0, 16_384), META).await.unwrap();
    assert_eq!(bytes_of(&got.data), new);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_shrank_is_read_as_it_is() {
    let fake = Fake::new();
    fake.replace("k", noise(9, 16_384));
    let cache = cache(&fake).await;
    read(&cache, "k", 8192, 4096).await;
    fake.replace("k", noise(10, 5000));
    assert_eq!(
        read(&cache, "k", 4096, 100).await,
        noise(10, 5000)[4096..4196]
    );
    let outside = get(&cache, "k", Range::new(4096, 8192), NONE).await;
    assert_eq!(outside.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn what_is_put_is_kept_and_what_was_there_is_not() {
    let fake = Fake::new();
    fake.replace("k", noise(11, 8192));
    let cache = cache(&fake).await;
    read_all(&cache, "k").await;
    let new = noise(12, 10_000);
    let put = cache
        .put("k", body(new.clone()), Condition::Always)
        .await
        .unwrap();
    fake.take_calls();
    let hit = cache.try_get("k", Range::ALL, META).unwrap().unwrap();
    assert_eq!(bytes_of(&hit.data), new);
    assert_eq!(hit.meta.unwrap().etag, put.etag);
    cache.delete(vec!["k".to_owned()]).await.unwrap();
    assert_eq!(
        get(&cache, "k", Range::ALL, NONE).await.unwrap_err().kind,
        Kind::NotFound
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_fetch_that_began_before_a_put_leaves_no_old_bytes() {
    let fake = Fake::new();
    let (old, new) = (noise(13, 8192), noise(14, 8192));
    for known in [false, true] {
        fake.replace("k", old.clone());
        let cache = cache(&fake).await;
        if known {
            cache.head("k", NONE).await.unwrap();
        }
        // The store has answered with the old bytes; the answer is long on its way.
        fake.faults().script("get", [Fault::SlowAfter(100)]);
        let slow = cache.get("k", Range::ALL, NONE);
        let put = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            cache
                .put("k", body(new.clone()), Condition::Always)
                .await
                .unwrap();
            // From here on nobody may see the old bytes, also not by joining the slow fetch.
            assert_eq!(read_all(&cache, "k").await, new);
        };
        let (slow, ()) = tokio::join!(slow, put);
        assert_eq!(bytes_of(&slow.unwrap().data), old);
        assert_eq!(read_all(&cache, "k").await, new);
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_name_is_being_written_nothing_of_it_is_kept() {
    let fake = Fake::new();
    let (old, new) = (noise(15, 8192), noise(16, 8192));
    fake.replace("k", old.clone());
    let cache = cache(&fake).await;
    fake.faults()
        .script("put", [Fault::SlowBefore(50), Fault::SlowAfter(50)]);
    for next in [new.clone(), old.clone()] {
        let put = cache.put("k", body(next.clone()), Condition::Always);
        let reads = async {
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_millis(9)).await;
                read_all(&cache, "k").await;
                fake.take_calls();
                read_all(&cache, "k").await;
                if !fake.take_calls().is_empty() {
                    continue;
                }
                // Answered from a copy: then the put is over.
                assert_eq!(read_all(&cache, "k").await, next);
            }
        };
        let (put, ()) = tokio::join!(put, reads);
        put.unwrap();
        assert_eq!(read_all(&cache, "k").await, next);
    }
}

#[tokio::test(start_paused = true)]
async fn two_puts_at_once_leave_no_guess_about_which_came_last() {
    let fake = Fake::new();
    let cache = cache(&fake).await;
    let (one, two) = (noise(17, 5000), noise(18, 5000));
    // The first is carried out last.
    fake.faults()
        .script("put", [Fault::SlowBefore(50), Fault::SlowAfter(100)]);
    let puts = tokio::join!(
        cache.put("k", body(one.clone()), Condition::Always),
        cache.put("k", body(two), Condition::Always)
    );
    assert!(puts.0.is_ok() && puts.1.is_ok());
    assert_eq!(read_all(&cache, "k").await, one);
}

#[tokio::test(start_paused = true)]
async fn f72_after_an_unknown_outcome_copies_are_not_trusted() {
    let fake = Fake::new();
    let (old, new) = (noise(19, 8192), noise(20, 8192));
    fake.replace("k", old.clone());
    let cache = cache(&fake).await;
    read_all(&cache, "k").await;
    for fault in [
        Fault::After(Kind::Ambiguous, "lost answer"),
        Fault::Before(Kind::Ambiguous, "lost request"),
    ] {
        fake.faults().script("put", [fault]);
        let put = cache.put("k", body(new.clone()), Condition::Always).await;
        assert_eq!(put.unwrap_err().kind, Kind::Ambiguous);
        assert_eq!(read_all(&cache, "k").await, fake.contents("k").unwrap());
        // It may be carried out at any time from now on.
        fake.replace("k", new.clone());
        assert_eq!(read_all(&cache, "k").await, new);
        fake.replace("k", old.clone());
    }
    cache
        .put("k", body(new.clone()), Condition::Always)
        .await
        .unwrap();
    assert!(cache.try_get("k", Range::ALL, NONE).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refused_put_changes_nothing() {
    let fake = Fake::new();
    fake.replace("k", noise(21, 8192));
    let cache = cache(&fake).await;
    let put = cache
        .put("k", body(noise(22, 10)), Condition::IfAbsent)
        .await;
    assert_eq!(put.unwrap_err().kind, Kind::Exists);
    assert_eq!(read_all(&cache, "k").await, noise(21, 8192));
}

#[tokio::test(start_paused = true)]
async fn f42_short_and_inconsistent_answers_are_errors_and_not_kept() {
    let fake = Fake::new();
    fake.replace("k", noise(23, 8192));
    let cache = cache(&fake).await;
    for range in [Range::ALL, Range::new(0, 8192)] {
        fake.faults().script("get", [Fault::Short]);
        let short = get(&cache, "k", range, NONE).await;
        assert_eq!(short.unwrap_err().kind, Kind::Corrupt);
        fake.faults().script("get", [Fault::Short]);
        let short = get(&cache, "k", range, FRESH).await;
        assert_eq!(short.unwrap_err().kind, Kind::Corrupt);
    }
    assert_eq!(read_all(&cache, "k").await, noise(23, 8192));
}

#[tokio::test(start_paused = true)]
async fn f44_an_older_version_from_the_store_is_not_mixed_in() {
    let fake = Fake::new();
    let (old, new) = (noise(24, 16_384), noise(25, 16_384));
    fake.replace("k", old.clone());
    fake.replace("k", new.clone());
    let cache = cache(&fake).await;
    read(&cache, "k", 0, 4096).await;
    fake.faults().script("get", [Fault::OldVersion]);
    let got = get(&cache, "k", Range::new(0, 16_384), META).await.unwrap();
    let bytes = bytes_of(&got.data);
    assert!(bytes == old || bytes == new);
}

#[tokio::test(start_paused = true)]
async fn without_etags_nothing_is_kept() {
    let fake = Fake::new();
    fake.without_etags();
    fake.replace("k", noise(26, 8192));
    let cache = cache(&fake).await;
    for seed in 26..30 {
        fake.replace("k", noise(seed, 8192));
        for flags in [NONE, META] {
            let got = get(&cache, "k", Range::new(10, 8000), flags).await.unwrap();
            assert_eq!(bytes_of(&got.data), noise(seed, 8192)[10..8010]);
            assert_eq!(matches!(got.meta, ROption::RSome(_)), flags == META);
        }
        assert_eq!(read_all(&cache, "k").await, noise(seed, 8192));
    }
}

#[tokio::test(start_paused = true)]
async fn a_sequential_reader_is_fetched_ahead_of() {
    let fake = Fake::new();
    let bytes = noise(30, 2 << 20);
    fake.replace("k", bytes.clone());
    let config = config(&[("size", "64MiB"), ("whole", "0")]);
    let cache = Cache::new(host(), config, fake.next(), "").await.unwrap();
    cache.head("k", NONE).await.unwrap();
    fake.take_calls();
    let mut waited = 0;
    for at in (0..2u64 << 20).step_by(16 << 10) {
        waited += usize::from(cache.try_get("k", Range::new(at, 16 << 10), NONE).is_none());
        let from = at as usize;
        assert_eq!(
            read(&cache, "k", at, 16 << 10).await,
            bytes[from..from + (16 << 10)]
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let calls = fake.take_calls();
    assert!(waited <= 2, "{waited} waits");
    assert!(calls.len() <= 12, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_passes_by_does_not_push_out_what_is_used() {
    let fake = Fake::new();
    let (small, large) = (noise(36, 128 << 10), noise(37, 8 << 20));
    fake.replace("used", small.clone());
    fake.replace("scanned", large.clone());
    let options = [("size", "1MiB"), ("block", "4KiB"), ("whole", "0")];
    for ahead in ["0", "128KiB"] {
        let config = config(&[&options[..], &[("readahead", ahead)]].concat());
        let cache = Cache::new(host(), config, fake.next(), "").await.unwrap();
        for _ in 0..3 {
            read_all(&cache, "used").await;
        }
        for at in (0..8_u64 << 20).step_by(16 << 10) {
            let from = at as usize;
            let part = &large[from..from + (16 << 10)];
            assert!(read(&cache, "scanned", at, 16 << 10).await == part);
            assert!(cache.used_bytes() <= 1 << 20);
        }
        fake.take_calls();
        assert!(read_all(&cache, "used").await == small);
        assert_eq!(fake.take_calls(), [""; 0], "ahead {ahead}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_too_large_to_keep_passes_through() {
    let fake = Fake::new();
    let bytes = noise(32, 2 << 20);
    fake.replace("k", bytes.clone());
    let cache = cache(&fake).await;
    for _ in 0..2 {
        assert_eq!(read_all(&cache, "k").await, bytes);
    }
    assert!(cache.used_bytes() < 100_000);
    assert_eq!(read(&cache, "k", 4096, 4096).await, bytes[4096..8192]);
    assert!(cache.try_get("k", Range::new(4096, 4096), NONE).is_some());
}

#[tokio::test(start_paused = true)]
async fn opened_objects_pass_through_and_their_names_are_not_answered_from_copies() {
    let fake = Fake::new();
    fake.replace("o", noise(33, 8192));
    let cache = cache(&fake).await;
    read_all(&cache, "o").await;
    let mode = ObjectMode::create(ObjectFlags::WRITE | ObjectFlags::CREATE, 16);
    let object = cache.open_object("o", mode).await.unwrap();
    fake.replace("o", noise(34, 8192));
    assert_eq!(read_all(&cache, "o").await, noise(34, 8192));
    fake.replace("o", noise(35, 8192));
    assert_eq!(read_all(&cache, "o").await, noise(35, 8192));
    object
        .write(4, body(*b"abcd"), WriteFlags::FUA)
        .await
        .unwrap();
    let written = object.read(4, 4, ReadFlags::NONE).await.unwrap();
    assert_eq!(bytes_of(&written), b"abcd");
    object.sync().await.unwrap();
    object.close().await.unwrap();
    let mut expected = noise(35, 8192);
    expected[4..8].copy_from_slice(b"abcd");
    assert_eq!(read_all(&cache, "o").await, expected);
    assert!(cache.try_get("o", Range::ALL, NONE).is_some());
}

#[tokio::test(start_paused = true)]
async fn c22_capabilities_are_those_behind_less_what_is_not_known() {
    let fake = Fake::new();
    fake.claim(CapabilityFlags(1 << 40));
    let cache = cache(&fake).await;
    assert_eq!(cache.capabilities(), Capabilities::new(STORE));
    let get = cache.get("k", Range::ALL, GetFlags(1 << 9)).await;
    assert_eq!(get.unwrap_err().kind, Kind::Unsupported);
    assert!(cache.try_get("k", Range::ALL, GetFlags(1 << 9)).is_none());
    fake.faults()
        .script("flush", [Fault::Before(Kind::Io, "lost")]);
    assert_eq!(cache.flush().await.unwrap_err().kind, Kind::Io);
    cache.list("", None).await.unwrap();
    assert_eq!(fake.take_calls(), ["flush", "list  "]);
}

#[tokio::test(start_paused = true)]
async fn a_read_outside_of_an_object_does_not_fail_those_that_met_it() {
    let fake = Fake::new();
    let bytes = noise(39, 8192);
    fake.replace("k", bytes.clone());
    let cache = cache(&fake).await;
    let outside = cache.get("k", Range::new(8192, 100), NONE);
    let inside = cache.get("k", Range::new(4096, 100), NONE);
    let (outside, inside) = tokio::join!(outside, inside);
    assert_eq!(outside.unwrap_err().kind, Kind::Invalid);
    assert_eq!(bytes_of(&inside.unwrap().data), bytes[4096..4196]);
}
