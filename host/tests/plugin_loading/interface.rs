//! Plugins and hosts of different versions of the interface.
//!
//! The other versions are this one with a few lines changed, built when the tests run: a copy can
//! not go stale, and a change that the interface does not survive fails here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::{build_dir, cargo_build, fixture, load, refusal, repository, Folder};

/// A line of the interface, and what stands there in another version.
struct Change {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// A version of the interface, with a copy of the `panics` fixture built against it.
struct Version {
    name: &'static str,
    number: &'static str,
    changes: &'static [Change],
}

const MAJOR: Version = Version {
    name: "major",
    number: "2.0.0",
    changes: &[],
};

/// Says it is the same, and is not.
const CHANGED: Version = Version {
    name: "changed",
    number: "1.0.1",
    changes: &[
        Change {
            file: "src/abi.rs",
            from: "pub buf: extern \"C\" fn(len: usize) -> Buf,",
            to: "pub buf: extern \"C\" fn(len: u32) -> Buf,",
        },
        Change {
            file: "src/host.rs",
            from: "(self.0.buf())(len)",
            to: "(self.0.buf())(len as u32)",
        },
    ],
};

/// Each table is longer by one.
const MINOR: Version = Version {
    name: "minor",
    number: "1.1.0",
    changes: &[
        Change {
            file: "src/abi.rs",
            from: "    fn close(&self) -> Started<'_, ()>;\n}",
            to: "    fn close(&self) -> Started<'_, ()>;
                 /// New.
                 fn later(&self) -> u32 { 11 }\n}",
        },
        Change {
            file: "src/abi.rs",
            from: "    pub blocking: extern \"C\" fn(job: Job),\n}",
            to: "    pub blocking: extern \"C\" fn(job: Job),
                 /// New.
                 #[sabi(missing_field(option))]
                 pub later: extern \"C\" fn() -> u32,\n}",
        },
        Change {
            file: "src/abi.rs",
            from: "request: OpenRequest) -> Started<'static, DynBackend>,\n}",
            to: "request: OpenRequest) -> Started<'static, DynBackend>,
                 /// New.
                 #[sabi(missing_field(option))]
                 pub later: u32,\n}",
        },
        Change {
            file: "src/export.rs",
            from: "                    open: __nbd_rs_open,\n",
            to: "                    open: __nbd_rs_open,\n                    later: 12,\n",
        },
        // Not a matter of versions: nothing else here is built with panic=abort.
        Change {
            file: "src/export.rs",
            from: "unwinds: cfg!(panic = \"unwind\"),",
            to: "unwinds: false,",
        },
    ],
};

impl Version {
    fn root(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("interface-{}", self.name))
    }

    fn package(&self) -> String {
        format!("fixture-{}", self.name)
    }

    /// The library of this version's plugin.
    fn plugin(&self) -> PathBuf {
        self.write_workspace();
        cargo_build(&self.root(), &[&self.package()]);
        build_dir().join(format!("libfixture_{}.so", self.name))
    }

    fn write_workspace(&self) {
        let (here, root) = (repository(), self.root());
        let read = |path: &str| std::fs::read_to_string(here.join(path)).unwrap();
        let manifest = read("Cargo.toml");
        let members =
            manifest.find("members = ").unwrap()..manifest.find("[workspace.package]").unwrap();
        let manifest = manifest.replacen(&manifest[members], "members = [\"*\"]\n\n", 1);
        let interface = "nbd-rs-plugin = { path = \"plugin-api\", version = ";
        let manifest = replaced(
            &manifest,
            &format!("{interface}\"1"),
            &format!("{interface}\"{}", &self.number[..1]),
        );
        write(&root.join("Cargo.toml"), &manifest);
        write(&root.join("Cargo.lock"), &read("Cargo.lock"));
        copy_all(
            &here.join("plugin-api/src"),
            &root.join("plugin-api/src"),
            &|path, text| {
                let changed = |change: &&Change| path == here.join("plugin-api").join(change.file);
                let changes = self.changes.iter().filter(changed);
                changes.fold(text, |text, change| replaced(&text, change.from, change.to))
            },
        );
        let manifest = read("plugin-api/Cargo.toml");
        let manifest = with_version(&manifest, self.number);
        write(&root.join("plugin-api/Cargo.toml"), &manifest);
        let manifest = replaced(
            &read("testing/fixtures/panics/Cargo.toml"),
            "fixture-panics",
            &self.package(),
        );
        write(&root.join("plugin/Cargo.toml"), &manifest);
        // A scheme of its own: the library lies beside the others.
        let source = read("testing/fixtures/panics/src/lib.rs");
        let scheme = format!(".scheme(\"{}\"", self.name);
        let source = replaced(&source, ".scheme(\"panic\"", &scheme);
        write(&root.join("plugin/src/lib.rs"), &source);
    }
}

