//! From the author's traits to what crosses: panics are caught here, on the plugin's side.

use std::any::Any;
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RResult, RStr, RString, RVec};
use async_ffi::FutureExt;

use crate::abi::{
    DeleteResults, DynBackend, DynObject, RawBackend, RawBackend_TO, RawObject, RawObject_TO,
};
use crate::{
    Backend, Body, Capabilities, Condition, Data, Description, Error, Extent, GetFlags, Got, Kind,
    Meta, Object, ObjectMode, Page, Put, Range, ReadFlags, Result, Started, WriteFlags, ZeroFlags,
};

/// Makes an author's backend ready to cross.
pub fn export_backend<B: Backend>(backend: B) -> DynBackend {
    RawBackend_TO::from_ptr(RArc::new(ExportedBackend(backend)), TD_Opaque)
}

/// Makes an author's opened object ready to cross.
pub fn export_object<O: Object>(object: O) -> DynObject {
    RawObject_TO::from_ptr(RArc::new(ExportedObject(object)), TD_Opaque)
}

struct ExportedBackend<B>(B);
struct ExportedObject<O>(O);

fn panicked(payload: Box<dyn Any + Send>) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    // Dropping a foreign payload could panic again, this time across the border.
    std::mem::forget(payload);
    Error::new(Kind::Panic, format!("the plugin panicked: {text}"))
}

fn guarded<T>(call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(panicked)
}

/// A future whose panics are answers.
struct Guarded<F>(Option<F>);

impl<T, F: Future<Output = Result<T>>> Future for Guarded<F> {
    type Output = RResult<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: the inner future is pinned with us: it is never moved out, only dropped in place.
        let slot = unsafe { &mut self.get_unchecked_mut().0 };
        let Some(future) = slot else {
            return Poll::Ready(RResult::RErr(Error::new(
                Kind::Panic,
                "polled after its end",
            )));
        };
        // SAFETY: as above.
        let future = unsafe { Pin::new_unchecked(future) };
        match guarded(|| future.poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(result.into()),
            Err(error) => Poll::Ready(RResult::RErr(error)),
        }
    }
}

impl<F> Drop for Guarded<F> {
    fn drop(&mut self) {
        // A panic while dropping would abort the process at the border.
        let _ = guarded(|| self.0 = None);
    }
}

fn later<'a, T>(future: impl Future<Output = Result<T>> + Send + 'a) -> Started<'a, T> {
    Started::Pending(Guarded(Some(future)).into_ffi())
}

/// What can be answered now is; the rest becomes a future.
macro_rules! now_or_later {
    ($now:expr, $later:expr) => {
        match guarded(|| $now) {
            Ok(Some(result)) => Started::Ready(result.into()),
            Ok(None) => later($later),
            Err(error) => Started::Ready(RResult::RErr(error)),
        }
    };
}

/// Capabilities of a backend that panicked when asked: none.
const NOTHING: Capabilities = Capabilities::new(crate::CapabilityFlags::NONE);

impl<B: Backend> RawBackend for ExportedBackend<B> {
    fn capabilities(&self) -> Capabilities {
        guarded(|| self.0.capabilities()).unwrap_or(NOTHING)
    }

    fn get<'a>(&'a self, key: RStr<'a>, range: Range, flags: GetFlags) -> Started<'a, Got> {
        let key = key.as_str();
        now_or_later!(self.0.try_get(key, range, flags), async move {
            self.0.get(key, range, flags).await
        })
    }

    fn put<'a>(&'a self, key: RStr<'a>, body: Body, condition: Condition) -> Started<'a, Put> {
        later(async move { self.0.put(key.as_str(), body, condition).await })
    }

    fn head<'a>(&'a self, key: RStr<'a>, flags: GetFlags) -> Started<'a, Meta> {
        later(async move { self.0.head(key.as_str(), flags).await })
    }

    fn delete<'a>(&'a self, keys: RVec<RString>) -> Started<'a, DeleteResults> {
        later(async move {
            let keys = keys.into_iter().map(String::from).collect();
            let results = self.0.delete(keys).await?;
            Ok(results.into_iter().map(RResult::from).collect())
        })
    }

    fn list<'a>(&'a self, prefix: RStr<'a>, after: ROption<RString>) -> Started<'a, Page> {
        later(async move {
            let after = after.as_ref().map(RString::as_str).into_option();
            self.0.list(prefix.as_str(), after).await
        })
    }

    fn flush(&self) -> Started<'_, ()> {
        later(async move { self.0.flush().await })
    }

    fn open_object<'a>(&'a self, key: RStr<'a>, mode: ObjectMode) -> Started<'a, DynObject> {
        later(async move {
            let object = self.0.open_object(key.as_str(), mode).await?;
            Ok(export_object(object))
        })
    }

    fn close(&self) -> Started<'_, ()> {
        later(async move { self.0.close().await })
    }
}

impl<O: Object> RawObject for ExportedObject<O> {
    fn capabilities(&self) -> Capabilities {
        guarded(|| self.0.capabilities()).unwrap_or(NOTHING)
    }

