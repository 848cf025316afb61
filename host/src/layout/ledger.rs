//! What a volume keeps about the journal before it. A layout whose writes are worth gathering has a
//! ledger; what is written there tells the next server where acknowledged writes wait.

use std::time::{SystemTime, UNIX_EPOCH};

use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::uuid::Uuid;

use crate::backend::Later;
use crate::error::printable;

/// Acknowledged writes wait, or may wait, in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which journal, and how far the store was.
    pub ticket: Ticket,
    /// When this was said, in seconds since 1970.
    pub said_s: u64,
    /// The machine's name, for people.
    pub host: String,
}

impl Entry {
    /// How long ago it was said, in seconds; 0 by a clock that stands before that.
    pub fn age_s(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs().saturating_sub(self.said_s))
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ticket {
            journal,
            shipped_seq,
            passed_by,
            ..
        } = &self.ticket;
        let (host, age_s) = (printable(&self.host, 80), self.age_s());
        write!(f, "journal {journal} on {host}, ")?;
        match passed_by {
            true => write!(f, "which is not needed: its disk failed"),
            false => write!(
                f,
                "of which the store had {shipped_seq} records {age_s} seconds ago"
            ),
        }
    }
}

/// A volume that is open to write, for the journal before it.
pub trait Ledger: Send + Sync {
    /// The volume.
    fn volume(&self) -> Uuid;
    /// This owner's number.
    fn epoch(&self) -> u64;
    /// Whether nobody else can have taken the volume by the clock.
    fn is_held(&self) -> bool;
    /// Waits until that is so, for as long as the volume has patience.
    fn held(&self) -> Later<()>;
    /// What the volume says, `None` if nothing waits anywhere.
    fn read(&self) -> Later<Option<Entry>>;
    /// Says so, durably, unless a later owner has said something.
    ///
    /// # Errors
    /// [`Kind::Fenced`](crate::error::Kind::Fenced) if one has.
    fn write(&self, ticket: Option<Ticket>) -> Later<()>;
}
