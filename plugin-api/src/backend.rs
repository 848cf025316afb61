//! What an author implements.

use std::future::Future;

use crate::{
    Body, Capabilities, Condition, Data, Error, Extent, GetFlags, Got, Meta, ObjectMode, Page, Put,
    Range, ReadFlags, Result, WriteFlags, ZeroFlags,
};

/// Objects by name: a store, or a link before one.
///
/// Names are UTF-8, up to 1,024 bytes, with `/` between parts. No data operation has a default: a
/// link must say for each what it does, since an operation passed around a link is a way to
/// corrupt data.
pub trait Backend: Send + Sync + 'static {
    /// An opened object; [`NoObject`] for backends without.
    type Object: Object;

    /// What this backend can do and promises. Asked once, after `open`.
    ///
    /// A link computes this from its inner one's: it keeps what it passes through unchanged, adds
    /// what it implements itself, and drops every bit it does not know.
    fn capabilities(&self) -> Capabilities;

    /// Answers `get` without waiting, or `None`: "ask me with `get`". A hit belongs here.
    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        let _ = (key, range, flags);
        None
    }

    /// Reads a part of an object.
    ///
    /// # Errors
    /// [`NotFound`](crate::Kind::NotFound) only when the store itself says so (no link remembers
    /// absence); [`Invalid`](crate::Kind::Invalid) for a range outside the object.
    fn get(
        &self,
        key: &str,
        range: Range,
        flags: GetFlags,
    ) -> impl Future<Output = Result<Got>> + Send;

    /// Stores a whole object: readers see the old one or the new one, never a mixture.
    ///
    /// A store that can run full should still be able to replace an object of up to 20 KiB by one of
    /// the same size: the host's records are such objects, and it needs them to free space.
    ///
    /// # Errors
    /// [`Exists`](crate::Kind::Exists) and [`Precondition`](crate::Kind::Precondition) for the
    /// condition; [`Ambiguous`](crate::Kind::Ambiguous) when it may have been stored.
    fn put(
        &self,
        key: &str,
        body: Body,
        condition: Condition,
    ) -> impl Future<Output = Result<Put>> + Send;

    /// Size and ETag of an object.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    fn head(&self, key: &str, flags: GetFlags) -> impl Future<Output = Result<Meta>> + Send;

    /// Deletes objects; a missing one counts as deleted. One result per key, in order.
    ///
    /// # Errors
    /// Only when nothing at all could be asked.
    fn delete(&self, keys: Vec<String>) -> impl Future<Output = Result<Vec<Result<()>>>> + Send;

    /// A page of the names that begin with `prefix` and come after `after`, in byte order.
    ///
    /// # Errors
    /// When the store can't be asked.
    fn list(&self, prefix: &str, after: Option<&str>) -> impl Future<Output = Result<Page>> + Send;

    /// Makes durable all that was acknowledged before it.
    ///
    /// # Errors
    /// If anything acknowledged may not be durable.
    fn flush(&self) -> impl Future<Output = Result<()>> + Send;

    /// Opens one object to read and write inside it.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Kind::Unsupported) where objects can't be opened;
    /// [`Busy`](crate::Kind::Busy) if a lock was asked for and somebody has it.
    fn open_object(
        &self,
        key: &str,
        mode: ObjectMode,
    ) -> impl Future<Output = Result<Self::Object>> + Send;

    /// The last call. Links close their inner one.
    ///
    /// # Errors
    /// If something acknowledged could not be kept.
    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// An opened object: a hot request carries no name and costs no look-up.
///
/// Ranges are inside the object; the host checks that before it calls. The `try_` forms answer
/// what needs no waiting; their default is `None`, "ask the other form".
pub trait Object: Send + Sync + 'static {
    /// What this object can do, asked once after it was opened.
    fn capabilities(&self) -> Capabilities;

    /// Its size now, in bytes.
    ///
    /// # Errors
    /// When it can't be asked.
    fn size(&self) -> impl Future<Output = Result<u64>> + Send;

    /// [`read`](Self::read) without waiting.
    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        let _ = (offset, len, flags);
        None
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// If one of them can't be had; never zeros in its place, never fewer.
    fn read(
        &self,
        offset: u64,
        len: u64,
        flags: ReadFlags,
    ) -> impl Future<Output = Result<Data>> + Send;

    /// [`write`](Self::write) without waiting. With `None` nothing was changed.
    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        let _ = (offset, body, flags);
        None
    }

    /// Writes all of `body`; later reads see it.
    ///
    /// # Errors
    /// Afterwards each part is old or new.
    fn write(
        &self,
        offset: u64,
        body: Body,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<()>> + Send;

    /// [`zero`](Self::zero) without waiting. With `None` nothing was changed.
    fn try_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Option<Result<()>> {
        let _ = (offset, len, flags);
        None
    }

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// [`Unsupported`](crate::Kind::Unsupported), with nothing changed, if `FAST` was asked and it
    /// would not be; [`NoSpace`](crate::Kind::NoSpace) if `NO_HOLE` can't be met.
    fn zero(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> impl Future<Output = Result<()>> + Send;

    /// What is allocated and what reads as zeros, from `offset` on: at least one extent, at most
    /// `limit`, not beyond `offset + len`; a prefix of the range is enough.
    ///
    /// # Errors
    /// When it can't be asked.
    fn extents(
        &self,
        offset: u64,
        len: u64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Extent>>> + Send;

    /// Reads ahead, if that helps. A hint.
    ///
    /// # Errors
    /// When it can't be asked.
    fn prefetch(&self, offset: u64, len: u64) -> impl Future<Output = Result<()>> + Send;

    /// Grows or cuts the object. New space reads as zeros.
    ///
    /// # Errors
    /// [`NoSpace`](crate::Kind::NoSpace), or whatever the store says.
    fn resize(&self, size: u64) -> impl Future<Output = Result<()>> + Send;

    /// Makes durable all that was acknowledged before it, on every handle of this object, with the
    /// size and the directory entry.
    ///
    /// # Errors
    /// If anything acknowledged may not be durable. Syncing again does not mend that: the bytes
    /// must be written again first.
    fn sync(&self) -> impl Future<Output = Result<()>> + Send;

    /// The last call: gives back the lock.
    ///
    /// # Errors
    /// If something acknowledged could not be kept.
    fn close(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// The object type of a backend that opens none.
#[derive(Debug)]
pub enum NoObject {}

impl Object for NoObject {
    fn capabilities(&self) -> Capabilities {
        match *self {}
    }
    async fn size(&self) -> Result<u64, Error> {
        match *self {}
    }
    async fn read(&self, _: u64, _: u64, _: ReadFlags) -> Result<Data> {
        match *self {}
    }
    async fn write(&self, _: u64, _: Body, _: WriteFlags) -> Result<()> {
        match *self {}
    }
    async fn zero(&self, _: u64, _: u64, _: ZeroFlags) -> Result<()> {
        match *self {}
    }
    async fn extents(&self, _: u64, _: u64, _: u32) -> Result<Vec<Extent>> {
        match *self {}
    }
    async fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        match *self {}
    }
    async fn resize(&self, _: u64) -> Result<()> {
        match *self {}
    }
    async fn sync(&self) -> Result<()> {
        match *self {}
    }
}
