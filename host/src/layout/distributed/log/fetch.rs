//! The payload of a record, from memory or from a backend that has it whole.

use nbd_rs_commit_log::{Entry, Position};
use nbd_rs_plugin::{Bytes, Range};

use super::object::{slot_key, Seal, HEADER_BYTES};
use super::payloads::Payload;
use super::shared::Shared;
use super::slots::Slots;
use crate::error::{Error, Kind, Result};

fn gone(position: Position) -> Error {
    let text = format!("the record {position:?} is on no backend any more");
    Error::new(Kind::NotFound, text)
}

impl Shared {
    /// The payload of a record, as it was written.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no backend has it any more; [`Kind::Corrupt`] if it is damaged wherever it
    /// lies; else that of a backend that may have it.
    pub(super) async fn payload(&self, position: Position) -> Result<Payload> {
        if let Some(payload) = self.core().payload(position) {
            return Ok(payload);
        }
        let mut last = None;
        for (backend, slot, seal) in self.places(position) {
            if seal.len == 0 {
                return Ok(Payload::empty());
            }
            match self.read_payload(backend, slot, seal, position).await {
                Ok(Some(payload)) => return Ok(payload),
                Ok(None) => {}
                Err(error) if error.kind == Kind::Corrupt && last.is_some() => {}
                Err(error) => last = Some(error.context(self.callers[backend].name())),
            }
        }
        Err(last.unwrap_or_else(|| gone(position)))
    }

    /// A part of a payload that `is_sound`, without the rest.
    ///
    /// # Errors
    /// As for [`payload`](Self::payload).
    pub(super) async fn part(
        &self,
        position: Position,
        range: Range,
        is_sound: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<Bytes> {
        if let Some(payload) = self.core().payload(position) {
            if let Some(bytes) = payload.part(range).filter(|bytes| is_sound(bytes)) {
                return Ok(bytes);
            }
        }
        let behind = Range::new(HEADER_BYTES as u64 + range.offset, range.len);
        let mut last = None;
        for (backend, slot, _) in self.places(position) {
            let caller = &self.callers[backend];
            for fresh in [false, true] {
                match caller.range(slot_key(slot), behind, fresh).await {
                    Ok(Some(bytes)) if is_sound(&bytes) => return Ok(bytes),
                    Ok(Some(_)) if fresh => {
                        self.core().known[backend].note_damage(slot);
                        let damaged = Error::new(Kind::Corrupt, "a log record is damaged");
                        last.get_or_insert(damaged.context(caller.name()));
                    }
                    // It may be a copy on the way that is damaged.
                    Ok(Some(_)) => continue,
                    Ok(None) => {}
                    Err(error) => last = Some(error.context(caller.name())),
                }
                break;
            }
        }
        Err(last.unwrap_or_else(|| gone(position)))
    }

    /// Where it lies, those that answer first.
    fn places(&self, position: Position) -> Vec<(usize, u64, Seal)> {
        let core = self.core();
        let mut places = Vec::new();
        for is_away in [false, true] {
            for (backend, known) in core.known.iter().enumerate() {
                if known.away_since.is_some() == is_away {
                    let place = known.place(position);
                    places.extend(place.map(|(slot, seal)| (backend, slot, seal)));
                }
            }
        }
        places
    }

    async fn read_payload(
        &self,
        backend: usize,
        slot: u64,
        seal: Seal,
        position: Position,
    ) -> Result<Option<Payload>> {
        let slots = self.slots(backend);
        let mut read = slots.whole(slot, seal, false).await;
        if matches!(&read, Err(error) if error.kind == Kind::Corrupt) {
            // It may be a copy on the way that is damaged.
            read = slots.whole(slot, seal, true).await;
        }
        if matches!(&read, Err(error) if error.kind == Kind::Corrupt) {
            self.core().known[backend].note_damage(slot);
        }
        let is_it = |entry: &Entry| matches!(entry, Entry::Record { record, .. } if record.position == position);
        let found = read?.filter(|(entry, _)| is_it(entry));
        Ok(found.map(|(_, payload)| payload))
    }

    pub(super) fn slots(&self, backend: usize) -> Slots<'_> {
        Slots {
            caller: &self.callers[backend],
            volume: self.config.volume,
        }
    }
}
