//! Loop devices and mounts that go away again, also when a test panics.

use std::path::{Path, PathBuf};

use super::tools::{run, tool};

/// A file that is attached as a block device.
pub(crate) struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Attaches the file at the first free device.
    pub(crate) fn attach(file: &Path) -> Self {
        let file = file.display().to_string();
        let device = run("losetup", &["--find", "--show", &file]);
        Self {
            device: device.trim().into(),
        }
    }

    /// Its device.
    pub(crate) fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup", &["--detach".as_ref(), self.device.as_os_str()]);
    }
}

/// Something mounted.
pub(crate) struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts with these words before the place.
    pub(crate) fn new(words: &[&str], at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a place to mount at");
        let at = at.to_path_buf();
        let place = at.display().to_string();
        let mut all = words.to_vec();
        all.push(&place);
        run("mount", &all);
        Self { at }
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !tool("umount", &[&self.at]).status.success() {
            tool("umount", &["--lazy".as_ref(), self.at.as_os_str()]);
        }
    }
}
