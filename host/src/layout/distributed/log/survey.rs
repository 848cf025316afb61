//! A look at the logs from outside: nobody is fenced, and nothing is changed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nbd_rs_commit_log::{Entry, Epoch, Position};

use super::call::Caller;
use super::scan::read_all;
use super::slots::Slots;
use super::store::LogStore;
use crate::error::Result;
use crate::layout::distributed::environment::Environment;
use crate::layout::uuid::Uuid;

/// What lies on one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    /// The greatest epoch that wrote there.
    pub newest: Epoch,
    /// Its last record, by the order of the log.
    pub last: Option<Position>,
    /// Records from its floor on.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// Looks at each backend, in the order of `stores`; a call takes so long at the most.
pub async fn survey(
    volume: Uuid,
    stores: Vec<Arc<dyn LogStore>>,
    environment: Arc<dyn Environment>,
    most: Duration,
) -> Vec<Result<Survey>> {
    let surveys = stores.into_iter().map(|store| {
        let caller = Caller::new(store, environment.clone(), most);
        async move {
            let slots = Slots {
                caller: &caller,
                volume,
            };
            let known = read_all(&slots).await?;
            let mut survey = Survey {
                newest: known.newest(),
                last: None,
                records: 0,
                bytes: 0,
            };
            for (slot, entry) in known.entries() {
                if let Entry::Record { record, .. } = entry {
                    survey.last = survey.last.max(Some(record.position));
                    survey.records += 1;
                    survey.bytes += known.entry(slot).map_or(0, |(_, seal)| seal.len);
                }
            }
            Ok(survey)
        }
    });
    join_all(surveys).await
}
