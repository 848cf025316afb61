//! The body of a request: the caller's memory, handed to the socket as it is.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use nbd_rs_plugin::Body;

/// Whether a byte of a request's body was asked for, so that it may have reached the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent(Arc<AtomicBool>);

impl Sent {
    pub(crate) fn anything(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Pieces in order, none copied. Its exact size is known, so it is never sent chunked.
#[derive(Debug)]
pub(crate) struct Outgoing {
    body: Body,
    next: usize,
    remaining_bytes: u64,
    sent: Sent,
}

impl Outgoing {
    pub(crate) fn new(body: &Body, sent: &Sent) -> Self {
        Self {
            remaining_bytes: body.len(),
            body: body.clone(),
            next: 0,
            sent: sent.clone(),
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.sent.0.store(true, Ordering::Relaxed);
        let piece = self.body.pieces().get(self.next).cloned();
        let Some(piece) = piece else {
            return Poll::Ready(None);
        };
        self.next += 1;
        self.remaining_bytes -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining_bytes)
    }
}
