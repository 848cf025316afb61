//! What a call gives: the answer itself, or a future for it.

use std::future::Future;
use std::pin::Pin;

use nbd_rs_plugin::Result;

/// The future of an answer that is not there yet.
pub type Later<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// An answer: here, or to be waited for. Nothing has started before the first poll.
pub enum Answer<T> {
    /// It is here.
    Ready(Result<T>),
    /// It will come.
    Later(Later<T>),
}

impl<T: Send + 'static> Answer<T> {
    /// An answer that is worked out by a future.
    pub fn later(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Answer::Later(Box::pin(future))
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What the call answered.
    pub async fn wait(self) -> Result<T> {
        match self {
            Answer::Ready(result) => result,
            Answer::Later(future) => future.await,
        }
    }
}
