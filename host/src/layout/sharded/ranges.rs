//! A set of numbers that come in runs. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// Runs that neither touch nor overlap, by their start.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, at: u64) -> bool {
        let before = self.0.range(..=at).next_back();
        before.is_some_and(|(_, &end)| at < end)
    }

    /// Whether any of `range` is in the set.
    pub(super) fn touches(&self, range: Range<u64>) -> bool {
        let before = self.0.range(..range.end).next_back();
        !range.is_empty() && before.is_some_and(|(_, &end)| end > range.start)
    }

    pub(super) fn insert(&mut self, mut range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..=range.end).next_back() {
            if end < range.start {
                break;
            }
            range = range.start.min(start)..range.end.max(end);
            self.0.remove(&start);
        }
        self.0.insert(range.start, range.end);
    }

    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..range.end).next_back() {
            if end <= range.start {
                return;
            }
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, range.start);
            }
            if end > range.end {
                self.0.insert(range.end, end);
            }
        }
    }

    /// All runs, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// Takes out the first run, `most` of it at the most.
    pub(super) fn take(&mut self, most: u64) -> Option<Range<u64>> {
        let (start, end) = self.0.pop_first()?;
        let cut = end.min(start.saturating_add(most));
        if cut < end {
            self.0.insert(cut, end);
        }
        Some(start..cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn runs_agree_with_a_plain_set(
            changes in prop::collection::vec((any::<bool>(), 0u64..100, 0u64..20), 0..60),
            most in 1u64..9,
        ) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (insert, start, len) in changes {
                let range = start..start + len;
                match insert {
                    true => { ranges.insert(range.clone()); model.extend(range); }
                    false => { ranges.remove(range.clone()); model.retain(|at| !range.contains(at)); }
                }
                for at in 0..121 {
                    prop_assert_eq!(ranges.contains(at), model.contains(&at));
                    prop_assert_eq!(ranges.touches(at..at + 5), model.range(at..at + 5).next().is_some());
                }
            }
            // No two runs touch, and taking them out gives the set again.
            let ends: Vec<(u64, u64)> = ranges.0.iter().map(|(&a, &b)| (a, b)).collect();
            prop_assert!(ends.windows(2).all(|two| two[0].1 < two[1].0));
            let mut taken = BTreeSet::new();
            while let Some(range) = ranges.take(most) {
                prop_assert!(!range.is_empty() && range.end - range.start <= most);
                taken.extend(range);
            }
            prop_assert_eq!(taken, model);
        }
    }
}
