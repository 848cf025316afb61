//! Values of ranges of numbers. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that do not overlap, each with a value.
#[derive(Debug, Clone, Default)]
pub(in crate::layout::distributed) struct Spans<V>(BTreeMap<u64, (u64, V)>);

impl<V: Copy> Spans<V> {
    pub(in crate::layout::distributed) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(in crate::layout::distributed) fn get(&self, at: u64) -> Option<V> {
        let (_, &(end, value)) = self.0.range(..=at).next_back()?;
        (at < end).then_some(value)
    }

    /// All of the range has this value from now on.
    pub(in crate::layout::distributed) fn set(&mut self, range: Range<u64>, value: V) {
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

    /// What there is of a range, in order.
    pub(in crate::layout::distributed) fn within(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, V)> + '_ {
        let first = self.0.range(..=range.start).next_back();
        let first = first.map_or(range.start, |(&start, _)| start);
        let spans = self.0.range(first..range.end.max(first));
        let cut = move |(&start, &(end, value)): (&u64, &(u64, V))| {
            (start.max(range.start)..end.min(range.end), value)
        };
        spans.map(cut).filter(|(part, _)| !part.is_empty())
    }

    /// How many there are.
    pub(in crate::layout::distributed) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::layout::distributed) fn clear(&mut self) {
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
