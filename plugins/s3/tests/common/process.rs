//! Servers of others, started on loopback for a test.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that ends with the test.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program is there. Where `CI` is set a missing one fails the test.
pub(crate) fn present(tool: &str, how: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()) {
        return true;
    }
    let text = format!("cannot run here: {tool} is not installed ({how})");
    assert!(std::env::var_os("CI").is_none(), "{text}");
    eprintln!("skipped: {text}");
    false
}

/// Ports that are free now, with those 10,000 above, which SeaweedFS takes as well.
pub(crate) fn ports<const N: usize>() -> [u16; N] {
    let mut found = Vec::new();
    let start = 11_000 + (std::process::id() % 400) as u16 * 25;
    for port in (start..22_000).chain(11_000..start) {
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            found.push(port);
            if found.len() == N {
                break;
            }
        }
    }
    found.try_into().expect("enough free ports")
}

/// Starts a program whose output goes to a file; waits for its port.
pub(crate) fn start(command: &mut Command, port: u16, log: &Path) -> Process {
    let file = std::fs::File::create(log).expect("a log file");
    let copy = file.try_clone().expect("a second handle");
    command.stdin(Stdio::null()).stdout(file).stderr(copy);
    let mut process = Process(command.spawn().expect("the program starts"));
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let ended = process.0.try_wait().expect("its state");
        let late = start.elapsed() > Duration::from_secs(60);
        if ended.is_some() || late {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            panic!("{command:?} does not listen on {port}: {ended:?}\n{text}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    process
}
