//! Who serves which scheme.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nbd_rs_plugin::abi::PluginRef;
use nbd_rs_plugin::{Description, Error, Kind, Result};

use super::scan::Scan;
use super::{text, LoadError, PluginDir, SearchPath};

/// A loaded plugin. It stays loaded until the process ends.
#[derive(Clone)]
pub struct Plugin {
    /// What it says of itself, checked, with texts that are safe to print.
    pub description: Description,
    /// The file, absolute and without links.
    pub path: PathBuf,
    /// The version of the plugin interface that it was built for.
    pub abi_version: String,
    /// The schemes for which it is the one to ask: those that nobody before it offers.
    pub schemes: Vec<String>,
    pub(super) table: PluginRef,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({}, {:?})", self.description.name, self.path)
    }
}

/// A file or directory that was not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub reason: LoadError,
}

/// A scheme of a plugin that an earlier directory offers too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadowed {
    /// The file that is not asked.
    pub path: PathBuf,
    /// For this scheme.
    pub scheme: String,
    /// The file that is.
    pub by: PathBuf,
}

/// Who answers for a scheme.
#[derive(Debug)]
enum Served {
    /// The plugin at this place in the list.
    By(usize),
    /// Several files of one directory, so none of them.
    Nobody(Vec<PathBuf>),
}

/// All plugins that were found, and what became of the files that are none.
#[derive(Debug, Default)]
pub struct Registry {
    plugins: Vec<Plugin>,
    refused: Vec<Refused>,
    shadowed: Vec<Shadowed>,
    warnings: Vec<String>,
    dirs: Vec<PluginDir>,
    served: BTreeMap<String, Served>,
}

impl Registry {
    /// Loads every plugin of these directories. A bad file is listed and never stops the others.
    pub fn load(search: &SearchPath, allow_insecure: bool) -> Self {
        let mut scan = Scan::new(allow_insecure);
        let mut registry = Self::default();
        registry.add_all(search, &mut scan);
        registry
    }

    /// The same with one more file, which stands before all others.
    ///
    /// # Errors
    /// If that file is no plugin.
    pub fn load_with(
        file: &Path,
        search: &SearchPath,
        allow_insecure: bool,
    ) -> std::result::Result<Self, LoadError> {
        let mut scan = Scan::new(allow_insecure);
        let mut registry = Self::default();
        registry.add(scan.file(file)?.into_iter().collect());
        registry.add_all(search, &mut scan);
        Ok(registry)
    }

    fn add_all(&mut self, search: &SearchPath, scan: &mut Scan) {
        self.dirs = search.dirs.clone();
        self.refused.clone_from(&search.refused);
        for dir in &search.dirs {
            let found = scan.directory(dir);
            self.add(found);
        }
        self.refused.append(&mut scan.refused);
        self.warnings.append(&mut scan.warnings);
    }

    /// Takes the plugins of one directory, in their order.
    fn add(&mut self, plugins: Vec<Plugin>) {
        let mut offers: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
        for plugin in &plugins {
            for scheme in &plugin.schemes {
                offers.entry(scheme).or_default().push(&plugin.path);
            }
        }
        let mut clashes = BTreeMap::new();
        for (scheme, paths) in offers {
            if let Some(by) = self.server_of(scheme) {
                let by = by.to_owned();
                self.shadowed.extend(paths.into_iter().map(|path| Shadowed {
                    path: path.to_owned(),
                    scheme: scheme.to_owned(),
                    by: by.clone(),
                }));
            } else if paths.len() > 1 {
                self.refused.push(clash(scheme, &paths));
                let paths = paths.into_iter().map(Path::to_owned).collect();
                clashes.insert(scheme.to_owned(), Served::Nobody(paths));
            }
        }
        self.served.append(&mut clashes);
        for mut plugin in plugins {
            plugin
                .schemes
                .retain(|scheme| !self.served.contains_key(scheme));
            for scheme in &plugin.schemes {
                self.served
                    .insert(scheme.clone(), Served::By(self.plugins.len()));
            }
            if !plugin.schemes.is_empty() {
                self.plugins.push(plugin);
            }
        }
    }

    /// The file that settled who answers for a scheme.
    fn server_of(&self, scheme: &str) -> Option<&Path> {
        match self.served.get(scheme)? {
            Served::By(at) => Some(&self.plugins[*at].path),
            Served::Nobody(paths) => paths.first().map(PathBuf::as_path),
        }
    }

    /// The plugin for a scheme.
    ///
    /// # Errors
    /// If there is none; says which schemes there are, and where plugins were looked for.
    pub fn get(&self, scheme: &str) -> Result<&Plugin> {
        match self.served.get(scheme) {
            Some(Served::By(at)) => Ok(&self.plugins[*at]),
            Some(Served::Nobody(paths)) => {
                let paths: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
                Err(Error::new(
                    Kind::Unsupported,
                    clash(scheme, &paths).reason.to_string(),
                ))
            }
            None => Err(Error::new(Kind::Unsupported, self.unknown(scheme))),
        }
    }

    fn unknown(&self, scheme: &str) -> String {
        let scheme = text::line(scheme, 64);
        let mut said = format!("no plugin serves {scheme:?}");
        if let Some(refused) = self
            .refused
            .iter()
            .find(|refused| is_named_for(&refused.path, &scheme))
        {
            let path = text::path(&refused.path);
            return format!("{said}: {path} {}", refused.reason);
        }
        let known: Vec<&str> = self.schemes().collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        let dirs: Vec<String> = self.dirs.iter().map(|dir| text::path(&dir.path)).collect();
        let dirs = if dirs.is_empty() {
            "nowhere".to_owned()
        } else {
            dirs.join(", ")
        };
        said += &format!("; known: {known}; searched: {dirs}; --plugin-dir names another place");
        said
    }

    /// The schemes that can be used, in the order of the alphabet.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        let served = self.served.iter();
        let usable = served.filter(|(_, served)| matches!(served, Served::By(_)));
        usable.map(|(scheme, _)| scheme.as_str())
    }

    /// The plugins that serve a scheme, in the order in which they were found.
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// Files and directories that were not used.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Schemes of plugins that an earlier directory offers too.
    pub fn shadowed(&self) -> &[Shadowed] {
        &self.shadowed
    }

    /// One line for each thing that is allowed but unwise.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The directories that were searched.
    pub fn dirs(&self) -> &[PluginDir] {
        &self.dirs
    }
}

/// Several files of one directory for one scheme: which is meant, nobody can know.
fn clash(scheme: &str, paths: &[&Path]) -> Refused {
    let names: Vec<String> = paths.iter().map(|path| text::path(path)).collect();
    let names = names.join(" and ");
    Refused {
        path: paths
            .first()
            .map(|path| path.to_path_buf())
            .unwrap_or_default(),
        reason: LoadError::Clash(format!(
            "scheme {scheme} is served by {names}: keep one of them"
        )),
    }
}

/// Whether a file is called `libnbd_rs_SCHEME.so`, or much like it.
fn is_named_for(path: &Path, scheme: &str) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let scheme = scheme.replace('-', "_");
    let rest = stem.strip_suffix(scheme.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest == "lib" || rest.ends_with(['_', '-']))
}

#[cfg(test)]
pub(super) mod tests;
