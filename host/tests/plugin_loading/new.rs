//! `nbd-rs plugins new`: what it writes builds, conforms and is served, without a change.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::check::{check, own};
use crate::support::{repository, Folder};

/// Where crates outside of the workspace are built: one place, so that what they need is built once.
pub(crate) fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("authors")
}

/// Cargo as an author types it in `dir`; its answer must come without the network.
pub(crate) fn cargo(dir: &Path, words: &[&str]) -> Output {
    // What was locked here is at hand, offline.
    let lock = dir.join("Cargo.lock");
    if !lock.exists() {
        std::fs::copy(repository().join("Cargo.lock"), lock).unwrap();
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(words)
        .current_dir(dir)
        .env("CARGO_NET_OFFLINE", "true")
        .env("CARGO_TARGET_DIR", target())
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("RUSTFLAGS");
    cargo.output().unwrap()
}

#[track_caller]
pub(crate) fn worked(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
    out
}

/// Builds and tests the crate in `dir` as an author does; the library.
#[track_caller]
pub(crate) fn build(dir: &Path, library: &str) -> PathBuf {
    worked(&cargo(dir, &["test", "--quiet"]));
    worked(&cargo(dir, &["build", "--quiet"]));
    target().join("debug").join(library)
}

fn nbd_rs() -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(env!("CARGO_BIN_EXE_nbd-rs"));
    command
}

/// Serves a raw volume with the plugins of `dirs` until it is ready, and stops it.
#[track_caller]
pub(crate) fn is_served(dirs: &[&Path], location: &str) {
    let folder = Folder::new();
    let mut serve = nbd_rs();
    for dir in dirs {
        serve.arg("--plugin-dir").arg(dir);
    }
    let socket = format!("unix:{}", folder.path().join("socket").display());
    serve.args([
        "serve", "--listen", &socket, "--export", "disk", "raw", location,
    ]);
    let mut child = serve.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).any(|line| line == "ready");
    let pid = rustix::process::Pid::from_child(&child);
    // timeout(1) passes it on.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    let status = child.wait().unwrap();
    assert!(ready && status.success(), "{location}: {status}");
}

fn write_new(folder: &Folder, name: &str, more: &[&str]) -> PathBuf {
    let output = nbd_rs()
        .args(["plugins", "new", name])
        .args(more)
        .arg("--plugin-api")
        .arg(repository().join("plugin-api"))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = worked(&output);
    assert!(said.contains("cargo build --release"), "{said}");
    folder.path().join(name)
}

#[test]
fn a_new_store_builds_conforms_and_is_served() {
    let folder = Folder::new();
    let dir = write_new(&folder, "new-store", &[]);
    let library = build(&dir, "libnew_store.so");
    worked(&cargo(&dir, &["fmt", "--check"]));
    for more in [&[][..], &["--single"]] {
        let (code, said) = check(&library, "new-store:", more);
        assert_eq!(code, Some(0), "{said}");
    }
    is_served(&[library.parent().unwrap()], "new-store:?size=1MiB");
}

#[test]
fn a_new_link_builds_conforms_and_is_served() {
    let folder = Folder::new();
    let dir = write_new(&folder, "new-link", &["--link"]);
    let library = build(&dir, "libnew_link.so");
    worked(&cargo(&dir, &["fmt", "--check"]));
    let (code, said) = check(&library, "new-link+mem:", &[]);
    assert_eq!(code, Some(0), "{said}");
    let dirs = [library.parent().unwrap(), &own().path()];
    is_served(&dirs, "new-link+mem:?size=1MiB");
}

#[test]
fn nothing_is_written_over_and_a_bad_name_writes_nothing() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("there")).unwrap();
    let said = |words: &[&str]| {
        let output = nbd_rs()
            .args(["plugins", "new"])
            .args(words)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    for (words, code, text) in [
        (&["there"][..], 1, "making there: File exists"),
        (&["No"], 2, "no name for a plugin"),
        (&["core"], 2, "a crate that it needs"),
        (
            &["x", "--plugin-api", "."],
            2,
            "is not the crate nbd-rs-plugin",
        ),
        (&["x", "--plugin-api", "none"], 1, "looking for none"),
    ] {
        let (seen, line) = said(words);
        assert_eq!(seen, Some(code), "{line}");
        assert!(line.contains(text), "{line}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let (code, line) = said(&["published"]);
    assert_eq!(code, Some(0), "{line}");
    let manifest = folder.path().join("published/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    assert!(
        manifest.contains("nbd-rs-plugin = { version = \"1.0\" }"),
        "{manifest}"
    );
}
