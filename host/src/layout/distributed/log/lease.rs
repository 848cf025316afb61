//! Until when this owner may serve reads and acknowledge records.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Asked before every read, so it is two loads.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Microseconds of the environment's clock.
    until_us: AtomicU64,
    /// Ended for good.
    over: AtomicBool,
}

impl Lease {
    /// Nobody newer had started at some moment; it holds until `until`, if not longer already.
    pub(super) fn renew(&self, until: Duration) {
        self.until_us.fetch_max(micros(until), Ordering::AcqRel);
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(super) fn holds(&self, now: Duration) -> bool {
        self.left(now) > Duration::ZERO
    }

    /// How much longer.
    pub(super) fn left(&self, now: Duration) -> Duration {
        if self.over.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let until = self.until_us.load(Ordering::Acquire);
        Duration::from_micros(until.saturating_sub(micros(now)))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c17_a_lease_runs_out_and_does_not_come_back_from_its_end() {
        let lease = Lease::default();
        let s = Duration::from_secs;
        assert!(!lease.holds(s(0)));
        lease.renew(s(10));
        lease.renew(s(5));
        assert!(lease.holds(s(9)) && !lease.holds(s(10)));
        lease.renew(s(20));
        assert_eq!(lease.left(s(12)), s(8));
        lease.end();
        lease.renew(s(30));
        assert!(!lease.holds(s(12)));
    }
}
