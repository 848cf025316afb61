//! The README, word for word: its commands are run as a newcomer would, and the two commands that
//! do all the set-up are those that the project has.
//!
//! A block of `sh` is run line by line in an empty folder, with the built `nbd-rs` first in the
//! path; one of `sh serve` is started and stays until the next block is done.

#[path = "../common/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "../common/tools.rs"]
#[allow(dead_code)]
mod tools;
mod tutorial;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};
use tempfile::tempdir;

fn repository() -> &'static Path {
    let host = Path::new(env!("CARGO_MANIFEST_DIR"));
    host.parent().expect("the repository")
}

/// The commands of a block, and whether it serves.
struct Block {
    serves: bool,
    text: String,
}

/// The blocks of a kind of language, `sh` or `sh serve`, in order.
fn blocks(markdown: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        let serves = match line {
            "```sh" => false,
            "```sh serve" => true,
            _ => continue,
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let text = body.join("\n");
        found.push(Block { serves, text });
    }
    found
}

fn readme() -> Vec<Block> {
    let path = repository().join("README.md");
    blocks(&std::fs::read_to_string(path).expect("a README"))
}

/// A server that a test started; ended by its signal, or at the latest with the test.
struct Served(Child);

impl Served {
    /// Starts it in a shell that it replaces, and waits until it says `ready`; gives what it said.
    fn start(command: &mut Command) -> (Self, Vec<String>) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut served = Self(child.expect("started"));
        let stdout = served.0.stdout.take().expect("a pipe");
        let mut said = Vec::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let ready = line == "ready";
            said.push(line);
            if ready {
                return (served, said);
            }
        }
        panic!("it ended before it was ready: {said:?}");
    }

    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("it runs");
        let until = Instant::now() + Duration::from_secs(35);
        loop {
            if let Some(status) = self.0.try_wait().expect("our child") {
                assert_eq!(status.code(), Some(0), "a clean stop");
                return;
            }
            assert!(Instant::now() < until, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Ended already? Then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(text: &str, dir: &Path) -> Command {
    let bin = server::binary().parent().expect("a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = [bin].into_iter().chain(std::env::split_paths(&path));
    let mut command = Command::new("sh");
    command
        .args(["-euc", text])
        .current_dir(dir)
        .env("PATH", std::env::join_paths(dirs).expect("a path"))
        .env(server::STATE_DIRECTORY.0, server::STATE_DIRECTORY.1);
    command
}

/// Where `serve` listens if nobody says otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:10809";

/// Whether these addresses can be had: somebody else on this machine may use them a while. One test
/// at a time has them.
fn wait_for(addresses: &[&str]) -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let until = Instant::now() + Duration::from_secs(60);
    for address in addresses {
        while let Err(error) = TcpListener::bind(address) {
            if Instant::now() > until {
                tools::skip(&format!("{address}: {error}"));
                return None;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Some(one)
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let Some(_one) = wait_for(&[DEFAULT_ADDRESS]) else {
        return;
    };
    let dir = tempdir().expect("a folder");
    let blocks = readme();
    assert!(blocks.iter().any(|block| block.serves), "it serves nothing");
    let mut served: Option<Served> = None;
    let mut ran = 0;
    for block in blocks.iter().filter(|block| !sets_up(&block.text)) {
        if let Some(served) = served.take() {
            look(&served);
            served.stop();
        }
        ran += 1;
        if block.serves {
            let command = &mut shell(&format!("exec {}", block.text), dir.path());
            served = Some(Served::start(command).0);
            continue;
        }
        let output = shell(&block.text, dir.path()).output().expect("a shell");
        assert!(output.status.success(), "{}: {output:?}", block.text);
    }
    assert!(served.is_none(), "the README ends with a server that runs");
    assert!(ran >= 3, "the README has hardly a command");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "raw2.bin alone is left: {left:?}");
}

fn sets_up(text: &str) -> bool {
    text.contains("cargo xtask")
}

/// What a client sees of the server of the README.
fn look(_: &Served) {
    if tools::present(&["nbdinfo"]) {
        let size = tools::run("nbdinfo", &["--size", "nbd://127.0.0.1:10809/disk1"]);
        assert_eq!(size.trim(), (200 << 20).to_string());
    }
}

#[test]
fn the_two_commands_of_the_readme_are_the_ones_that_ci_runs() {
    let set_up: Vec<String> = readme().into_iter().map(|block| block.text).collect();
    let set_up = set_up.iter().find(|text| sets_up(text)).expect("a set-up");
    let commands: Vec<&str> = set_up
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .collect();
    assert_eq!(commands, ["cargo xtask demo", "cargo xtask test"]);
    let ci = std::fs::read_to_string(repository().join(".ci/run")).expect(".ci/run");
    assert!(ci.lines().any(|line| line == "cargo xtask test"), "{ci}");
}

/// The project's chores, built by cargo with the rest.
fn xtask() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .current_dir(repository());
    command
}

/// Where this build's results lie, if `cargo xtask` would use the same: a chore that builds
/// everything anew is no test for every day.
fn builds_here() -> bool {
    let debug = server::binary().parent().expect("a folder");
    let same = debug == target().join("debug");
    same || tools::skip("this is not the build that `cargo xtask` makes")
}

fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => repository().join(dir),
        None => repository().join("target"),
    }
}

#[test]
fn the_demo_serves_a_volume_and_prints_the_lines_that_attach_clients() {
    if !builds_here() {
        return;
    }
    let mut demo = xtask();
    demo.args(["demo", "--listen", "127.0.0.1:0"]);
    let (served, said) = Served::start(&mut demo);
    for program in ["qemu-system-x86_64", "nbd-client", "nbdcopy"] {
        let line = said.iter().find(|line| line.trim().starts_with(program));
        assert!(line.is_some(), "no line for {program}: {said:?}");
    }
    let address = said
        .iter()
        .find_map(|line| line.strip_prefix("listening on "));
    let address = address.expect("an address");
    if tools::present(&["nbdinfo"]) {
        let size = tools::run("nbdinfo", &["--size", &format!("nbd://{address}/demo")]);
        assert_eq!(size.trim(), (1 << 30).to_string());
    }
    served.stop();
}

#[test]
fn an_installed_server_finds_its_plugins() {
    if !builds_here() {
        return;
    }
    let dir = tempdir().expect("a folder");
    let prefix = dir.path().join("prefix with a space");
    let installed = xtask()
        .args(["install", "--debug", "--prefix"])
        .arg(&prefix)
        .output();
    let installed = installed.expect("cargo runs");
    assert!(installed.status.success(), "{installed:?}");
    let listed = Command::new(prefix.join("bin/nbd-rs"))
        .args(["plugins", "--json"])
        .current_dir(dir.path())
        .env_remove("NBD_RS_PLUGIN_PATH")
        .output()
        .expect("it was installed");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let library = prefix.join("lib/nbd-rs/plugins/libnbd_rs_file.so");
    let library = library
        .canonicalize()
        .expect("a plugin")
        .display()
        .to_string();
    assert!(listed.contains(&library), "{listed}");
}
