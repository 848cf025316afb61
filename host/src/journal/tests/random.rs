//! Random scripts, with kills, restarts, and a disk that fails.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use nbd_rs_recorder_disk::Faults;

use super::rng::Rng;
use super::*;
use crate::layout::sharded::tests::random::{cuts, random_op, Model, Op};

/// One server's life: operations, some at once, until it has enough or its store is dead.
async fn live(rng: &mut Rng, server: &Server, model: &mut Model) {
    for _ in 0..1 + rng.next() % 15 {
        let count = 1 + rng.next() % 5;
        let ops: Vec<Op> = cuts(rng, count, 1)
            .into_iter()
            .map(|within| random_op(rng, within))
            .collect();
        let results = join_all(ops.iter().map(|op| op.run(&server.volume))).await;
        for (op, result) in ops.iter().zip(&results) {
            assert!(result.is_ok(), "{op:?}: {result:?}");
            model.done(op, result);
        }
        match rng.next() % 5 {
            0 => server.volume.flush().await.unwrap(),
            1 | 2 => {
                let offset = rng.next() % SIZE;
                let len = (1 + rng.next() % 100_000).min(SIZE - offset);
                let found = read(&server.volume, offset, len).await.unwrap();
                let range = offset as usize..(offset + len) as usize;
                assert_eq!(found, model.bytes[range], "{len} bytes at {offset}");
            }
            _ => {}
        }
    }
}

async fn script(name: &str, flush_to: FlushTo, rounds: u64, disk_fails: bool) {
    let mut rng = Rng::for_test(name);
    let store = new_volume().await;
    let mut model = Model {
        bytes: vec![0; SIZE as usize],
        or: BTreeMap::new(),
    };
    let mut disk = empty_disk();
    for round in 0..rounds {
        let server = Server::start(&store, &disk, &how(flush_to)).await;
        model
            .compare(&server.volume, &format!("{name}, round {round}"))
            .await;
        if disk_fails && rng.next().is_multiple_of(2) {
            let some = |rng: &mut Rng| (rng.next() % 3) as u32;
            disk.fail(Faults {
                syncs: some(&mut rng),
                writes: some(&mut rng),
                creates: some(&mut rng),
                ..Faults::default()
            });
        }
        live(&mut rng, &server, &mut model).await;
        disk.fail(Faults::default());
        match rng.next() % 4 {
            0 => {
                server.volume.flush().await.unwrap();
                server.volume.close().await.unwrap();
                let stored = stored(&store, 0, SIZE).await;
                assert!(stored == model.bytes, "{name}, round {round}");
                server.abandon().await;
            }
            // A kill between two moments of the store, and one while its calls are on their way.
            1 => server.kill().await,
            _ => {
                let _ =
                    runtime::timeout(Duration::from_millis(rng.next() % 4), server.volume.flush())
                        .await;
                server.kill().await;
            }
        }
        disk = disk.after_kill(disk.moment());
    }
}

#[test]
fn c12_the_journal_agrees_with_a_plain_vector_whenever_the_server_dies() {
    runtime::block_on(script("remote", FlushTo::Remote, 40, false));
}

#[test]
fn c12_the_same_where_a_flush_is_local() {
    runtime::block_on(script("local", FlushTo::Local, 40, false));
}

#[test]
fn c05_f10_the_same_on_a_disk_that_fails_now_and_then() {
    runtime::block_on(script("failing disk", FlushTo::Remote, 40, true));
}
