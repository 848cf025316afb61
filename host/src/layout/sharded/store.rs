//! The chain as this layout uses it: conditions, durability, small records that are swapped.

use std::time::Duration;

use abi_stable::std_types::ROption;
use nbd_rs_plugin::{
    Body, Bytes, CapabilityFlags, Condition, Data, GetFlags, Got, Meta, Piece, Range,
};

use super::frame::corrupt;
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};

/// The largest record, in bytes.
const MAX_RECORD_BYTES: u64 = 2 << 20;
/// How often one call is made when the outcome stays unknown.
pub(super) const ATTEMPTS: u32 = 5;

/// The chain and what it can do.
#[derive(Debug, Clone)]
pub(in crate::layout) struct Store {
    pub(in crate::layout) chain: Chain,
    /// Whether puts carry conditions; without, somebody else keeps other servers out.
    pub(super) conditions: bool,
    /// Whether what is acknowledged needs no flush.
    pub(super) durable: bool,
}

/// What became of a swap.
#[derive(Debug)]
pub(super) enum Swapped {
    /// The record is stored, with this ETag.
    Done(String),
    /// Something else is there, or nothing any more.
    Other(Option<(Vec<u8>, String)>),
}

/// Whether the outcome may be another one next time.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Ambiguous | Kind::Transient | Kind::Timeout
    )
}

/// Lets some time pass after a failure, more each time.
pub(super) async fn back_off(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(20 << attempt.min(6))).await;
}

/// What was made of an object; an error names it.
pub(super) fn read_as<T>(key: &str, made: Result<T>) -> Result<T> {
    made.map_err(|error| error.context(key))
}

/// The bytes of what was read, in one stretch.
pub(in crate::layout) fn bytes_of(data: &Data) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(data.len().min(MAX_RECORD_BYTES) as usize);
    for piece in data.pieces() {
        match piece {
            Piece::Bytes(piece) => bytes.extend_from_slice(piece),
            _ => return Err(corrupt("an object was not answered in bytes")),
        }
    }
    Ok(bytes)
}

/// The ETag that came with the bytes, empty if none did.
pub(super) fn etag_of(got: &Got) -> &str {
    match &got.meta {
        ROption::RSome(meta) => &meta.etag,
        ROption::RNone => "",
    }
}

impl Store {
    pub(in crate::layout) fn new(chain: Chain, fencing_is_external: bool) -> Self {
        let durable = chain.capabilities().has(CapabilityFlags::DURABLE_ON_ACK);
        Self {
            conditions: !fencing_is_external,
            durable,
            chain,
        }
    }

    pub(super) fn if_match(&self, etag: &str) -> Condition {
        match self.conditions {
            true => Condition::IfMatch(etag.into()),
            false => Condition::Always,
        }
    }

    pub(in crate::layout) fn if_absent(&self) -> Condition {
        match self.conditions {
            true => Condition::IfAbsent,
            false => Condition::Always,
        }
    }

    /// Makes durable what the store acknowledged.
    pub(in crate::layout) async fn settle(&self) -> Result<()> {
        match self.durable {
            true => Ok(()),
            false => self.chain.flush().wait().await,
        }
    }

    /// What the store itself says of an object.
    pub(super) async fn head(&self, key: String) -> Result<Option<Meta>> {
        match self.chain.head(key, GetFlags::FRESH).wait().await {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A whole record and its ETag. Its size is asked first, so that a giant takes no memory.
    pub(in crate::layout) async fn read(&self, key: String) -> Result<Option<(Vec<u8>, String)>> {
        for _ in 0..ATTEMPTS {
            let Some(meta) = self.head(key.clone()).await? else {
                return Ok(None);
            };
            if meta.size > MAX_RECORD_BYTES {
                let text = format!("{key}: {} bytes are too many for a record", meta.size);
                return Err(corrupt(text));
            }
            if meta.size == 0 {
                return Ok(Some((Vec::new(), meta.etag.into())));
            }
            let flags = GetFlags::FRESH.with(GetFlags::WANT_META);
            let range = Range::new(0, meta.size);
            match self.chain.get(key.clone(), range, flags).wait().await {
                // It was replaced between the two questions.
                Ok(got) if etag_of(&got) != meta.etag.as_str() => {}
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => {}
                Ok(got) => return Ok(Some((bytes_of(&got.data)?, meta.etag.into()))),
                Err(error) => return Err(error),
            }
        }
        let text = format!("{key}: it changes too fast to be read");
        Err(Error::new(Kind::Transient, text))
    }

    /// Puts an object once; its ETag.
    ///
    /// # Errors
    /// The chain's; [`Kind::Ambiguous`] too if the answer has no ETag where there must be one: it may
    /// be that of a proxy, and the store knows nothing.
    pub(in crate::layout) async fn put(
        &self,
        key: &str,
        body: Body,
        condition: Condition,
    ) -> Result<String> {
        let put = self.chain.put(key.to_owned(), body, condition);
        let etag = put.wait().await?.etag;
        if self.conditions && etag.is_empty() {
            let text = format!("the put of {key} was answered without an ETag");
            return Err(Error::new(Kind::Ambiguous, text));
        }
        Ok(etag.into())
    }

    /// Puts a record under a condition, durably. An unknown outcome is asked again until it is
    /// known: no two records have the same bytes, so what is found is ours or not.
    pub(super) async fn swap(
        &self,
        key: &str,
        record: Vec<u8>,
        condition: Condition,
    ) -> Result<Swapped> {
        let record = Bytes::from(record);
        let mut attempt = 0;
        loop {
            let body = Body::One(record.clone());
            match self.put(key, body, condition.clone()).await {
                Ok(etag) => {
                    self.settle().await?;
                    return Ok(Swapped::Done(etag));
                }
                Err(error) if may_pass(&error) && attempt + 1 < ATTEMPTS => {
                    back_off(attempt).await;
                    attempt += 1;
                }
                Err(error) if matches!(error.kind, Kind::Exists | Kind::Precondition) => {
                    let found = self.read(key.to_owned()).await?;
                    return match found {
                        Some((bytes, etag)) if bytes[..] == record[..] => {
                            self.settle().await?;
                            Ok(Swapped::Done(etag))
                        }
                        found => Ok(Swapped::Other(found)),
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A page of the objects whose names begin with `prefix` and come after `after`, and where the
    /// next one starts.
    pub(in crate::layout) async fn page(
        &self,
        prefix: &str,
        after: Option<String>,
    ) -> Result<(Vec<Meta>, Option<String>)> {
        let page = self.chain.list(prefix.to_owned(), after.clone());
        let page = page.wait().await?;
        if page.items.iter().any(|meta| !meta.key.starts_with(prefix)) {
            return Err(corrupt("the store lists what was not asked for"));
        }
        let next = page.next.into_option().map(String::from);
        // A store that does not advance would go on for ever.
        if next.is_some() && next <= after {
            return Err(corrupt("the store's list does not advance"));
        }
        Ok((page.items.into(), next))
    }

    /// The same, page after page, until `each` has enough (`false`).
    pub(in crate::layout) async fn list(
        &self,
        prefix: &str,
        mut after: Option<String>,
        mut each: impl FnMut(&Meta) -> bool + Send,
    ) -> Result<()> {
        loop {
            let (items, next) = self.page(prefix, after).await?;
            if !items.iter().all(&mut each) || next.is_none() {
                return Ok(());
            }
            after = next;
        }
    }
}
