//! Shards that a dead owner meant to put and that the listing of their objects does not have. A
//! listing may lag behind, so each is asked for by its name before it counts as never put.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use super::lease::Lease;
use super::names::Names;
use super::page::Page;
use super::store::Store;

/// Questions under way at the same time: requests of clients go first.
const AT_ONCE: usize = 4;

/// Asks for all of a page. Until then whoever reads or writes one of them asks by himself.
pub(super) async fn ask(
    store: Store,
    names: Names,
    lease: Arc<Lease>,
    page: Arc<Page>,
    object_bytes: u64,
) {
    let unlisted: Vec<u64> = page.read().unlisted.iter().collect();
    let ask = |at: u64| {
        let (store, names, lease, page) = (&store, &names, &lease, &page);
        async move {
            // A volume that is closed meanwhile leaves the rest to its next owner.
            if !lease.is_valid() || !page.read().unlisted.contains(at) {
                return;
            }
            match store.head(names.shard(page.volume_shard(at))).await {
                Ok(None) => page.write().is_absent(at),
                Ok(Some(meta)) if meta.size == object_bytes => page.write().is_there(at),
                // Half made, or not to be told: the store is asked again when it is used.
                Ok(Some(_)) | Err(_) => {}
            }
        }
    };
    stream::iter(unlisted)
        .for_each_concurrent(AT_ONCE, ask)
        .await;
}
