//! Backends that are away, slow, damaged, behind, or another volume's.

use std::time::Duration;

use nbd_rs_commit_log::Phase;

use super::rig::{body, lock, seconds, Stage};
use crate::error::Kind;
use crate::layout::distributed::log::object::slot_key;
use crate::layout::distributed::log::{self, BackendStatus};

fn is_whole(status: &BackendStatus) -> bool {
    status.phase == Phase::Joined && status.away_for.is_none() && status.behind_records == 0
}

#[tokio::test(start_paused = true)]
async fn an_empty_log_is_opened_and_what_was_appended_is_found_in_order() {
    let stage = Stage::new(3, 1);
    let first = stage.serve().await;
    assert!(first.found.is_empty() && first.log.may_read());
    let texts = ["a", "", "c"];
    for text in texts {
        first.say(text).await.unwrap();
    }
    assert!(!first.log.status().is_degraded());
    first.log.close(Duration::from_secs(5)).await.unwrap();
    let second = stage.serve().await;
    assert_eq!(second.texts(), texts);
    assert!(second.log.epoch().counter > 1);
    let positions: Vec<u64> = second.found.iter().map(|(at, _)| at.seq).collect();
    assert_eq!(positions, [2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn c15_f56_with_one_of_three_away_all_goes_on_and_it_catches_up() {
    let stage = Stage::new(3, 2);
    let ways = stage.ways();
    ways[1].is_away(true);
    let server = stage.serve_by(ways).await.unwrap();
    for n in 0..50 {
        server.say(&format!("{n}")).await.unwrap();
    }
    seconds(3600).await;
    assert!(server.log.may_read());
    let status = server.log.status();
    assert!(status.is_degraded());
    let away = &status.backends[1];
    assert!(away.away_for.unwrap() > Duration::from_secs(3500));
    assert_eq!(away.error.as_ref().unwrap().kind, Kind::Transient);
    assert_eq!(away.behind_records, 51);
    server.ways[1].is_away(false);
    server.until(1, is_whole).await;
    assert!(!server.log.status().is_degraded());

    // It alone and one that was empty until now: all is there.
    drop(server);
    lock(&stage.disks[0].objects).clear();
    let ways = stage.ways();
    ways[2].is_away(true);
    let next = stage.serve_by(ways).await.unwrap();
    assert_eq!(next.texts().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn c15_f57_with_two_of_three_away_nothing_is_acknowledged_or_read_or_started() {
    let stage = Stage::new(3, 3);
    let server = stage.serve().await;
    server.say("a").await.unwrap();
    server.ways[0].is_away(true);
    server.ways[2].is_away(true);
    let mut waits = server.log.append(log::Kind::Data, body("b"));
    let mut behind = server.log.append(log::Kind::Data, body("c"));
    let error = waits.within(Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Timeout);
    assert!(!server.log.may_read());
    let error = server.log.readable(Duration::from_secs(5)).await;
    assert_eq!(error.unwrap_err().kind, Kind::Timeout);
    let ways = stage.ways();
    ways[0].is_away(true);
    ways[2].is_away(true);
    let error = stage.open(ways).await.err().expect("no start");
    assert_eq!(error.kind, Kind::Io);
    assert!(
        error.message.contains("node2: the backend is away"),
        "{error}"
    );

    // Both in order as soon as one is back.
    server.ways[2].is_away(false);
    assert_eq!(waits.within(Duration::from_secs(30)).await.unwrap().seq, 3);
    assert_eq!(behind.within(Duration::from_secs(30)).await.unwrap().seq, 4);
    server.log.readable(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn f22_f46_a_damaged_or_missing_record_is_read_from_another_backend() {
    let stage = Stage::new(3, 4);
    let server = stage.serve().await;
    for text in ["first", "second", "third"] {
        server.say(text).await.unwrap();
    }
    drop(server);
    // Behind the fence and the start record.
    stage.disks[0].damage(&slot_key(2), 130);
    stage.disks[1].damage(&slot_key(3), 130);
    stage.disks[2].damage(&slot_key(4), 130);
    let next = stage.serve().await;
    assert_eq!(next.texts(), ["first", "second", "third"]);
    let damaged: Vec<_> = next
        .log
        .status()
        .backends
        .into_iter()
        .map(|it| it.damaged)
        .collect();
    assert!(damaged.contains(&vec![2]), "{damaged:?}");
    drop(next);

    // Where no copy is whole there is an error, never something else.
    for disk in &stage.disks[1..] {
        disk.damage(&slot_key(2), 131);
    }
    let error = stage.serve_by(stage.ways()).await.err().expect("damage");
    assert_eq!(error.kind, Kind::Corrupt);
}

#[tokio::test(start_paused = true)]
async fn c26_f55_a_backend_with_another_volume_or_a_damaged_header_is_not_used() {
    let stage = Stage::new(3, 5);
    let server = stage.serve().await;
    server.say("a").await.unwrap();
    drop(server);
    let whole = stage.disks[2].copy();
    for at in [10, 60] {
        *lock(&stage.disks[2].objects) = whole.clone();
        stage.disks[2].damage(&slot_key(1), at);
        let next = stage.serve().await;
        assert_eq!(next.texts()[0], "a");
        next.until(2, |status| status.error.is_some()).await;
        let status = &next.log.status().backends[2];
        assert_eq!(status.error.as_ref().unwrap().kind, Kind::Corrupt);
        assert_ne!(status.phase, Phase::Joined);
        next.say("b").await.unwrap();
        // It is used again when it was mended.
        *lock(&stage.disks[2].objects) = whole.clone();
        next.until(2, is_whole).await;
    }
}

#[tokio::test(start_paused = true)]
async fn f63_a_slow_backend_does_not_set_the_pace_and_memory_stays_bounded() {
    let mut stage = Stage::new(3, 6);
    stage.backlog_bytes = 1000;
    let server = stage.serve().await;
    server.ways[0].set(|faults| faults.latency = Duration::from_secs(20));
    let began = tokio::time::Instant::now();
    for n in 0..100 {
        server.say(&format!("{n:0>100}")).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    let behind = &server.log.status().backends[0];
    assert!(
        behind.behind_records > 90 && behind.behind_bytes > 9000,
        "{behind:?}"
    );
    // What is no longer in memory is read again from the others.
    server.ways[0].set(|faults| faults.latency = Duration::ZERO);
    server.until(0, is_whole).await;
    let log = |at: usize| stage.disks[at].keys("log/").len();
    assert_eq!(log(0), log(1));
}

#[tokio::test(start_paused = true)]
async fn f60_a_backend_from_an_old_copy_is_filled_and_never_believed() {
    let stage = Stage::new(3, 7);
    let server = stage.serve().await;
    server.say("old").await.unwrap();
    server.until(0, is_whole).await;
    let old = stage.disks[0].copy();
    server.say("new").await.unwrap();
    server.until(0, is_whole).await;
    drop(server);
    *lock(&stage.disks[0].objects) = old;
    let next = stage.serve().await;
    assert_eq!(next.texts(), ["old", "new"]);
    next.until(0, is_whole).await;
}

#[tokio::test(start_paused = true)]
async fn f74_a_backend_that_hangs_is_away_and_takes_up_no_more_and_more() {
    let stage = Stage::new(3, 8);
    let server = stage.serve().await;
    server.ways[1].set(|faults| faults.hangs = 1000);
    for n in 0..10 {
        server.say(&format!("{n}")).await.unwrap();
    }
    seconds(7200).await;
    assert!(server.log.status().backends[1].away_for.is_some());
    // Looks and puts: those that hang are not asked beside each other without end.
    let calls = *lock(&server.ways[1].calls);
    seconds(7200).await;
    assert!(*lock(&server.ways[1].calls) < calls + 10);
    assert!(server.log.may_read());
}

/// On one backend alone and damaged there, it was never acknowledged: the others are enough.
#[tokio::test(start_paused = true)]
async fn f22_f61_a_damaged_tail_on_one_backend_does_not_stop_a_start() {
    let stage = Stage::new(3, 9);
    let server = stage.serve().await;
    server.say("a").await.unwrap();
    server.ways[1].is_away(true);
    server.ways[2].is_away(true);
    drop(server.log.append(log::Kind::Data, body("tail")));
    seconds(1).await;
    drop(server);
    stage.disks[0].damage(&slot_key(3), 130);
    let next = stage.serve().await;
    assert_eq!(next.texts(), ["a"]);
    next.say("b").await.unwrap();
    next.until(0, is_whole).await;
    drop(next);
    let ways = stage.ways();
    ways[1].is_away(true);
    assert_eq!(stage.serve_by(ways).await.unwrap().texts(), ["a", "b"]);
}
