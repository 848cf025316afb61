//! What a hit pays for the link: figures to read (`--nocapture`), not to fail on.

use std::hint::black_box;
use std::time::Instant;

use nbd_rs_fake::{host, Fake};
use nbd_rs_plugin::{export_backend, GetFlags, Next, ObjectFlags, ObjectMode, Range, ReadFlags};
use nbd_rs_retry::backend::Retry;
use nbd_rs_retry::config;
use nbd_rs_retry::link::Link;

const ROUNDS: u32 = 2000;

fn nanos(mut work: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..200 {
        let started = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        best = best.min(started.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS));
    }
    best
}

#[tokio::test]
async fn what_a_hit_costs_through_the_link() {
    let fake = Fake::new();
    fake.replace("k", vec![0; 4096]);
    fake.answer_at_once(true);
    let flags = ObjectFlags::WRITE | ObjectFlags::CREATE;
    let mode = ObjectMode::create(flags, 4096);
    let near = fake.next();
    let link = Retry::new(Link::new(host(), config::policy(&[]).unwrap()), fake.next());
    let near_object = near.open_object("o", mode).await.unwrap();
    let far: Next = export_backend(link).into();
    let far_object = far.open_object("o", mode).await.unwrap();

    let range = Range::new(0, 4096);
    let get = |next: &Next| nanos(|| drop(black_box(next.try_get("k", range, GetFlags::NONE))));
    let read = |object: &nbd_rs_plugin::NextObject| {
        nanos(|| drop(black_box(object.start_read(0, 4096, ReadFlags::NONE).now())))
    };
    let (get_near, get_far) = (get(&near), get(&far));
    let (read_near, read_far) = (read(&near_object), read(&far_object));
    println!(
        "get:  {get_near:.0} ns alone, {:.0} ns more through retry",
        get_far - get_near
    );
    println!(
        "read: {read_near:.0} ns alone, {:.0} ns more through retry",
        read_far - read_near
    );
    assert!(far.try_get("k", range, GetFlags::NONE).is_some());
}
