//! What all calls of one link share: the policy, a clock, chance, and counters.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbd_rs_plugin::{Error, Host, Kind, Result};

use crate::policy::{Class, Policy, Verdict};

/// At most one warning in this time; what comes between is told at debug level and counted.
const WARNING_EVERY: Duration = Duration::from_secs(5);

/// The kinds of errors after which a call may be made again.
pub const COUNTED_KINDS: [(Kind, &str); 4] = [
    (Kind::Transient, "transient"),
    (Kind::Timeout, "timeout"),
    (Kind::Ambiguous, "ambiguous"),
    (Kind::Corrupt, "corrupt"),
];

/// One opened link.
#[derive(Debug)]
pub struct Link {
    host: Host,
    policy: Policy,
    now: fn() -> Instant,
    opened: Instant,
    chance: AtomicU64,
    counters: Counters,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Attempts after the first.
    pub repeats: AtomicU64,
    /// The same by the kind of error that came before, in the order of [`COUNTED_KINDS`].
    pub repeats_by_kind: [AtomicU64; COUNTED_KINDS.len()],
    /// Time spent in pauses, of all calls together, in milliseconds.
    pub paused_ms: AtomicU64,
    /// Calls that failed first and succeeded in the end.
    pub saved: AtomicU64,
    /// Calls that used up their attempts or their time.
    pub given_up: AtomicU64,
    /// Milliseconds after opening from which on a warning may be logged again.
    next_warning_ms: AtomicU64,
    /// Repeats since the last warning.
    unsaid: AtomicU64,
}

impl Counters {
    fn repeated(&self, kind: Kind, pause: Duration) {
        let add = |counter: &AtomicU64, by| counter.fetch_add(by, Ordering::Relaxed);
        add(&self.repeats, 1);
        add(&self.paused_ms, pause.as_millis() as u64);
        let known = COUNTED_KINDS.iter().zip(&self.repeats_by_kind);
        if let Some((_, counter)) = known.into_iter().find(|((known, _), _)| *known == kind) {
            add(counter, 1);
        }
    }

    /// All of them in one line, unless nothing happened.
    pub fn summary(&self) -> Option<String> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (repeats, given_up) = (count(&self.repeats), count(&self.given_up));
        if repeats + given_up == 0 {
            return None;
        }
        let kinds = COUNTED_KINDS.iter().zip(&self.repeats_by_kind);
        let kinds = kinds.map(|((_, name), counter)| format!("{} {name}", count(counter)));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let (saved, paused) = (count(&self.saved), count(&self.paused_ms) as f64 / 1000.0);
        Some(format!(
            "retry: {repeats} repeats ({kinds}) with {paused:.1} s of pauses in all, \
             {saved} calls saved, {given_up} given up"
        ))
    }
}

/// A call, for people to read.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Which operation.
    pub operation: &'static str,
    /// On which object; may be empty.
    pub name: &'a str,
    /// What of it may be repeated.
    pub class: Class,
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            "" => f.write_str(self.operation),
            name => write!(f, "{} {name:?}", self.operation),
        }
    }
}

impl Link {
    /// A link on the machine's clock.
    pub fn new(host: Host, policy: Policy) -> Self {
        Self::with_clock(host, policy, Instant::now)
    }

    /// A link that asks `now` for the time.
    pub fn with_clock(host: Host, policy: Policy, now: fn() -> Instant) -> Self {
        Self {
            host,
            policy,
            now,
            opened: now(),
            chance: AtomicU64::new(RandomState::new().build_hasher().finish()),
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Makes a call until it succeeds or the policy says no.
    ///
    /// # Errors
    /// The last one; how often and how long it was tried, if it was tried again.
    pub async fn repeat<T, F>(&self, call: Call<'_>, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut run = self.run(call);
        loop {
            match attempt().await {
                Ok(answer) => return Ok(run.succeeded(answer)),
                Err(error) => run.failed(error).await?,
            }
        }
    }

    /// Begins a call.
    pub fn run<'a>(&'a self, call: Call<'a>) -> Run<'a> {
        Run {
            link: self,
            call,
            started: (self.now)(),
            failures: 0,
            in_doubt: false,
        }
    }

    /// One line about what happened, if anything did.
    pub fn log_summary(&self) {
        if let Some(summary) = self.counters.summary() {
            tracing::info!("{summary}");
        }
    }

    fn random(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): no lock, and good enough to spread callers.
        let step = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.chance.fetch_add(step, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Whether this repeat is the one to warn of, and how many were not told before it.
    fn may_warn(&self) -> Option<u64> {
        let counters = &self.counters;
        let now_ms = (self.now)().duration_since(self.opened).as_millis() as u64;
        let due = counters.next_warning_ms.load(Ordering::Relaxed);
        let next = now_ms + WARNING_EVERY.as_millis() as u64;
        let is_mine = now_ms >= due
            && counters
                .next_warning_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        match is_mine {
            true => Some(counters.unsaid.swap(0, Ordering::Relaxed)),
            false => {
                counters.unsaid.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    fn log_repeat(&self, call: Call<'_>, failures: u32, pause: Duration, error: &Error) {
        let pause = pause.as_millis();
        let text = &error.message;
        match self.may_warn() {
            Some(0) => {
                tracing::warn!("{call}: attempt {failures} failed, again in {pause} ms: {text}");
            }
            Some(unsaid) => tracing::warn!(
                "{call}: attempt {failures} failed, again in {pause} ms: {text} ({unsaid} more repeats since the last warning)"
            ),
            None => {
                tracing::debug!("{call}: attempt {failures} failed, again in {pause} ms: {text}");
            }
        }
    }
}

/// One call under way.
#[derive(Debug)]
pub struct Run<'a> {
    link: &'a Link,
    call: Call<'a>,
    started: Instant,
    failures: u32,
    /// Whether an attempt may have been carried out though it failed.
    in_doubt: bool,
}

impl Run<'_> {
    /// Whether an earlier attempt may have been carried out though it failed.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Counts a success, and hands its answer through.
    pub fn succeeded<T>(&self, answer: T) -> T {
        if self.failures > 0 {
            self.link.counters.saved.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// After a failed attempt: waits, if there is to be another.
    ///
    /// # Errors
    /// The final one, if there is not.
    pub async fn failed(&mut self, error: Error) -> Result<()> {
        self.failures += 1;
        self.in_doubt |= error.kind == Kind::Ambiguous;
        let (link, class) = (self.link, self.call.class);
        let elapsed = (link.now)().duration_since(self.started);
        let random = link.random();
        let verdict = link
            .policy
            .decide(class, self.failures, elapsed, &error, random);
        if let Verdict::Wait(pause) = verdict {
            link.counters.repeated(error.kind, pause);
            link.log_repeat(self.call, self.failures, pause, &error);
            link.host.sleep(pause).await;
            return Ok(());
        }
        if verdict == Verdict::Exhausted {
            link.counters.given_up.fetch_add(1, Ordering::Relaxed);
        }
        Err(self.last_word(error, elapsed))
    }

    /// The error that the caller gets: the last one, said to be what all attempts together are.
    fn last_word(&self, mut error: Error, elapsed: Duration) -> Error {
        if self.in_doubt && self.call.class != Class::Read {
            // An earlier attempt may still have been carried out, or be carried out later.
            error.kind = Kind::Ambiguous;
        }
        if self.failures == 1 {
            return error;
        }
        let (call, failures, elapsed) = (self.call, self.failures, elapsed.as_secs_f64());
        error.context(format_args!(
            "{call}: gave up after {failures} attempts in {elapsed:.1} s"
        ))
    }
}
