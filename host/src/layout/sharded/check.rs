//! `nbd-rs check`: does what lies on the store agree with what the state pages say?

use std::collections::{BTreeMap, BTreeSet};

use nbd_rs_plugin::{GetFlags, Meta};

use super::directory::Directory;
use super::fetch;
use super::names::Names;
use super::owner::OwnerRecord;
use super::pages::Pages;
use super::ranges::Ranges;
use super::state::{State, StatePage, PAGE_SHARDS};
use super::store::Store;
use super::volume::{VolumeRecord, Way};
use super::{manage, ticket, trailer::UNIT_BYTES};
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};
use crate::layout::ledger::Entry;

const MADE_AGAIN: &str = "check --repair or serve --takeover makes the record again";
/// How often a page is looked at again because it was changed while its objects were looked for.
const LOOKS: usize = 8;
/// Findings that are kept in full; more are counted only.
const MAX_LISTED: usize = 1000;

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// It should be there: its data is lost.
    Missing,
    /// It is there and is not as it was put.
    Damaged,
    /// No data is lost, but something can't be used until `check --repair` mends it.
    Mendable,
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
            Finding::Mendable => "mendable",
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
#[derive(Debug)]
pub struct Report {
    /// What the volume is.
    pub record: VolumeRecord,
    /// Finding, object, and what is to be said; the first so many.
    pub findings: Vec<(Finding, String, String)>,
    /// How many of each.
    pub counts: BTreeMap<Finding, u64>,
    /// Shards that hold data.
    pub shards: u64,
    /// Shards whose contents were compared with their checksums.
    pub verified: u64,
    /// Where acknowledged writes may wait that the store does not have.
    pub journal: Option<Entry>,
    /// State pages, or the index of them, are lost.
    pub records_lost: bool,
    /// What was mended before.
    pub mended: Vec<String>,
}

impl Report {
    fn new(record: VolumeRecord) -> Self {
        Self {
            record,
            findings: Vec::new(),
            counts: BTreeMap::new(),
            shards: 0,
            verified: 0,
            journal: None,
            records_lost: false,
            mended: Vec::new(),
        }
    }

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

