//! strace as a saboteur: chosen system calls of the server fail or take long.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{kill_process, Pid, Signal};

use crate::server::{Serve, Server};

/// Every call that may bring data to the disk.
pub(crate) const SYNC: &str = "fsync,fdatasync,sync_file_range,msync,syncfs";

/// Calls of `calls` end as `how` says (`error=EIO`, `delay_enter=1000000`, ...), from the start.
pub(crate) fn from_start(mut serve: Serve, log: &Path, calls: &str, how: &str) -> Serve {
    let log = log.display().to_string();
    // -D: the server stays our child, and strace goes when it goes.
    let words = ["strace", "-D", "-f", "-qq", "-o", &log, "-e"];
    serve.before = words.map(Into::into).to_vec();
    serve.before.push(format!("trace={calls}").into());
    serve.before.push("-e".into());
    serve.before.push(format!("inject={calls}:{how}").into());
    serve
}

/// An strace that holds on to a running server.
pub(crate) struct Trace {
    child: Child,
}

impl Trace {
    /// From now on these calls of the server end as `how` says.
    pub(crate) fn attach(server: &Server, log: &Path, calls: &str, how: &str) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-p", &server.pid().as_raw_nonzero().to_string(), "-o"])
            .arg(log)
            .args([
                "-e",
                &format!("trace={calls}"),
                "-e",
                &format!("inject={calls}:{how}"),
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace can be started");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let attached = lines.any(|line| line.contains("attached"));
        assert!(attached, "strace could not attach to the server");
        // It goes on telling of new threads.
        std::thread::spawn(move || lines.count());
        Self { child }
    }

    /// The calls work again.
    pub(crate) fn detach(self) {
        drop(self);
    }

    /// Gone without a farewell: calls that are held up go on at once, as they are.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("strace runs");
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Killed outright it would leave the server stopped.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Waits until the log shows one of these calls.
pub(crate) fn wait_for_call(log: &Path, calls: &str) {
    for _ in 0..500 {
        let text = fs::read_to_string(log).unwrap_or_default();
        if calls
            .split(',')
            .any(|call| text.contains(&format!("{call}(")))
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the server has made none of {calls} in 5 s");
}
