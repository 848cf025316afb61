//! The project's own chores, without anything but the standard library:
//!
//! ```text
//! cargo xtask demo [--release] [serve options]   make a file volume and serve it
//! cargo xtask test [cargo test options]          build everything, run every test
//! cargo xtask install [--debug] --prefix DIR     install the host and its plugins
//! cargo xtask check                              formatting, lints, documentation
//! cargo xtask fuzz [TARGET] [--seconds N]        feed the decoders and whole sessions with rubbish
//! cargo xtask count [--update]                   instructions that each kind of request takes
//! cargo xtask bugs [NAME]...                     seeded bugs, each of which a test has to find
//! ```

mod bugs;
mod count;
mod fuzz;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask demo [--release] [SERVE OPTIONS]
       cargo xtask test [CARGO TEST OPTIONS]
       cargo xtask install [--debug] --prefix DIR
       cargo xtask check
       cargo xtask fuzz [wire | journal | distributed | session] [--seconds N]
       cargo xtask count [--update]
       cargo xtask bugs [NAME]...";

/// What a chore ends with: an error is one line for a person.
pub(crate) type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let chore = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    let outcome = match chore.to_str() {
        Some("demo") => demo(words),
        Some("test") => test(&words),
        Some("install") => install(&words),
        Some("check") => check(),
        Some("bugs") => bugs::bugs(&words),
        Some("count") => count::count(&words),
        Some("fuzz") => fuzz::fuzz(&words),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo builds to.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

pub(crate) fn run(command: &mut Command) -> Outcome {
    let shown = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown} ended with {status}")),
        Err(error) => Err(format!("{shown} did not start: {error}")),
    }
}

/// The names of the plugins that the project ships: the folders under `plugins`.
fn plugins() -> Result<Vec<String>, String> {
    let listed = fs::read_dir(root().join("plugins")).map_err(failed("reading plugins"))?;
    let mut names = Vec::new();
    for entry in listed {
        let path = entry.map_err(failed("reading plugins"))?.path();
        if path.join("Cargo.toml").is_file() {
            names.extend(
                path.file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

pub(crate) fn failed(doing: &str) -> impl Fn(io::Error) -> String + '_ {
    move |error| format!("{doing}: {error}")
}

/// Builds the host and all plugins; where the results are.
fn build(release: bool) -> Result<PathBuf, String> {
    let mut command = cargo();
    command.args(["build", "--package", "nbd-rs"]);
    for plugin in plugins()? {
        command.arg("--package").arg(format!("nbd-rs-{plugin}"));
    }
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    Ok(target().join(if release { "release" } else { "debug" }))
}

/// Serves a file volume that is made here, until Ctrl-C.
fn demo(mut words: Vec<OsString>) -> Outcome {
    let release = words.iter().position(|word| word == "--release");
    if let Some(at) = release {
        words.remove(at);
    }
    let server = build(release.is_some())?.join("nbd-rs");
    let dir = target().join("demo");
    fs::create_dir_all(&dir).map_err(failed("making the demo's folder"))?;
    let image = dir.join("disk.img");
    let location = format!("file:{}", encoded(&image.to_string_lossy()));
    if !image.exists() {
        let mut init = Command::new(&server);
        run(init.args(["init", "--size", "1Gi", "raw", &location]))?;
    }
    let mut serve = Command::new(&server);
    serve.args(["serve", "--export", "demo", "raw", &location]);
    // The server takes this process over, so that Ctrl-C reaches it alone.
    Err(format!("starting the server: {}", serve.args(words).exec()))
}

/// A path within a location: what has a meaning there is percent-encoded.
fn encoded(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3F")
}

/// The plugins must lie beside the host before its tests run, so everything is built first.
fn test(words: &[OsString]) -> Outcome {
    run(cargo().args(["build", "--workspace"]))?;
    run(cargo().args(["test", "--workspace"]).args(words))
}

fn check() -> Outcome {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    run(cargo().args(clippy))?;
    let doc = ["doc", "--workspace", "--no-deps"];
    run(cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))
}

fn install(words: &[OsString]) -> Outcome {
    let (release, prefix) = match words {
        [flag, prefix] if flag == "--prefix" => (true, prefix),
        [debug, flag, prefix] if debug == "--debug" && flag == "--prefix" => (false, prefix),
        _ => return Err(USAGE.to_owned()),
    };
    let prefix = std::path::absolute(prefix).map_err(failed("the prefix"))?;
    let built = build(release)?;
    install_file(&built.join("nbd-rs"), &prefix.join("bin"))?;
    for plugin in plugins()? {
        let library = built.join(format!("libnbd_rs_{plugin}.so"));
        install_file(&library, &prefix.join("lib/nbd-rs/plugins"))?;
    }
    Ok(())
}

/// Copies a file beside its place and renames it: a server that runs keeps what it has mapped.
fn install_file(file: &Path, dir: &Path) -> Outcome {
    let name = file.file_name().unwrap_or_default();
    let place = dir.join(name);
    let doing = format!("installing {}", place.display());
    let fresh = dir.join(format!(".{}.new", name.to_string_lossy()));
    fs::create_dir_all(dir)
        .and_then(|()| fs::copy(file, &fresh))
        .and_then(|_| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&fresh, &place))
        .map_err(failed(&doing))?;
    println!("{}", place.display());
    Ok(())
}
