//! Stands before every hop of a chain: what goes in is checked against the object, what comes out
//! is checked against what was asked. A plugin that panicked is not asked again.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RResult, RStr, RString, RVec};
use async_ffi::FutureExt;
use nbd_rs_plugin::abi::{
    DeleteResults, DynBackend, DynObject, RawBackend, RawBackend_TO, RawObject, RawObject_TO,
};
use nbd_rs_plugin::{
    Body, Capabilities, CapabilityFlags, Condition, Data, Error, Extent, ExtentFlags, GetFlags,
    Got, Kind, Meta, ObjectFlags, ObjectMode, Page, Piece, Put, Range, ReadFlags, Result, Started,
    WriteFlags, ZeroFlags,
};

use crate::secrets;

/// The longest object name, in bytes (that of S3).
pub const MAX_KEY_BYTES: usize = 1024;

/// Puts the guard before a backend. `link` names it in errors.
pub fn guard(inner: DynBackend, link: &str) -> DynBackend {
    let watch = Watch::new(link);
    let capabilities = inner.capabilities();
    let guarded = GuardedBackend {
        inner,
        capabilities,
        watch,
    };
    RawBackend_TO::from_ptr(RArc::new(guarded), TD_Opaque)
}

/// Remembers a panic, and judges errors.
#[derive(Clone)]
struct Watch(Arc<(String, AtomicBool)>);

impl Watch {
    fn new(link: &str) -> Self {
        Self(Arc::new((link.to_owned(), AtomicBool::new(false))))
    }

    fn error(&self, kind: Kind, text: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("{}: {text}", self.0 .0))
    }

    fn alive(&self) -> Result<()> {
        if self.0 .1.load(Ordering::Relaxed) {
            return Err(self.error(
                Kind::Io,
                "the plugin panicked before and is not asked again",
            ));
        }
        Ok(())
    }

    fn judge<T>(&self, result: RResult<T, Error>) -> Result<T> {
        result.into_result().map_err(|error| {
            let mut error = without_secrets(error);
            if error.kind == Kind::Panic {
                self.0 .1.store(true, Ordering::Relaxed);
                tracing::error!("{}: {}", self.0 .0, error.message);
            }
            if error.kind.0 > Kind::Panic.0 {
                error.kind = Kind::Io;
            }
            error
        })
    }

    /// Checks an answer when it comes: now, or later.
    fn checked<'a, T: Send + 'a, U: 'a>(
        &self,
        started: Started<'a, T>,
        check: impl FnOnce(&Watch, T) -> Result<U> + Send + 'a,
    ) -> Started<'a, U> {
        match started {
            Started::Ready(result) => {
                Started::ready(self.judge(result).and_then(|answer| check(self, answer)))
            }
            Started::Pending(future) => {
                let watch = self.clone();
                later(async move {
                    let answer = watch.judge(future.await)?;
                    check(&watch, answer)
                })
            }
        }
    }
}

/// What a plugin says may hold what it was told.
pub(super) fn without_secrets(mut error: Error) -> Error {
    error.message = secrets::masked(&error.message).into_owned().into();
    error
}

fn later<'a, T>(future: impl Future<Output = Result<T>> + Send + 'a) -> Started<'a, T> {
    Started::Pending(async move { RResult::from(future.await) }.into_ffi())
}

fn refused<'a, T>(error: Error) -> Started<'a, T> {
    Started::ready(Err(error))
}

/// Answers the caller's mistake at once, or goes on.
macro_rules! check {
    ($check:expr) => {
        if let Err(error) = $check {
            return refused(error);
        }
    };
}

struct GuardedBackend {
    inner: DynBackend,
    capabilities: Capabilities,
    watch: Watch,
}

impl GuardedBackend {
    fn key(&self, key: &str) -> Result<()> {
        self.watch.alive()?;
        if key.len() > MAX_KEY_BYTES || key.contains('\0') {
            let text = crate::error::printable(key, 80);
            return Err(self
                .watch
                .error(Kind::Invalid, format_args!("bad object name {text:?}")));
        }
        Ok(())
    }

    fn needs(&self, flags: CapabilityFlags, operation: &str) -> Result<()> {
        if self.capabilities.has(flags) {
            return Ok(());
        }
        let kind = if flags == CapabilityFlags::WRITABLE {
            Kind::ReadOnly
        } else {
            Kind::Unsupported
        };
        Err(self
            .watch
            .error(kind, format_args!("{operation} is not offered")))
    }
}

