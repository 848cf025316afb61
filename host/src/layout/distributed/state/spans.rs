//! Values of ranges of numbers. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that do not overlap, each with a value.
#[derive(Debug, Clone, Default)]
pub(super) struct Spans<V>(BTreeMap<u64, (u64, V)>);

impl<V: Copy> Spans<V> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn get(&self, at: u64) -> Option<V> {
        let (_, &(end, value)) = self.0.range(..=at).next_back()?;
        (at < end).then_some(value)
    }

    /// All of the range has this value from now on.
    pub(super) fn set(&mut self, range: Range<u64>, value: V) {
        while let Some((&start, &(end, old))) = self.0.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, (end, old));
            }
            if start < range.start {
                self.0.insert(start, (range.start, old));
                break;
            }
        }
        if !range.is_empty() {
            self.0.insert(range.start, (range.end, value));
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_agree_with_a_plain_list(sets in prop::collection::vec((0_u64..60, 1_u64..20), 0..40)) {
            let (mut spans, mut model) = (Spans::new(), vec![None; 100]);
            for (value, (start, len)) in sets.into_iter().enumerate() {
                spans.set(start..start + len, value);
                model[start as usize..(start + len) as usize].fill(Some(value));
                let all: Vec<_> = (0..100).map(|at| spans.get(at)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }
}
