//! An empty directory to type commands in.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{tempdir, TempDir};

use crate::server::{binary, Server, STATE_DIRECTORY};

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// It worked: what it printed, without the last line's end.
    #[track_caller]
    pub(crate) fn worked(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out.trim_end()
    }

    /// It failed with this code and one line that holds all of these words; gives the line.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "", "a failure prints nothing on standard output");
        let line = self.err.strip_suffix('\n').unwrap_or(&self.err);
        assert_eq!(line.lines().count(), 1, "not one line: {line}");
        assert!(line.starts_with("nbd-rs: "), "who says so? {line}");
        assert!(!line.contains(char::is_control), "{line:?}");
        for word in words {
            assert!(line.contains(word), "{word:?} is missing: {line}");
        }
        line
    }
}

/// Waits until a server has logged these words: another thread reads its log.
#[track_caller]
pub(crate) fn assert_logged(server: &Server, words: &str) {
    let until = Instant::now() + Duration::from_secs(10);
    while !server.log().contains(words) {
        assert!(Instant::now() < until, "no {words:?} in {}", server.log());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The directory.
pub(crate) struct Stage(TempDir);

impl Stage {
    pub(crate) fn new() -> Self {
        Self(tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    /// A file of these bytes.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The names of all that is there, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Runs `nbd-rs` with these words here.
    pub(crate) fn nbd_rs<S: AsRef<OsStr>>(&self, words: &[S]) -> Said {
        let mut command = Command::new("timeout");
        command.arg("20").arg(binary()).args(words);
        self.said(command)
    }

    /// `nbd-rs` with words that hold no spaces.
    pub(crate) fn type_in(&self, words: &str) -> Said {
        self.nbd_rs(&words.split(' ').collect::<Vec<_>>())
    }

    /// Runs a line in a shell here, with `nbd-rs` first in PATH.
    pub(crate) fn shell(&self, line: &str) -> Said {
        let mut command = Command::new("timeout");
        command.args(["20", "sh", "-ec", line]);
        let path = std::env::var("PATH").unwrap_or_default();
        let here = binary().parent().unwrap().display();
        command.env("PATH", format!("{here}:{path}"));
        self.said(command)
    }

    fn said(&self, mut command: Command) -> Said {
        command.current_dir(self.dir()).stdin(Stdio::null());
        command.env(STATE_DIRECTORY.0, STATE_DIRECTORY.1);
        for variable in ["RUST_LOG", "NBD_RS_PLUGIN_PATH"] {
            command.env_remove(variable);
        }
        let output = command.output().expect("timeout(1) can be run");
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
