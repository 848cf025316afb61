//! Which version of which object the copies belong to, and which objects are being changed.
//!
//! Every copy belongs to an [`Object`], and an `Object` to one version. Forgetting is replacing:
//! when a name is changed, its `Object` leaves the index for good, and whatever a fetch that began
//! earlier still brings belongs to an `Object` that nobody can find any more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nbd_rs_plugin::{Kind, Meta};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::flight::Flight;
use crate::pattern::Pattern;

/// What an entry costs beside its name and its ETag.
const OBJECT_OVERHEAD: u64 = 512;
/// So many names whose last change has an unknown outcome are remembered.
const DOUBTS_MAX: usize = 4096;

/// One version of an object. Two with one ETag hold the same bytes.
#[derive(Debug, Clone)]
pub struct Version {
    /// The store's token for it; never empty.
    pub etag: Arc<str>,
    /// Its length in bytes.
    pub size: u64,
    /// Milliseconds since 1970; 0: not known.
    pub modified_ms: u64,
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.etag == other.etag && self.size == other.size
    }
}

impl Version {
    /// What a store says of an object, if it says enough to tell versions apart.
    pub fn of(meta: &Meta) -> Option<Self> {
        (!meta.etag.is_empty()).then(|| Self {
            etag: meta.etag.as_str().into(),
            size: meta.size,
            modified_ms: meta.modified_ms,
        })
    }

    /// The same, as callers get it.
    pub fn meta(&self, key: &str) -> Meta {
        Meta {
            etag: (&*self.etag).into(),
            modified_ms: self.modified_ms,
            ..Meta::new(key, self.size)
        }
    }
}

/// A name and the version that its copies are of.
#[derive(Debug)]
pub struct Object {
    /// Unlike that of any other `Object`, ever.
    pub id: u64,
    /// The version, once somebody has seen it.
    pub version: OnceLock<Version>,
    /// How it is being read.
    pub pattern: Mutex<Pattern>,
    /// Reads so far that memory could not answer.
    pub misses: AtomicU32,
    /// A fetch of more than was asked for has failed: it is not the first thing to try.
    wide_failed: AtomicBool,
    /// Its first fetch was one of all of it.
    opened_whole: AtomicBool,
    /// Fetches under way, by block.
    pub flights: Mutex<HashMap<u64, Arc<Flight>>>,
    /// When the look began that saw the version; see [`Index::tick`].
    seen_at: AtomicU64,
    name_bytes: u64,
}

impl Object {
    /// How often it was missed so far; `counts`: this is another time.
    pub fn missed(&self, counts: bool) -> u32 {
        match counts {
            true => self.misses.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            false => self.misses.load(Ordering::Relaxed),
        }
    }

    /// A fetch of more than was asked for has failed.
    pub fn failed_wide(&self) {
        self.wide_failed.store(true, Ordering::Relaxed);
    }

    /// Its first fetch is one of all of it.
    pub fn open_whole(&self) {
        self.opened_whole.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub fn was_opened_whole(&self) -> bool {
        self.opened_whole.load(Ordering::Relaxed)
    }

    /// Whether a fetch of more than was asked for has failed.
    pub fn has_failed_wide(&self) -> bool {
        self.wide_failed.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone, Copy)]
struct Cost;

impl Weighter<Box<str>, Arc<Object>> for Cost {
    fn weight(&self, _: &Box<str>, object: &Arc<Object>) -> u64 {
        object.name_bytes + OBJECT_OVERHEAD
    }
}

type Objects =
    Cache<Box<str>, Arc<Object>, Cost, DefaultHashBuilder, DefaultLifecycle<Box<str>, Arc<Object>>>;

/// All objects that are known, bounded.
pub struct Index {
    objects: Objects,
    changes: Mutex<Changes>,
    ids: AtomicU64,
    clock: AtomicU64,
}

#[derive(Default)]
struct Changes {
    under_way: HashMap<Box<str>, Change>,
    doubts: HashSet<Box<str>>,
    oldest_doubts: VecDeque<Box<str>>,
}

struct Change {
    count: usize,
    /// Whether two overlapped: then nobody here knows which one the store carried out last.
    clashed: bool,
}

/// How a change ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Nothing was changed.
    Refused,
    /// It may have been carried out, or be carried out later.
    Unknown,
    /// It was carried out. The version that it stored, if that is known.
    Done(Option<Version>),
}

