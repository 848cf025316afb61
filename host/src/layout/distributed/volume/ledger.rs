//! What the volume keeps about the journal before it: a part of the log, atomic with what was shipped.

use std::sync::Arc;

use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::uuid::Uuid as JournalUuid;

use super::shared::Inner;
use crate::backend::Later;
use crate::layout::ledger::{Entry, Ledger};
use crate::layout::sharded::ticket::{decode_entry, encode_entry, said_here};

/// The ledger of a volume that this process owns.
pub(super) struct Book(pub(super) Arc<Inner>);

impl Ledger for Book {
    fn volume(&self) -> JournalUuid {
        JournalUuid(self.0.volume.0)
    }

    fn epoch(&self) -> u64 {
        self.0.log.epoch().counter
    }

    fn is_held(&self) -> bool {
        self.0.log.may_read()
    }

    fn held(&self) -> Later<()> {
        let inner = self.0.clone();
        Box::pin(async move { inner.held().await })
    }

    fn read(&self) -> Later<Option<Entry>> {
        let inner = self.0.clone();
        Box::pin(async move {
            inner.held().await?;
            let note = inner.core().state.ledger().to_vec();
            decode_entry(&note)
        })
    }

    fn write(&self, ticket: Option<Ticket>) -> Later<()> {
        let inner = self.0.clone();
        Box::pin(async move {
            let entry = ticket.map(said_here).transpose()?;
            let note = encode_entry(entry.as_ref());
            inner.take_in(|batch| batch.note(note.clone())).await?;
            inner.flush().await
        })
    }
}
