//! Counts calls, bytes, failures and times.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbd_rs_plugin::options::display_size;
use nbd_rs_plugin::Result;

use crate::config::{Config, Each};

/// Powers of two of a microsecond: the last one holds all that took longer than twelve days.
const TIMES: usize = 40;

/// The calls there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Get,
    Put,
    Head,
    Delete,
    List,
    Flush,
    Open,
    Size,
    Read,
    Write,
    Zero,
    Extents,
    Prefetch,
    Resize,
    Sync,
}

const NAMES: [&str; 15] = [
    "get", "put", "head", "delete", "list", "flush", "open", "size", "read", "write", "zero",
    "extents", "prefetch", "resize", "sync",
];

/// What came of the calls of one kind.
#[derive(Debug)]
struct Counters {
    failed: AtomicU64,
    dropped: AtomicU64,
    bytes: AtomicU64,
    longest_us: AtomicU64,
    times: [AtomicU64; TIMES],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; TIMES],
        }
    }
}

/// Everything that one link has seen.
#[derive(Debug)]
pub struct Meter {
    name: String,
    config: Config,
    counters: [Counters; NAMES.len()],
    told: AtomicBool,
}

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub struct What<'a> {
    /// Which call.
    pub op: Op,
    /// The object's name.
    pub key: &'a str,
    /// Where in the object, if that is said.
    pub offset: Option<u64>,
    /// Bytes that are asked for or sent.
    pub bytes: u64,
}

impl<'a> What<'a> {
    /// A call about a whole object, or about all of them.
    pub fn new(op: Op, key: &'a str) -> Self {
        Self {
            op,
            key,
            offset: None,
            bytes: 0,
        }
    }

    /// A call about a part.
    pub fn at(op: Op, key: &'a str, offset: u64, bytes: u64) -> Self {
        Self {
            op,
            key,
            offset: Some(offset),
            bytes,
        }
    }
}

/// A call that goes on. Who drops it has left without waiting for the answer.
#[derive(Debug)]
pub struct Call<'a> {
    meter: &'a Meter,
    what: What<'a>,
    started: Instant,
    over: bool,
}

impl Meter {
    /// Nothing seen yet; `name` is in every line.
    pub fn new(name: &str, config: Config) -> Self {
        Self {
            name: name.to_owned(),
            config,
            counters: std::array::from_fn(|_| Counters::default()),
            told: AtomicBool::new(false),
        }
    }

    /// A call begins.
    pub fn start<'a>(&'a self, what: What<'a>) -> Call<'a> {
        Call {
            meter: self,
            what,
            started: Instant::now(),
            over: false,
        }
    }

    fn record<T>(&self, what: &What<'_>, took: Duration, result: &Result<T>) {
        let counters = &self.counters[what.op as usize];
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        counters.times[bucket(micros)].fetch_add(1, Ordering::Relaxed);
        counters.longest_us.fetch_max(micros, Ordering::Relaxed);
        match result {
            Ok(_) => counters.bytes.fetch_add(what.bytes, Ordering::Relaxed),
            Err(_) => counters.failed.fetch_add(1, Ordering::Relaxed),
        };
        let line = || self.line(what, took, result);
        match self.config.slow {
            Some(slow) if took >= slow => tracing::warn!("slow: {}", line()),
            _ => match self.config.each {
                Each::Debug => tracing::debug!("{}", line()),
                Each::Info => tracing::info!("{}", line()),
                Each::Off => {}
            },
        }
    }

    fn line<T>(&self, what: &What<'_>, took: Duration, result: &Result<T>) -> String {
        let mut line = format!("{}: {}", self.name, NAMES[what.op as usize]);
        if !what.key.is_empty() {
            let _ = write!(line, " {:?}", what.key);
        }
        if what.bytes > 0 {
            let _ = write!(line, " {} bytes", what.bytes);
        }
        if let Some(offset) = what.offset {
            let _ = write!(line, " at {offset}");
        }
        let _ = write!(line, ": {}", time(took));
        if let Err(error) = result {
            let _ = write!(line, ", {}: {}", error.kind, error.message);
        }
        line
    }

    /// A line for each kind of call that there was.
    pub fn totals(&self) -> Vec<String> {
        let all = NAMES.iter().zip(&self.counters);
        let lines = all.filter_map(|(name, counters)| Some((name, counters.text()?)));
        lines
            .map(|(name, text)| format!("{}: {name}: {text}", self.name))
            .collect()
    }