impl Outcome {
    /// What an error says of the change that it is the answer to.
    pub fn of_error(kind: Kind) -> Self {
        match kind {
            Kind::Exists
            | Kind::Precondition
            | Kind::NotFound
            | Kind::Denied
            | Kind::ReadOnly
            | Kind::Busy
            | Kind::Invalid
            | Kind::Unsupported
            | Kind::NoSpace
            | Kind::Timeout
            | Kind::Transient
            | Kind::Fenced => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({} objects)", self.objects.len())
    }
}

impl Index {
    /// Room for `size` bytes of names and versions.
    pub fn new(size: u64) -> Self {
        let options = OptionsBuilder::new()
            .weight_capacity(size)
            .estimated_items_capacity((size / (OBJECT_OVERHEAD + 64)) as usize + 1)
            .build()
            .expect("both capacities are set");
        Self {
            objects: Cache::with_options(
                options,
                Cost,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            changes: Mutex::default(),
            ids: AtomicU64::new(0),
            clock: AtomicU64::new(0),
        }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self, key: &str) -> Arc<Object> {
        Arc::new(Object {
            id: self.ids.fetch_add(1, Ordering::Relaxed),
            version: OnceLock::new(),
            pattern: Mutex::default(),
            misses: AtomicU32::new(0),
            wide_failed: AtomicBool::new(false),
            opened_whole: AtomicBool::new(false),
            flights: Mutex::default(),
            seen_at: AtomicU64::new(0),
            name_bytes: key.len() as u64,
        })
    }

    /// Bytes in use by names and versions.
    pub fn used_bytes(&self) -> u64 {
        self.objects.weight()
    }

    /// The time at which a look at the store begins. Later looks see the same or newer versions.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The object of this name, if it is known.
    pub fn lookup(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key)
    }

    /// The object of this name, made if need be; none while the name is being changed, and after a
    /// change of unknown outcome: then nothing may be kept.
    pub fn current(&self, key: &str) -> Option<Arc<Object>> {
        let changes = self.changes();
        if changes.under_way.contains_key(key) || changes.doubts.contains(key) {
            return None;
        }
        if let Some(object) = self.objects.get(key) {
            return Some(object);
        }
        let object = self.fresh(key);
        self.objects.insert(key.into(), object.clone());
        Some(object)
    }

    fn is_current(&self, key: &str, object: &Arc<Object>) -> bool {
        let current = self.objects.peek(key);
        current.is_some_and(|current| Arc::ptr_eq(&current, object))
    }

    /// Notes which version a look saw that was begun at `began` on behalf of `object`. Where its
    /// bytes may be kept, and the object that it took the place of, if any.
    pub fn observe(
        &self,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        began: u64,
    ) -> (Option<Arc<Object>>, Option<Arc<Object>>) {
        let _changes = self.changes();
        if !self.is_current(key, object) {
            return (None, None);
        }
        if object.version.get_or_init(|| version.clone()) == version {
            object.seen_at.fetch_max(began, Ordering::Relaxed);
            return (Some(object.clone()), None);
        }
        if began < object.seen_at.load(Ordering::Relaxed) {
            // An old answer that was long on its way.
            return (None, None);
        }
        let newer = self.fresh(key);
        let _ = newer.version.set(version.clone());
        newer.seen_at.store(began, Ordering::Relaxed);
        self.objects.insert(key.into(), newer.clone());
        (Some(newer), Some(object.clone()))
    }

    /// Forgets an object that is not as it was, if it is still the one of that name.
    pub fn forget(&self, key: &str, object: &Arc<Object>) {
        let _changes = self.changes();
        if self.is_current(key, object) {
            self.objects.remove(key);
        }
    }

    /// A change begins. The object that is forgotten, if there was one.
    pub fn begin(&self, key: &str) -> Option<Arc<Object>> {
        let mut changes = self.changes();
        let change = changes.under_way.entry(key.into()).or_insert(Change {
            count: 0,
            clashed: false,
        });
        change.count += 1;
        change.clashed |= change.count > 1;
        self.objects.remove(key).map(|(_, object)| object)
    }