    fn size(&self) -> Started<'_, u64> {
        later(async move { self.0.size().await })
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Started<'_, Data> {
        now_or_later!(self.0.try_read(offset, len, flags), async move {
            self.0.read(offset, len, flags).await
        })
    }

    fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Started<'_, ()> {
        now_or_later!(self.0.try_write(offset, &body, flags), async move {
            self.0.write(offset, body, flags).await
        })
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Started<'_, ()> {
        now_or_later!(self.0.try_zero(offset, len, flags), async move {
            self.0.zero(offset, len, flags).await
        })
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Started<'_, RVec<Extent>> {
        later(async move {
            let extents = self.0.extents(offset, len, limit).await?;
            Ok(extents.into())
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> Started<'_, ()> {
        later(async move { self.0.prefetch(offset, len).await })
    }

    fn resize(&self, size: u64) -> Started<'_, ()> {
        later(async move { self.0.resize(size).await })
    }

    fn sync(&self) -> Started<'_, ()> {
        later(async move { self.0.sync().await })
    }

    fn close(&self) -> Started<'_, ()> {
        later(async move { self.0.close().await })
    }
}

/// What [`export_plugin!`](crate::export_plugin) puts behind `describe`.
#[doc(hidden)]
pub fn describe_guarded(describe: impl FnOnce() -> Description) -> RResult<Description, Error> {
    guarded(describe).into()
}

/// What [`export_plugin!`](crate::export_plugin) puts behind `check`.
#[doc(hidden)]
pub fn check_guarded(check: impl FnOnce() -> Result<()>) -> RResult<(), Error> {
    guarded(check).and_then(|checked| checked).into()
}

/// What [`export_plugin!`](crate::export_plugin) puts behind `open`.
#[doc(hidden)]
pub fn open_guarded<B, F>(open: impl FnOnce() -> F + Send + 'static) -> Started<'static, DynBackend>
where
    B: Backend,
    F: Future<Output = Result<B>> + Send + 'static,
{
    later(async move { Ok(export_backend(open().await?)) })
}

/// Exports the plugin: the one symbol that the host looks for.
///
/// `describe` is a closure that gives a [`Description`](crate::Description); `open` is called with
/// a [`Host`](crate::Host) and an [`OpenRequest`](crate::OpenRequest) and gives a future of
/// `Result<impl Backend>`. See the [crate's first page](crate) for a whole plugin.
///
/// `check`, which may be left out, is given the same request without a backend behind it, and says
/// whether its target and options can be meant. It is asked before anything is opened, so that a
/// mistake in the last link of a chain is told before the store is spoken to; it must not wait,
/// look at files or speak to anybody.
#[macro_export]
macro_rules! export_plugin {
    (describe: $describe:expr, open: $open:expr $(,)?) => {
        $crate::export_plugin! {
            describe: $describe,
            check: |_: &$crate::OpenRequest| Ok(()),
            open: $open,
        }
    };
    (describe: $describe:expr, check: $check:expr, open: $open:expr $(,)?) => {
        const _: () = {
            use $crate::abi_stable::prefix_type::PrefixTypeTrait as _;

            extern "C" fn __nbd_rs_describe(
            ) -> $crate::abi_stable::std_types::RResult<$crate::Description, $crate::Error> {
                $crate::describe_guarded($describe)
            }

            extern "C" fn __nbd_rs_check(
                request: $crate::OpenRequest,
            ) -> $crate::abi_stable::std_types::RResult<(), $crate::Error> {
                $crate::check_guarded(move || ($check)(&request))
            }

            extern "C" fn __nbd_rs_open(
                host: $crate::abi::HostRef,
                request: $crate::OpenRequest,
            ) -> $crate::Started<'static, $crate::abi::DynBackend> {
                let host = $crate::Host::attach(host);
                $crate::open_guarded(move || ($open)(host, request))
            }

            fn __nbd_rs_root() -> $crate::abi::PluginRef {
                $crate::abi::PluginTable {
                    describe: __nbd_rs_describe,
                    unwinds: cfg!(panic = "unwind"),
                    check: __nbd_rs_check,
                    open: __nbd_rs_open,
                }
                .leak_into_prefix()
            }

            // What abi_stable's `export_root_module` expands to, but by way of this crate: a
            // plugin need not name abi_stable itself.
            extern "C" fn __nbd_rs_module() -> $crate::abi_stable::library::RootModuleResult {
                $crate::abi_stable::library::__call_root_module_loader(__nbd_rs_root)
            }

            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals)]
            pub static _1as_0lib_1header_0root_bmodule_bloader:
                $crate::abi_stable::library::LibHeader = {
                // SAFETY: the constructor gives the module of just this type.
                unsafe {
                    $crate::abi_stable::library::LibHeader::from_constructor::<
                        $crate::abi::PluginRef,
                    >(
                        __nbd_rs_module,
                        $crate::abi_stable::library::CheckTypeLayout::Yes,
                    )
                }
            };
        };
    };
}
