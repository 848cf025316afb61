//! Objects that nobody needs and nobody gave up: of owners that died, and what a backend kept while it
//! was away.
//!
//! What is listed is only a hint where to look; the state says what is needed. Objects that are
//! newer than the last checkpoint but one may be needed by a record that is not made yet, so they are
//! left alone.

use std::collections::BTreeMap;

use super::super::format::names::Object;
use super::super::format::Version;
use super::shared::{Counts, Inner};
use crate::error::Result;

/// Where objects lie that come and go.
const PREFIXES: [&str; 4] = ["b/", "m/", "root/", "s/"];
/// Of an owner's checkpoints this one is the first after which all is known that is needed.
const KNOWN_FROM: u32 = 2;

/// How far the look at one backend has come.
#[derive(Debug, Default)]
struct Cursor {
    prefix: usize,
    after: Option<String>,
}

/// What is to be looked at yet.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    checkpoints: u32,
    /// Objects before this one are in the state, or are not needed.
    before: Version,
    left: BTreeMap<usize, Cursor>,
}

impl Sweep {
    /// A checkpoint was made; all objects before `before` were put before it was begun. `failed` could
    /// not be told what to delete.
    pub(super) fn checkpointed(&mut self, before: Version, backends: usize, failed: &[usize]) {
        self.checkpoints = self.checkpoints.saturating_add(1);
        self.before = before;
        let all = match self.checkpoints == KNOWN_FROM {
            true => (0..backends).collect(),
            false => failed.to_vec(),
        };
        for backend in all {
            self.left.insert(backend, Cursor::default());
        }
    }
}

impl Inner {
    /// Looks at one page of names on each backend that is to be looked at and answers.
    pub(super) async fn sweep(&self, sweep: &mut Sweep) -> Result<()> {
        if sweep.checkpoints < KNOWN_FROM {
            return Ok(());
        }
        let before = sweep.before;
        let mut over = Vec::new();
        for (&backend, cursor) in &mut sweep.left {
            if self.replicas.is_failing(backend) {
                continue;
            }
            match self.sweep_page(backend, before, cursor).await {
                Ok(true) => {}
                Ok(false) => over.push(backend),
                Err(error) => tracing::debug!("leftovers are not looked for now: {error}"),
            }
        }
        for backend in over {
            sweep.left.remove(&backend);
        }
        self.going_on()
    }

    /// Whether there is more.
    async fn sweep_page(
        &self,
        backend: usize,
        before: Version,
        cursor: &mut Cursor,
    ) -> Result<bool> {
        let Some(prefix) = PREFIXES.get(cursor.prefix) else {
            return Ok(false);
        };
        let (objects, next) = self
            .replicas
            .list(backend, prefix, cursor.after.clone())
            .await?;
        let is_old = |object: &Object| object.version().is_some_and(|version| version < before);
        let orphans: Vec<Object> = {
            let core = self.core();
            let old = objects.into_iter().filter(is_old);
            old.filter(|object| !core.state.needs(object)).collect()
        };
        // Whoever is not the owner any more does not know what is needed.
        self.held().await?;
        let count = orphans.len() as u64;
        self.replicas.delete_from(backend, &orphans).await?;
        Counts::add(&self.counts.swept, count);
        cursor.after = next;
        if cursor.after.is_none() {
            cursor.prefix += 1;
        }
        Ok(cursor.prefix < PREFIXES.len())
    }
}
