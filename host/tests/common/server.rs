//! Runs the real `nbd-rs` binary for tests that look at it from outside.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};

/// How long a server may take to say `ready`.
const START: Duration = Duration::from_secs(20);

/// The binary under test; its plugins are looked for beside it.
pub(crate) fn binary() -> &'static Path {
    let binary = Path::new(env!("CARGO_BIN_EXE_nbd-rs"));
    let plugin = binary.with_file_name("libnbd_rs_file.so");
    assert!(
        plugin.exists(),
        "{} is missing: run `cargo build --workspace` first",
        plugin.display()
    );
    binary
}

/// Where journals go if a test names no place for them: never into the machine's own state.
pub(crate) const STATE_DIRECTORY: (&str, &str) = (
    "STATE_DIRECTORY",
    concat!(env!("CARGO_TARGET_TMPDIR"), "/state"),
);

/// Runs `nbd-rs` with these words to its end.
pub(crate) fn nbd_rs<S: AsRef<OsStr>>(words: &[S]) -> Output {
    Command::new("timeout")
        .arg("60")
        .arg(binary())
        .args(words)
        .env(STATE_DIRECTORY.0, STATE_DIRECTORY.1)
        .stdin(Stdio::null())
        .output()
        .expect("nbd-rs can be run")
}

/// The location of a file, as the command line takes it.
pub(crate) fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// `nbd-rs init` of a raw image, which must succeed.
pub(crate) fn init_raw(path: &Path, size: &str) {
    let output = nbd_rs(&["init", "--size", size, "raw", &url(path)]);
    assert!(output.status.success(), "init failed: {}", text(&output));
}

/// What a program said, for messages.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A `nbd-rs serve` that is about to start.
pub(crate) struct Serve {
    /// A program to run it under, which must become the server itself or leave it the direct
    /// child (`prlimit ...`, `strace -D ...`).
    pub(crate) before: Vec<OsString>,
    words: Vec<OsString>,
}

impl Serve {
    /// One raw export of this image.
    pub(crate) fn raw(name: &str, image: &Path) -> Self {
        let serve = Self {
            before: Vec::new(),
            words: vec!["serve".into()],
        };
        serve.and_raw(name, image)
    }

    /// One sharded export of the volume at this location, with every write in the store before
    /// its answer.
    #[allow(dead_code)] // Used by one of the suites.
    pub(crate) fn sharded(name: &str, location: &str) -> Self {
        Self::gathering(name, location, &["--no-journal"])
    }

    /// The same with these words on how writes are gathered.
    #[allow(dead_code)]
    pub(crate) fn gathering<S: AsRef<OsStr>>(name: &str, location: &str, how: &[S]) -> Self {
        let serve = Self {
            before: Vec::new(),
            words: vec!["serve".into()],
        };
        let serve = serve.words(["--export", name, "sharded", location]);
        serve.words(how.iter().map(AsRef::as_ref))
    }

    /// One export of a distributed volume, with these words on how writes are gathered.
    #[allow(dead_code)]
    pub(crate) fn distributed<S: AsRef<OsStr>>(name: &str, location: &str, how: &[S]) -> Self {
        let serve = Self {
            before: Vec::new(),
            words: vec!["serve".into()],
        };
        let serve = serve.words(["--export", name, "distributed", location]);
        serve.words(how.iter().map(AsRef::as_ref))
    }

    /// One more raw export.
    pub(crate) fn and_raw(self, name: &str, image: &Path) -> Self {
        self.words(["--export", name, "raw", &url(image)])
    }

    /// Listen on a port that the system chooses.
    pub(crate) fn tcp(self) -> Self {
        self.words(["--listen", "127.0.0.1:0"])
    }

    /// Listen on this unix socket.
    pub(crate) fn unix(self, socket: &Path) -> Self {
        self.words(["--listen".to_owned(), format!("unix:{}", socket.display())])
    }

    /// More words of the command line.
    pub(crate) fn words<S: Into<OsString>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    fn command(&self) -> Command {
        let mut words = self.before.clone();
        words.push(binary().into());
        words.extend(self.words.iter().cloned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env(STATE_DIRECTORY.0, STATE_DIRECTORY.1)
            .stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(self) -> Server {
        let (mut server, lines) = self.begin();
        server.wait_until_ready(&lines);
        server
    }

    /// Starts it; gives what it says on standard output, line by line.
    pub(crate) fn begin(self) -> (Server, mpsc::Receiver<String>) {
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nbd-rs can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let sink = Arc::clone(&log);
        thread::spawn(move || collect(stderr, &sink));
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more once it was ready.
                let _ = send.send(line);
            }
        });
        let server = Server {
            child,
            tcp: None,
            unix: None,
            log,
        };
        (server, lines)
    }

    /// Starts it and kills it after that time, wherever it is then.
    #[allow(dead_code)]
    pub(crate) fn killed_after(self, time: Duration) {
        let mut command = self.command();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("nbd-rs can be started");
        thread::sleep(time);
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Starts it in the expectation that it refuses; gives what it said.
    pub(crate) fn refused(self) -> String {
        let words = self.command();
        let output = Command::new("timeout")
            .arg("20")
            .arg(words.get_program())
            .args(words.get_args())
            .env(STATE_DIRECTORY.0, STATE_DIRECTORY.1)
            .stdin(Stdio::null())
            .output()
            .expect("nbd-rs can be run");
        let code = output.status.code();
        assert!(
            !matches!(code, None | Some(0 | 101 | 124)),
            "nbd-rs should have refused to serve: {}",
            text(&output)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn collect(mut from: impl Read, into: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]);
        if let Ok(mut log) = into.lock() {
            log.push_str(&text);
        }
    }
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    tcp: Option<SocketAddr>,
    unix: Option<PathBuf>,
    log: Arc<Mutex<String>>,
}

impl Server {
    fn wait_until_ready(&mut self, lines: &mpsc::Receiver<String>) {
        let until = Instant::now() + START;
        loop {
            let line = match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("nbd-rs not ready after {START:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait(Duration::from_secs(5));
                    panic!("nbd-rs ended before it was ready: {status:?}");
                }
            };
            if line == "ready" {
                return;
            }
            let Some(address) = line.strip_prefix("listening on ") else {
                continue;
            };
            if let Some(path) = address.strip_prefix("unix:") {
                self.unix = Some(path.into());
            } else {
                self.tcp = Some(address.parse().expect("an address with a port"));
            }
        }
    }

    /// The TCP address it listens on.
    pub(crate) fn tcp(&self) -> SocketAddr {
        self.tcp.expect("the server listens on TCP")
    }

    /// The unix socket it listens on.
    pub(crate) fn unix(&self) -> &Path {
        self.unix
            .as_deref()
            .expect("the server listens on a socket")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the server runs");
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panic in the reader").clone()
    }

    /// Its exit status, if it ends in time.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asserts that it lives.
    pub(crate) fn assert_alive(&mut self) {
        let ended = self.wait(Duration::ZERO);
        assert!(ended.is_none(), "the server is gone: {ended:?}");
    }

    /// Asks it to stop, and asserts that it does so without complaint.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(Duration::from_secs(35));
        let code = status.expect("the server stops when asked to").code();
        assert_eq!(code, Some(0), "a clean stop exits with 0");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already? Then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // The reader of stderr gets the rest once the process is gone.
            thread::sleep(Duration::from_millis(50));
            eprintln!("--- the server's log\n{}---", self.log());
        }
    }
}