impl RawBackend for GuardedBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn get<'a>(&'a self, key: RStr<'a>, range: Range, flags: GetFlags) -> Started<'a, Got> {
        check!(self.key(key.as_str()));
        let started = self.inner.get(key, range, flags);
        self.watch.checked(started, move |watch, got| {
            let len = match range.len {
                Range::TO_END => got.data.len(),
                len => len,
            };
            check_data(watch, &got.data, len, ReadFlags::NONE)?;
            Ok(got)
        })
    }

    fn put<'a>(&'a self, key: RStr<'a>, body: Body, condition: Condition) -> Started<'a, Put> {
        check!(self.key(key.as_str()));
        check!(self.needs(CapabilityFlags::WRITABLE, "put"));
        check!(match condition {
            Condition::Always => Ok(()),
            Condition::IfAbsent => self.needs(CapabilityFlags::IF_ABSENT, "put if absent"),
            Condition::IfMatch(_) => self.needs(CapabilityFlags::IF_MATCH, "put if match"),
        });
        let started = self.inner.put(key, body, condition);
        self.watch.checked(started, |_, put| Ok(put))
    }

    fn head<'a>(&'a self, key: RStr<'a>, flags: GetFlags) -> Started<'a, Meta> {
        check!(self.key(key.as_str()));
        let started = self.inner.head(key, flags);
        self.watch.checked(started, |_, meta| Ok(meta))
    }

    fn delete<'a>(&'a self, keys: RVec<RString>) -> Started<'a, DeleteResults> {
        for key in &keys {
            check!(self.key(key));
        }
        check!(self.needs(CapabilityFlags::WRITABLE, "delete"));
        let asked = keys.len();
        let started = self.inner.delete(keys);
        self.watch.checked(started, move |watch, results| {
            if results.len() != asked {
                return Err(watch.error(
                    Kind::Ambiguous,
                    format_args!("{} results for {asked} deletes", results.len()),
                ));
            }
            Ok(results
                .into_iter()
                .map(|result| watch.judge(result).into())
                .collect())
        })
    }

    fn list<'a>(&'a self, prefix: RStr<'a>, after: ROption<RString>) -> Started<'a, Page> {
        check!(self.key(prefix.as_str()));
        let started = self.inner.list(prefix, after);
        self.watch.checked(started, |_, page| Ok(page))
    }

    fn flush(&self) -> Started<'_, ()> {
        check!(self.watch.alive());
        let started = self.inner.flush();
        self.watch.checked(started, |_, ()| Ok(()))
    }

    fn open_object<'a>(&'a self, key: RStr<'a>, mode: ObjectMode) -> Started<'a, DynObject> {
        check!(self.key(key.as_str()));
        check!(self.needs(CapabilityFlags::IN_PLACE, "opening an object"));
        let writes = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::TRUNCATE;
        if mode.flags.0 & writes.0 != 0 {
            check!(self.needs(CapabilityFlags::WRITABLE, "writing"));
        }
        later(async move {
            let started = self.inner.open_object(key, mode);
            let object = self.watch.checked(started, |_, object| Ok(object));
            let object = object.wait().await?;
            let size = self.watch.checked(object.size(), |_, size| Ok(size));
            let size = size.wait().await?;
            let guarded = GuardedObject {
                capabilities: object.capabilities(),
                size: AtomicU64::new(size),
                watch: self.watch.clone(),
                inner: object,
            };
            Ok(RawObject_TO::from_ptr(RArc::new(guarded), TD_Opaque))
        })
    }

    fn close(&self) -> Started<'_, ()> {
        let started = self.inner.close();
        self.watch.checked(started, |_, ()| Ok(()))
    }
}

/// Exactly so many bytes, of kinds that were asked for.
fn check_data(watch: &Watch, data: &Data, len: u64, flags: ReadFlags) -> Result<()> {
    let fits = |piece: &Piece| match piece {
        Piece::Bytes(_) => true,
        Piece::Mapped(_) => flags.has(ReadFlags::LEND_MAPPED),
        Piece::Hole(_) => flags.has(ReadFlags::LEND_HOLES),
    };
    if data.len() != len || !data.pieces().iter().all(fits) {
        let had = data.len();
        return Err(watch.error(
            Kind::Corrupt,
            format_args!("the plugin answered {had} bytes, or not as asked, for {len}"),
        ));
    }
    Ok(())
}

