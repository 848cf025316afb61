//! Changes: acknowledged when they are in the open batch.

use std::ops::Range;

use nbd_rs_plugin::{Body, Bytes, ZeroFlags};

use super::super::format::UNIT_BYTES;
use super::batch::{Batch, Empty};
use super::read::Layers;
use super::shared::Inner;
use crate::error::{Error, Kind, Result};
use crate::layout::split::cut;

/// A range as whole units, with the bytes of a unit that are left at each end.
pub(super) struct Cut {
    pub(super) whole: Range<u64>,
    /// Ranges of bytes, each inside one unit.
    pub(super) edges: Vec<Range<u64>>,
}

/// The last unit counts as whole when all that the volume has of it is covered.
pub(super) fn units_of(range: Range<u64>, size_bytes: u64) -> Cut {
    let first = range.start.div_ceil(UNIT_BYTES);
    let last = match range.end == size_bytes {
        true => range.end.div_ceil(UNIT_BYTES),
        false => range.end / UNIT_BYTES,
    };
    if first >= last {
        // Inside one unit, or with a border of two in it.
        let border = (first * UNIT_BYTES).clamp(range.start, range.end);
        let edges = [range.start..border, border..range.end];
        return Cut {
            whole: first..first,
            edges: edges.into_iter().filter(|edge| !edge.is_empty()).collect(),
        };
    }
    let edges = [
        range.start..first * UNIT_BYTES,
        (last * UNIT_BYTES).min(range.end)..range.end,
    ];
    Cut {
        whole: first..last,
        edges: edges.into_iter().filter(|edge| !edge.is_empty()).collect(),
    }
}

/// Bytes of a body in one stretch, with zeros behind them up to a whole unit.
fn units_from(body: &Body, offset: u64, len: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(len.next_multiple_of(UNIT_BYTES) as usize);
    for piece in cut(body, offset, len).pieces() {
        bytes.extend_from_slice(piece);
    }
    bytes.resize(len.next_multiple_of(UNIT_BYTES) as usize, 0);
    Bytes::from(bytes)
}

impl Inner {
    pub(super) async fn write(&self, offset: u64, body: &Body) -> Result<()> {
        self.held().await?;
        let range = offset..offset + body.len();
        let cut = units_of(range.clone(), self.geometry.size_bytes);
        for edge in cut.edges {
            let bytes = units_from(body, edge.start - offset, edge.end - edge.start);
            self.change_part(edge, Some(&bytes[..])).await?;
        }
        if cut.whole.is_empty() {
            return Ok(());
        }
        let start = cut.whole.start * UNIT_BYTES;
        let end = range.end.min(cut.whole.end * UNIT_BYTES);
        let bytes = units_from(body, start - offset, end - start);
        self.take_in(|batch| batch.write(cut.whole.start, &bytes))
            .await
    }

    pub(super) async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.held().await?;
        let mut cut = units_of(offset..offset + len, self.geometry.size_bytes);
        if flags.has(ZeroFlags::TRIM) {
            // Contract C8: what is covered in part keeps its data.
            cut.edges.clear();
        }
        if flags.has(ZeroFlags::FAST) && !cut.edges.is_empty() {
            let text = "parts of units can't be zeroed fast";
            return Err(Error::new(Kind::Unsupported, text));
        }
        for edge in cut.edges {
            self.change_part(edge, None).await?;
        }
        let empty = match flags.has(ZeroFlags::NO_HOLE) {
            true => Empty::Zero,
            false => Empty::Trim,
        };
        match cut.whole.is_empty() {
            true => Ok(()),
            false => {
                self.take_in(|batch| batch.zero(cut.whole.clone(), empty))
                    .await
            }
        }
    }

    /// Changes bytes of one unit; without any they become zeros. The unit is read before.
    async fn change_part(&self, range: Range<u64>, bytes: Option<&[u8]>) -> Result<()> {
        let unit = range.start / UNIT_BYTES;
        let _locked = self.locks.lock(unit).await;
        let (_, found) = self.units(unit..unit + 1, Layers::All).await?;
        let old = found.into_iter().find_map(|(_, bytes)| bytes);
        let mut new = match (old, bytes) {
            // It is zeros already.
            (None, None) => return Ok(()),
            (Some(old), _) => old.to_vec(),
            (None, Some(_)) => vec![0; UNIT_BYTES as usize],
        };
        let start = (range.start % UNIT_BYTES) as usize;
        let part = &mut new[start..start + (range.end - range.start) as usize];
        match bytes {
            Some(bytes) => part.copy_from_slice(&bytes[..part.len()]),
            None => part.fill(0),
        }
        let new = Bytes::from(new);
        self.take_in(|batch| batch.write(unit, &new)).await
    }

    /// Changes the open batch when it has room.
    ///
    /// # Errors
    /// [`Kind::Timeout`] if there is none for as long as patience lasts.
    pub(super) async fn take_in(&self, change: impl Fn(&mut Batch)) -> Result<()> {
        let most = self.tuning.batch_bytes;
        self.until(|core| {
            if core.is_closing {
                let text = "the volume is being closed";
                return Some(Err(Error::new(Kind::Io, text)));
            }
            if core.open.is_full(most) {
                return None;
            }
            change(&mut core.open);
            // Half a batch is worth a record; more comes meanwhile.
            if core.open.is_full(most / 2) {
                core.want();
                self.commit.notify_one();
            }
            Some(Ok(()))
        })
        .await
    }

    /// A change was taken in. It is acknowledged now, or when it is durable.
    pub(super) async fn written(&self, fua: bool) -> Result<()> {
        match fua || self.tuning.write_through {
            true => self.flush().await,
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn units_and_edges_cover_every_byte_once(
            size in 1_u64..40_000, a in 0_u64..40_000, b in 0_u64..40_000,
        ) {
            let (a, b) = (a.min(size), b.min(size));
            let range = a.min(b)..a.max(b);
            prop_assume!(!range.is_empty());
            let cut = units_of(range.clone(), size);
            let mut all = cut.edges.clone();
            for edge in &cut.edges {
                prop_assert_eq!(edge.start / UNIT_BYTES, (edge.end - 1) / UNIT_BYTES);
            }
            let whole = cut.whole.start * UNIT_BYTES..(cut.whole.end * UNIT_BYTES).min(size);
            all.extend((!cut.whole.is_empty()).then_some(whole));
            all.sort_by_key(|part| part.start);
            let mut at = range.start;
            for part in all {
                prop_assert_eq!(part.start, at);
                at = part.end;
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
