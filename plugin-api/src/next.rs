//! The backend behind a link, with plain Rust types. Every call passes the host's guard first.

use abi_stable::std_types::RString;

use crate::abi::{DynBackend, DynObject, RawBackend_TO, RawObject_TO};
use crate::{
    Body, Capabilities, Condition, Data, Extent, GetFlags, Got, Meta, ObjectMode, Page, Put, Range,
    ReadFlags, Result, Started, WriteFlags, ZeroFlags,
};

/// A backend to call: the inner one of a link, or the outermost one of a chain.
pub struct Next(DynBackend);

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Next")
    }
}

impl Clone for Next {
    fn clone(&self) -> Self {
        Self(RawBackend_TO::from_sabi(self.0.obj.shallow_clone()))
    }
}

impl From<DynBackend> for Next {
    fn from(backend: DynBackend) -> Self {
        Self(backend)
    }
}

/// The contract of each call stands at [`crate::Backend`].
#[allow(missing_docs, clippy::missing_errors_doc)]
impl Next {
    pub fn into_raw(self) -> DynBackend {
        self.0
    }
    pub fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    /// The answer if it is there already; else `None`, and nothing has started.
    pub fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        self.0.get(key.into(), range, flags).now().ok()
    }
    /// The get, answered or not yet started.
    pub fn start_get<'a>(
        &'a self,
        key: &'a str,
        range: Range,
        flags: GetFlags,
    ) -> Started<'a, Got> {
        self.0.get(key.into(), range, flags)
    }
    /// The put, answered or not yet started.
    pub fn start_put<'a>(&'a self, key: &'a str, body: Body, how: Condition) -> Started<'a, Put> {
        self.0.put(key.into(), body, how)
    }
    /// The head, answered or not yet started.
    pub fn start_head<'a>(&'a self, key: &'a str, flags: GetFlags) -> Started<'a, Meta> {
        self.0.head(key.into(), flags)
    }
    pub async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.start_get(key, range, flags).wait().await
    }
    pub async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        self.start_put(key, body, condition).wait().await
    }
    pub async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        self.start_head(key, flags).wait().await
    }
    pub async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let keys = keys.into_iter().map(RString::from).collect();
        let results = self.0.delete(keys).wait().await?;
        Ok(results.into_iter().map(Result::from).collect())
    }
    pub async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let after = after.map(RString::from).into();
        self.0.list(prefix.into(), after).wait().await
    }
    pub async fn flush(&self) -> Result<()> {
        self.0.flush().wait().await
    }
    pub async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<NextObject> {
        let object = self.0.open_object(key.into(), mode).wait().await?;
        Ok(NextObject(object))
    }
    pub async fn close(&self) -> Result<()> {
        self.0.close().wait().await
    }
}

/// An opened object to call.
pub struct NextObject(DynObject);

impl std::fmt::Debug for NextObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NextObject")
    }
}

impl Clone for NextObject {
    fn clone(&self) -> Self {
        Self(RawObject_TO::from_sabi(self.0.obj.shallow_clone()))
    }
}

impl From<DynObject> for NextObject {
    fn from(object: DynObject) -> Self {
        Self(object)
    }
}

/// The contract of each call stands at [`crate::Object`].
#[allow(missing_docs, clippy::missing_errors_doc)]
impl NextObject {
    pub fn into_raw(self) -> DynObject {
        self.0
    }
    pub fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    pub async fn size(&self) -> Result<u64> {
        self.0.size().wait().await
    }
    /// The read, answered or not yet started.
    pub fn start_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Started<'_, Data> {
        self.0.read(offset, len, flags)
    }
    /// The write, answered or not yet started.
    pub fn start_write(&self, offset: u64, body: Body, flags: WriteFlags) -> Started<'_, ()> {
        self.0.write(offset, body, flags)
    }
    /// The zeroing, answered or not yet started.
    pub fn start_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Started<'_, ()> {
        self.0.zero(offset, len, flags)
    }
    pub async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        self.start_read(offset, len, flags).wait().await
    }
    pub async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        self.start_write(offset, body, flags).wait().await
    }
    pub async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.start_zero(offset, len, flags).wait().await
    }
    pub async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let extents = self.0.extents(offset, len, limit).wait().await?;
        Ok(extents.into())
    }
    pub async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.0.prefetch(offset, len).wait().await
    }
    pub async fn resize(&self, size: u64) -> Result<()> {
        self.0.resize(size).wait().await
    }
    pub async fn sync(&self) -> Result<()> {
        self.0.sync().wait().await
    }
    pub async fn close(&self) -> Result<()> {
        self.0.close().wait().await
    }
}
