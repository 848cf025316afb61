//! Small objects that are fetched whole: when, with how many gets, and what becomes of readers when
//! that fetch fails or the object is another one in the end. Gets are counted, nothing is timed.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{body, bytes_of, host, Fake, Fault, Rng};
use nbd_rs_plugin::{
    Backend, CapabilityFlags, Condition, GetFlags, Kind, OptionValue, Range, Result,
};
use tokio::task::JoinHandle;

const BLOCK: u64 = 4096;
/// Blocks of an object of the tests, the last one short.
const BLOCKS: u64 = 17;
const OBJECT: u64 = 16 * BLOCK + 1000;

async fn cache(fake: &Fake, options: &[(&str, &str)]) -> Arc<Cache> {
    let all = [("block", "4KiB"), ("readahead", "0")];
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    let all: Vec<_> = all.iter().chain(options).map(option).collect();
    let cache = Cache::new(host(), Config::new(&all).unwrap(), fake.next(), "").await;
    Arc::new(cache.unwrap())
}

/// An object of [`BLOCKS`] blocks.
fn object(seed: u64) -> Vec<u8> {
    noise(seed, OBJECT as usize)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

async fn get(cache: &Cache, key: &str, block: u64) -> Result<Vec<u8>> {
    let len = BLOCK.min(OBJECT - block * BLOCK);
    let range = Range::new(block * BLOCK, len);
    let got = match cache.try_get(key, range, GetFlags::NONE) {
        Some(got) => got,
        None => cache.get(key, range, GetFlags::NONE).await,
    };
    got.map(|got| bytes_of(&got.data))
}

fn start(cache: &Arc<Cache>, key: &str, block: u64) -> JoinHandle<Result<Vec<u8>>> {
    let (cache, key) = (cache.clone(), key.to_owned());
    tokio::spawn(async move { get(&cache, &key, block).await })
}

/// Readers of these blocks, all of them waiting by now.
async fn waiting(
    cache: &Arc<Cache>,
    blocks: impl IntoIterator<Item = u64>,
) -> Vec<(u64, JoinHandle<Result<Vec<u8>>>)> {
    let readers = blocks.into_iter().map(|at| (at, start(cache, "k", at)));
    let readers = readers.collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    readers
}

fn part(object: &[u8], block: u64) -> &[u8] {
    let from = (block * BLOCK) as usize;
    &object[from..(from + BLOCK as usize).min(object.len())]
}

/// The cache knows the object, and missed it once.
async fn missed_once(fake: &Fake, cache: &Cache) -> Vec<u8> {
    let bytes = object(1);
    fake.replace("k", bytes.clone());
    cache.head("k", GetFlags::NONE).await.unwrap();
    assert_eq!(get(cache, "k", 3).await.unwrap(), part(&bytes, 3));
    fake.take_calls();
    bytes
}

/// So many other objects are held.
async fn fill(cache: &Cache, objects: u64) {
    for at in 0..objects {
        let (key, object) = (format!("full{at}"), body(object(at)));
        let put = cache.put(&key, object, Condition::Always);
        put.await.unwrap();
    }
}

fn whole() -> String {
    format!("get k 0+{OBJECT}")
}

#[tokio::test(start_paused = true)]
async fn the_second_miss_fetches_the_whole_object_in_one_get() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    let bytes = missed_once(&fake, &cache).await;
    assert_eq!(get(&cache, "k", 9).await.unwrap(), part(&bytes, 9));
    assert_eq!(fake.take_calls(), [whole()]);
    for block in 0..BLOCKS {
        assert_eq!(get(&cache, "k", block).await.unwrap(), part(&bytes, block));
    }
    assert_eq!(fake.take_calls(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_at_either_end_is_not_fetched_with_the_whole() {
    let fake = Fake::new();
    let cache = cache(&fake, &[("whole", "0")]).await;
    let bytes = missed_once(&fake, &cache).await;
    for block in [0, 1, 16] {
        get(&cache, "k", block).await.unwrap();
    }
    // The same copies, and from now on small objects count.
    let fake = Fake::new();
    let cache = self::cache(&fake, &[]).await;
    fake.replace("k", bytes.clone());
    cache.head("k", GetFlags::NONE).await.unwrap();
    let two = cache.get("k", Range::new(0, 2 * BLOCK), GetFlags::NONE);
    assert_eq!(bytes_of(&two.await.unwrap().data), bytes[..8192]);
    fake.take_calls();
    get(&cache, "k", 5).await.unwrap();
    let rest = OBJECT - 2 * BLOCK;
    assert_eq!(fake.take_calls(), [format!("get k 8192+{rest}")]);
}

#[tokio::test(start_paused = true)]
async fn readers_of_other_blocks_join_the_whole_fetch_and_send_nothing() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    let bytes = missed_once(&fake, &cache).await;
    fake.faults().script("get", [Fault::SlowBefore(50)]);
    let first = waiting(&cache, [9]).await;
    let others = waiting(&cache, (0..64).map(|at| at * 5 % BLOCKS)).await;
    for (block, reader) in first.into_iter().chain(others) {
        assert_eq!(reader.await.unwrap().unwrap(), part(&bytes, block));
    }
    assert_eq!(fake.take_calls(), [whole()]);
}

#[tokio::test(start_paused = true)]
async fn readers_that_leave_do_not_end_the_whole_fetch() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    let bytes = missed_once(&fake, &cache).await;
    fake.faults().script("get", [Fault::SlowBefore(50)]);
    for (_, reader) in waiting(&cache, [9, 2, 7]).await {
        reader.abort();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let all = cache.try_get("k", Range::ALL, GetFlags::NONE);
    assert_eq!(bytes_of(&all.unwrap().unwrap().data), bytes);
    assert_eq!(fake.take_calls(), [whole()]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_whole_fetch_is_not_its_readers_failure() {
    for kind in [Kind::Transient, Kind::Timeout, Kind::Corrupt, Kind::Io] {
        let fake = Fake::new();
        let cache = cache(&fake, &[]).await;
        let bytes = missed_once(&fake, &cache).await;
        fake.faults().script(
            "get",
            [Fault::SlowBefore(50), Fault::Before(kind, "too much")],
        );
        // The first one goes well: it is the fault behind it that the whole fetch meets.
        let other = object(2);
        fake.replace("other", other);
        let slow = start(&cache, "other", 0);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let readers = waiting(&cache, [9, 9, 9, 2, 2, 14]).await;
        for (block, reader) in readers {
            assert_eq!(reader.await.unwrap().unwrap(), part(&bytes, block));
        }
        slow.await.unwrap().unwrap();
        let calls = fake.take_calls();
        let (wholes, blocks): (Vec<_>, Vec<_>) = calls
            .iter()
            .filter(|call| call.starts_with("get k "))
            .partition(|call| **call == whole());
        // Then each block once, for whoever waits for it.
        assert_eq!((wholes.len(), blocks.len()), (1, 3), "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_whole_fetch_blocks_are_fetched_until_the_eighth_miss() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    missed_once(&fake, &cache).await;
    let fault = Fault::Before(Kind::Timeout, "too much");
    fake.faults().script("get", [fault]);
    for block in [9, 0, 1, 2, 4, 5] {
        get(&cache, "k", block).await.unwrap();
    }
    let calls = fake.take_calls();
    assert_eq!(calls[0], whole());
    let is_block = |call: &String| call.ends_with("+4096");
    assert!(
        calls.len() == 7 && calls[1..].iter().all(is_block),
        "{calls:?}"
    );
    get(&cache, "k", 6).await.unwrap();
    let rest = OBJECT - 6 * BLOCK;
    assert_eq!(fake.take_calls(), [format!("get k {}+{rest}", 6 * BLOCK)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_fails_each_reader_once_more_and_no_further() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    missed_once(&fake, &cache).await;
    let down = |_| Fault::Before(Kind::Transient, "down");
    fake.faults().script("get", (0..100).map(down));
    for (_, reader) in waiting(&cache, [9, 9, 2, 2, 2, 14]).await {
        assert_eq!(reader.await.unwrap().unwrap_err().kind, Kind::Transient);
    }
    let calls = fake.take_calls();
    assert!(calls.len() <= 1 + 6, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_gone_is_gone_for_all_who_wait() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    missed_once(&fake, &cache).await;
    fake.faults().script("get", [Fault::SlowBefore(50)]);
    let readers = waiting(&cache, [9, 2, 14]).await;
    fake.remove("k");
    for (_, reader) in readers {
        assert_eq!(reader.await.unwrap().unwrap_err().kind, Kind::NotFound);
    }
    assert_eq!(fake.take_calls(), [whole()]);
    // Nor is anything left of it.
    assert_eq!(get(&cache, "k", 3).await.unwrap_err().kind, Kind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn an_object_replaced_in_mid_flight_is_answered_as_it_became() {
    for len in [OBJECT as usize, 3 * OBJECT as usize] {
        let fake = Fake::new();
        let cache = cache(&fake, &[]).await;
        missed_once(&fake, &cache).await;
        fake.faults().script("get", [Fault::SlowBefore(50)]);
        let readers = waiting(&cache, [9, 2, 14]).await;
        let new = noise(7, len);
        let etag = fake.replace("k", new.clone());
        for (block, reader) in readers {
            assert_eq!(
                reader.await.unwrap().unwrap(),
                part(&new[..OBJECT as usize], block)
            );
        }
        // The block that was held before is of the old version.
        let all = cache.get("k", Range::ALL, GetFlags::WANT_META).await;
        let all = all.unwrap();
        assert_eq!(bytes_of(&all.data), new);
        assert_eq!(all.meta.unwrap().etag, etag.as_str());
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_shrank_in_mid_flight_is_read_as_it_is() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    missed_once(&fake, &cache).await;
    fake.faults().script("get", [Fault::SlowBefore(50)]);
    let readers = waiting(&cache, [9, 2]).await;
    let new = noise(8, 5 * BLOCK as usize);
    fake.replace("k", new.clone());
    for (block, reader) in readers {
        match reader.await.unwrap() {
            Ok(bytes) => assert_eq!(bytes, part(&new, block)),
            Err(error) => assert_eq!((block, error.kind), (9, Kind::Invalid)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_while_the_whole_is_under_way_is_what_is_read_from_then_on() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    let old = missed_once(&fake, &cache).await;
    // The store has answered with the old bytes; the answer is long on its way.
    fake.faults().script("get", [Fault::SlowAfter(50)]);
    let readers = waiting(&cache, [9, 2]).await;
    let new = object(9);
    let put = cache.put("k", body(new.clone()), Condition::Always);
    put.await.unwrap();
    for block in 0..BLOCKS {
        assert_eq!(get(&cache, "k", block).await.unwrap(), part(&new, block));
    }
    for (block, reader) in readers {
        assert_eq!(reader.await.unwrap().unwrap(), part(&old, block));
    }
    for block in 0..BLOCKS {
        assert_eq!(get(&cache, "k", block).await.unwrap(), part(&new, block));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_cache_fetches_the_whole_at_the_eighth_miss() {
    let fake = Fake::new();
    let cache = cache(&fake, &[("size", "1280KiB")]).await;
    fill(&cache, 40).await;
    let bytes = missed_once(&fake, &cache).await;
    for block in [9, 0, 15, 1, 14, 6] {
        assert_eq!(get(&cache, "k", block).await.unwrap(), part(&bytes, block));
        let one = format!("get k {}+4096", block * BLOCK);
        assert_eq!(fake.take_calls(), [one]);
    }
    assert_eq!(get(&cache, "k", 12).await.unwrap(), part(&bytes, 12));
    let calls = fake.take_calls();
    let [call] = &calls[..] else {
        panic!("{calls:?}")
    };
    assert!(!call.ends_with("+4096"), "{call}");
    assert!(cache.used_bytes() <= 1280 << 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_counts_as_if_it_were_held() {
    let fake = Fake::new();
    let size = 2 << 20;
    let cache = cache(&fake, &[("size", "2MiB")]).await;
    let objects = 64;
    for at in 0..objects {
        let key = format!("k{at}");
        fake.replace(&key, object(at));
        cache.head(&key, GetFlags::NONE).await.unwrap();
        get(&cache, &key, 3).await.unwrap();
    }
    fake.take_calls();
    let slow = |_| Fault::SlowBefore(50);
    fake.faults().script("get", (0..objects).map(slow));
    let readers: Vec<_> = (0..objects)
        .map(|at| (at, start(&cache, &format!("k{at}"), 9)))
        .collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let calls = fake.take_calls();
    let wholes = calls.iter().filter(|call| !call.ends_with("+4096")).count() as u64;
    assert!(wholes > 8 && wholes * OBJECT <= size, "{wholes}");
    for (at, reader) in readers {
        assert_eq!(reader.await.unwrap().unwrap(), part(&object(at), 9));
    }
    assert!(cache.used_bytes() <= size);
}

/// As a volume is read: the end of an object, then what is wanted of it.
async fn read_object(cache: &Cache, known: &[std::sync::atomic::AtomicBool], at: u64, block: u64) {
    use std::sync::atomic::Ordering;
    let key = format!("shards/{at}");
    if !known[at as usize].load(Ordering::Relaxed) {
        get(cache, &key, BLOCKS - 1).await.unwrap();
        known[at as usize].store(true, Ordering::Relaxed);
    }
    assert_eq!(
        get(cache, &key, block).await.unwrap(),
        part(&object(at), block)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cold_run_of_random_reads_costs_little_more_than_one_get_an_object() {
    let fake = Fake::new();
    let objects = 64;
    for at in 0..objects {
        fake.replace(&format!("shards/{at}"), object(at));
    }
    let cache = cache(&fake, &[("size", "16MiB")]).await;
    let known: Arc<Vec<_>> = Arc::new((0..objects).map(|_| false.into()).collect());
    let slow = |_| Fault::SlowBefore(3);
    fake.faults().script("get", (0..2000).map(slow));
    let mut rng = Rng::of_test();
    let depth = Arc::new(tokio::sync::Semaphore::new(16));
    let mut readers = Vec::new();
    for _ in 0..2000 {
        let permit = depth.clone().acquire_owned().await.unwrap();
        let (cache, known) = (cache.clone(), known.clone());
        let (at, block) = (rng.below(objects), rng.below(BLOCKS - 1));
        readers.push(tokio::spawn(async move {
            read_object(&cache, &known, at, block).await;
            drop(permit);
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let gets = fake.take_calls().len();
    println!("{gets} gets");
    // Those that are under way before it is known that objects are asked for again take two.
    assert!(gets <= 64 + 48, "{gets}");
}

#[tokio::test(start_paused = true)]
async fn objects_that_nobody_comes_back_to_are_not_fetched_whole() {
    let fake = Fake::new();
    let cache = cache(&fake, &[("size", "16MiB")]).await;
    for at in 0..200 {
        let key = format!("k{at}");
        fake.replace(&key, object(at));
        assert_eq!(
            get(&cache, &key, at % 16).await.unwrap(),
            part(&object(at), at % 16)
        );
    }
    let calls = fake.take_calls();
    assert_eq!(calls.len(), 200);
    assert!(calls.iter().all(|call| call.ends_with("+4096")));
}

/// The cache has seen that objects are asked for again.
async fn used_to_more(fake: &Fake, cache: &Cache) {
    for at in 0..8 {
        let key = format!("before{at}");
        fake.replace(&key, object(at));
        for block in [3, 9] {
            get(cache, &key, block).await.unwrap();
        }
    }
    fake.take_calls();
}

#[tokio::test(start_paused = true)]
async fn an_object_is_opened_whole_where_others_were_asked_for_again() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    used_to_more(&fake, &cache).await;
    let bytes = object(1);
    fake.replace("k", bytes.clone());
    fake.faults().script("get", [Fault::SlowBefore(50)]);
    for (block, reader) in waiting(&cache, 0..BLOCKS).await {
        assert_eq!(reader.await.unwrap().unwrap(), part(&bytes, block));
    }
    assert_eq!(fake.take_calls(), [whole()]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_can_not_be_opened_whole_is_opened_with_what_was_asked_for() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    used_to_more(&fake, &cache).await;
    // It is smaller than the others.
    let small = noise(3, 3 * BLOCK as usize);
    fake.replace("k", small.clone());
    assert_eq!(get(&cache, "k", 1).await.unwrap(), part(&small, 1));
    assert_eq!(fake.take_calls(), [whole(), "get k 4096+4096".to_owned()]);
    // It takes too long.
    let bytes = object(4);
    fake.replace("j", bytes.clone());
    let late = Fault::Before(Kind::Timeout, "too much");
    fake.faults().script("get", [late]);
    assert_eq!(get(&cache, "j", 1).await.unwrap(), part(&bytes, 1));
    get(&cache, "j", 5).await.unwrap();
    let calls = fake.take_calls();
    assert_eq!(calls[1..], ["get j 4096+4096", "get j 20480+4096"]);
}

#[tokio::test(start_paused = true)]
async fn an_object_larger_than_whole_is_never_fetched_whole() {
    let fake = Fake::new();
    let cache = cache(&fake, &[("size", "64MiB"), ("whole", "64KiB")]).await;
    missed_once(&fake, &cache).await;
    for at in 0..64 {
        get(&cache, "k", at * 5 % BLOCKS).await.unwrap();
    }
    let calls = fake.take_calls();
    assert_eq!(calls.len() as u64, BLOCKS - 1, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_without_ranges_is_asked_for_whole_objects_as_ever() {
    let fake = Fake::new();
    fake.lacks(CapabilityFlags::RANGED_GET);
    let cache = cache(&fake, &[]).await;
    for seed in 0..20 {
        let (key, bytes) = (format!("k{seed}"), object(seed));
        fake.replace(&key, bytes.clone());
        for block in [3, 9, 0] {
            assert_eq!(get(&cache, &key, block).await.unwrap(), part(&bytes, block));
        }
        assert_eq!(fake.take_calls(), [format!("get {key} 0..")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_in_order_gets_the_rest_of_a_small_object_at_once_though_the_cache_is_full() {
    let fake = Fake::new();
    let cache = cache(&fake, &[("size", "4MiB"), ("readahead", "1MiB")]).await;
    fill(&cache, 80).await;
    let bytes = object(5);
    fake.replace("k", bytes.clone());
    cache.head("k", GetFlags::NONE).await.unwrap();
    fake.take_calls();
    for block in 0..BLOCKS {
        assert_eq!(get(&cache, "k", block).await.unwrap(), part(&bytes, block));
    }
    let calls = fake.take_calls();
    assert!(calls.len() <= 3, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_cache_fetches_few_whole_objects_at_a_time() {
    let fake = Fake::new();
    let size = 4 << 20;
    let cache = cache(&fake, &[("size", "4MiB")]).await;
    fill(&cache, 80).await;
    let objects = 16;
    for at in 0..objects {
        let key = format!("k{at}");
        fake.replace(&key, object(at));
        cache.head(&key, GetFlags::NONE).await.unwrap();
        for block in 0..7 {
            get(&cache, &key, block).await.unwrap();
        }
    }
    fake.take_calls();
    let slow = |_| Fault::SlowBefore(50);
    fake.faults().script("get", (0..objects).map(slow));
    let eighth = |at| (at, start(&cache, &format!("k{at}"), 9));
    let readers: Vec<_> = (0..objects).map(eighth).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let calls = fake.take_calls();
    let wholes = calls.iter().filter(|call| !call.ends_with("+4096")).count() as u64;
    // A sixteenth of the room.
    assert!(wholes >= 2 && wholes * 8 * BLOCK <= size / 16, "{calls:?}");
    for (at, reader) in readers {
        assert_eq!(reader.await.unwrap().unwrap(), part(&object(at), 9));
    }
}

#[tokio::test(start_paused = true)]
async fn the_room_of_a_fetch_that_has_ended_is_free_again() {
    let fake = Fake::new();
    let cache = cache(&fake, &[("size", "1MiB")]).await;
    for at in 0..100 {
        fake.replace("k", object(at));
        cache.head("k", GetFlags::FRESH).await.unwrap();
        get(&cache, "k", 3).await.unwrap();
        fake.take_calls();
        let fault = Fault::Before(Kind::Timeout, "too much");
        fake.faults().script("get", [fault]);
        get(&cache, "k", 9).await.unwrap();
        assert_eq!(fake.take_calls()[0], whole());
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_all_of_an_object_is_told_of_its_failure_with_one_get() {
    let fake = Fake::new();
    let cache = cache(&fake, &[]).await;
    let bytes = missed_once(&fake, &cache).await;
    fake.faults()
        .script("get", [Fault::Before(Kind::Transient, "down")]);
    let all = cache.get("k", Range::ALL, GetFlags::NONE);
    assert_eq!(all.await.unwrap_err().kind, Kind::Transient);
    assert_eq!(fake.take_calls(), [whole()]);
    // Nor does what is held in the middle make two of one.
    let all = cache.get("k", Range::ALL, GetFlags::NONE).await.unwrap();
    assert_eq!(bytes_of(&all.data), bytes);
    assert_eq!(fake.take_calls(), [whole()]);
}
