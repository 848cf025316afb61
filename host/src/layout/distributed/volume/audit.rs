//! Compares the volume with what lies on its backends: every object that it needs, on each of its homes.
//!
//! Upkeep goes on meanwhile, so what is missing and not needed any more by then is no finding. What is
//! listed is a hint: nothing is missing before the backend has said so itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nbd_rs_plugin::{Body, Bytes};

use super::super::format::names::Object;
use super::super::format::root::PackUnits;
use super::super::format::{Named, UNIT_BYTES};
use super::objects::Reader;
use super::replicas::Replicas;
use super::shared::Inner;
use super::Volume;
use crate::error::{Error, Kind, Result};

/// Findings that are listed; the others are counted.
const MOST_FINDINGS: usize = 1000;
/// Between two looks whether backends are as they should be.
const TICK: Duration = Duration::from_millis(100);
/// A checkpoint may take so long.
const CHECKPOINT: Duration = Duration::from_secs(300);
/// Objects begin so.
const PREFIXES: [&str; 4] = ["b/", "m/", "root/", "s/"];

/// What is to be done.
#[derive(Debug)]
pub struct Audit {
    /// Every byte is read and compared with its checksum.
    pub deep: bool,
    /// Copies that are missing or damaged are made anew.
    pub repair: bool,
    /// Only this backend, by its place among the volume's.
    pub only: Option<usize>,
    /// So many bytes a second are read at the most.
    pub rate_bytes: Option<u64>,
    /// Objects that are left out: so many were done before.
    pub skip: u64,
    /// Set when it is to end early.
    pub stop: &'static AtomicBool,
}

/// What is wrong with a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is not there.
    Missing,
    /// It is not as it was put.
    Damaged,
}

/// One copy.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The backend's name.
    pub backend: String,
    /// The object's name, behind that of the volume.
    pub object: String,
    /// What is wrong.
    pub flaw: Flaw,
    /// It is as it should be again.
    pub is_repaired: bool,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Objects that were looked at, those included that were skipped.
    pub objects: u64,
    /// Of so many.
    pub of: u64,
    /// Copies that were looked at.
    pub copies: u64,
    /// Bytes that were compared with their checksums.
    pub verified_bytes: u64,
    /// Copies that were missing or damaged.
    pub flawed: u64,
    /// Of these, copies that were made anew.
    pub repaired: u64,
    /// Objects of dead owners that nobody needs.
    pub orphans: u64,
    /// The first of the copies.
    pub findings: Vec<Finding>,
    /// Bytes of the volume that are whole on no backend, in order.
    pub lost: Vec<Range<u64>>,
    /// Backends that could not be looked at.
    pub away: Vec<String>,
    /// It was ended early.
    pub is_cut: bool,
}

/// What an object is compared with.
enum Needed {
    Image(u32, Named),
    Pack(PackUnits),
    Page(u32, Named),
    Root(Named),
}

impl Needed {
    fn object(&self) -> Object {
        match self {
            Self::Image(shard, named) => Object::Image {
                shard: *shard,
                version: named.version,
            },
            Self::Pack(pack) => Object::Pack(pack.version),
            Self::Page(page, named) => Object::Map {
                page: *page,
                version: named.version,
            },
            Self::Root(named) => Object::Root(named.version),
        }
    }
}

impl Volume {
    /// Waits until all backends but `without` have the whole log, so long at the most.
    ///
    /// # Errors
    /// [`Kind::Timeout`] with those that do not.
    pub async fn settled(&self, without: Option<usize>, most: Duration) -> Result<()> {
        let environment = &*self.inner.environment;
        let end = environment.now() + most;
        loop {
            self.inner.going_on()?;
            let status = self.inner.log.status();
            let lacking = status.backends.iter().enumerate().filter(|(at, backend)| {
                let is_fine = backend.is_in_use()
                    && backend.away_for.is_none()
                    && backend.behind_records == 0;
                Some(*at) != without && !is_fine
            });
            let lacking: Vec<&str> = lacking.map(|(_, backend)| backend.name.as_str()).collect();
            if lacking.is_empty() {
                return Ok(());
            }
            if environment.now() >= end {
                let text = format!("these do not have the whole log: {}", lacking.join(", "));
                return Err(Error::new(Kind::Timeout, text));
            }
            environment.sleep(TICK).await;
        }
    }