    /// Logs the totals, once.
    pub fn tell(&self) {
        if !self.told.swap(true, Ordering::Relaxed) {
            for line in self.totals() {
                tracing::info!("{line}");
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Call<'_> {
    /// It is answered.
    pub fn done<T>(mut self, result: Result<T>) -> Result<T> {
        self.over = true;
        self.meter
            .record(&self.what, self.started.elapsed(), &result);
        result
    }

    /// It is answered, with so many bytes.
    pub fn done_with<T>(mut self, bytes: impl FnOnce(&T) -> u64, result: Result<T>) -> Result<T> {
        if let Ok(answer) = &result {
            self.what.bytes = bytes(answer);
        }
        self.done(result)
    }

    /// It was not made: the answer is not at hand, and it will be asked for again.
    pub fn not_made(mut self) {
        self.over = true;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.over {
            let counters = &self.meter.counters[self.what.op as usize];
            counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Counters {
    fn text(&self) -> Option<String> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let times: Vec<u64> = self.times.iter().map(load).collect();
        let calls: u64 = times.iter().sum();
        let (failed, dropped) = (load(&self.failed), load(&self.dropped));
        if calls + dropped == 0 {
            return None;
        }
        let mut text = format!("{calls} calls");
        if load(&self.bytes) > 0 {
            let _ = write!(text, ", {}", display_size(load(&self.bytes)));
        }
        if failed > 0 {
            let _ = write!(text, ", {failed} failed");
        }
        if dropped > 0 {
            let _ = write!(text, ", {dropped} not waited for");
        }
        if calls > 0 {
            let (half, most) = (within(&times, calls, 50), within(&times, calls, 99));
            let longest = time(Duration::from_micros(load(&self.longest_us)));
            let _ = write!(
                text,
                "; half below {half}, 99% below {most}, longest {longest}"
            );
        }
        Some(text)
    }
}

/// The first power of two above a time.
fn bucket(micros: u64) -> usize {
    let bits = (u64::BITS - micros.leading_zeros()) as usize;
    bits.min(TIMES - 1)
}

/// Below which time so many in a hundred were answered.
fn within(times: &[u64], calls: u64, percent: u64) -> String {
    let wanted = (calls * percent).div_ceil(100);
    let mut seen = 0;
    let reached = times.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    time(Duration::from_micros(1 << reached.unwrap_or(TIMES - 1)))
}

fn time(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..=9_999 => format!("{micros} us"),
        micros @ 10_000..=9_999_999 => format!("{} ms", micros / 1000),
        micros => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::{Error, Kind};

    use super::*;

    fn meter() -> Meter {
        Meter::new("store", Config::new(&[]).unwrap())
    }

    #[test]
    fn every_call_has_a_name() {
        for (at, op) in [(0, Op::Get), (8, Op::Read), (14, Op::Sync)] {
            assert_eq!(op as usize, at);
        }
        assert_eq!(NAMES[Op::Read as usize], "read");
    }

    #[test]
    fn totals_count_calls_bytes_failures_and_who_left() {
        let meter = meter();
        let read = || What::at(Op::Read, "a", 0, 1024);
        for _ in 0..3 {
            meter.start(read()).done(Ok(())).unwrap();
        }
        let failed: Result<()> = Err(Error::new(Kind::Io, "no"));
        meter.start(read()).done(failed).unwrap_err();
        drop(meter.start(read()));
        meter.start(read()).not_made();
        let totals = meter.totals();
        assert_eq!(totals.len(), 1, "{totals:?}");
        let expected = "store: read: 4 calls, 3 KiB, 1 failed, 1 not waited for; half below ";
        assert!(totals[0].starts_with(expected), "{totals:?}");
    }

    #[test]
    fn times_are_counted_by_powers_of_two() {
        let mut times = vec![0; TIMES];
        for micros in [0, 1, 2, 3, 900] {
            times[bucket(micros)] += 1;
        }
        assert_eq!(within(&times, 5, 50), "4 us");
        assert_eq!(within(&times, 5, 99), "1024 us");
        assert_eq!(bucket(u64::MAX), TIMES - 1);
        assert_eq!(time(Duration::from_millis(20)), "20 ms");
    }

    #[test]
    fn a_line_says_what_where_how_long_and_what_went_wrong() {
        let failed: Result<()> = Err(Error::new(Kind::NoSpace, "full"));
        let what = What::at(Op::Write, "a\nb", 512, 4096);
        let line = meter().line(&what, Duration::from_micros(12), &failed);
        assert_eq!(
            line,
            "store: write \"a\\nb\" 4096 bytes at 512: 12 us, no_space: full"
        );
    }
}
