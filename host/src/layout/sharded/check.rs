//! `nbd-rs check`: does what lies on the store agree with what the state pages say?

use std::collections::{BTreeMap, BTreeSet};

use nbd_rs_plugin::{GetFlags, Meta};

use super::directory::Directory;
use super::fetch;
use super::names::Names;
use super::owner::OwnerRecord;
use super::pages::Pages;
use super::state::{State, StatePage, PAGE_SHARDS};
use super::store::Store;
use super::volume::{VolumeRecord, Way};
use super::{manage, ticket, trailer::UNIT_BYTES};
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};

/// Findings that are kept in full; more are counted only.
const MAX_LISTED: usize = 1000;

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// It should be there: its data is lost.
    Missing,
    /// It is there and is not as it was put.
    Damaged,
    /// A leftover: its shard reads as zeros, and a later write replaces it.
    Orphan,
    /// Nothing of this volume has such a name.
    Foreign,
}

impl Finding {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Finding::Missing => "missing",
            Finding::Damaged => "damaged",
            Finding::Orphan => "orphan",
            Finding::Foreign => "foreign",
        }
    }

    /// Whether data is lost.
    pub fn is_damage(self) -> bool {
        matches!(self, Finding::Missing | Finding::Damaged)
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Finding, object, and what is to be said; the first so many.
    pub findings: Vec<(Finding, String, String)>,
    /// How many of each.
    pub counts: BTreeMap<Finding, u64>,
    /// Shards that hold data.
    pub shards: u64,
    /// Shards whose contents were compared with their checksums.
    pub verified: u64,
}

impl Report {
    fn add(&mut self, finding: Finding, object: &str, text: impl Into<String>) {
        *self.counts.entry(finding).or_default() += 1;
        if self.findings.len() < MAX_LISTED {
            let object = crate::error::printable(object, 200);
            self.findings.push((finding, object, text.into()));
        }
    }

    /// Whether data is lost.
    pub fn has_damage(&self) -> bool {
        self.counts.keys().any(|finding| finding.is_damage())
    }
}

/// Compares a volume with its objects; with `deep` their contents, too. `progress` is told how
/// many of how many shards are done.
///
/// # Errors
/// If the check can't be made. What is wrong with the volume is in the report.
pub async fn check(
    chain: &Chain,
    deep: bool,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report> {
    let store = Store::new(chain.clone(), false);
    let record = manage::record(&store).await?;
    let names = Names::of(record.uuid);
    let mut check = Check {
        report: Report::default(),
        deep: deep && record.way == Way::Whole,
        states: BTreeMap::new(),
        unknown: Unknown::default(),
        record,
        names,
        store,
    };
    check.records().await?;
    check.shards(progress).await?;
    Ok(check.report)
}

struct Check {
    store: Store,
    names: Names,
    record: VolumeRecord,
    deep: bool,
    states: BTreeMap<u64, StatePage>,
    unknown: Unknown,
    report: Report,
}

/// Shards of which nothing can be said, because what says it is lost: they may hold data.
#[derive(Default)]
struct Unknown {
    /// The index is lost, so all of them.
    all: bool,
    /// State pages that are lost.
    pages: BTreeSet<u64>,
}

impl Unknown {
    fn contains(&self, shard: u64) -> bool {
        self.all || self.pages.contains(&(shard / PAGE_SHARDS))
    }
}

/// Whether an error is about what lies there, and not about the way to it.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind, Kind::Corrupt | Kind::Unsupported)
}

