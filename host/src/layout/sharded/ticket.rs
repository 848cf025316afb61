//! The journal record: where acknowledged writes of the volume wait (contract C12). Pure, but for
//! the ledger at the end, which keeps it on the store.

use std::sync::Arc;

use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::uuid::Uuid as JournalUuid;

use super::frame::{array_at, corrupt, u64_at, Frame, Stamp, What};
use super::lease::Lease;
use super::process;
use super::store::{read_as, Store, Swapped, ATTEMPTS};
use super::uuid::Uuid;
use crate::backend::Later;
use crate::error::{Error, Kind, Result};
use crate::layout::ledger::{Entry, Ledger};

/// Longest host name kept, in bytes.
const MAX_HOST_BYTES: usize = 255;
const FIXED_BYTES: usize = 48;
/// What a record that is not empty says: writes wait; the journal is not needed.
const WAITS: u64 = 1;
const PASSED_BY: u64 = 2;

/// An entry as bytes; empty if there is none.
pub(in crate::layout) fn encode_entry(entry: Option<&Entry>) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some(Entry {
        ticket,
        said_s,
        host,
    }) = entry
    {
        let what = match ticket.passed_by {
            true => PASSED_BY,
            false => WAITS,
        };
        payload.extend_from_slice(&ticket.journal.0);
        for word in [ticket.epoch, ticket.shipped_seq, *said_s, what] {
            payload.extend_from_slice(&word.to_le_bytes());
        }
        let mut end = host.len().min(MAX_HOST_BYTES);
        while !host.is_char_boundary(end) {
            end -= 1;
        }
        payload.extend_from_slice(&host.as_bytes()[..end]);
    }
    payload
}

/// Reads what [`encode_entry`] writes.
///
/// # Errors
/// [`Kind::Corrupt`] for anything else.
pub(in crate::layout) fn decode_entry(payload: &[u8]) -> Result<Option<Entry>> {
    let wrong = || corrupt("the journal record makes no sense");
    if payload.is_empty() {
        return Ok(None);
    }
    if !(FIXED_BYTES..=FIXED_BYTES + MAX_HOST_BYTES).contains(&payload.len()) {
        return Err(wrong());
    }
    let host = std::str::from_utf8(&payload[FIXED_BYTES..]).map_err(|_| wrong())?;
    let ticket = Ticket {
        journal: JournalUuid(array_at(payload, 0)),
        epoch: u64_at(payload, 16),
        shipped_seq: u64_at(payload, 24),
        passed_by: match u64_at(payload, 40) {
            WAITS => false,
            PASSED_BY => true,
            _ => return Err(wrong()),
        },
    };
    Ok(Some(Entry {
        ticket,
        said_s: u64_at(payload, 32),
        host: host.to_owned(),
    }))
}

/// What this machine says now.
///
/// # Errors
/// If it does not know the time or its own name.
pub(in crate::layout) fn said_here(ticket: Ticket) -> Result<Entry> {
    Ok(Entry {
        ticket,
        said_s: process::now_s()?,
        host: process::this()?.host,
    })
}

fn encode(uuid: Uuid, stamp: Stamp, entry: Option<&Entry>) -> Vec<u8> {
    let payload = encode_entry(entry);
    let frame = Frame {
        what: What::Journal,
        uuid,
        number: 0,
        stamp,
        flags: 0,
        payload: &payload,
    };
    frame.encode()
}

fn decode(uuid: Uuid, bytes: &[u8]) -> Result<(Stamp, Option<Entry>)> {
    let frame = Frame::decode_of(What::Journal, uuid, 0, bytes)?;
    let payload = frame.payload;
    if frame.flags != 0 {
        return Err(corrupt("the journal record makes no sense"));
    }
    Ok((frame.stamp, decode_entry(payload)?))
}

/// What the volume says of a journal, and the ETag of that.
pub(super) async fn read(
    store: &Store,
    key: String,
    uuid: Uuid,
) -> Result<(Option<Entry>, Option<String>)> {
    match store.read(key.clone()).await? {
        None => Ok((None, None)),
        Some((bytes, etag)) => Ok((read_as(&key, decode(uuid, &bytes))?.1, Some(etag))),
    }
}

