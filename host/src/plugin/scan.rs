//! From directories to plugins: each file is judged, loaded and asked what it is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::permissions::Trust;
use super::{describe, load, text, LoadError, Plugin, PluginDir, Refused};

/// What is remembered from directory to directory.
pub(super) struct Scan {
    trust: Option<Trust>,
    /// Device and inode of each file seen, so that a link does not make it two.
    seen: BTreeSet<(u64, u64)>,
    pub(super) refused: Vec<Refused>,
    pub(super) warnings: Vec<String>,
}

impl Scan {
    pub(super) fn new(allow_insecure: bool) -> Self {
        Self {
            trust: (!allow_insecure).then(Trust::of_this_process),
            seen: BTreeSet::new(),
            refused: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The plugins of a directory, in the order of the files' names.
    pub(super) fn directory(&mut self, dir: &PluginDir) -> Vec<Plugin> {
        let refuse = |reason| Refused {
            path: dir.path.clone(),
            reason,
        };
        let names = match names(dir) {
            // Most directories that are searched by default hold no plugin; how they are kept is
            // none of our business then.
            Ok(names) if names.is_empty() => return Vec::new(),
            Ok(names) => names,
            Err(error) => {
                self.refused
                    .push(refuse(LoadError::Unreadable(error.to_string())));
                return Vec::new();
            }
        };
        if let Err(reason) = self.check_trust(&dir.path) {
            self.refused.push(refuse(reason));
            return Vec::new();
        }
        let mut plugins = Vec::new();
        for name in names {
            let path = dir.path.join(name);
            match self.file(&path) {
                Ok(plugin) => plugins.extend(plugin),
                Err(reason) => self.refused.push(Refused { path, reason }),
            }
        }
        plugins
    }

    /// The plugin in a file; none if the file was seen before.
    pub(super) fn file(&mut self, path: &Path) -> Result<Option<Plugin>, LoadError> {
        let unreadable = |error: std::io::Error| LoadError::Unreadable(error.to_string());
        let path = path.canonicalize().map_err(unreadable)?;
        let metadata = path.metadata().map_err(unreadable)?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(None);
        }
        self.check_trust(&path)?;
        let loaded = load::load(&path)?;
        let said = (loaded.table.describe())().into_result();
        let said = said.map_err(|error| {
            let message = error.message.as_rstr().as_rslice();
            LoadError::DescribeFailed(text::line_of_bytes(message.as_slice(), 200))
        })?;
        let description = describe::check(said)?;
        if !loaded.table.unwinds() {
            let path = text::path(&path);
            self.warn(format!(
                "{path} was built with panic=abort: its panics end the server"
            ));
        }
        Ok(Some(Plugin {
            schemes: description
                .schemes
                .iter()
                .map(|scheme| scheme.name.to_string())
                .collect(),
            description,
            path,
            abi_version: text::line(loaded.abi_version, 32),
            table: loaded.table,
        }))
    }

    fn check_trust(&mut self, path: &Path) -> Result<(), LoadError> {
        let Some(trust) = self.trust else {
            return Ok(());
        };
        for (place, what) in trust.check(path)? {
            self.warn(format!("{} {what}", text::path(&place)));
        }
        Ok(())
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// The names in a directory that are plugins, or ought to be, in order.
fn names(dir: &PluginDir) -> std::io::Result<BTreeSet<OsString>> {
    let names = std::fs::read_dir(&dir.path)?.map(|entry| Ok(entry?.file_name()));
    let wanted = names.filter(|name| name.as_ref().map_or(true, |name| dir.wants(name)));
    wanted.collect()
}
