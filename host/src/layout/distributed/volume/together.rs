//! Changes that one record has: after a crash all of them are there or none.

use std::collections::BTreeMap;
use std::ops::Range;

use futures_util::stream::{self, StreamExt};
use nbd_rs_journal::change::{Change, What};
use nbd_rs_plugin::Bytes;

use super::super::format::UNIT_BYTES;
use super::batch::{Batch, Empty};
use super::read::Layers;
use super::shared::Inner;
use super::write::{units_of, Cut};
use crate::error::{Error, Result};

/// Units that are read at the same time.
const AT_ONCE: usize = 16;

/// Units that are changed in part, as they are and as they become; or why they can't be read.
type Parts = BTreeMap<u64, Result<Vec<u8>>>;

impl Inner {
    /// Takes changes in at once. A result for each: one whose unit can't be read keeps no other from
    /// being made.
    ///
    /// # Errors
    /// As for a write. Then none was made.
    pub(super) async fn together(&self, changes: &[Change]) -> Result<Vec<Result<()>>> {
        self.held().await?;
        let range = |change: &Change| change.offset..change.offset + change.len;
        let cuts = changes.iter().map(range);
        let cuts: Vec<Cut> = cuts
            .map(|it| units_of(it, self.geometry.size_bytes))
            .collect();
        let edges = cuts.iter().flat_map(|cut| &cut.edges);
        let mut parts: Parts = edges
            .map(|edge| (edge.start / UNIT_BYTES, Ok(Vec::new())))
            .collect();
        // In this order: whoever takes several never waits for one who waits for it.
        let mut locked = Vec::with_capacity(parts.len());
        for &unit in parts.keys() {
            locked.push(self.locks.lock(unit).await);
        }
        self.read_parts(&mut parts).await;
        let made: Vec<Result<()>> = changes
            .iter()
            .zip(&cuts)
            .map(|(change, cut)| change_parts(change, &cut.edges, &mut parts))
            .collect();
        self.take_in(|batch| {
            for ((change, cut), made) in changes.iter().zip(&cuts).zip(&made) {
                if made.is_ok() {
                    change_whole(batch, change, cut.whole.clone());
                }
            }
            for (&unit, bytes) in &parts {
                if let Ok(bytes) = bytes {
                    batch.write(unit, &Bytes::from(bytes.clone()));
                }
            }
        })
        .await?;
        Ok(made)
    }

    async fn read_parts(&self, parts: &mut Parts) {
        let units: Vec<u64> = parts.keys().copied().collect();
        let reads = units.into_iter().map(|unit| async move {
            let read = self.units(unit..unit + 1, Layers::All).await;
            let bytes = read.map(|(_, found)| {
                let bytes = found.into_iter().find_map(|(_, bytes)| bytes);
                bytes.map_or_else(|| vec![0; UNIT_BYTES as usize], |bytes| bytes.to_vec())
            });
            (unit, bytes)
        });
        // Collected first: a stream over borrowed closures is not general enough for a task.
        let reads: Vec<_> = reads.collect();
        *parts = stream::iter(reads).buffered(AT_ONCE).collect().await;
    }
}

/// What a change says of bytes of the volume; none if they are zeros.
fn data_of(change: &Change, range: &Range<u64>) -> Option<Bytes> {
    match &change.what {
        What::Zero | What::Trim => None,
        What::Data(data) => {
            let (start, end) = (range.start - change.offset, range.end - change.offset);
            let bytes = Bytes::from_owner(data.clone());
            Some(bytes.slice(start as usize..end as usize))
        }
    }
}

fn change_parts(change: &Change, edges: &[Range<u64>], parts: &mut Parts) -> Result<()> {
    let unit = |edge: &Range<u64>| edge.start / UNIT_BYTES;
    let unreadable = |edge: &Range<u64>| parts.get(&unit(edge))?.as_ref().err().cloned();
    if let Some(error) = edges.iter().find_map(unreadable) {
        let error: Error = error;
        return Err(error);
    }
    for edge in edges {
        let Some(Ok(bytes)) = parts.get_mut(&unit(edge)) else {
            continue;
        };
        let start = (edge.start % UNIT_BYTES) as usize;
        let part = &mut bytes[start..start + (edge.end - edge.start) as usize];
        match data_of(change, edge) {
            Some(data) => part.copy_from_slice(&data),
            None => part.fill(0),
        }
    }
    Ok(())
}

fn change_whole(batch: &mut Batch, change: &Change, units: Range<u64>) {
    if units.is_empty() {
        return;
    }
    let end = (units.end * UNIT_BYTES).min(change.offset + change.len);
    match data_of(change, &(units.start * UNIT_BYTES..end)) {
        None => batch.zero(units, Empty::Trim),
        Some(data) if data.len().is_multiple_of(UNIT_BYTES as usize) => {
            batch.write(units.start, &data)
        }
        // The volume's end cuts the last one.
        Some(data) => {
            let mut padded = data.to_vec();
            padded.resize(padded.len().next_multiple_of(UNIT_BYTES as usize), 0);
            batch.write(units.start, &Bytes::from(padded));
        }
    }
}
