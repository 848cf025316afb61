//! Calls over the border whose answers may outlive the caller's borrow.
//!
//! The interface lends the object to the future. Here the future takes a counted reference along,
//! so that a request can wait on its own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use abi_stable::std_types::RResult;
use async_ffi::BorrowingFfiFuture;
use nbd_rs_plugin::{
    Body, Condition, Data, Error, GetFlags, Got, Meta, Next, NextObject, Put, Range, ReadFlags,
    Result, Started, WriteFlags, ZeroFlags,
};

use super::Answer;

/// A future with what it borrows from.
struct Held<T: 'static, O> {
    /// Dropped before `_lender`: fields go in the order they stand in.
    future: BorrowingFfiFuture<'static, RResult<T, Error>>,
    _lender: O,
}

impl<T, O> Future for Held<T, O> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out; the future is dropped in place.
        let future = unsafe { self.map_unchecked_mut(|held| &mut held.future) };
        future.poll(cx).map(Result::from)
    }
}

/// Makes an answer of a call that has been started.
///
/// # Safety
/// What `started` borrows lives on the heap and stays there as long as the value of `lender`.
unsafe fn answer<T: Send + 'static, O: Send + 'static>(
    started: Started<'_, T>,
    lender: impl FnOnce() -> O,
) -> Answer<T> {
    match started {
        Started::Ready(result) => Answer::Ready(result.into()),
        Started::Pending(future) => {
            // SAFETY: `Held` keeps the lender and drops it after the future.
            let future = unsafe {
                std::mem::transmute::<
                    BorrowingFfiFuture<'_, RResult<T, Error>>,
                    BorrowingFfiFuture<'static, RResult<T, Error>>,
                >(future)
            };
            Answer::Later(Box::pin(Held {
                future,
                _lender: lender(),
            }))
        }
    }
}

fn of_object<T: Send + 'static>(object: &NextObject, started: Started<'_, T>) -> Answer<T> {
    // SAFETY: the future borrows what `object` counts references to, on the heap.
    unsafe { answer(started, || object.clone()) }
}

fn of_name<T: Send + 'static>(
    backend: &Next,
    key: String,
    start: impl for<'k> FnOnce(&'k Next, &'k str) -> Started<'k, T>,
) -> Answer<T> {
    // SAFETY: the call borrows the key's bytes, which stay in place when the string moves.
    let borrowed = unsafe { std::slice::from_raw_parts(key.as_ptr(), key.len()) };
    // SAFETY: they are those of a string.
    let borrowed = unsafe { std::str::from_utf8_unchecked(borrowed) };
    let started = start(backend, borrowed);
    // SAFETY: the key is kept, and a reference to the backend, which lives on the heap.
    unsafe { answer(started, || (backend.clone(), key)) }
}

/// See [`nbd_rs_plugin::Backend::get`].
pub fn get(backend: &Next, key: String, range: Range, flags: GetFlags) -> Answer<Got> {
    of_name(backend, key, |backend, key| {
        backend.start_get(key, range, flags)
    })
}

/// See [`nbd_rs_plugin::Backend::put`].
pub fn put(backend: &Next, key: String, body: Body, condition: Condition) -> Answer<Put> {
    of_name(backend, key, |backend, key| {
        backend.start_put(key, body, condition)
    })
}

/// See [`nbd_rs_plugin::Backend::head`].
pub fn head(backend: &Next, key: String, flags: GetFlags) -> Answer<Meta> {
    of_name(backend, key, |backend, key| backend.start_head(key, flags))
}

/// See [`nbd_rs_plugin::Object::read`].
pub fn read(object: &NextObject, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
    of_object(object, object.start_read(offset, len, flags))
}

/// See [`nbd_rs_plugin::Object::write`].
pub fn write(object: &NextObject, offset: u64, body: Body, flags: WriteFlags) -> Answer<()> {
    of_object(object, object.start_write(offset, body, flags))
}

/// See [`nbd_rs_plugin::Object::zero`].
pub fn zero(object: &NextObject, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
    of_object(object, object.start_zero(offset, len, flags))
}