    /// A change ended. The object to keep what was stored under, if it may be kept.
    pub fn end(&self, key: &str, outcome: Outcome) -> Option<Arc<Object>> {
        let mut changes = self.changes();
        self.objects.remove(key);
        let change = changes.under_way.get_mut(key)?;
        let alone = !change.clashed;
        change.count -= 1;
        if change.count == 0 {
            changes.under_way.remove(key);
        }
        match outcome {
            Outcome::Refused => None,
            Outcome::Unknown => {
                changes.doubt(key);
                None
            }
            Outcome::Done(_) if !alone => None,
            Outcome::Done(version) => {
                changes.doubts.remove(key);
                let object = self.fresh(key);
                let _ = object.version.set(version?);
                object.seen_at.store(self.tick(), Ordering::Relaxed);
                self.objects.insert(key.into(), object.clone());
                Some(object)
            }
        }
    }
}

impl Changes {
    /// Nothing of this name is kept until a later change of it succeeds.
    fn doubt(&mut self, key: &str) {
        if !self.doubts.insert(key.into()) {
            return;
        }
        self.oldest_doubts.push_back(key.into());
        while self.oldest_doubts.len() > DOUBTS_MAX {
            if let Some(oldest) = self.oldest_doubts.pop_front() {
                self.doubts.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(etag: &str) -> Version {
        Version {
            etag: etag.into(),
            size: 1,
            modified_ms: 0,
        }
    }

    fn index() -> Index {
        Index::new(1 << 20)
    }

    #[test]
    fn what_a_fetch_brings_after_a_change_is_not_kept() {
        let index = index();
        let before = index.current("k").unwrap();
        let began = index.tick();
        assert!(index.begin("k").is_some());
        assert!(index.current("k").is_none());
        assert!(index
            .observe("k", &before, &version("old"), began)
            .0
            .is_none());
        assert!(index.end("k", Outcome::Done(None)).is_none());
        assert!(index
            .observe("k", &before, &version("old"), began)
            .0
            .is_none());
        assert!(index.current("k").unwrap().version.get().is_none());
    }

    #[test]
    fn a_put_alone_is_kept_and_two_at_once_are_not() {
        let index = index();
        index.begin("k");
        assert!(index.end("k", Outcome::Done(Some(version("1")))).is_some());
        assert_eq!(
            *index.lookup("k").unwrap().version.get().unwrap(),
            version("1")
        );
        index.begin("k");
        index.begin("k");
        assert!(index.end("k", Outcome::Done(Some(version("2")))).is_none());
        assert!(index.current("k").is_none());
        assert!(index.end("k", Outcome::Done(Some(version("3")))).is_none());
        assert!(index.current("k").unwrap().version.get().is_none());
    }

    #[test]
    fn after_an_unknown_outcome_nothing_is_kept_until_a_change_succeeds() {
        let index = index();
        index.begin("k");
        index.end("k", Outcome::Unknown);
        assert!(index.current("k").is_none());
        index.begin("k");
        index.end("k", Outcome::Refused);
        assert!(index.current("k").is_none());
        index.begin("k");
        index.end("k", Outcome::Done(None));
        assert!(index.current("k").is_some());
    }

    #[test]
    fn doubts_are_bounded() {
        let index = index();
        for at in 0..DOUBTS_MAX + 10 {
            let key = at.to_string();
            index.begin(&key);
            index.end(&key, Outcome::Unknown);
        }
        assert!(index.current("9").is_some() && index.current("10").is_none());
    }

    #[test]
    fn a_late_answer_does_not_bring_an_old_version_back() {
        let index = index();
        let object = index.current("k").unwrap();
        let (first, second) = (index.tick(), index.tick());
        let (kept, _) = index.observe("k", &object, &version("new"), second);
        assert!(Arc::ptr_eq(&kept.unwrap(), &object));
        assert!(index
            .observe("k", &object, &version("old"), first)
            .0
            .is_none());
        let (kept, replaced) = index.observe("k", &object, &version("newer"), index.tick());
        assert!(!Arc::ptr_eq(&kept.unwrap(), &replaced.unwrap()));
        assert!(index
            .observe("k", &object, &version("new"), index.tick())
            .0
            .is_none());
    }

    #[test]
    fn names_take_bounded_room() {
        let index = Index::new(64 << 10);
        for at in 0..10_000 {
            index.current(&format!("a/long/name/{at}"));
            assert!(index.used_bytes() <= 64 << 10);
        }
    }
}
