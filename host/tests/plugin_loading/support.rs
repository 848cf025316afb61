//! Fixtures, folders, and a second process for what could end this one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock, PoisonError};

use nbd_rs::plugin::{Places, Registry, SearchPath};

/// `target/debug`, or whatever this test was built into.
pub(crate) fn build_dir() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_nbd-rs")).parent().unwrap()
}

/// Builds packages of the workspace at `root`, with the profile and the cache of this test.
pub(crate) fn cargo_build(root: &Path, packages: &[&str]) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let profile = match build_dir().file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--profile", profile]);
    cargo.arg("--manifest-path").arg(root.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(build_dir().parent().unwrap());
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let output = cargo.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cargo build of {packages:?}: {said}"
    );
}

/// The root of this repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The library of a package in `testing/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let names = [
            "panics",
            "panics-in-root",
            "panics-in-describe",
            "another-project",
            "logging",
        ];
        let packages = names.map(|name| format!("fixture-{name}"));
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        cargo_build(repository(), &packages);
    });
    build_dir().join(format!("libfixture_{name}.so"))
}

/// A folder for plugins that only its owner may write.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    /// A file of these bytes.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        chmod(&path, 0o644);
        path
    }

    /// A copy of a library: a plugin of its own, with statics of its own.
    pub(crate) fn copy(&self, library: &Path, name: &str) -> PathBuf {
        self.write(name, std::fs::read(library).unwrap())
    }

    /// A library made from C.
    pub(crate) fn compile(&self, name: &str, source: &str, options: &[&str]) -> PathBuf {
        let c = self.write(&format!("{name}.c"), source);
        let path = self.path().join(name);
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"])
            .arg(&path)
            .arg(c)
            .args(options);
        assert!(cc.status().expect("cc, which Rust links with").success());
        chmod(&path, 0o755);
        path
    }
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What `--plugin-dir` for each of `dirs` gives.
pub(crate) fn search(dirs: &[PathBuf]) -> SearchPath {
    SearchPath::new(&Places {
        explicit: dirs.to_vec(),
        ..Places::default()
    })
}

/// Everything in these folders.
pub(crate) fn load(dirs: &[&Folder]) -> Registry {
    let dirs: Vec<PathBuf> = dirs.iter().map(|dir| dir.path()).collect();
    Registry::load(&search(&dirs), false)
}

/// Why a file or folder was refused.
pub(crate) fn reason(registry: &Registry, path: &Path) -> String {
    let mut refused = registry.refused().iter();
    let refused = refused.find(|refused| refused.path == path);
    let refused = refused.unwrap_or_else(|| panic!("{path:?} was not refused: {registry:?}"));
    let reason = refused.reason.to_string();
    assert!(
        !reason.contains('\n') && reason.len() < 400,
        "not one line: {reason}"
    );
    reason
}

/// Loads a folder with this one file in it, and gives the reason for which it is refused.
pub(crate) fn refusal(folder: &Folder, path: &Path) -> String {
    reason(&load(&[folder]), path)
}

/// Runs an ignored test of this binary in a process of its own.
pub(crate) fn in_a_child(test: &str, folder: &Folder) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        test,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    child.env(FOLDER, folder.path()).output().unwrap()
}

const FOLDER: &str = "NBD_RS_TEST_FOLDER";

/// In such a process: the folder to work in.
pub(crate) fn childs_folder() -> PathBuf {
    std::env::var_os(FOLDER)
        .expect("run by another test")
        .into()
}