/// At least one extent, none empty, none behind the range: the rest is cut off.
fn check_extents(
    watch: &Watch,
    extents: RVec<Extent>,
    len: u64,
    limit: u32,
) -> Result<RVec<Extent>> {
    let mut left = len;
    let mut checked = RVec::new();
    for extent in extents.into_iter().take(limit as usize) {
        if left == 0 {
            break;
        }
        if extent.len == 0 {
            return Err(watch.error(Kind::Corrupt, "the plugin answered an empty extent"));
        }
        let len = extent.len.min(left);
        let flags = ExtentFlags(extent.flags.0 & ExtentFlags::KNOWN.0);
        checked.push(Extent { len, flags });
        left -= len;
    }
    if checked.is_empty() {
        return Err(watch.error(Kind::Corrupt, "the plugin answered no extent"));
    }
    Ok(checked)
}

struct GuardedObject {
    inner: DynObject,
    capabilities: Capabilities,
    size: AtomicU64,
    watch: Watch,
}

impl GuardedObject {
    fn range(&self, offset: u64, len: u64) -> Result<()> {
        self.watch.alive()?;
        let size = self.size.load(Ordering::Relaxed);
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(self.watch.error(
                Kind::Invalid,
                format_args!("{len} bytes at {offset} are not inside the object of {size} bytes"),
            ));
        }
        Ok(())
    }

    fn writable(&self) -> Result<()> {
        if self.capabilities.has(CapabilityFlags::WRITABLE) {
            return Ok(());
        }
        Err(self.watch.error(Kind::ReadOnly, "read-only"))
    }

    fn known(&self, unknown_bits: u64) -> Result<()> {
        if unknown_bits == 0 {
            return Ok(());
        }
        Err(self.watch.error(
            Kind::Unsupported,
            format_args!("unknown flags {unknown_bits:#x}"),
        ))
    }
}

impl RawObject for GuardedObject {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn size(&self) -> Started<'_, u64> {
        Started::ready(Ok(self.size.load(Ordering::Relaxed)))
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Started<'_, Data> {
        check!(self.range(offset, len));
        check!(self.known(flags.unknown().0));
        let started = self.inner.read(offset, len, flags);
        self.watch.checked(started, move |watch, data| {
            check_data(watch, &data, len, flags)?;
            Ok(data)
        })
    }

    fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Started<'_, ()> {
        check!(self.range(offset, body.len()));
        check!(self.known(flags.unknown().0));
        check!(self.writable());
        let started = self.inner.write(offset, body, flags);
        self.watch.checked(started, |_, ()| Ok(()))
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Started<'_, ()> {
        check!(self.range(offset, len));
        check!(self.known(flags.unknown().0));
        check!(self.writable());
        if flags.has(ZeroFlags::FAST) && !self.capabilities.has(CapabilityFlags::FAST_ZERO) {
            return refused(
                self.watch
                    .error(Kind::Unsupported, "zeroing is not fast here"),
            );
        }
        let started = self.inner.zero(offset, len, flags);
        self.watch.checked(started, |_, ()| Ok(()))
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Started<'_, RVec<Extent>> {
        check!(self.range(offset, len));
        let started = self.inner.extents(offset, len, limit);
        self.watch.checked(started, move |watch, extents| {
            check_extents(watch, extents, len, limit)
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> Started<'_, ()> {
        check!(self.range(offset, len));
        let started = self.inner.prefetch(offset, len);
        self.watch.checked(started, |_, ()| Ok(()))
    }

    fn resize(&self, size: u64) -> Started<'_, ()> {
        check!(self.watch.alive());
        check!(self.writable());
        later(async move {
            let started = self.inner.resize(size);
            let resized = self.watch.checked(started, |_, ()| Ok(()));
            resized.wait().await?;
            self.size.store(size, Ordering::Relaxed);
            Ok(())
        })
    }

    fn sync(&self) -> Started<'_, ()> {
        check!(self.watch.alive());
        let started = self.inner.sync();
        self.watch.checked(started, |_, ()| Ok(()))
    }

    fn close(&self) -> Started<'_, ()> {
        let started = self.inner.close();
        self.watch.checked(started, |_, ()| Ok(()))
    }
}
