//! `nbd-rs plugins new`: the source of a plugin that builds, conforms and can be served.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::args::PluginsNew;
use super::super::{say, Done, Trouble};
use crate::error::{Error, Kind};

const STORE: &str = include_str!("../../../templates/store.rs");
const LINK: &str = include_str!("../../../templates/link.rs");
/// The oldest Rust that the interface builds with.
const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");
/// The interface that this host speaks.
const INTERFACE: &str = "1.0";

/// Writes it, and says what to type next.
pub(super) fn run(args: &PluginsNew, json: bool) -> Done<()> {
    check_name(&args.name)?;
    let dir = args.dir.clone().unwrap_or_else(|| (&args.name).into());
    let interface = interface(args)?;
    fs::create_dir(&dir).map_err(|error| failed("making", &dir, &error))?;
    let manifest = manifest(&args.name, &interface, args.link);
    let source = if args.link { LINK } else { STORE };
    for (name, text) in [
        ("Cargo.toml", manifest.as_str()),
        ("src/lib.rs", source),
        ("README.md", &readme(&args.name, args.link)),
        (".gitignore", "/target\n"),
    ] {
        write(&dir.join(name), text)?;
    }
    let next = next_steps(&args.name, &dir, args.link);
    match json {
        true => say(json!({ "directory": dir, "next": next })),
        false => say(format_args!(
            "{} is written; next:\n  {}",
            dir.display(),
            next.join("\n  ")
        )),
    }
    Ok(())
}

fn wrong(text: String) -> Trouble {
    Trouble::Wrong(Error::new(Kind::Invalid, text))
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> Trouble {
    Error::os(error, format_args!("{doing} {}", path.display())).into()
}

/// It is a scheme, and the name of a crate.
fn check_name(name: &str) -> Done<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_word = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(fits)
        && name.len() <= 32
        && !name.ends_with('-');
    if !is_word {
        return Err(wrong(format!(
            "{name:?} is no name for a plugin: a lower-case letter, then up to 31 of a-z, 0-9 and -"
        )));
    }
    if [
        "core",
        "std",
        "alloc",
        "test",
        "proc-macro",
        "tracing",
        "nbd-rs-plugin",
    ]
    .contains(&name)
    {
        return Err(wrong(format!(
            "{name} is the name of a crate that it needs"
        )));
    }
    Ok(())
}

/// How the manifest names the interface, between braces.
fn interface(args: &PluginsNew) -> Done<String> {
    let Some(dir) = &args.plugin_api else {
        return Ok(format!("version = \"{INTERFACE}\""));
    };
    let path = dir.canonicalize();
    let path: PathBuf = path.map_err(|error| failed("looking for", dir, &error))?;
    let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap_or_default();
    if !manifest.contains("name = \"nbd-rs-plugin\"") {
        return Err(wrong(format!(
            "{} is not the crate nbd-rs-plugin",
            dir.display()
        )));
    }
    // A TOML string knows the escapes of Rust's that a path can have.
    Ok(format!("path = {:?}", path.display().to_string()))
}

fn manifest(name: &str, interface: &str, link: bool) -> String {
    let (kind, tracing) = match link {
        true => (
            "link",
            "tracing = { version = \"0.1\", default-features = false, features = [\"std\"] }\n",
        ),
        false => ("store", ""),
    };
    format!(
        r#"[package]
name = "{name}"
description = "A {kind} for nbd-rs"
version = "0.1.0"
edition = "2021"
rust-version = "{RUST_VERSION}"

[lib]
crate-type = ["cdylib"]

[dependencies]
nbd-rs-plugin = {{ {interface} }}
{tracing}
[dev-dependencies]
nbd-rs-plugin = {{ {interface}, features = ["conformance"] }}

# It stands alone, also in a directory below somebody else's workspace. Panics must unwind, as they
# do unless you say otherwise: then they are errors of one call, not the end of the server.
[workspace]
"#
    )
}

fn location(name: &str, link: bool) -> String {
    match link {
        true => format!("{name}+mem:?size=64MiB"),
        false => format!("{name}:"),
    }
}

fn next_steps(name: &str, dir: &Path, link: bool) -> Vec<String> {
    let library = format!("target/release/lib{}.so", name.replace('-', "_"));
    let to_check = match link {
        true => format!("{name}+mem:"),
        false => format!("{name}:"),
    };
    let location = location(name, link);
    vec![
        format!("cd '{}'", dir.display()),
        "cargo test".to_owned(),
        "cargo build --release".to_owned(),
        format!("nbd-rs plugins check {library} {to_check}"),
        format!("nbd-rs serve --plugin-dir target/release --export disk raw '{location}'"),
    ]
}

fn readme(name: &str, link: bool) -> String {
    let kind = if link { "link" } else { "store" };
    let steps = next_steps(name, Path::new("."), link)[1..].join("\n");
    format!("# {name}\n\nA {kind} for nbd-rs.\n\n```sh\n{steps}\n```\n")
}

fn write(path: &Path, text: &str) -> Done<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(path, text))
        .map_err(|error| failed("writing", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_schemes_and_crates() {
        for name in ["myfs", "a", "my-fs2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "MyFs",
            "2fs",
            "my_fs",
            "a-",
            "core",
            "a b",
            "../x",
            &"x".repeat(33),
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
