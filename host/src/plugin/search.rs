//! Where plugins are looked for, in order. The first directory that offers a scheme wins.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{LoadError, Refused};

/// The environment variable with more directories, separated by colons.
const VARIABLE: &str = "NBD_RS_PLUGIN_PATH";
/// Where plugins lie under a prefix such as `/usr/local`.
const UNDER_PREFIX: &str = "lib/nbd-rs/plugins";

/// Who named a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--plugin-dir`.
    Option,
    /// `NBD_RS_PLUGIN_PATH`.
    Environment,
    /// The directory that holds the executable; other things lie there too.
    BesideExecutable,
    /// `../lib/nbd-rs/plugins`, seen from the executable.
    Prefix,
    /// The user's own.
    User,
    /// The system's.
    System,
}

impl Origin {
    /// Whether a person named it, so that its absence is worth a line.
    fn is_explicit(self) -> bool {
        matches!(self, Self::Option | Self::Environment)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Option => "--plugin-dir",
            Self::Environment => VARIABLE,
            Self::BesideExecutable => "beside the executable",
            Self::Prefix => "installation",
            Self::User => "user",
            Self::System => "system",
        })
    }
}

/// A directory to look in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginDir {
    /// Where it is.
    pub path: PathBuf,
    /// Who named it.
    pub origin: Origin,
}

impl PluginDir {
    /// Whether a file of that name is a plugin, or ought to be one.
    pub(super) fn wants(&self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        let prefix: &[u8] = match self.origin {
            Origin::BesideExecutable => b"libnbd_rs_",
            _ => b"",
        };
        name.ends_with(b".so") && name.starts_with(prefix) && !name.starts_with(b".")
    }
}

/// What the order of directories is made from.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `--plugin-dir`, as given.
    pub explicit: Vec<PathBuf>,
    /// `NBD_RS_PLUGIN_PATH`.
    pub variable: Option<OsString>,
    /// This executable.
    pub executable: Option<PathBuf>,
    /// The home directory.
    pub home: Option<PathBuf>,
}

impl Places {
    /// Those of this process, and the directories that were given by option.
    pub fn of_this_process(explicit: Vec<PathBuf>) -> Self {
        Self {
            explicit,
            variable: std::env::var_os(VARIABLE),
            executable: std::env::current_exe().ok(),
            home: std::env::var_os("HOME").map(PathBuf::from),
        }
    }

    /// The directories in order, as named: nothing of the file system is looked at.
    fn candidates(&self) -> Vec<PluginDir> {
        let dir = |origin| move |path| PluginDir { path, origin };
        let mut dirs: Vec<PluginDir> = self
            .explicit
            .iter()
            .cloned()
            .map(dir(Origin::Option))
            .collect();
        let variable = self.variable.iter().flat_map(std::env::split_paths);
        let named = variable.filter(|path| !path.as_os_str().is_empty());
        dirs.extend(named.map(dir(Origin::Environment)));
        if let Some(beside) = self.executable.as_deref().and_then(Path::parent) {
            dirs.push(dir(Origin::BesideExecutable)(beside.to_owned()));
            if let Some(prefix) = beside.parent() {
                dirs.push(dir(Origin::Prefix)(prefix.join(UNDER_PREFIX)));
            }
        }
        if let Some(home) = self.home.as_deref().filter(|home| home.is_absolute()) {
            dirs.push(dir(Origin::User)(home.join(".local").join(UNDER_PREFIX)));
        }
        for prefix in ["/usr/local", "/usr"] {
            dirs.push(dir(Origin::System)(Path::new(prefix).join(UNDER_PREFIX)));
        }
        dirs
    }
}

/// The directories that are there, and a line for each that ought to be.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    pub(super) dirs: Vec<PluginDir>,
    pub(super) refused: Vec<Refused>,
}

impl SearchPath {
    /// Looks the directories up. Each is taken once, by its absolute path without links.
    pub fn new(places: &Places) -> Self {
        let mut search = Self::default();
        let mut seen = BTreeSet::new();
        for PluginDir { path, origin } in places.candidates() {
            match resolve(&path, origin) {
                Ok(path) if seen.insert(path.clone()) => {
                    search.dirs.push(PluginDir { path, origin })
                }
                Err(reason) if origin.is_explicit() => {
                    search.refused.push(Refused { path, reason })
                }
                _ => {}
            }
        }
        search
    }

