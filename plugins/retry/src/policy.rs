//! After a failed attempt: wait and ask again, or give up. Pure: time and chance come in.

use std::time::Duration;

use nbd_rs_plugin::{options, Error, Kind};

/// What may be repeated of a call, and so after which errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Changes nothing: may always be asked again, and a wrong answer a few times.
    Read,
    /// Carried out twice is the same as once: may be repeated though its outcome is unknown.
    Idempotent,
    /// Repeated only when it is certain that nothing happened.
    Once,
    /// Never repeated, whatever happened: a failed sync is told once.
    Never,
}

/// How often, how long, how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all, the first one included; at least 1.
    pub attempts: u32,
    /// No attempt begins later than this after the first.
    pub time: Duration,
    /// The longest first pause.
    pub base: Duration,
    /// The longest pause of our own choice.
    pub max: Duration,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ask again after this pause.
    Wait(Duration),
    /// This error would come again, or the call may not be repeated after it.
    Permanent,
    /// Attempts or time are used up.
    Exhausted,
}

/// Wrong data may have been spoilt on the way, so a read is made so often; then it is the store's.
const CORRUPT_ATTEMPTS: u32 = 3;

impl Policy {
    /// What to do after attempt number `attempt` (from 1) of a call that began `elapsed` ago
    /// failed with `error`. `random` is any number: each gives another pause.
    pub fn decide(
        &self,
        class: Class,
        attempt: u32,
        elapsed: Duration,
        error: &Error,
        random: u64,
    ) -> Verdict {
        if !repeatable(class, error.kind) {
            return Verdict::Permanent;
        }
        let limit = match error.kind {
            Kind::Corrupt => CORRUPT_ATTEMPTS.min(self.attempts),
            _ => self.attempts,
        };
        let asked_for = retry_after(&error.message).unwrap_or_default();
        let pause = self.pause(attempt, random).max(asked_for);
        if attempt >= limit || elapsed.saturating_add(pause) > self.time {
            return Verdict::Exhausted;
        }
        Verdict::Wait(pause)
    }

    /// Exponential with full jitter: anything up to the doubled-up base, so that many callers that
    /// failed together do not come back together.
    fn pause(&self, attempt: u32, random: u64) -> Duration {
        let doubled = 2u32.saturating_pow(attempt.saturating_sub(1));
        let ceiling = self.base.saturating_mul(doubled).min(self.max);
        let ceiling = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
        let chosen = (u128::from(ceiling) * u128::from(random)) >> 64;
        Duration::from_micros(chosen as u64)
    }
}

/// Whether a call of this class may be made again after an error of this kind.
pub fn repeatable(class: Class, kind: Kind) -> bool {
    match kind {
        Kind::Transient | Kind::Timeout => class != Class::Never,
        Kind::Ambiguous => matches!(class, Class::Read | Class::Idempotent),
        Kind::Corrupt => class == Class::Read,
        // Busy too: who holds a lock is not gone in a moment, and a second start has to be told.
        _ => false,
    }
}

