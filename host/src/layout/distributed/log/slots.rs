//! Reading floors and slots of one backend.

use futures_util::future::join_all;
use nbd_rs_commit_log::{Entry, Floor};
use nbd_rs_plugin::Bytes;

use super::call::Caller;
use super::object::{decode_floor, decode_slot, floor_key, slot_key, Seal, HEADER_BYTES};
use super::payloads::Payload;
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::Uuid;

/// Slots that are read at once where a log is long.
const MAX_AHEAD: u64 = 16;

/// The log of one volume on one backend.
pub(super) struct Slots<'a> {
    pub(super) caller: &'a Caller,
    pub(super) volume: Uuid,
}

/// How many slots are read at once: more where more are found.
#[derive(Debug)]
pub(super) struct Ahead(u64);

impl Default for Ahead {
    fn default() -> Self {
        Self(1)
    }
}

impl Slots<'_> {
    pub(super) async fn floor(&self, number: u64) -> Result<Option<Floor>> {
        let key = floor_key(number);
        let read = self.caller.read_fresh(key.clone(), HEADER_BYTES as u64);
        let Some(bytes) = read.await? else {
            return Ok(None);
        };
        let floor = decode_floor(self.volume, number, &bytes);
        floor.map(Some).map_err(|error| error.context(key))
    }

    /// What lies in a slot; the payload is not looked at.
    pub(super) async fn header(&self, slot: u64) -> Result<Option<(Entry, Seal)>> {
        let key = slot_key(slot);
        let read = self.caller.read_fresh(key.clone(), HEADER_BYTES as u64);
        let Some(bytes) = read.await? else {
            return Ok(None);
        };
        let found = decode_slot(self.volume, slot, &bytes);
        found.map(Some).map_err(|error| error.context(key))
    }

    /// What lies in a slot and in those behind it, as far as it could be read at once. What was not
    /// found behind the first one is left out: it may be there by the time that one gets there.
    ///
    /// # Errors
    /// Those of the first slot.
    pub(super) async fn from(
        &self,
        slot: u64,
        ahead: &mut Ahead,
    ) -> Result<Vec<(u64, Entry, Seal)>> {
        let slots = slot..slot.saturating_add(ahead.0);
        let mut reads = join_all(slots.clone().map(|slot| self.header(slot))).await;
        reads.reverse();
        let mut found = Vec::with_capacity(reads.len());
        for slot in slots {
            match reads.pop() {
                Some(Ok(Some((entry, seal)))) => found.push((slot, entry, seal)),
                Some(Err(error)) if found.is_empty() => return Err(error),
                _ => break,
            }
        }
        ahead.0 = match found.is_empty() {
            true => 1,
            false => (ahead.0 * 2).min(MAX_AHEAD),
        };
        Ok(found)
    }

    /// The entry of a slot with its payload, which is as it was written. None if the slot is empty.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the object is not what was written.
    pub(super) async fn whole(
        &self,
        slot: u64,
        seal: Seal,
        fresh: bool,
    ) -> Result<Option<(Entry, Payload)>> {
        let key = slot_key(slot);
        let len = HEADER_BYTES as u64 + seal.len;
        let read = match fresh {
            true => self.caller.read_fresh(key.clone(), len).await?,
            false => self.caller.read(key.clone(), len).await?,
        };
        let Some(bytes) = read else {
            return Ok(None);
        };
        let checked = self.checked(slot, seal, &bytes);
        checked.map(Some).map_err(|error| error.context(key))
    }

    fn checked(&self, slot: u64, seal: Seal, bytes: &Bytes) -> Result<(Entry, Payload)> {
        let damaged = || Error::new(Kind::Corrupt, "a log record is damaged (checksum)");
        let header = bytes.get(..HEADER_BYTES).ok_or_else(damaged)?;
        let (entry, said) = decode_slot(self.volume, slot, header)?;
        let payload = Payload::new(bytes.clone().slice(HEADER_BYTES..bytes.len()).into());
        match payload.seal == said && said == seal {
            true => Ok((entry, payload)),
            false => Err(damaged()),
        }
    }
}
