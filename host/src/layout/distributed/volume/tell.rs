//! Says when a backend goes and when it is back: for whoever reads the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::log::{BackendStatus, Status};
use super::shared::Inner;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// What was said of a backend last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Away,
    Behind,
}

/// Until the owner has ended.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut said = BTreeMap::new();
    while inner.going_on().is_ok() {
        look(&inner.log.status(), &mut said);
        inner.environment.sleep(EVERY).await;
    }
}

fn look(status: &Status, said: &mut BTreeMap<usize, Said>) {
    let was_degraded = !said.is_empty();
    let all = status.backends.len();
    for (at, backend) in status.backends.iter().enumerate() {
        let name = &backend.name;
        match (now(backend), said.get(&at)) {
            (Some(Said::Away), None | Some(Said::Behind)) => {
                let error = backend.error.as_ref();
                let error = error.map_or(String::new(), |error| format!(": {error}"));
                tracing::warn!("degraded: {name} is away{error}");
                said.insert(at, Said::Away);
            }
            (Some(Said::Behind), Some(Said::Away)) => {
                let behind = backend.behind_records;
                tracing::info!("{name} answers again, and lacks {behind} records");
                said.insert(at, Said::Behind);
            }
            (None, Some(_)) => {
                said.remove(&at);
            }
            _ => {}
        }
    }
    if was_degraded && said.is_empty() {
        tracing::info!("all backends have the whole log again, {all} of {all}");
    }
}

fn now(backend: &BackendStatus) -> Option<Said> {
    if backend.away_for.is_some() {
        return Some(Said::Away);
    }
    // A record that is on its way is lacked for a moment.
    (backend.behind_records > 1 || !backend.is_in_use()).then_some(Said::Behind)
}
