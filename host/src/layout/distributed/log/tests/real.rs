//! The same through guarded chains, in real time, as a server has it.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::rig::{body, NothingNamed, VOLUME};
use crate::backend::memory::Store;
use crate::error::Result;
use crate::layout::distributed::environment::Host;
use crate::layout::distributed::log::{
    Config, Entries, Kind, Log, LogStore, Quorum, Remote, Timing,
};
use crate::layout::sharded::tests::rig::{Fault, Rig, LIKE_S3};
use crate::runtime;

fn rigs(stores: &[Store]) -> Vec<Rig> {
    stores.iter().map(Rig::new).collect()
}

async fn open(rigs: &[Rig], owner: u64) -> Result<(Log, Entries)> {
    let config = Config {
        volume: VOLUME,
        owner,
        counter_seen: 0,
        quorum: Quorum::majority(rigs.len()).expect("some"),
        timing: Timing {
            patience: Duration::from_millis(200),
            retry_first: Duration::from_millis(5),
            ..Timing::default()
        },
        backlog_bytes: 1 << 20,
        environment: Arc::new(Host),
        prepare: Arc::new(NothingNamed),
    };
    let store = |rig: &Rig| -> Arc<dyn LogStore> {
        Arc::new(Remote::new(
            "node".to_owned(),
            rig.chain(),
            format!("{VOLUME}/"),
        ))
    };
    Log::open(config, rigs.iter().map(store).collect()).await
}

async fn texts(mut entries: Entries) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(entry) = entries.next().await.expect("a whole record") {
        texts.push(String::from_utf8_lossy(&entry.payload).into_owned());
    }
    texts
}

#[test]
fn c20_f41_a_log_over_chains_with_answers_lost_and_one_backend_dead() {
    let stores: Vec<Store> = (0..3).map(|_| Store::with(LIKE_S3)).collect();
    runtime::block_on(async {
        let ways = rigs(&stores);
        let (log, entries) = open(&ways, 1).await.unwrap();
        assert_eq!(texts(entries).await, [""; 0]);
        ways[0].fault("log/", Fault::Unknown);
        ways[1].fault("log/", Fault::UnknownNot);
        for text in ["a", "b", "c"] {
            log.append(Kind::Data, body(text)).await.unwrap();
        }
        let checkpoint = log.append(Kind::Checkpoint, body("abc")).await.unwrap();
        ways[2].kill();
        log.append(Kind::Data, body("d")).await.unwrap();
        let collected = log.collect(checkpoint).await.unwrap();
        assert!(collected.records > 0, "{collected:?}");
        drop(log);
        let (log, entries) = open(&rigs(&stores), 2).await.unwrap();
        assert_eq!(texts(entries).await, ["abc", "d"]);
        assert!(log.may_read());
        log.close(Duration::from_secs(10)).await.unwrap();
    });
    let logs: Vec<usize> = stores.iter().map(|store| store.keys().len()).collect();
    assert!(logs.iter().all(|keys| *keys > 4), "{logs:?}");
}

/// A store that has to be flushed is, before a record counts; also a record of an earlier attempt.
#[test]
fn c05_f11_a_record_counts_when_it_is_durable() {
    let stores = vec![Store::default()];
    runtime::block_on(async {
        let ways = rigs(&stores);
        let (log, _) = open(&ways, 1).await.unwrap();
        let faults = stores[0].faults();
        faults.failing_syncs.store(u32::MAX, Ordering::Relaxed);
        let mut waits = log.append(Kind::Data, body("a"));
        let waited = waits.within(Duration::from_millis(300)).await;
        assert_eq!(waited.unwrap_err().kind, crate::error::Kind::Timeout);
        faults.failing_syncs.store(0, Ordering::Relaxed);
        waits.within(Duration::from_secs(30)).await.unwrap();
    });
}
