//! Owners that follow each other, meet, sleep and collect.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_rs_commit_log::{Entry, Epoch};
use nbd_rs_plugin::Bytes;

use super::rig::{body, lock, seconds, Disk, Stage, VOLUME};
use crate::backend::Later;
use crate::error::{Error, Kind};
use crate::layout::distributed::log;
use crate::layout::distributed::log::object::{encode_slot, slot_key, Seal};

#[tokio::test(start_paused = true)]
async fn c17_f4_f67_the_older_of_two_owners_ends_and_never_acknowledges_again() {
    let stage = Stage::new(3, 11);
    let old = stage.serve().await;
    old.say("a").await.unwrap();
    let new = stage.serve().await;
    assert_eq!(new.texts(), ["a"]);
    let waits = old.log.append(log::Kind::Data, body("late"));
    let behind = old.log.append(log::Kind::Data, body("later"));
    assert_eq!(waits.await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(behind.await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(old.log.lost().await.kind, Kind::Fenced);
    assert!(!old.log.may_read());
    assert_eq!(old.say("later").await.unwrap_err().kind, Kind::Fenced);
    new.say("b").await.unwrap();
    drop((old, new));
    assert_eq!(stage.serve().await.texts(), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn c17_an_idle_owner_finds_out_by_looking() {
    let stage = Stage::new(3, 12);
    let old = stage.serve().await;
    let _new = stage.serve().await;
    let lost = tokio::time::timeout(Duration::from_secs(4), old.log.lost()).await;
    assert_eq!(lost.unwrap().kind, Kind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn c17_f69_an_owner_that_is_cut_off_stops_reading_and_ends_when_it_is_back() {
    let stage = Stage::new(3, 13);
    let old = stage.serve().await;
    old.ways[1].is_away(true);
    old.ways[2].is_away(true);
    let ways = stage.ways();
    ways[0].is_away(true);
    let new = stage.serve_by(ways).await.unwrap();
    let mut waits = old.log.append(log::Kind::Data, body("of the old one"));
    new.say("of the new one").await.unwrap();
    seconds(10).await;
    assert!(!old.log.may_read() && new.log.may_read());
    assert!(waits.within(Duration::from_secs(60)).await.is_err());
    old.ways[1].is_away(false);
    assert_eq!(old.log.lost().await.kind, Kind::Fenced);
    drop(old);
    new.ways[0].is_away(false);
    new.until(0, |status| status.behind_records == 0).await;
    drop(new);
    let last = stage.serve().await;
    assert_eq!(last.texts(), ["of the new one"]);
}

#[tokio::test(start_paused = true)]
async fn c20_f40_f41_puts_whose_answer_is_lost_count_once() {
    let stage = Stage::new(3, 14);
    let ways = stage.ways();
    for way in &ways {
        way.set(|faults| (faults.unknown, faults.lost) = (300, 100));
    }
    let server = stage.serve_by(ways).await.unwrap();
    let texts: Vec<String> = (0..40).map(|n| format!("{n}")).collect();
    for text in &texts {
        server.say(text).await.unwrap();
    }
    drop(server);
    assert_eq!(stage.serve().await.texts(), texts);
}

#[tokio::test(start_paused = true)]
async fn f53_a_put_that_comes_minutes_late_does_no_harm() {
    let stage = Stage::new(3, 15);
    let old = stage.serve().await;
    for way in &old.ways {
        way.set(|faults| faults.late = 1000);
    }
    let late = old.log.append(log::Kind::Data, body("late"));
    seconds(1).await;
    drop(old);
    assert!(late.await.is_err());
    let new = stage.serve().await;
    let found = new.texts();
    for n in 0..100 {
        new.say(&format!("{n}")).await.unwrap();
        seconds(1).await;
    }
    drop(new);
    let last = stage.serve().await;
    assert_eq!(last.texts().len(), found.len() + 100);
    assert_eq!(last.texts()[..found.len()], found);
}

#[tokio::test(start_paused = true)]
async fn f65_a_new_owner_goes_on_from_the_checkpoint_when_all_before_is_collected() {
    let stage = Stage::new(3, 16);
    let ways = stage.ways();
    ways[2].is_away(true);
    let server = stage.serve_by(ways).await.unwrap();
    for round in 0..3 {
        for n in 0..20 {
            server.say(&format!("{round} {n}")).await.unwrap();
        }
        let text = format!("checkpoint {round}");
        let checkpoint = server.log.append(log::Kind::Checkpoint, body(&text));
        let checkpoint = checkpoint.await.unwrap();
        let collected = server.log.collect(checkpoint).await.unwrap();
        assert!(collected.records >= 40, "{collected:?}");
        assert_eq!(collected.left.len(), 1);
    }
    let error = server.log.collect(server.say("x").await.unwrap()).await;
    assert_eq!(error.unwrap_err().kind, Kind::Invalid);
    // The fence is there for ever, the rest begins with the checkpoint.
    assert_eq!(stage.disks[0].keys("log/").len(), 3);
    assert_eq!(stage.disks[0].keys("log/")[0], slot_key(0));
    assert_eq!(stage.disks[0].keys("floor/").len(), 3);
    // The one that was away is given the checkpoint, and nothing before it.
    server.ways[2].is_away(false);
    server.until(2, |status| status.behind_records == 0).await;
    assert_eq!(stage.disks[2].keys("log/").len(), 3);
    drop(server);
    let next = stage.serve().await;
    assert_eq!(next.texts(), ["checkpoint 2", "x"]);
    assert!(next.found[0].0.seq > 60);
}

#[tokio::test(start_paused = true)]
async fn f68_an_owner_that_is_shut_out_collects_nothing_that_the_new_one_needs() {
    let stage = Stage::new(3, 17);
    let old = stage.serve().await;
    old.say("a").await.unwrap();
    let checkpoint = old
        .log
        .append(log::Kind::Checkpoint, body("of the old one"));
    let checkpoint = checkpoint.await.unwrap();
    old.say("b").await.unwrap();
    let new = stage.serve().await;
    new.say("c").await.unwrap();
    let _ = old.log.collect(checkpoint).await;
    seconds(60).await;
    assert_eq!(
        old.log.collect(checkpoint).await.unwrap_err().kind,
        Kind::Fenced
    );
    drop((old, new));
    let last = stage.serve().await;
    assert_eq!(last.texts(), ["of the old one", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn f61_the_tail_of_a_record_that_was_never_acknowledged_is_void() {
    let stage = Stage::new(3, 18);
    let old = stage.serve().await;
    old.say("a").await.unwrap();
    old.ways[1].is_away(true);
    old.ways[2].is_away(true);
    let fork = old.log.append(log::Kind::Data, body("fork"));
    seconds(1).await;
    drop(old);
    assert!(fork.await.is_err());
    let ways = stage.ways();
    ways[0].is_away(true);
    let new = stage.serve_by(ways).await.unwrap();
    assert_eq!(new.texts(), ["a"]);
    new.say("b").await.unwrap();
    new.ways[0].is_away(false);
    new.until(0, |status| status.behind_records == 0).await;
    drop(new);
    // Also by the one that had the fork, with any of the others.
    for away in [1, 2] {
        let ways = stage.ways();
        ways[away].is_away(true);
        assert_eq!(stage.serve_by(ways).await.unwrap().texts(), ["a", "b"]);
    }
}

/// Between its end and the next start nothing is to be waited for: the backends are as they were.
#[tokio::test(start_paused = true)]
async fn c23_a_closed_log_is_whole_on_every_backend() {
    let stage = Stage::new(3, 19);
    let server = stage.serve().await;
    server.ways[0].set(|faults| faults.latency = Duration::from_millis(900));
    for n in 0..10 {
        drop(server.log.append(log::Kind::Data, body(&format!("{n}"))));
    }
    server.log.close(Duration::from_secs(60)).await.unwrap();
    let slots = |at: usize| lock(&stage.disks[at].objects).len();
    assert_eq!([slots(0), slots(1), slots(2)], [12, 12, 12]);
}

/// Its counter is not known before, and the backend is too slow for the first look.
#[tokio::test(start_paused = true)]
async fn c17_an_epoch_that_only_a_slow_backend_knows_is_passed() {
    let stage = Stage::new(3, 20);
    let server = stage.serve().await;
    server.say("a").await.unwrap();
    server.log.close(Duration::from_secs(5)).await.unwrap();
    let epoch = Epoch {
        counter: 100,
        owner: 77,
    };
    let fence = encode_slot(VOLUME, 3, &Entry::Fence(epoch), Seal::default());
    lock(&stage.disks[2].objects).insert(slot_key(3), fence);
    let ways = stage.ways();
    ways[2].set(|faults| faults.latency = Duration::from_millis(2900));
    let next = stage.serve_by(ways).await.unwrap();
    assert_eq!(next.log.epoch().counter, 101);
    assert_eq!(next.texts(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_waits_for_any_more_asks_nothing_any_more() {
    let stage = Stage::new(3, 21);
    let ways = stage.ways();
    ways[0].is_away(true);
    ways[1].set(|faults| faults.lost = 1000);
    let start = stage.open(ways.clone());
    assert!(tokio::time::timeout(Duration::from_secs(20), start)
        .await
        .is_err());
    seconds(60).await;
    let calls = || ways.iter().map(|way| *lock(&way.calls)).sum::<u64>();
    let before = calls();
    seconds(600).await;
    assert_eq!(calls(), before);
}

/// Nobody newer wrote it, so it is no reason to end, or to be without a lease.
#[tokio::test(start_paused = true)]
async fn f53_what_an_older_owner_left_in_the_next_slot_is_passed() {
    let stage = Stage::new(3, 22);
    let server = stage.serve().await;
    let epoch = Epoch {
        counter: 0,
        owner: 77,
    };
    for disk in &stage.disks {
        let fence = encode_slot(VOLUME, 2, &Entry::Fence(epoch), Seal::default());
        lock(&disk.objects).insert(slot_key(2), fence);
    }
    seconds(60).await;
    assert!(server.log.may_read());
    server.say("a").await.unwrap();
    drop(server);
    assert_eq!(stage.serve().await.texts(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_stands_for_is_given_to_no_backend_that_lacks_it() {
    let stage = Stage::new(3, 23);
    let ways = stage.ways();
    ways[2].is_away(true);
    let server = stage.serve_by(ways).await.unwrap();
    for n in 0..20 {
        server.say(&format!("{n}")).await.unwrap();
    }
    let all = server.log.append(log::Kind::Checkpoint, body("all"));
    all.await.unwrap();
    server.say("x").await.unwrap();
    drop(server);
    let next = stage.serve().await;
    assert_eq!(next.texts(), ["all", "x"]);
    next.until(2, |status| status.behind_records == 0).await;
    // A fence, the checkpoint, the record, and the start record.
    assert_eq!(stage.disks[2].keys("log/").len(), 4);
}

/// Says no at first, and looks at how much the log has by then.
struct Names {
    disks: Vec<Arc<Disk>>,
    asked: Mutex<Vec<(usize, usize, Vec<u8>)>>,
}

impl log::Prepare for Names {
    fn checkpoint(&self, backend: usize, _: log::Position, payload: Bytes) -> Later<()> {
        let mut asked = lock(&self.asked);
        let is_first = !asked.iter().any(|(it, _, _)| *it == backend);
        let slots = self.disks[backend].keys("log/").len();
        asked.push((backend, slots, payload.to_vec()));
        Box::pin(async move {
            match is_first {
                true => Err(Error::new(Kind::Transient, "not yet")),
                false => Ok(()),
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_put_on_a_backend_when_what_it_names_is_there() {
    let mut stage = Stage::new(3, 24);
    let names = Arc::new(Names {
        disks: stage.disks.clone(),
        asked: Mutex::default(),
    });
    stage.prepare = names.clone();
    let server = stage.serve().await;
    let checkpoint = server.log.append(log::Kind::Checkpoint, body("all"));
    checkpoint.await.unwrap();
    for backend in 0..3 {
        server.until(backend, |it| it.behind_records == 0).await;
    }
    let asked = std::mem::take(&mut *lock(&names.asked));
    for backend in 0..3 {
        // Behind the fence and the start record, with nothing put before it was ready.
        let of = asked.iter().filter(|(it, _, _)| *it == backend);
        let of: Vec<_> = of
            .map(|(_, slots, payload)| (*slots, &payload[..]))
            .collect();
        assert_eq!(of, [(2, &b"all"[..]); 2]);
        assert_eq!(stage.disks[backend].keys("log/").len(), 3);
    }
}

/// The second line where backends have lost slots: nobody knows that there is no newer one.
#[tokio::test(start_paused = true)]
async fn c17_without_a_lease_nothing_is_acknowledged() {
    let stage = Stage::new(3, 25);
    let server = stage.serve().await;
    server.say("a").await.unwrap();
    for way in &server.ways {
        way.set(|faults| faults.failed_reads = 1000);
    }
    // The lease lasts as long as records are taken, and no longer.
    for _ in 0..10 {
        server.say("taken").await.unwrap();
        seconds(8).await;
    }
    seconds(3).await;
    assert!(!server.log.may_read());
    let mut waits = server.log.append(log::Kind::Data, body("late"));
    let waited = waits.within(Duration::from_secs(60)).await;
    assert_eq!(waited.unwrap_err().kind, Kind::Timeout);
    for way in &server.ways {
        way.set(|faults| faults.failed_reads = 0);
    }
    waits.within(Duration::from_secs(5)).await.unwrap();
    assert!(server.log.may_read());
}
