//! Programs of others that the tests use, and what to do when one is missing.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Whether the test can run here. Where `CI` is set a missing tool fails the test; on somebody's
/// own machine the test is skipped and says why.
pub(crate) fn present(tools: &[&str]) -> bool {
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !found(tool)).collect();
    missing.is_empty() || skip(&format!("not installed: {}", missing.join(" ")))
}

/// As [`present`], for tests that mount file systems or attach loop devices.
pub(crate) fn present_as_root(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    if !Path::new("/dev/loop-control").exists() {
        return skip("needs loop devices");
    }
    present(tools)
}

/// Says why a test does not run; gives false.
pub(crate) fn skip(why: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "cannot run here: {why}");
    eprintln!("skipped: {why}");
    false
}

fn found(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path)
        .chain(system)
        .any(|dir| dir.join(tool).is_file())
}

/// A program with a time limit of two minutes and no terminal.
pub(crate) fn tool<S: AsRef<OsStr>>(name: &str, words: &[S]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("timeout")
        .args(["--kill-after=5", "120", name])
        .args(words)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .output()
        .expect("timeout(1) can be run")
}

/// Runs a program that must succeed; gives what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(name: &str, words: &[S]) -> String {
    let output = tool(name, words);
    let shown: Vec<_> = words.iter().map(|word| word.as_ref().display()).collect();
    assert!(
        output.status.success(),
        "{name} {shown:?}\n{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