    /// The directories, in the order in which they are searched.
    pub fn dirs(&self) -> &[PluginDir] {
        &self.dirs
    }
}

/// The absolute path of a directory, without links.
fn resolve(path: &Path, origin: Origin) -> Result<PathBuf, LoadError> {
    let unreadable = |error: io::Error| LoadError::Unreadable(error.to_string());
    // What somebody types means the directory he stands in; a variable outlives it.
    if origin != Origin::Option && !path.is_absolute() {
        return Err(LoadError::Unreadable(format!(
            "{VARIABLE} needs absolute paths"
        )));
    }
    let path = path.canonicalize().map_err(unreadable)?;
    if !path.metadata().map_err(unreadable)?.is_dir() {
        return Err(LoadError::Unreadable("not a directory".to_owned()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(places: &Places) -> Vec<(String, Origin)> {
        let text = |dir: PluginDir| (dir.path.display().to_string(), dir.origin);
        places.candidates().into_iter().map(text).collect()
    }

    #[test]
    fn directories_come_in_the_promised_order() {
        let places = Places {
            explicit: vec!["/a".into(), "rel".into()],
            variable: Some("/b::/c".into()),
            executable: Some("/opt/nbd/bin/nbd-rs".into()),
            home: Some("/home/ann".into()),
        };
        let expected = [
            ("/a", Origin::Option),
            ("rel", Origin::Option),
            ("/b", Origin::Environment),
            ("/c", Origin::Environment),
            ("/opt/nbd/bin", Origin::BesideExecutable),
            ("/opt/nbd/lib/nbd-rs/plugins", Origin::Prefix),
            ("/home/ann/.local/lib/nbd-rs/plugins", Origin::User),
            ("/usr/local/lib/nbd-rs/plugins", Origin::System),
            ("/usr/lib/nbd-rs/plugins", Origin::System),
        ];
        let expected = expected.map(|(path, origin)| (path.to_owned(), origin));
        assert_eq!(named(&places), expected);
    }

    #[test]
    fn without_variable_home_and_executable_the_system_is_left() {
        assert_eq!(named(&Places::default()).len(), 2);
        let home = Places {
            home: Some("relative".into()),
            ..Places::default()
        };
        assert_eq!(named(&home).len(), 2);
    }

    #[test]
    fn a_directory_counts_once_whatever_it_is_called() {
        let temp = tempfile::tempdir().unwrap();
        let (real, link) = (temp.path().join("real"), temp.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let places = Places {
            explicit: vec![link, real.join("../real"), real.clone()],
            ..Places::default()
        };
        let search = SearchPath::new(&places);
        let explicit = |dir: &&PluginDir| dir.origin == Origin::Option;
        let found: Vec<_> = search.dirs().iter().filter(explicit).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, real.canonicalize().unwrap());
    }

    #[test]
    fn only_named_directories_are_missed() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let places = Places {
            explicit: vec![temp.path().join("none"), file],
            variable: Some("relative:/none/at/all".into()),
            executable: Some("/none/bin/nbd-rs".into()),
            home: Some("/none".into()),
        };
        let lines: Vec<String> = SearchPath::new(&places)
            .refused
            .iter()
            .map(|refused| refused.reason.to_string())
            .collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].contains("No such file"), "{lines:?}");
        assert!(lines[1].contains("not a directory"), "{lines:?}");
        assert!(lines[2].contains("absolute"), "{lines:?}");
    }

    #[test]
    fn beside_the_executable_only_our_names_count() {
        let dir = |origin| PluginDir {
            path: "/x".into(),
            origin,
        };
        for (name, beside, elsewhere) in [
            ("libnbd_rs_file.so", true, true),
            ("libother.so", false, true),
            ("x.so", false, true),
            ("libnbd_rs_file.so.1", false, false),
            ("libnbd_rs_file.rlib", false, false),
            (".libnbd_rs_file.so", false, false),
        ] {
            let name = OsStr::new(name);
            assert_eq!(
                dir(Origin::BesideExecutable).wants(name),
                beside,
                "{name:?}"
            );
            assert_eq!(dir(Origin::Option).wants(name), elsewhere, "{name:?}");
        }
    }
}