    /// Compares it. `progress` is told how many objects of how many are done.
    ///
    /// # Errors
    /// Why it is served no longer; what keeps a checkpoint from being made.
    pub async fn audit(
        &self,
        audit: &Audit,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Report> {
        self.inner.audit(audit, progress).await
    }
}

impl Inner {
    /// Has upkeep make a checkpoint, and waits for it.
    async fn new_checkpoint(&self) -> Result<()> {
        let made = || self.counts.checkpoints.load(Ordering::Relaxed);
        let before = made();
        let end = self.environment.now() + CHECKPOINT;
        while made() == before {
            if self.environment.now() >= end {
                let text = "no checkpoint could be made: the log says why";
                return Err(Error::new(Kind::Timeout, text));
            }
            self.wants_checkpoint.store(true, Ordering::Release);
            self.upkeep.notify_one();
            self.environment.sleep(TICK).await;
            self.going_on()?;
        }
        Ok(())
    }

    async fn audit(
        &self,
        audit: &Audit,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Report> {
        // What is in records alone is compared when it is read; behind a checkpoint that is nothing.
        self.new_checkpoint().await?;
        let mut report = Report::default();
        let listed = self.listed(audit, &mut report).await?;
        let needed = self.needed();
        report.of = needed.len() as u64;
        for needed in needed.into_iter().skip(audit.skip as usize) {
            if audit.stop.load(Ordering::Acquire) {
                report.is_cut = true;
                break;
            }
            self.going_on()?;
            self.compare(&needed, audit, &listed, &mut report).await?;
            report.objects += 1;
            progress(audit.skip + report.objects, report.of);
        }
        report.objects += audit.skip.min(report.of);
        Ok(report)
    }

    /// All objects that the volume is made of now, in the order of their names but for the kinds.
    fn needed(&self) -> Vec<Needed> {
        let core = self.core();
        let state = &core.state;
        let images = state
            .images()
            .map(|(shard, named)| Needed::Image(shard, named));
        let packs = state.packs().filter_map(|pack| state.pack_units(pack));
        let pages = state.stored_pages();
        let pages = pages.map(|(page, named)| Needed::Page(page, named));
        let root = state.checkpoint().map(Needed::Root);
        let packs = packs.map(Needed::Pack);
        images.chain(packs).chain(pages).chain(root).collect()
    }

    fn is_needed(&self, object: &Object) -> bool {
        self.core().state.needs(object)
    }

    /// What each backend lists; nothing for those that do not answer.
    async fn listed(
        &self,
        audit: &Audit,
        report: &mut Report,
    ) -> Result<BTreeMap<usize, BTreeSet<Object>>> {
        let mut listed = BTreeMap::new();
        let own = self.log.epoch();
        for backend in
            (0..self.replicas.backends()).filter(|at| audit.only.is_none_or(|it| it == *at))
        {
            match self.list_all(backend).await {
                Ok(objects) => {
                    let core = self.core();
                    let is_orphan = |object: &&Object| {
                        let is_old = object.version().is_some_and(|it| it.epoch < own);
                        is_old && !core.state.needs(object)
                    };
                    report.orphans += objects.iter().filter(is_orphan).count() as u64;
                    drop(core);
                    listed.insert(backend, objects);
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    report.away.push(self.replicas.name(backend));
                }
            }
        }
        Ok(listed)
    }

    async fn list_all(&self, backend: usize) -> Result<BTreeSet<Object>> {
        let mut all = BTreeSet::new();
        for prefix in PREFIXES {
            let mut after = None;
            loop {
                let (objects, next) = self.replicas.list(backend, prefix, after).await?;
                all.extend(objects);
                if next.is_none() {
                    break;
                }
                after = next;
            }
        }
        Ok(all)
    }

    /// One object on each of its homes.
    async fn compare(
        &self,
        needed: &Needed,
        audit: &Audit,
        listed: &BTreeMap<usize, BTreeSet<Object>>,
        report: &mut Report,
    ) -> Result<()> {
        let object = needed.object();
        let mut flawed = Vec::new();
        for backend in self.replicas.homes(&object) {
            let Some(names) = listed.get(&backend) else {
                continue;
            };
            report.copies += 1;
            let found = match (audit.deep, names.contains(&object)) {
                (false, true) => Ok(()),
                (false, false) => match self.replicas.asked(backend, &object).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Error::new(Kind::NotFound, "it is not there")),
                    Err(error) => Err(error),
                },
                (true, _) => {
                    let read = self.copy_on(backend, needed).await;
                    if let Ok(bytes) = &read {
                        report.verified_bytes += bytes.len() as u64;
                        self.slow_down(audit, bytes.len() as u64).await;
                    }
                    read.map(drop)
                }
            };
            match found {
                Ok(()) => {}
                Err(_) if !self.is_needed(&object) => return Ok(()),
                Err(error) => match flaw(&error) {
                    Some(flaw) => flawed.push((backend, flaw)),
                    None => note_away(report, self.replicas.name(backend)),
                },
            }
        }
        self.mend(needed, audit, flawed, report).await
    }

