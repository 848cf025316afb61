//! A record on its way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nbd_rs_commit_log::{Position, Quorum};
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::layout::distributed::environment::{within, Environment};

/// The acknowledgement of one record: its position once enough backends hold it, with all before it.
///
/// Whether or not somebody waits, the record stays in its place of the queue, and may be acknowledged
/// later. The error is [`Kind::Fenced`] when a newer owner was met or the log was closed: then nobody
/// knows whether the record is in the log.
pub struct Appended {
    told: oneshot::Receiver<Result<Position>>,
    environment: Arc<dyn Environment>,
    quorum: Quorum,
}

impl Appended {
    pub(super) fn new(
        told: oneshot::Receiver<Result<Position>>,
        environment: Arc<dyn Environment>,
        quorum: Quorum,
    ) -> Self {
        Self {
            told,
            environment,
            quorum,
        }
    }

    /// Waits so long at the most. After [`Kind::Timeout`] it may be waited for again.
    ///
    /// # Errors
    /// [`Kind::Timeout`] if too few backends answered in time: the record may be acknowledged later.
    /// Else as for the future itself.
    pub async fn within(&mut self, most: Duration) -> Result<Position> {
        let environment = self.environment.clone();
        if let Some(told) = within(&*environment, most, &mut *self).await {
            return told;
        }
        let (write, backends) = (self.quorum.write(), self.quorum.backends());
        let text = format!(
            "for {} s fewer than {write} of {backends} backends took a record",
            most.as_secs_f32()
        );
        Err(Error::new(Kind::Timeout, text))
    }
}

impl Future for Appended {
    type Output = Result<Position>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let told = Pin::new(&mut self.told).poll(cx);
        told.map(|told| told.unwrap_or_else(|_| Err(super::shared::closed())))
    }
}