/// The plugin room and what it stands on, without the rest of the host.
const NEXT_HOST: &str = r#"
[package]
name = "next-host"
version = "0.1.0"
edition.workspace = true

[dependencies]
abi_stable.workspace = true
async-ffi.workspace = true
futures-util.workspace = true
libloading.workspace = true
nbd-rs-plugin.workspace = true
object.workspace = true
rustix.workspace = true
serde_json.workspace = true
tokio = { workspace = true, features = ["rt-multi-thread", "time"] }
tracing.workspace = true
"#;

/// The host's plugin room, built against [`MINOR`].
fn next_host() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let root = MINOR.root();
    BUILT.get_or_init(|| {
        MINOR.plugin();
        let host = root.join("host");
        write(&host.join("Cargo.toml"), NEXT_HOST);
        write(&host.join("src/main.rs"), include_str!("next_host.rs"));
        copy_all(
            &repository().join("host/src/plugin"),
            &host.join("src/plugin"),
            &|path, text| match path.file_name().and_then(|name| name.to_str()).unwrap() {
                "host_table.rs" => {
                    let text = replaced(
                        &text,
                        "            blocking,\n",
                        "            blocking,\n            later,\n",
                    );
                    text + "\nextern \"C\" fn later() -> u32 { 13 }\n"
                }
                // Calls by the layouts, which are not there.
                "mod.rs" => replaced(&text, "pub mod call;\n", ""),
                _ => text,
            },
        );
        cargo_build(&root, &["next-host"]);
    });
    build_dir().join("next-host")
}

fn with_version(manifest: &str, number: &str) -> String {
    replaced(
        manifest,
        "version = \"1.0.0\"",
        &format!("version = \"{number}\""),
    )
}

/// The text with a change that must apply.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "nothing to change: {from}");
    text.replace(from, to)
}

/// Writes what is new only, so that nothing is built twice.
fn write(path: &Path, text: &str) {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Copies a tree of sources through `change`, which gets each file's name and text.
fn copy_all(from: &Path, to: &Path, change: &dyn Fn(&Path, String) -> String) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            copy_all(&path, &to.join(name), change);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            write(&to.join(&name), &change(&path, text));
        }
    }
}

#[test]
fn another_major_version_is_refused_and_named() {
    let folder = Folder::new();
    let path = folder.copy(&MAJOR.plugin(), "x.so");
    let reason = refusal(&folder, &path);
    assert!(
        reason.contains("interface 2.0.0, this host speaks 1."),
        "{reason}"
    );
}

#[test]
fn a_changed_interface_of_the_same_version_is_refused_with_the_difference() {
    let folder = Folder::new();
    let path = folder.copy(&CHANGED.plugin(), "x.so");
    let reason = refusal(&folder, &path);
    assert!(
        reason.contains("different interface: mismatched"),
        "{reason}"
    );
    assert!(
        reason.contains("u32") && reason.contains("usize"),
        "{reason}"
    );
}

#[test]
fn a_plugin_of_a_newer_minor_version_is_used() {
    let folder = Folder::new();
    folder.copy(&MINOR.plugin(), "x.so");
    let registry = load(&[&folder]);
    assert_eq!(registry.get("minor").unwrap().abi_version, "1.1.0");
    assert!(
        registry.warnings()[0].contains("panic=abort"),
        "{:?}",
        registry.warnings()
    );
}

#[test]
fn a_plugin_of_an_older_minor_version_is_used_by_a_newer_host() {
    let folder = Folder::new();
    folder.copy(&fixture("panics"), "x.so");
    let output = Command::new(next_host())
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "interface 1.0.0 later 11 got 9", "{output:?}");
}

#[test]
fn a_plugin_of_another_project_is_refused_before_its_first_function_runs() {
    let folder = Folder::new();
    let path = folder.copy(&fixture("another_project"), "x.so");
    let reason = refusal(&folder, &path);
    assert!(
        reason.contains("something else (fixture-another-project)"),
        "{reason}"
    );
}
