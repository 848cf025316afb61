//! A server with a volume to speak to, and tables of cases.

use std::fmt::Display;
use std::io::Write;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::{tempdir, TempDir};

use crate::client::handshake::Handshake;
use crate::client::line::Line;
use crate::client::{Client, Framing};
use crate::server::{init_raw, Serve, Server};

/// What most tests have: a volume of so many bytes, all zeros at first.
pub(crate) const SIZE: u64 = 8 << 20;

/// A volume named `disk`, served on a unix socket and a TCP port.
pub(crate) struct Stage {
    pub(crate) dir: TempDir,
    pub(crate) server: Server,
}

impl Stage {
    /// A volume of [`SIZE`] bytes.
    pub(crate) fn new() -> Self {
        Self::with(&SIZE.to_string(), |serve| serve)
    }

    /// A volume of some size, and more words for the command line.
    pub(crate) fn with(size: &str, more: impl FnOnce(Serve) -> Serve) -> Self {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("disk.img");
        init_raw(&image, size);
        let serve = Serve::raw("disk", &image).tcp();
        let serve = serve.unix(&dir.path().join("sock"));
        let server = more(serve).start();
        Self { dir, server }
    }

    /// The image behind the volume.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// A client whose handshake is over.
    pub(crate) fn client(&self, framing: Framing) -> Client {
        Client::over_unix(&self.server, framing)
    }

    /// A client in its handshake.
    pub(crate) fn handshake(&self) -> Handshake {
        Handshake::begin(self.line()).expect("a greeting")
    }

    /// A connection, over which nothing was said yet.
    pub(crate) fn line(&self) -> Line {
        Line::unix(&self.server).expect("the server accepts")
    }

    /// Asserts that others are served.
    pub(crate) fn still_serves(&self) {
        let mut other = self.client(Framing::Simple);
        other.read(0, 512).expect("a READ on another connection");
        other.disconnect();
    }

    /// Asserts that the server is there, and stops without complaint.
    pub(crate) fn stop(mut self) {
        self.server.assert_alive();
        self.server.stop();
    }

    /// A number of the server's `/proc/PID/status`: `VmRSS` in KiB, `Threads`.
    pub(crate) fn status(&self, name: &str) -> u64 {
        let pid = self.server.pid().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.and_then(|text| text.parse().ok()).expect("a number")
    }
}

static CASES: AtomicUsize = AtomicUsize::new(0);

/// Runs every row of a table, and says at the end which ones failed.
pub(crate) fn cases<N: Display, T>(
    test: &str,
    table: impl IntoIterator<Item = (N, T)>,
    check: impl Fn(T),
) {
    let mut ran = 0;
    let mut failed = Vec::new();
    for (name, case) in table {
        ran += 1;
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| check(case))) {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
            failed.push(format!("{test}: {name}: {}", text.unwrap_or("panicked")));
        }
    }
    count(test, ran);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Says that a test ran so many cases. Past the harness, which shows only what fails.
pub(crate) fn count(test: &str, ran: usize) {
    let total = CASES.fetch_add(ran, Ordering::Relaxed) + ran;
    let line = format!("wire: {ran} cases of {test}, {total} in all so far\n");
    // Nobody has to read it.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
