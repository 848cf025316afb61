//! What is allocated, in bytes.

use nbd_rs_plugin::{Extent, ExtentFlags};

use super::super::format::UNIT_BYTES;
use super::super::state::Allocation;
use super::batch::{cover, Cell, Empty};
use super::shared::Inner;

impl Inner {
    /// At most `limit` extents from `offset` on; neighbours differ.
    pub(super) fn extents(&self, offset: u64, len: u64, limit: usize) -> Vec<Extent> {
        let end = offset + len;
        let units = offset / UNIT_BYTES..end.div_ceil(UNIT_BYTES);
        let core = self.core();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        for (units, cell) in cover(&core.batches(), units) {
            let known = match cell {
                Some(Cell::Data(_)) => Some(Allocation::Data),
                Some(Cell::Empty(Empty::Zero)) => Some(Allocation::Zero),
                Some(Cell::Empty(Empty::Trim)) => Some(Allocation::Hole),
                None => None,
            };
            let found = match known {
                Some(known) => vec![(units.clone(), known)],
                None => core.state.allocation(units.clone(), limit),
            };
            // What comes behind must not stand in the place of what was not told.
            let is_whole = found.last().is_some_and(|(last, _)| last.end == units.end);
            for (units, allocation) in found {
                let until = end.min(units.end * UNIT_BYTES);
                let (len, flags) = (until - at, flags(allocation));
                at = until;
                let is_full = extents.len() == limit;
                match extents.last_mut() {
                    Some(last) if last.flags == flags => last.len += len,
                    _ if is_full => return extents,
                    _ => extents.push(Extent { len, flags }),
                }
            }
            if !is_whole {
                break;
            }
        }
        extents
    }
}

fn flags(allocation: Allocation) -> ExtentFlags {
    match allocation {
        Allocation::Data => ExtentFlags::NONE,
        Allocation::Zero => ExtentFlags::ZERO,
        Allocation::Hole => ExtentFlags::HOLE | ExtentFlags::ZERO,
    }
}