/// The pause that a store asks for in an error: the words `retry-after=5s` (or `ms`, `m`) anywhere
/// in its text, ended by a space, a comma, a bracket or the end.
pub fn retry_after(message: &str) -> Option<Duration> {
    let (_, behind) = message.rsplit_once("retry-after=")?;
    let end = behind.find(|c: char| !c.is_ascii_alphanumeric());
    options::duration(&behind[..end.unwrap_or(behind.len())]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLASSES: [Class; 4] = [Class::Read, Class::Idempotent, Class::Once, Class::Never];

    fn policy() -> impl Strategy<Value = Policy> {
        (1u32..50, 0u64..100_000, 1u64..5000, 0u64..100_000).prop_map(
            |(attempts, time, base, more)| Policy {
                attempts,
                time: Duration::from_millis(time),
                base: Duration::from_millis(base),
                max: Duration::from_millis(base + more),
            },
        )
    }

    fn error() -> impl Strategy<Value = Error> {
        let text = prop_oneof![
            Just("503 SlowDown".to_owned()),
            "[ -~]{0,40}",
            (0u64..100_000).prop_map(|s| format!("503, retry-after={s}s")),
        ];
        (0u32..20, text).prop_map(|(kind, text)| Error::new(Kind(kind), text))
    }

    proptest! {
        #[test]
        fn a_call_ends_within_its_attempts_and_its_time(
            policy in policy(), error in error(), class in 0usize..4, took in 0u64..5000,
            randoms in prop::collection::vec(any::<u64>(), 60),
        ) {
            let (mut elapsed, mut attempt) = (Duration::ZERO, 0);
            for random in randoms {
                prop_assert!(elapsed <= policy.time + Duration::from_millis(0));
                attempt += 1;
                let failed_at = elapsed + Duration::from_millis(took);
                match policy.decide(CLASSES[class], attempt, failed_at, &error, random) {
                    Verdict::Wait(pause) => elapsed = failed_at + pause,
                    Verdict::Permanent | Verdict::Exhausted => return Ok(()),
                }
                prop_assert!(attempt < policy.attempts);
            }
            prop_assert!(false, "never gave up");
        }

        #[test]
        fn a_pause_is_at_least_what_was_asked_for_and_else_at_most_the_doubled_base(
            policy in policy(), attempt in 1u32..40, random: u64, after in prop::option::of(1u64..20),
        ) {
            let text = after.map(|s| format!("503 (retry-after={s}s)")).unwrap_or_default();
            let error = Error::new(Kind::Transient, text);
            let verdict = policy.decide(Class::Once, attempt, Duration::ZERO, &error, random);
            if let Verdict::Wait(pause) = verdict {
                let asked = Duration::from_secs(after.unwrap_or(0));
                let own = policy.base.saturating_mul(2u32.saturating_pow(attempt - 1));
                prop_assert!(pause >= asked);
                prop_assert!(pause <= own.min(policy.max).max(asked));
                prop_assert!(pause <= policy.time);
            }
        }

        #[test]
        fn only_what_may_be_repeated_is(kind in 0u32..20, attempt in 1u32..5, random: u64) {
            let policy = Policy {
                attempts: 100,
                time: Duration::from_secs(1000),
                base: Duration::from_millis(1),
                max: Duration::from_secs(1),
            };
            let error = Error::new(Kind(kind), "");
            for class in CLASSES {
                let verdict = policy.decide(class, attempt, Duration::ZERO, &error, random);
                let waits = matches!(verdict, Verdict::Wait(_));
                let may = match Kind(kind) {
                    Kind::Transient | Kind::Timeout => class != Class::Never,
                    Kind::Ambiguous => class == Class::Read || class == Class::Idempotent,
                    Kind::Corrupt => class == Class::Read && attempt < 3,
                    _ => false,
                };
                prop_assert_eq!(waits, may, "{:?} {:?}", class, error.kind);
            }
        }

        #[test]
        fn no_text_upsets_the_reader_of_retry_after(text in ".{0,60}") {
            let _ = retry_after(&text);
            let _ = retry_after(&format!("retry-after={text}"));
        }
    }

    #[test]
    fn f38_what_a_store_asks_for_is_understood() {
        for (text, millis) in [
            ("503 SlowDown, retry-after=5s", Some(5000)),
            ("put k: 503 (retry-after=250ms): slow down", Some(250)),
            ("429 retry-after=2m", Some(120_000)),
            ("503 retry-after=", None),
            ("503 retry-after=soon", None),
            ("503 retry-after=5", None),
            ("503", None),
        ] {
            assert_eq!(
                retry_after(text),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn a_longer_wait_than_there_is_time_is_not_begun() {
        let policy = crate::config::policy(&[]).unwrap();
        let error = Error::new(Kind::Transient, "503 retry-after=31s");
        let verdict = policy.decide(Class::Read, 1, Duration::ZERO, &error, 0);
        assert_eq!(verdict, Verdict::Exhausted);
    }

    #[test]
    fn pauses_spread_over_the_whole_of_their_room() {
        let policy = crate::config::policy(&[]).unwrap();
        assert_eq!(policy.pause(1, 0), Duration::ZERO);
        let half = policy.pause(3, u64::MAX / 2);
        assert_eq!(half.as_millis(), 199);
        assert_eq!(policy.pause(30, u64::MAX).as_millis(), 4999);
    }
}