impl Check {
    /// Owner, index and state pages.
    async fn records(&mut self) -> Result<()> {
        let key = self.names.journal();
        match ticket::read(&self.store, key.clone(), self.record.uuid).await {
            Ok(_) => {}
            Err(error) if is_damage(&error) => {
                self.report.add(Finding::Damaged, &key, error.message);
            }
            Err(error) => return Err(error),
        }
        let has_owner = self.has_owner().await?;
        let pages = match Directory::open(&self.store, &self.names, self.record).await {
            Ok(directory) => {
                // Whoever put the index had a record.
                if !has_owner && directory.epoch() > 0 {
                    let text = "who has the volume can't be told; serve --takeover makes it again";
                    self.report.add(Finding::Missing, &self.names.owner(), text);
                }
                directory.pages()
            }
            Err(error) if is_damage(&error) => {
                let key = self.names.index();
                let finding = match self.store.head(key.clone()).await? {
                    Some(_) => Finding::Damaged,
                    None => Finding::Missing,
                };
                self.unknown.all = true;
                self.report.add(finding, &key, error.message);
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        for page in pages {
            let key = self.names.page(page);
            let (finding, text) = match self.store.read(key.clone()).await? {
                None => (Finding::Missing, "a state page".into()),
                Some((bytes, _)) => match StatePage::decode(self.record.uuid, page, &bytes) {
                    Ok((states, ..)) => {
                        self.states.insert(page, states);
                        continue;
                    }
                    Err(error) => (Finding::Damaged, error.message),
                },
            };
            self.unknown.pages.insert(page);
            let text = format!("{text}, so nothing can be said of its shards");
            self.report.add(finding, &key, text);
        }
        Ok(())
    }

    /// Whether there is an owner record; one that can't be read is told.
    async fn has_owner(&mut self) -> Result<bool> {
        let key = self.names.owner();
        let Some((bytes, _)) = self.store.read(key.clone()).await? else {
            return Ok(false);
        };
        if let Err(error) = OwnerRecord::decode(self.record.uuid, &bytes) {
            let text = format!("{}; serve --takeover makes it again", error.message);
            self.report.add(Finding::Damaged, &key, text);
        }
        Ok(true)
    }

    fn state(&self, shard: u64) -> Option<State> {
        let page = self.states.get(&(shard / PAGE_SHARDS));
        page.map(|page| page.get(shard % PAGE_SHARDS))
    }

    /// Every object under the volume's name, in the order of the shards.
    async fn shards(&mut self, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<()> {
        let total: u64 = self
            .states
            .values()
            .map(|page| page.counts(PAGE_SHARDS)[2])
            .sum();
        let mut present = super::ranges::Ranges::default();
        let pages = self.fetcher().await;
        let mut after = None;
        loop {
            let (items, next) = self.store.page(self.names.all(), after).await?;
            for meta in items {
                if let Some(shard) = self.shard_of(&meta.key) {
                    present.insert(shard..shard + 1);
                    self.shard(&meta, shard, pages.as_deref()).await?;
                    progress(self.report.shards, total);
                }
            }
            match next {
                Some(_) => after = next,
                None => break,
            }
        }
        self.missing(&present).await
    }

    /// What reads shards, if they are to be read.
    async fn fetcher(&self) -> Option<std::sync::Arc<Pages>> {
        if !self.deep {
            return None;
        }
        let directory = Directory::open(&self.store, &self.names, self.record)
            .await
            .ok()?;
        let (store, names) = (self.store.clone(), self.names.clone());
        Some(Pages::new(store, names, self.record, directory, None))
    }

    async fn shard(&mut self, meta: &Meta, shard: u64, pages: Option<&Pages>) -> Result<()> {
        let (key, size) = (meta.key.as_str(), meta.size);
        if self.unknown.contains(shard) {
            return Ok(());
        }
        let state = self.state(shard);
        if state.is_none_or(|state| state == State::Never) {
            let text = "its shard reads as zeros; the next write there replaces it";
            self.report.add(Finding::Orphan, key, text);
            return Ok(());
        }
        self.report.shards += 1;
        let expected = match self.record.way {
            Way::InPlace => self.record.shard_bytes,
            Way::Whole => super::trailer::object_bytes(self.record.shard_bytes),
        };
        // An intended shard may be half made in place; nothing in it was acknowledged.
        let half_made = state == Some(State::Intended) && self.record.way == Way::InPlace;
        if size != expected && !half_made {
            let text = format!("{size} bytes instead of {expected}");
            self.report.add(Finding::Damaged, key, text);
            return Ok(());
        }
        let Some(pages) = pages else {
            return Ok(());
        };
        match fetch::load(pages, shard, GetFlags::FRESH).await {
            Ok(Some(fetched)) => {
                self.report.verified += 1;
                if let Some(first) = fetched.damaged.first() {
                    let (units, at) = (fetched.damaged.len(), first * UNIT_BYTES);
                    let text = format!("{units} units of 4 KiB, the first at {at} of the shard");
                    self.report.add(Finding::Damaged, key, text);
                }
            }
            // Deleted since it was listed: the volume is being served.
            Ok(None) => {}
            Err(error) if is_damage(&error) => {
                self.report.add(Finding::Damaged, key, error.message);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The shard that an object is, or a word on what else it is.
    fn shard_of(&mut self, key: &str) -> Option<u64> {
        let names = &self.names;
        let shard = names.shard_of(key);
        if shard.is_some_and(|shard| shard < self.record.shards()) {
            return shard;
        }
        // A page that is not in the index: the server died in between, and nothing needs it yet.
        let page = names.page_of(key);
        let known = page.is_some_and(|page| page < self.record.pages())
            || key == names.owner()
            || key == names.index()
            || key == names.journal()
            || key.starts_with(&format!("{}probe-", names.all()));
        if !known {
            let text = "no name that this volume uses";
            self.report.add(Finding::Foreign, key, text);
        }
        None
    }

    async fn missing(&mut self, present: &super::ranges::Ranges) -> Result<()> {
        for (page, states) in std::mem::take(&mut self.states) {
            let lost = |at: &u64| {
                let shard = page * PAGE_SHARDS + at;
                states.get(*at) == State::Written && !present.contains(shard)
            };
            let shards = (self.record.shards() - page * PAGE_SHARDS).min(PAGE_SHARDS);
            let lost: Vec<u64> = (0..shards).filter(lost).collect();
            if lost.is_empty() {
                continue;
            }
            // A listing may lag behind; and whoever serves the volume may have given them up since,
            // and written them again.
            let now = self.store.read(self.names.page(page)).await?;
            let now =
                now.and_then(|(bytes, _)| StatePage::decode(self.record.uuid, page, &bytes).ok());
            let is_served = now.as_ref().is_some_and(|(now, ..)| *now != states);
            for at in lost {
                let key = self.names.shard(page * PAGE_SHARDS + at);
                let given_up = now
                    .as_ref()
                    .is_some_and(|(now, ..)| now.get(at) != State::Written);
                // Where very much is gone the listing is right.
                let asks = is_served || self.report.findings.len() < MAX_LISTED;
                if given_up || asks && self.store.head(key.clone()).await?.is_some() {
                    continue;
                }
                let text = "written, and gone: its data is lost";
                self.report.add(Finding::Missing, &key, text);
            }
        }
        Ok(())
    }
}
