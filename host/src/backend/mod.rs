//! What a layout asks: objects by name, and opened objects. Every hop to the next link of a chain
//! passes the same [`guard`].

pub mod chain;
pub mod guard;
pub mod memory;

use nbd_rs_plugin::{
    Body, Capabilities, Data, Extent, NextObject, ReadFlags, Result, WriteFlags, ZeroFlags,
};

use crate::plugin::call;
pub use crate::plugin::{Answer, Later};

/// An opened object at the outer end of a chain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Object(NextObject);

impl From<NextObject> for Object {
    fn from(object: NextObject) -> Self {
        Self(object)
    }
}

/// The contract of each call stands at [`nbd_rs_plugin::Object`].
impl Object {
    /// What it can do.
    pub fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// When it can't be asked.
    pub async fn size(&self) -> Result<u64> {
        self.0.size().await
    }

    /// Reads `len` bytes at `offset`.
    pub fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        call::read(&self.0, offset, len, flags)
    }

    /// Writes `body` at `offset`.
    pub fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Answer<()> {
        call::write(&self.0, offset, body, flags)
    }

    /// Zeroes `len` bytes at `offset`.
    pub fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
        call::zero(&self.0, offset, len, flags)
    }

    /// What is allocated from `offset` on.
    pub fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        let object = self.0.clone();
        Answer::later(async move { object.extents(offset, len, limit).await })
    }

    /// Reads ahead.
    pub fn prefetch(&self, offset: u64, len: u64) -> Answer<()> {
        let object = self.0.clone();
        Answer::later(async move { object.prefetch(offset, len).await })
    }

    /// Grows or cuts it; new space reads as zeros.
    ///
    /// # Errors
    /// See [`nbd_rs_plugin::Object::resize`].
    pub async fn resize(&self, size: u64) -> Result<()> {
        self.0.resize(size).await
    }

    /// Makes durable what was acknowledged.
    ///
    /// # Errors
    /// If something may not be durable.
    pub async fn sync(&self) -> Result<()> {
        self.0.sync().await
    }

    /// Gives the object back.
    ///
    /// # Errors
    /// If something acknowledged could not be kept.
    pub async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}
