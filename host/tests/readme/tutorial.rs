//! docs/plugin-author.md, word for word, in an empty folder: its files are written where it says, its
//! commands are run where the ones before them have gone, and its servers stay until the end or until
//! one of the same name follows.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::tempdir;

use crate::{repository, server, shell, tools, wait_for, Served, DEFAULT_ADDRESS};

/// Where the tutorial's web server listens.
const WEB_ADDRESS: &str = "127.0.0.1:8000";

/// A block of the tutorial that does something.
enum Block {
    /// Commands for a shell.
    Run(String),
    /// One command that serves.
    Serve(String),
    /// A file, by its path in the folder.
    File(String, String),
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let text = body.join("\n") + "\n";
        match kind.split_once(' ') {
            None if kind == "sh" => found.push(Block::Run(text)),
            Some(("sh", "serve")) => found.push(Block::Serve(text)),
            Some(("rust", path)) => found.push(Block::File(path.to_owned(), text)),
            _ => assert_eq!(kind, "text", "a block that nobody runs"),
        }
    }
    found
}

/// The folder, and where in it the commands have gone.
struct Place {
    root: PathBuf,
    here: PathBuf,
}

impl Place {
    fn command(&self, text: &str) -> std::process::Command {
        let mut command = shell(text, &self.here);
        command
            .env("NBD_RS", repository())
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env_remove("CARGO_TARGET_DIR");
        command
    }

    fn run(&mut self, text: &str) {
        let went = self.root.join("went");
        let text = format!("{text}\npwd > '{}'", went.display());
        let output = self.command(&text).output().expect("a shell");
        let said = server::text(&output);
        assert!(output.status.success(), "{text}\n{said}");
        let here = std::fs::read_to_string(went).expect("where it went");
        self.here = here.trim_end().into();
        self.share();
    }

    /// New crates are built in one place, with what was locked here: that is at hand without a network.
    fn share(&self) {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authors");
        std::fs::create_dir_all(&target).expect("a folder");
        for entry in std::fs::read_dir(&self.root).expect("the folder").flatten() {
            let krate = entry.path();
            if krate.join("Cargo.toml").exists() && !krate.join("target").exists() {
                std::os::unix::fs::symlink(&target, krate.join("target")).expect("a link");
                let lock = repository().join("Cargo.lock");
                std::fs::copy(lock, krate.join("Cargo.lock")).expect("a copy");
            }
        }
    }
}

#[test]
fn the_tutorial_for_authors_does_what_it_says() {
    let Some(_one) = wait_for(&[DEFAULT_ADDRESS, WEB_ADDRESS]) else {
        return;
    };
    let text = std::fs::read_to_string(repository().join("docs/plugin-author.md"));
    let blocks = blocks(&text.expect("the tutorial"));
    assert!(blocks.len() > 12, "the tutorial has hardly a step");
    let dir = tempdir().expect("a folder");
    let root = dir.path().canonicalize().expect("a folder");
    let mut place = Place {
        here: root.clone(),
        root,
    };
    let mut served: Vec<(String, Served)> = Vec::new();
    for block in blocks {
        let started = Instant::now();
        let step = match block {
            Block::Run(text) => {
                place.run(&text);
                text
            }
            Block::Serve(text) => {
                let name = text.split(' ').next().unwrap_or_default().to_owned();
                if let Some(at) = served.iter().position(|(known, _)| *known == name) {
                    served.remove(at).1.stop();
                }
                let command = &mut place.command(&format!("exec {text}"));
                served.push((name, Served::start(command).0));
                look(&text, &place.here);
                text
            }
            Block::File(path, text) => {
                let path = place.root.join(path);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                std::fs::write(&path, text).expect("a file");
                continue;
            }
        };
        println!(
            "{:>6.1} s  {}",
            started.elapsed().as_secs_f64(),
            step.trim()
        );
    }
}

/// What a client sees of what is served.
fn look(command: &str, here: &Path) {
    if !command.starts_with("nbd-rs") || !tools::present(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let export = if command.contains("--export disk") {
        "disk"
    } else {
        "slow"
    };
    let url = format!("nbd://{DEFAULT_ADDRESS}/{export}");
    if export == "slow" {
        let size = tools::run("nbdinfo", &["--size", &url]);
        assert_eq!(size.trim(), (64 << 20).to_string());
        return;
    }
    let copy = here.join("copy.img");
    tools::run("nbdcopy", &[url.as_ref(), copy.as_os_str()]);
    let same = std::fs::read(copy).expect("a copy")
        == std::fs::read(here.join("disk.img")).expect("a disk");
    assert!(same, "the copy differs from what is on the web server");
}
