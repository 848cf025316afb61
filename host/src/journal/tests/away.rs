//! The store is away for longer than the lease on the volume lasts.

use std::future::Future;

use super::shipper::impatient;
use super::*;
use crate::error::Kind;

/// Longer than a volume whose flushes need the store has patience.
const FOR_LONG: Duration = Duration::from_millis(600);
const PATIENCE_MS: u64 = 100;

/// A server whose lease is over, and what keeps its heartbeats from the store.
async fn without_a_lease(
    store: &Store,
    disk: &Recorder,
    how: &How,
) -> (Server, impl Sized + use<>) {
    let sharded = sharded::how_with_short_lease(PATIENCE_MS);
    let server = Server::try_start_with(Rig::new(store), sharded, &site(disk, 1), how).await;
    let server = server.unwrap();
    write(&server.volume, 0, 1, 100).await.unwrap();
    let away = server.rig.hold("");
    while server.volume.core.ledger.is_held() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (server, away)
}

/// It is not there after a while, and is when the store is back.
async fn waits_for<T>(work: impl Future<Output = Result<T>>, back: impl FnOnce()) -> Result<T> {
    let mut work = std::pin::pin!(work);
    let early = runtime::timeout(FOR_LONG, work.as_mut()).await;
    assert!(early.is_err(), "whose the volume is nobody knows");
    back();
    work.await
}

/// Found by a user: 40 seconds after the store went away everything was an error.
#[test]
fn c24_where_a_flush_is_local_everything_waits_for_a_store_that_is_away() {
    runtime::block_on(async {
        for what in ["write", "read", "flush", "extents"] {
            let (store, disk) = (new_volume().await, empty_disk());
            let (server, away) = without_a_lease(&store, &disk, &how(FlushTo::Local)).await;
            let volume = &server.volume;
            let work = async {
                match what {
                    "write" => write(volume, 4096, 2, 100).await,
                    "read" => read(volume, 0, 100).await.map(drop),
                    "flush" => volume.flush().await,
                    _ => volume.extents(0, SIZE, 9).wait().await.map(drop),
                }
            };
            let ended = waits_for(work, || drop(away)).await;
            ended.unwrap_or_else(|error| panic!("{what}: {error}"));
            server.volume.close().await.unwrap();
        }
    });
}

#[test]
fn c15_where_a_flush_needs_the_store_nobody_waits_for_ever() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let (server, away) = without_a_lease(&store, &disk, &impatient(FlushTo::Remote)).await;
        let error = write(&server.volume, 4096, 2, 100).await.unwrap_err();
        assert_eq!(error.kind, Kind::Io, "{error}");
        drop(away);
        server.kill().await;
    });
}

#[test]
fn c17_who_waited_for_a_store_that_was_away_learns_of_a_takeover() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let (server, away) = without_a_lease(&store, &disk, &how(FlushTo::Local)).await;
        let other = Rig::new(&store);
        let taken = manage::open(other.chain(), sharded::how()).await.unwrap();
        let flush = server.volume.flush();
        let error = waits_for(flush, || drop(away)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Fenced, "{error}");
        server.kill().await;
        taken.close().await.unwrap();
    });
}

/// Found by a user: the journal had everything, and the exit code said that something may be lost.
#[test]
fn c23_a_stop_without_a_lease_is_in_order_where_a_flush_is_local() {
    runtime::block_on(async {
        let (store, disk) = (new_volume().await, empty_disk());
        let (server, away) = without_a_lease(&store, &disk, &impatient(FlushTo::Local)).await;
        server.volume.flush_at_end().await.unwrap();
        server.volume.close().await.unwrap();
        server.kill().await;
        drop(away);
        let server = Server::start(&store, &disk, &how(FlushTo::Local)).await;
        assert_eq!(read(&server.volume, 0, 100).await.unwrap(), [1; 100]);
        server.volume.close().await.unwrap();
    });
}
