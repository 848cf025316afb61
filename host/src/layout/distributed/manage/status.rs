//! How a volume stands on its backends, seen from outside, also while it is served.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_plugin::OpenFlags;

use super::super::environment::Host;
use super::super::format::identity::Identity;
use super::super::format::names::Names;
use super::super::log::{survey, LogStore, Remote, Survey};
use super::{gather, Gathered, Typed};
use crate::error::Result;
use crate::layout::sharded::manage::owner;
use crate::layout::sharded::names::Names as RecordNames;

/// One call may take so long.
const CALL: Duration = Duration::from_secs(10);

/// The whole volume.
#[derive(Debug, Clone)]
pub struct Status {
    /// What it is; its `backend` is that of one of its backends.
    pub identity: Identity,
    /// What its owner should know.
    pub warnings: Vec<String>,
    /// In the order of the list.
    pub backends: Vec<BackendStatus>,
}

/// One backend.
#[derive(Debug, Clone)]
pub struct BackendStatus {
    /// As it was typed, without secrets.
    pub name: String,
    /// Who has the volume, or had it last, as it is said there, and what can be said of that from here.
    pub owner: Option<(String, &'static str)>,
    /// Its log; none if it is away or empty, with the reason.
    pub log: Result<Option<Survey>>,
}

impl Status {
    /// The number of the newest record that any backend has; 0 if there is none.
    pub fn newest(&self) -> u64 {
        let logs = self
            .backends
            .iter()
            .filter_map(|it| it.log.as_ref().ok()?.as_ref());
        let newest = logs.filter_map(|log| log.last).max();
        newest.map_or(0, |last| last.seq)
    }
}

/// Looks at a volume.
///
/// # Errors
/// If too few backends answer.
pub async fn status(typed: &[Typed]) -> Result<Status> {
    let Gathered {
        reached,
        identities,
        roster,
    } = gather(typed, OpenFlags::NONE).await?;
    let volume = roster.identity.volume;
    let names = RecordNames::of(volume);
    let prefix = Names::of(volume).all().to_owned();
    let mut backends = Vec::new();
    for ((typed, reached), identity) in typed.iter().zip(&reached).zip(identities) {
        let (mut said, mut log) = (None, identity.map(|_| None));
        if let (Some(reached), Ok(_)) = (reached, &log) {
            said = owner(&reached.store, &names, volume).await.ok().flatten();
            let remote = Remote::new(typed.name.clone(), reached.chain.clone(), prefix.clone());
            let stores: Vec<Arc<dyn LogStore>> = vec![Arc::new(remote)];
            let surveys = survey(volume, stores, Arc::new(Host), CALL).await;
            log = surveys
                .into_iter()
                .collect::<Result<Vec<Survey>>>()
                .map(|it| it.first().copied());
        }
        if let Some(reached) = reached {
            reached.chain.close().await?;
        }
        backends.push(BackendStatus {
            name: typed.name.clone(),
            owner: said,
            log,
        });
    }
    Ok(Status {
        identity: roster.identity,
        warnings: roster.warnings,
        backends,
    })
}