/// The ledger of a volume that this server owns.
pub(super) struct Tickets {
    store: Store,
    key: String,
    uuid: Uuid,
    lease: Arc<Lease>,
    /// Of the record as it was seen last.
    etag: tokio::sync::Mutex<Option<String>>,
}

impl Tickets {
    pub(super) fn new(store: Store, key: String, uuid: Uuid, lease: Arc<Lease>) -> Arc<Self> {
        Arc::new(Self {
            store,
            key,
            uuid,
            lease,
            etag: tokio::sync::Mutex::default(),
        })
    }

    async fn put(&self, entry: Option<&Entry>) -> Result<()> {
        let mut etag = self.etag.lock().await;
        for _ in 0..ATTEMPTS {
            self.lease.held().await?;
            let record = encode(self.uuid, self.lease.stamp(), entry);
            let condition = match &*etag {
                Some(etag) => self.store.if_match(etag),
                None => self.store.if_absent(),
            };
            match self.store.swap(&self.key, record, condition).await? {
                Swapped::Done(new) => {
                    *etag = Some(new);
                    return Ok(());
                }
                Swapped::Other(None) => *etag = None,
                Swapped::Other(Some((bytes, other))) => {
                    let (stamp, _) = read_as(&self.key, decode(self.uuid, &bytes))?;
                    if stamp.epoch > self.lease.epoch() {
                        let text = format!("the journal record was put by epoch {}", stamp.epoch);
                        return Err(self.lease.lose(text));
                    }
                    // A late one of an earlier owner, or of ours.
                    *etag = Some(other);
                }
            }
        }
        let text = "the journal record keeps changing";
        Err(Error::new(Kind::Transient, text))
    }
}

/// [`Ledger`] of the volume that `Tickets` belongs to.
pub(super) struct Book(pub(super) Arc<Tickets>);

impl Ledger for Book {
    fn volume(&self) -> JournalUuid {
        JournalUuid(self.0.uuid.0)
    }

    fn epoch(&self) -> u64 {
        self.0.lease.epoch()
    }

    fn is_held(&self) -> bool {
        self.0.lease.is_valid()
    }

    fn held(&self) -> Later<()> {
        let lease = self.0.lease.clone();
        Box::pin(async move { lease.held().await })
    }

    fn read(&self) -> Later<Option<Entry>> {
        let tickets = self.0.clone();
        Box::pin(async move {
            let mut known = tickets.etag.lock().await;
            let (entry, etag) = read(&tickets.store, tickets.key.clone(), tickets.uuid).await?;
            *known = etag;
            Ok(entry)
        })
    }

    fn write(&self, ticket: Option<Ticket>) -> Later<()> {
        let tickets = self.0.clone();
        Box::pin(async move {
            let entry = ticket.map(said_here).transpose()?;
            tickets.put(entry.as_ref()).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let numbers = (any::<[u8; 16]>(), any::<[u64; 3]>(), any::<bool>());
        (numbers, "\\PC{0,80}").prop_map(|((journal, words, passed_by), host)| Entry {
            ticket: Ticket {
                journal: JournalUuid(journal),
                epoch: words[0],
                shipped_seq: words[1],
                passed_by,
            },
            said_s: words[2],
            host,
        })
    }

    proptest! {
        #[test]
        fn a_journal_record_is_read_as_it_was_written(entry in prop::option::of(entry())) {
            let (uuid, stamp) = (Uuid([4; 16]), Stamp { epoch: 3, sequence: 9 });
            let bytes = encode(uuid, stamp, entry.as_ref());
            let (read_stamp, mut read) = decode(uuid, &bytes).unwrap();
            prop_assert_eq!(read_stamp, stamp);
            if let (Some(read), Some(entry)) = (&mut read, &entry) {
                prop_assert!(entry.host.starts_with(&read.host));
                read.host.clone_from(&entry.host);
            }
            prop_assert_eq!(read, entry);
            decode(Uuid([5; 16]), &bytes).unwrap_err();
        }

        #[test]
        fn other_payloads_are_refused(payload in prop::collection::vec(any::<u8>(), 1..47)) {
            let frame = Frame {
                what: What::Journal,
                uuid: Uuid([4; 16]),
                number: 0,
                stamp: Stamp::default(),
                flags: 0,
                payload: &payload,
            };
            prop_assert!(decode(Uuid([4; 16]), &frame.encode()).is_err());
        }
    }
}
