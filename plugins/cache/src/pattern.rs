//! How an object is being read: in order, or here and there. Pure.

use std::ops::Range;

/// Requests of one stream may overtake each other by so much.
const SLACK: u64 = 256 << 10;
/// So many steps forward make a stream.
const STREAM_AFTER: u32 = 2;
/// So many reads without a step forward end it.
const IDLE_MAX: u32 = 32;

/// How far ahead to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// At first, in bytes; each further step doubles it.
    pub first: u64,
    /// In the end, in bytes; 0: not at all.
    pub most: u64,
}

/// The readings of one object, remembered in four numbers.
#[derive(Debug, Default, Clone)]
pub struct Pattern {
    /// Behind the farthest byte read by the stream.
    end: u64,
    /// Steps forward in a row.
    steps: u32,
    /// Reads inside the stream since its last step.
    idle: u32,
    /// Up to where read-ahead was advised.
    ahead: u64,
}

impl Pattern {
    /// Whether this read belongs to a stream that passes by.
    pub fn passes(&self, bytes: &Range<u64>) -> bool {
        self.is_stream() && self.is_near(bytes)
    }

    /// Whether there is a stream.
    pub fn is_stream(&self) -> bool {
        self.steps >= STREAM_AFTER
    }

    /// Notes a read. The bytes to fetch ahead, not cut to the object: at most `window.most` from the
    /// end of this read on.
    pub fn note(&mut self, bytes: &Range<u64>, window: Window) -> Option<Range<u64>> {
        let near = self.is_near(bytes);
        if near && bytes.end > self.end {
            self.steps = self.steps.saturating_add(1);
            self.end = bytes.end;
            self.idle = 0;
        } else if near && self.idle < IDLE_MAX {
            self.idle += 1;
        } else {
            *self = Self {
                end: bytes.end,
                ..Self::default()
            };
        }
        self.advice(window)
    }

    fn is_near(&self, bytes: &Range<u64>) -> bool {
        let low = self.end.saturating_sub(SLACK);
        let high = self.end.saturating_add(SLACK);
        // An object that is begun at its beginning is no stream yet: `end` was 0 there as well.
        (low..=high).contains(&bytes.start) || self.end == 0 && bytes.start == 0
    }

    fn advice(&mut self, window: Window) -> Option<Range<u64>> {
        let doublings = self.steps.checked_sub(STREAM_AFTER)?;
        let doubled = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
        let window = window.first.saturating_mul(doubled).min(window.most);
        let from = self.ahead.max(self.end);
        let to = self.end.saturating_add(window);
        // In one piece when half of it is used up, not a little at every read.
        if window == 0 || to.saturating_sub(from) < window.div_ceil(2) {
            return None;
        }
        self.ahead = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Window = Window {
        first: 128 << 10,
        most: 1 << 20,
    };

    fn read(pattern: &mut Pattern, at: u64, len: u64) -> Option<Range<u64>> {
        pattern.note(&(at..at + len), WINDOW)
    }

    proptest! {
        #[test]
        fn advice_is_bounded_and_never_given_twice(
            reads in prop::collection::vec((0u64..8 << 20, 1u64..256 << 10, 0u8..4), 1..200),
            first in 1u64..2 << 20, most in 0u64..2 << 20,
        ) {
            let mut pattern = Pattern::default();
            let (mut at, mut given) = (0, 0);
            for (jump, len, kind) in reads {
                if kind == 0 {
                    (at, given) = (jump, 0);
                }
                if let Some(ahead) = pattern.note(&(at..at + len), Window { first, most }) {
                    prop_assert!(!ahead.is_empty());
                    prop_assert!(ahead.end <= pattern.end + most && ahead.start >= at);
                    prop_assert!(kind == 0 || ahead.start >= given);
                    given = ahead.end;
                }
                at += len;
            }
        }
    }

    #[test]
    fn a_stream_is_fetched_ahead_of_without_gaps() {
        let mut pattern = Pattern::default();
        let (mut at, mut covered, mut pieces) = (0, 0, 0);
        while at < 32 << 20 {
            if let Some(ahead) = read(&mut pattern, at, 4096) {
                assert!(
                    covered == 0 || ahead.start == covered,
                    "{ahead:?} {covered}"
                );
                (covered, pieces) = (ahead.end, pieces + 1);
            }
            at += 4096;
            assert!(at < 64 << 10 || covered > at);
        }
        // Half a window at a time: few requests, none of them small.
        assert!(pieces < 80, "{pieces}");
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let mut pattern = Pattern::default();
        for at in [0u64, 2, 1, 3, 5, 4, 7, 6, 9, 8] {
            let _ = read(&mut pattern, at << 14, 1 << 14);
        }
        assert!(pattern.passes(&(10 << 14..11 << 14)));
    }

    #[test]
    fn one_place_again_and_again_is_no_stream() {
        let mut pattern = Pattern::default();
        for at in [0, 4096, 8192, 12288] {
            let _ = read(&mut pattern, at, 4096);
        }
        for _ in 0..40 {
            let _ = read(&mut pattern, 12288, 4096);
        }
        assert!(!pattern.passes(&(12288..16384)));
        for at in [900u64, 13, 700, 201, 555] {
            assert_eq!(read(&mut pattern, at << 20, 4096), None);
        }
    }
}
