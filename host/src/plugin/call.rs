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
    Body, Data, Error, NextObject, ReadFlags, Result, Started, WriteFlags, ZeroFlags,
};

use super::Answer;

/// A future with the object that it borrows from.
struct Held<T: 'static> {
    /// Dropped before `_object`: fields go in the order they stand in.
    future: BorrowingFfiFuture<'static, RResult<T, Error>>,
    _object: NextObject,
}

impl<T> Future for Held<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out; the future is dropped in place.
        let future = unsafe { self.map_unchecked_mut(|held| &mut held.future) };
        future.poll(cx).map(Result::from)
    }
}

fn answer<T: Send + 'static>(object: &NextObject, started: Started<'_, T>) -> Answer<T> {
    match started {
        Started::Ready(result) => Answer::Ready(result.into()),
        Started::Pending(future) => {
            // SAFETY: the future borrows what `object` counts references to, on the heap; `Held`
            // keeps one such reference and drops it after the future.
            let future = unsafe {
                std::mem::transmute::<
                    BorrowingFfiFuture<'_, RResult<T, Error>>,
                    BorrowingFfiFuture<'static, RResult<T, Error>>,
                >(future)
            };
            Answer::Later(Box::pin(Held {
                future,
                _object: object.clone(),
            }))
        }
    }
}

/// See [`nbd_rs_plugin::Object::read`].
pub fn read(object: &NextObject, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
    answer(object, object.start_read(offset, len, flags))
}

/// See [`nbd_rs_plugin::Object::write`].
pub fn write(object: &NextObject, offset: u64, body: Body, flags: WriteFlags) -> Answer<()> {
    answer(object, object.start_write(offset, body, flags))
}

/// See [`nbd_rs_plugin::Object::zero`].
pub fn zero(object: &NextObject, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
    answer(object, object.start_zero(offset, len, flags))
}
