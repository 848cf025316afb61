//! What is known of a volume without owning it.

use nbd_rs_plugin::OpenFlags;

use super::super::format::identity::Identity;
use super::{gather, Gathered, Typed};
use crate::error::Result;
use crate::layout::sharded::manage::owner;
use crate::layout::sharded::names::Names;

/// A volume.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What it is; its `backend` is that of one of its backends.
    pub identity: Identity,
    /// What its owner should know.
    pub warnings: Vec<String>,
    /// In the order of the list.
    pub backends: Vec<BackendFacts>,
}

/// One backend.
#[derive(Debug, Clone)]
pub struct BackendFacts {
    /// As it was typed, without secrets.
    pub name: String,
    /// Whether it answers.
    pub is_there: bool,
    /// Who has the volume, or had it last, as it is said there, and what can be said of that from here.
    pub owner: Option<(String, &'static str)>,
}

/// Looks at a volume, also while it is served.
///
/// # Errors
/// If too few backends answer.
pub async fn facts(typed: &[Typed]) -> Result<Facts> {
    let Gathered {
        reached, roster, ..
    } = gather(typed, OpenFlags::NONE).await?;
    let volume = roster.identity.volume;
    let names = Names::of(volume);
    let mut backends = Vec::new();
    for (typed, reached) in typed.iter().zip(&reached) {
        let said = match reached {
            Some(reached) => owner(&reached.store, &names, volume).await.ok().flatten(),
            None => None,
        };
        if let Some(reached) = reached {
            reached.chain.close().await?;
        }
        backends.push(BackendFacts {
            name: typed.name.clone(),
            is_there: reached.is_some(),
            owner: said,
        });
    }
    Ok(Facts {
        identity: roster.identity,
        warnings: roster.warnings,
        backends,
    })
}
