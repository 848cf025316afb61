//! A location and its options, understood. Pure.

use std::path::PathBuf;

use nbd_rs_plugin::options::{decode, Options};
use nbd_rs_plugin::{Error, Kind, OpenFlags, OpenRequest, Result};

/// What to open, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file, or the directory of objects.
    pub path: PathBuf,
    /// Whether to use mappings.
    pub lend: bool,
    /// What the host means to do.
    pub flags: OpenFlags,
}

impl Config {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with the target or an option.
    pub fn new(request: &OpenRequest) -> Result<Self> {
        Ok(Self {
            path: path(&request.target)?,
            lend: Options(&request.options).boolean("lend", true)?,
            flags: request.flags,
        })
    }
}

/// `/abs`, `rel` or `///abs`, percent-decoded once.
fn path(target: &str) -> Result<PathBuf> {
    let path = match target.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(rest) => {
            return Err(Error::new(
                Kind::Invalid,
                format!("file://{rest} names a host: write file:/{rest} or file:///{rest}"),
            ));
        }
        None => target,
    };
    if path.is_empty() {
        return Err(Error::new(Kind::Invalid, "file: needs a path"));
    }
    if path.starts_with('~') {
        return Err(Error::new(
            Kind::Invalid,
            format!("file:{path}: the shell did not expand the ~; write file:$HOME/... (or file:./{path})"),
        ));
    }
    decode(path).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_or_relative_and_decoded_once() {
        for (target, expected) in [
            ("/abs/raw.bin", "/abs/raw.bin"),
            ("rel.bin", "rel.bin"),
            ("///abs/dir/", "/abs/dir/"),
            ("/a%3Fb%252C", "/a?b%2C"),
        ] {
            assert_eq!(path(target).unwrap(), PathBuf::from(expected), "{target}");
        }
        for target in ["", "//host/path", "//", "/a%00b", "~/raw.bin", "/a%b"] {
            assert!(path(target).is_err(), "{target}");
        }
    }
}