    async fn mend(
        &self,
        needed: &Needed,
        audit: &Audit,
        flawed: Vec<(usize, Flaw)>,
        report: &mut Report,
    ) -> Result<()> {
        if flawed.is_empty() {
            return Ok(());
        }
        let object = needed.object();
        let whole = match self.whole(needed).await {
            Ok(bytes) => Some(bytes),
            Err(error) if Replicas::is_lost(&error) => {
                if self.is_needed(&object) {
                    self.note_lost(needed, report).await;
                }
                None
            }
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        };
        for (backend, flaw) in flawed {
            let mut is_repaired = false;
            if let (Some(bytes), true) = (&whole, audit.repair) {
                match self.put_anew(backend, object, flaw, bytes).await {
                    Ok(()) => is_repaired = true,
                    Err(error) => tracing::warn!("{error}"),
                }
                self.slow_down(audit, bytes.len() as u64).await;
            }
            report.flawed += 1;
            report.repaired += u64::from(is_repaired);
            if report.findings.len() < MOST_FINDINGS {
                report.findings.push(Finding {
                    backend: self.replicas.name(backend),
                    object: self.replicas.key(&object),
                    flaw,
                    is_repaired,
                });
            }
        }
        Ok(())
    }

    /// A copy that is damaged has to go before it can be put: the others have it whole.
    async fn put_anew(
        &self,
        backend: usize,
        object: Object,
        flaw: Flaw,
        bytes: &Bytes,
    ) -> Result<()> {
        self.held().await?;
        if flaw == Flaw::Damaged {
            self.replicas.delete_from(backend, &[object]).await?;
        }
        let body = Body::One(bytes.clone());
        self.replicas.put_to(backend, object, body).await
    }

    /// The copy on one backend, whole.
    async fn copy_on(&self, backend: usize, needed: &Needed) -> Result<Bytes> {
        self.whole_of(self.replicas.on(backend), needed).await
    }

    /// A whole copy from wherever there is one.
    async fn whole(&self, needed: &Needed) -> Result<Bytes> {
        self.whole_of(self.replicas.anywhere(), needed).await
    }

    async fn whole_of(&self, from: Reader<'_>, needed: &Needed) -> Result<Bytes> {
        match needed {
            Needed::Image(shard, named) => {
                from.image(*shard, self.geometry.shard_bytes, *named).await
            }
            Needed::Pack(pack) => from.pack(pack).await,
            Needed::Page(page, named) => Ok(from.page(*page, *named).await?.0),
            Needed::Root(named) => Ok(from.root(*named).await?.0),
        }
    }

    /// Which bytes of the volume are whole nowhere.
    async fn note_lost(&self, needed: &Needed, report: &mut Report) {
        let units = match needed {
            Needed::Image(shard, _) => vec![self.geometry.units_of(u64::from(*shard))],
            Needed::Pack(pack) => self.core().state.units_in(pack.version),
            // What they say is in memory, and the next checkpoint says it again.
            Needed::Page(..) | Needed::Root(_) => Vec::new(),
        };
        for unit in units.into_iter().flatten() {
            // Other homes may have what one lacks, unit by unit.
            let read = self.units(unit..unit + 1, super::read::Layers::All).await;
            if !matches!(&read, Err(error) if error.kind == Kind::Corrupt) {
                continue;
            }
            let bytes = unit * UNIT_BYTES..((unit + 1) * UNIT_BYTES).min(self.geometry.size_bytes);
            match report.lost.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => report.lost.push(bytes),
            }
        }
    }

    async fn slow_down(&self, audit: &Audit, bytes: u64) {
        if let Some(rate) = audit.rate_bytes {
            let time = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            self.environment.sleep(time).await;
        }
    }
}

fn flaw(error: &Error) -> Option<Flaw> {
    match error.kind {
        Kind::NotFound => Some(Flaw::Missing),
        Kind::Corrupt => Some(Flaw::Damaged),
        _ => None,
    }
}

fn note_away(report: &mut Report, name: String) {
    if !report.away.contains(&name) {
        report.away.push(name);
    }
}
