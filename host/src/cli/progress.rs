//! How far long work has come, for somebody who looks at a terminal.

use std::io::{stderr, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(200);

/// One line that is written over and over.
pub(super) struct Progress {
    what: &'static str,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    /// Of something that is counted.
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            shown: None,
            is_terminal: stderr().is_terminal(),
        }
    }

    /// So many are done, of so many, if that is known.
    pub(super) fn show(&mut self, done: u64, of: Option<u64>) {
        if !self.is_terminal || self.shown.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = line(self.what, done, of);
        // Nobody looks any more: that is no failure.
        let _ = write!(stderr(), "\r{line}\x1b[K");
    }

    /// Takes the line away.
    pub(super) fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: u64, of: Option<u64>) -> String {
    const WIDTH: u64 = 30;
    match of {
        Some(of) if of > 0 => {
            let full = (done.min(of) as u128 * u128::from(WIDTH) / u128::from(of)) as usize;
            let bar = "#".repeat(full) + &".".repeat(WIDTH as usize - full);
            format!("[{bar}] {done} of {of} {what}")
        }
        _ => format!("{done} {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_never_longer_than_it_can_be() {
        assert_eq!(line("shards", 7, None), "7 shards");
        assert_eq!(line("shards", 0, Some(0)), "0 shards");
        let half = line("shards", 5, Some(10));
        assert_eq!(
            half,
            format!("[{}{}] 5 of 10 shards", "#".repeat(15), ".".repeat(15))
        );
        // More than was expected: somebody is writing.
        assert!(line("shards", u64::MAX, Some(3)).starts_with(&format!("[{}]", "#".repeat(30))));
    }
}
