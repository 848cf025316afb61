//! The store as the host asks it. Nothing here ever waits, so what has a `try_` form answers there.

use std::sync::Arc;

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    Backend, Body, Capabilities, CapabilityFlags, Condition, Error, GetFlags, Got, Meta,
    ObjectFlags, ObjectMode, OpenFlags, OpenRequest, Page, Put, Range, Result,
};

use crate::config::Config;
use crate::object::MemObject;
use crate::store::Store;

/// Not durable on ack, whatever else it can: memory ends with the process.
const CAPABILITIES: CapabilityFlags = CapabilityFlags(
    CapabilityFlags::IN_PLACE.0
        | CapabilityFlags::IF_ABSENT.0
        | CapabilityFlags::IF_MATCH.0
        | CapabilityFlags::RANGED_GET.0
        | CapabilityFlags::STRONG_READ_AFTER_WRITE.0
        | CapabilityFlags::PUNCH_HOLE.0
        | CapabilityFlags::FAST_ZERO.0
        | CapabilityFlags::ALLOCATE.0
        | CapabilityFlags::EXTENTS.0,
);

pub(crate) fn capabilities(writable: bool) -> Capabilities {
    Capabilities::new(match writable {
        true => CAPABILITIES | CapabilityFlags::WRITABLE,
        false => CAPABILITIES,
    })
}

/// An opened store.
#[derive(Debug)]
pub struct Mem {
    store: Arc<Store>,
    writable: bool,
}

impl Mem {
    /// Opens a store.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn open(request: &OpenRequest) -> Result<Self> {
        let config = Config::new(&request.target, &request.options)?;
        Ok(Self {
            store: Store::open(&config)?,
            writable: request.flags.has(OpenFlags::WRITE),
        })
    }

    fn may_change(&self, operation: &str) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(Error::read_only(operation)),
        }
    }

    fn get_now(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        let entry = self.store.entry(key)?;
        let state = entry.read();
        let mut got = Got::new(state.contents.read(range, false)?);
        if flags.has(GetFlags::WANT_META) {
            got.meta = ROption::RSome(state.meta(key));
        }
        Ok(got)
    }
}

impl Backend for Mem {
    type Object = MemObject;

    fn capabilities(&self) -> Capabilities {
        capabilities(self.writable)
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        Some(self.get_now(key, range, flags))
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.get_now(key, range, flags)
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        self.may_change("put")?;
        self.store.put(key, &body, &condition)
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        let entry = self.store.entry(key)?;
        let meta = entry.read().meta(key);
        Ok(meta)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.may_change("delete")?;
        let delete = |key: &String| {
            self.store.delete(key);
            Ok(())
        };
        Ok(keys.iter().map(delete).collect())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        Ok(self.store.list(prefix, after))
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<MemObject> {
        let changes = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::TRUNCATE;
        if mode.flags.0 & changes.0 != 0 {
            self.may_change("opening to write")?;
        }
        let entry = self.store.open_entry(key, mode)?;
        Ok(MemObject::new(self.store.clone(), entry, mode.flags))
    }
}