    /// Whether `check --repair` has something to do.
    pub fn needs_repair(&self) -> bool {
        self.records_lost || self.counts.contains_key(&Finding::Mendable)
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
        report: Report::new(record),
        deep: deep && record.way == Way::Whole,
        states: BTreeMap::new(),
        orphans: Ranges::default(),
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
    /// Objects of shards that are never, by the state pages as they were read.
    orphans: Ranges,
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
            Ok((entry, _)) => self.report.journal = entry,
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
                    let text = format!(
                        "who has the volume can't be told, so nobody is let in; {MADE_AGAIN}"
                    );
                    self.report
                        .add(Finding::Mendable, &self.names.owner(), text);
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
                self.report.records_lost = true;
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
            self.report.records_lost = true;
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
        match OwnerRecord::decode(self.record.uuid, &bytes) {
            Ok(_) => {}
            Err(error) if error.kind == Kind::Corrupt => {
                let text = format!("{}, so nobody is let in; {MADE_AGAIN}", error.message);
                self.report.add(Finding::Mendable, &key, text);
            }
            Err(error) => self.report.add(Finding::Damaged, &key, error.message),
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
        let mut present = Ranges::default();
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
        self.missing(&present).await?;
        self.leftovers().await
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
            self.orphans.insert(shard..shard + 1);
            return Ok(());
        }
        self.report.shards += 1;
        let expected = expected_bytes(&self.record);
        // An intended shard may be half made in place; nothing in it was acknowledged.
        let half_made = state == Some(State::Intended) && self.record.way == Way::InPlace;
        if size > expected && !half_made {
            let text = format!(
                "{size} bytes instead of {expected}: nothing that was written lies behind its end"
            );
            // What is put whole is read as it is, and the next put replaces it.
            let finding = match self.record.way {
                Way::InPlace => Finding::Mendable,
                Way::Whole => Finding::Orphan,
            };
            self.report.add(finding, key, text);
        } else if size != expected && !half_made {
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

    /// A state page as it is now, and its ETag; `None` if there is none, or it can't be read.
    async fn page_now(&self, page: u64) -> Result<Option<(StatePage, String)>> {
        let found = self.store.read(self.names.page(page)).await?;
        let decoded = found.map(|(bytes, etag)| {
            let decoded = StatePage::decode(self.record.uuid, page, &bytes);
            decoded.map(|(states, ..)| (states, etag))
        });
        Ok(decoded.and_then(Result::ok))
    }

    async fn missing(&mut self, present: &Ranges) -> Result<()> {
        for (page, states) in std::mem::take(&mut self.states) {
            let lost = |at: &u64| {
                let shard = page * PAGE_SHARDS + at;
                states.get(*at) == State::Written && !present.contains(shard)
            };
            let shards = (self.record.shards() - page * PAGE_SHARDS).min(PAGE_SHARDS);
            let lost: Vec<u64> = (0..shards).filter(lost).collect();
            for at in self.lost(page, &states, lost).await? {
                let key = self.names.shard(page * PAGE_SHARDS + at);
                let text = "written, and gone: its data is lost";
                self.report.add(Finding::Missing, &key, text);
            }
        }
        Ok(())
    }

    /// Which of these shards of a page are lost. A listing may lag behind; and whoever serves the
    /// volume may give them up at any time, and write them again: one is lost if its page said that
    /// it was written before it was looked for in vain, and was the same afterwards.
    async fn lost(&self, page: u64, known: &StatePage, mut lost: Vec<u64>) -> Result<Vec<u64>> {
        let mut looks = 0;
        let mut now = match lost.is_empty() {
            true => return Ok(lost),
            false => self.page_now(page).await?,
        };
        loop {
            let mut missing = Vec::new();
            let is_served = now.as_ref().is_some_and(|(now, _)| now != known);
            for at in lost {
                let is_written = |(now, _): &(StatePage, _)| now.get(at) == State::Written;
                if !now.as_ref().is_none_or(is_written) {
                    continue;
                }
                // Where very much is gone the listing is right.
                let asks = is_served || self.report.findings.len() + missing.len() < MAX_LISTED;
                let key = self.names.shard(page * PAGE_SHARDS + at);
                if !asks || self.store.head(key).await?.is_none() {
                    missing.push(at);
                }
            }
            lost = missing;
            looks += 1;
            if lost.is_empty() {
                return Ok(lost);
            }
            let again = self.page_now(page).await?;
            if etag_of(again.as_ref()) == etag_of(now.as_ref()) || looks == LOOKS {
                return Ok(lost);
            }
            now = again;
        }
    }

    /// Objects of shards that are still never: others were written since their page was read.
    async fn leftovers(&mut self) -> Result<()> {
        let mut now: Option<(u64, Option<StatePage>)> = None;
        for run in std::mem::take(&mut self.orphans).runs() {
            for shard in run {
                let page = shard / PAGE_SHARDS;
                if now.as_ref().is_none_or(|(known, _)| *known != page) {
                    let states = self.page_now(page).await?;
                    now = Some((page, states.map(|(states, _)| states)));
                }
                let states = now.as_ref().and_then(|(_, states)| states.as_ref());
                if states.is_none_or(|states| states.get(shard % PAGE_SHARDS) == State::Never) {
                    let text = "its shard reads as zeros; the next write there replaces it";
                    self.report
                        .add(Finding::Orphan, &self.names.shard(shard), text);
                }
            }
        }
        Ok(())
    }
}

/// The size of each shard's object.
pub(super) fn expected_bytes(record: &VolumeRecord) -> u64 {
    match record.way {
        Way::InPlace => record.shard_bytes,
        Way::Whole => super::trailer::object_bytes(record.shard_bytes),
    }
}

fn etag_of(page: Option<&(StatePage, String)>) -> Option<&str> {
    page.map(|(_, etag)| etag.as_str())
}
