//! What really crosses the border. Authors use the safe face ([`crate::Backend`] and its friends)
//! and never need this module; hosts and links of other languages do.
//!
//! It grows only at the end: a method after the last one with a default body, a field after the
//! last one of a prefix type. `#[sabi(last_prefix_field)]` marks the end of version 1.0 and never
//! moves. The loader accepts a plugin whose tables are a prefix of the host's, and the reverse.

use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RArc, ROption, RResult, RStr, RString, RVec};
use abi_stable::StableAbi;
use async_ffi::FfiFuture;

pub use crate::bytes::OwnerVtable;
use crate::{
    Body, Buf, Capabilities, Condition, Data, Description, Error, Extent, GetFlags, Got, Meta,
    ObjectMode, OpenRequest, Page, Put, Range, ReadFlags, Started, WriteFlags, ZeroFlags,
};

/// A backend as it crosses.
pub type DynBackend = RawBackend_TO<RArc<()>>;
/// An opened object as it crosses.
pub type DynObject = RawObject_TO<RArc<()>>;
/// The answer to a bulk delete: one result per key, in order.
pub type DeleteResults = RVec<RResult<(), Error>>;

/// [`crate::Backend`] as it crosses; the contract of each call stands there.
#[sabi_trait]
pub trait RawBackend: Send + Sync + 'static {
    /// See [`crate::Backend::capabilities`].
    fn capabilities(&self) -> Capabilities;
    /// See [`crate::Backend::get`].
    fn get<'a>(&'a self, key: RStr<'a>, range: Range, flags: GetFlags) -> Started<'a, Got>;
    /// See [`crate::Backend::put`].
    fn put<'a>(&'a self, key: RStr<'a>, body: Body, condition: Condition) -> Started<'a, Put>;
    /// See [`crate::Backend::head`].
    fn head<'a>(&'a self, key: RStr<'a>, flags: GetFlags) -> Started<'a, Meta>;
    /// See [`crate::Backend::delete`].
    fn delete<'a>(&'a self, keys: RVec<RString>) -> Started<'a, DeleteResults>;
    /// See [`crate::Backend::list`].
    fn list<'a>(&'a self, prefix: RStr<'a>, after: ROption<RString>) -> Started<'a, Page>;
    /// See [`crate::Backend::flush`].
    fn flush(&self) -> Started<'_, ()>;
    /// See [`crate::Backend::open_object`].
    fn open_object<'a>(&'a self, key: RStr<'a>, mode: ObjectMode) -> Started<'a, DynObject>;
    /// See [`crate::Backend::close`].
    #[sabi(last_prefix_field)]
    fn close(&self) -> Started<'_, ()>;
}

/// [`crate::Object`] as it crosses; the contract of each call stands there.
#[sabi_trait]
pub trait RawObject: Send + Sync + 'static {
    /// See [`crate::Object::capabilities`].
    fn capabilities(&self) -> Capabilities;
    /// See [`crate::Object::size`].
    fn size(&self) -> Started<'_, u64>;
    /// See [`crate::Object::read`].
    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Started<'_, Data>;
    /// See [`crate::Object::write`].
    fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Started<'_, ()>;
    /// See [`crate::Object::zero`].
    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Started<'_, ()>;
    /// See [`crate::Object::extents`].
    fn extents(&self, offset: u64, len: u64, limit: u32) -> Started<'_, RVec<Extent>>;
    /// See [`crate::Object::prefetch`].
    fn prefetch(&self, offset: u64, len: u64) -> Started<'_, ()>;
    /// See [`crate::Object::resize`].
    fn resize(&self, size: u64) -> Started<'_, ()>;
    /// See [`crate::Object::sync`].
    fn sync(&self) -> Started<'_, ()>;
    /// See [`crate::Object::close`].
    #[sabi(last_prefix_field)]
    fn close(&self) -> Started<'_, ()>;
}

/// Work for a thread that may block. Run or dropped exactly once.
#[repr(C)]
#[derive(StableAbi)]
pub struct Job {
    data: *mut (),
    run: unsafe extern "C" fn(*mut ()),
    discard: unsafe extern "C" fn(*mut ()),
}

// SAFETY: made only from `FnOnce + Send`.
unsafe impl Send for Job {}

impl Job {
    /// Wraps a closure. It must not panic.
    pub fn new<F: FnOnce() + Send + 'static>(work: F) -> Self {
        unsafe extern "C" fn run<F: FnOnce()>(data: *mut ()) {
            // SAFETY: `data` is the box made in `new`, given up by exactly one of `run`, `discard`.
            let work = unsafe { Box::from_raw(data.cast::<F>()) };
            work();
        }
        unsafe extern "C" fn discard<F>(data: *mut ()) {
            // SAFETY: as in `run`.
            drop(unsafe { Box::from_raw(data.cast::<F>()) });
        }
        Self {
            data: Box::into_raw(Box::new(work)).cast(),
            run: run::<F>,
            discard: discard::<F>,
        }
    }

    /// Does the work on this thread.
    pub fn run(self) {
        let job = std::mem::ManuallyDrop::new(self);
        // SAFETY: `self` is not dropped, so `data` is used this once.
        unsafe { (job.run)(job.data) }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // SAFETY: `run` forgets the job, so `data` is still ours.
        unsafe { (self.discard)(self.data) }
    }
}

/// What the host lends its plugins. It may grow.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostRef, prefix_fields = HostFields)))]
pub struct HostTable {
    /// A buffer of `len` bytes from the host's pool, contents arbitrary.
    pub buf: extern "C" fn(len: usize) -> Buf,
    /// One log line; levels 1 (error) to 5 (trace).
    pub log: extern "C" fn(level: u32, target: RStr<'_>, message: RStr<'_>),
    /// Whether anybody listens at that level.
    pub log_enabled: extern "C" fn(level: u32) -> bool,
    /// Ends after so many milliseconds.
    pub sleep: extern "C" fn(millis: u64) -> FfiFuture<()>,
    /// Drives a future in the background.
    pub spawn: extern "C" fn(future: FfiFuture<()>),
    /// Does work on a thread that may block.
    #[sabi(last_prefix_field)]
    pub blocking: extern "C" fn(job: Job),
}

/// The one table that a plugin exports. It may grow.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRef, prefix_fields = PluginFields)))]
#[sabi(missing_field(panic))]
pub struct PluginTable {
    /// What it is. Called at any time, also without `open`.
    pub describe: extern "C" fn() -> RResult<Description, Error>,
    /// Whether a panic inside can be caught (`panic = "unwind"`).
    pub unwinds: bool,
    /// Whether target and options can be meant: all that can be told without opening anything.
    pub check: extern "C" fn(request: OpenRequest) -> RResult<(), Error>,
    /// Opens a backend.
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(host: HostRef, request: OpenRequest) -> Started<'static, DynBackend>,
}

impl RootModule for PluginRef {
    abi_stable::declare_root_module_statics! {PluginRef}
    const BASE_NAME: &'static str = "nbd_rs_plugin";
    const NAME: &'static str = "nbd_rs_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
