//! How much memory the copies really take: counted by the allocator. Alone in its process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{body, host, Fake};
use nbd_rs_plugin::{Backend, Condition, GetFlags, OptionValue, Range};

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn config(block: &str, size: &str) -> Config {
    let option = |(name, value): (&str, &str)| OptionValue {
        name: name.into(),
        value: value.into(),
    };
    Config::new(&[("block", block), ("size", size)].map(option)).unwrap()
}

/// Writes and reads four times the room through the cache; the most that was in use.
async fn most_in_use(block: &str, size: u64, object: usize) -> f64 {
    let fake = Fake::new();
    let before = IN_USE.load(Ordering::Relaxed);
    let config = config(block, &size.to_string());
    let cache = Cache::new(host(), config, fake.next(), "").await.unwrap();
    let mut most = 0;
    for at in 0..(size * 4 / object as u64) {
        let key = format!("volume/shards/{at:08}");
        cache
            .put(&key, body(vec![at as u8; object]), Condition::Always)
            .await
            .unwrap();
        let _ = cache.get(&key, Range::ALL, GetFlags::NONE).await.unwrap();
        // The store's own copy is not the cache's.
        fake.remove(&key);
        fake.take_calls();
        most = most.max(IN_USE.load(Ordering::Relaxed) - before);
    }
    most as f64 / size as f64
}

#[tokio::test]
async fn the_copies_stay_within_five_percent_of_their_bound() {
    for (block, size, object) in [
        ("64KiB", 32 << 20, 1 << 20),
        ("64KiB", 16 << 20, 64 << 10),
        ("4KiB", 16 << 20, 256 << 10),
        ("4KiB", 8 << 20, 4 << 10),
    ] {
        let used = most_in_use(block, size, object).await;
        println!(
            "blocks of {block}, objects of {object}: {:.1} % of {size}",
            used * 100.0
        );
        assert!(used <= 1.05, "{used}");
        assert!(used >= 0.80, "room is wasted: {used}");
    }
}
