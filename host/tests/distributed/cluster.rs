//! Several backends, and one volume over them.

use std::path::{Path, PathBuf};

use nbd_rs_s3_server::Server as S3;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::{tempdir, TempDir};

use crate::client::Client;
use crate::server::{nbd_rs, text, Serve, Server};

/// Backends: servers of our own first, then directories.
pub(crate) struct Cluster {
    dir: TempDir,
    pub(crate) stores: Vec<S3>,
    backends: Vec<String>,
    /// What stands before the backends.
    fields: String,
    /// How it is served: what is typed about gathering writes.
    gathers: Vec<String>,
}

impl Cluster {
    /// So many servers behind this chain, such as `cache:s3:`, and so many directories.
    pub(crate) fn new(stores: usize, chain: &str, directories: usize) -> Self {
        let dir = tempdir().expect("a directory");
        let stores: Vec<S3> = (0..stores).map(|_| S3::start()).collect();
        let served = stores
            .iter()
            .map(|store| format!("{chain}{}", store.target("disk/")));
        let path = |at| dir.path().join(format!("node{at}"));
        let files = (0..directories).map(|at| format!("file:{}/", path(at).display()));
        Self {
            backends: served.chain(files).collect(),
            fields: "replicas=3;".to_owned(),
            gathers: vec!["--no-journal".to_owned()],
            stores,
            dir,
        }
    }

    /// With these fields in place of `replicas=3;`.
    pub(crate) fn with(mut self, fields: &str) -> Self {
        fields.clone_into(&mut self.fields);
        self
    }

    /// The servers with these options.
    pub(crate) fn with_options(mut self, options: &str) -> Self {
        for backend in &mut self.backends[..self.stores.len()] {
            backend.push_str(options);
        }
        self
    }

    /// From now on served with a journal of its own, and these words about it.
    pub(crate) fn journaled(mut self, words: &str) -> Self {
        let all = format!("--journal {} {words}", self.journal().display());
        let words = all.split(' ').filter(|word| !word.is_empty());
        self.gathers = words.map(str::to_owned).collect();
        self
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// A directory that is a backend.
    pub(crate) fn directory(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("node{at}"))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// As it is typed behind the layout's name.
    pub(crate) fn location(&self) -> String {
        format!("{}backends={};", self.fields, self.backends.join(","))
    }

    /// As it is typed with one backend in place of another.
    pub(crate) fn location_with(&self, at: usize, backend: &str) -> String {
        let mut backends = self.backends.clone();
        backend.clone_into(&mut backends[at]);
        format!("{}backends={};", self.fields, backends.join(","))
    }

    pub(crate) fn backend(&self, at: usize) -> &str {
        &self.backends[at]
    }

    pub(crate) fn try_run(&self, command: &str) -> std::process::Output {
        let location = self.location();
        let words = command.split(' ').chain(["distributed", &location]);
        nbd_rs(&words.collect::<Vec<_>>())
    }

    /// Runs `nbd-rs COMMAND distributed LOCATION`, which must succeed; gives what it printed.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        let output = self.try_run(command);
        assert!(output.status.success(), "{command}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// It is refused with this code and these words.
    #[track_caller]
    pub(crate) fn refused(&self, command: &str, code: i32, words: &[&str]) {
        let output = self.try_run(command);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing: {said}");
        }
    }

    pub(crate) fn init(&self, size: usize, shard: &str) {
        self.run(&format!("init --size {size} --shard-size {shard}"));
    }

    pub(crate) fn info(&self) -> Value {
        serde_json::from_str(&self.run("info --json")).expect("JSON")
    }

    pub(crate) fn serve(&self) -> Serve {
        self.serve_at("sock")
    }

    pub(crate) fn serve_at(&self, socket: &str) -> Serve {
        let serve = Serve::distributed("disk", &self.location(), &self.gathers);
        serve.unix(&self.dir().join(socket))
    }

    /// What lies in all places.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.stores.iter().flat_map(S3::keys).collect();
        for at in 0..self.backends.len() - self.stores.len() {
            names.extend(files(&self.directory(at)));
        }
        names
    }
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
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

/// SIGKILL, and its end.
pub(crate) fn kill(server: &mut Server) {
    server.signal(Signal::KILL);
    let ended = server.wait(std::time::Duration::from_secs(10));
    ended.expect("SIGKILL ends it");
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("within a minute it does not come to that: {what}");
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ salt).collect()
}

/// All of it.
#[track_caller]
pub(crate) fn all(server: &Server, len: usize) -> Vec<u8> {
    Client::unix(server).read(0, len).expect("a READ")
}
