//! Objects by name. Stores of one name are one store, as long as the process lives.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nbd_rs_plugin::{
    Body, Condition, Error, Kind, Meta, ObjectFlags, ObjectMode, Page, Put, Result,
};

use crate::config::Config;
use crate::contents::Contents;
use crate::page::Space;

/// Names in one page of a listing.
const PAGE_ITEMS: usize = 1000;

/// One object: a put makes a new one, writes in place change it.
#[derive(Debug)]
pub struct Entry {
    state: RwLock<State>,
    locked: AtomicBool,
}

/// What an object holds, and where that stands in the order of all changes of the store.
#[derive(Debug)]
pub struct State {
    /// Its bytes.
    pub contents: Contents,
    /// The ETag.
    pub version: u64,
}

impl Entry {
    fn new(contents: Contents, version: u64) -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(State { contents, version }),
            locked: AtomicBool::new(false),
        })
    }

    /// To be read.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be changed.
    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock; whether it was free.
    pub fn lock(&self) -> bool {
        !self.locked.swap(true, Ordering::AcqRel)
    }

    /// Gives the lock back.
    pub fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }
}

impl State {
    /// The token that changes with the contents.
    pub fn etag(&self) -> String {
        format!("{:x}", self.version)
    }

    /// What is known of it, under that name.
    pub fn meta(&self, key: &str) -> Meta {
        Meta {
            etag: self.etag().into(),
            ..Meta::new(key, self.contents.size())
        }
    }
}

/// All objects.
#[derive(Debug)]
pub struct Store {
    objects: Mutex<BTreeMap<String, Arc<Entry>>>,
    changes: AtomicU64,
    space: Arc<Space>,
}

static NAMED: Mutex<BTreeMap<String, Arc<Store>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(key: &str) -> Error {
    match key {
        "" => Error::new(
            Kind::NotFound,
            "there is no volume in memory: size=1GiB makes one",
        ),
        key => Error::new(Kind::NotFound, key),
    }
}

impl Store {
    /// The store that is asked for, with the volume that is.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it exists already with another limit or another size.
    pub fn open(config: &Config) -> Result<Arc<Self>> {
        let fresh = || Arc::new(Self::new(config.limit_bytes));
        let store = match config.name.as_str() {
            "" => fresh(),
            name => lock(&NAMED)
                .entry(name.to_owned())
                .or_insert_with(fresh)
                .clone(),
        };
        if store.space.limit_bytes() != config.limit_bytes {
            let has = store.space.limit_bytes();
            let text = format!("mem:{} has the limit {has} already", config.name);
            return Err(Error::new(Kind::Invalid, text));
        }
        if let Some(size) = config.size_bytes {
            store.have_volume(size)?;
        }
        Ok(store)
    }

    fn new(limit_bytes: u64) -> Self {
        Self {
            objects: Mutex::default(),
            changes: AtomicU64::new(0),
            space: Space::new(limit_bytes),
        }
    }

    fn have_volume(&self, size: u64) -> Result<()> {
        let mut objects = lock(&self.objects);
        let there = objects.get("").map(|volume| volume.read().contents.size());
        match there {
            None => {
                let zeros = Contents::zeros(&self.space, size);
                objects.insert(String::new(), Entry::new(zeros, self.next_version()));
                Ok(())
            }
            Some(there) if there == size => Ok(()),
            Some(there) => Err(Error::new(
                Kind::Invalid,
                format!("the volume in memory has {there} bytes already, not {size}"),
            )),
        }
    }

    /// The number of one more change.
    pub fn next_version(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The object of that name.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub fn entry(&self, key: &str) -> Result<Arc<Entry>> {
        let entry = lock(&self.objects).get(key).cloned();
        entry.ok_or_else(|| missing(key))
    }

    /// Stores a copy of a body.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::put`].
    pub fn put(&self, key: &str, body: &Body, condition: &Condition) -> Result<Put> {
        // Copied before the lock is taken: others need not wait for that.
        let contents = Contents::of_body(&self.space, body)?;
        let mut objects = lock(&self.objects);
        holds(condition, key, objects.get(key))?;
        let entry = Entry::new(contents, self.next_version());
        let etag = entry.read().etag();
        let replaced = objects.insert(key.to_owned(), entry);
        drop(objects);
        drop(replaced);
        Ok(Put::new(&etag))
    }

    /// Deletes one, if it is there.
    pub fn delete(&self, key: &str) {
        let deleted = lock(&self.objects).remove(key);
        drop(deleted);
    }

    /// A page of names.
    pub fn list(&self, prefix: &str, after: Option<&str>) -> Page {
        let objects = lock(&self.objects);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let items = found.by_ref().take(PAGE_ITEMS);
        let items: Vec<Meta> = items.map(|(key, entry)| entry.read().meta(key)).collect();
        let mut page = Page::last(items);
        if found.next().is_some() {
            page.next = page.items.last().map(|item| item.key.clone()).into();
        }
        page
    }

    /// The object that a mode asks for, made if it says so; locked if it says so.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Backend::open_object`].
    pub fn open_entry(&self, key: &str, mode: ObjectMode) -> Result<Arc<Entry>> {
        let has = |flag| mode.flags.has(flag);
        let mut objects = lock(&self.objects);
        let entry = match objects.get(key) {
            Some(_) if has(ObjectFlags::CREATE | ObjectFlags::CREATE_NEW) => {
                return Err(Error::new(Kind::Exists, key));
            }
            Some(entry) => entry.clone(),
            None if has(ObjectFlags::CREATE) => {
                let zeros = Contents::zeros(&self.space, mode.size);
                let entry = Entry::new(zeros, self.next_version());
                objects.insert(key.to_owned(), entry.clone());
                entry
            }
            None => return Err(missing(key)),
        };
        drop(objects);
        if has(ObjectFlags::LOCK) && !entry.lock() {
            return Err(Error::new(Kind::Busy, format!("{key:?} is in use")));
        }
        if has(ObjectFlags::TRUNCATE) {
            let mut state = entry.write();
            state.contents = Contents::zeros(&self.space, mode.size);
            state.version = self.next_version();
        }
        Ok(entry)
    }
}

/// Whether a put may happen, given what is there.
fn holds(condition: &Condition, key: &str, there: Option<&Arc<Entry>>) -> Result<()> {
    match (condition, there) {
        (Condition::Always, _) | (Condition::IfAbsent, None) => Ok(()),
        (Condition::IfAbsent, Some(_)) => Err(Error::new(Kind::Exists, key)),
        (Condition::IfMatch(etag), Some(entry)) if entry.read().etag() == etag.as_str() => Ok(()),
        (Condition::IfMatch(_), _) => Err(Error::new(Kind::Precondition, key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, size: Option<u64>) -> Config {
        Config {
            name: name.to_owned(),
            size_bytes: size,
            limit_bytes: 1 << 20,
        }
    }

    #[test]
    fn a_named_store_is_the_same_for_all_and_one_without_a_name_is_nobody_elses() {
        let store = Store::open(&config("shared", Some(10))).unwrap();
        let again = Store::open(&config("shared", None)).unwrap();
        assert!(Arc::ptr_eq(&store, &again));
        assert!(again.entry("").is_ok());
        let wrong = Store::open(&config("shared", Some(11))).unwrap_err();
        assert_eq!(wrong.kind, Kind::Invalid);
        let own = Store::open(&config("", None)).unwrap();
        let missing = own.entry("").unwrap_err();
        assert!(missing.kind == Kind::NotFound && missing.message.contains("size="));
    }
}
