//! Whom we let put code into this process: only those who could replace the executable anyway, or
//! who run it.
//!
//! A file is judged with the directory it lies in and every directory above, since who may rename
//! one of those may swap the file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{text, LoadError};

const STICKY: u32 = 0o1000;
const GROUP_MAY_WRITE: u32 = 0o020;
const OTHERS_MAY_WRITE: u32 = 0o002;

/// What a path is to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The file, or the directory that holds it.
    Own,
    /// A directory further up: a sticky one keeps strangers from renaming what they don't own.
    Above,
}

/// Who may own plugins: root, the user that runs us, whoever owns the executable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust {
    user: u32,
    executable_owner: Option<u32>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Trusted,
    Warning(&'static str),
    Refused(String),
}

impl Trust {
    /// That of this process.
    pub(super) fn of_this_process() -> Self {
        let owner = std::env::current_exe().and_then(|path| path.metadata());
        Self {
            user: rustix::process::geteuid().as_raw(),
            executable_owner: owner.ok().map(|metadata| metadata.uid()),
        }
    }

    /// The rule, for one path with this owner and mode.
    fn judge(self, part: Part, owner: u32, mode: u32) -> Verdict {
        if owner != 0 && owner != self.user && Some(owner) != self.executable_owner {
            return Verdict::Refused(format!(
                "belongs to user {owner}, who is neither root, nor runs nbd-rs, nor owns it"
            ));
        }
        if part == Part::Above && mode & STICKY != 0 {
            return Verdict::Trusted;
        }
        if mode & OTHERS_MAY_WRITE != 0 {
            return Verdict::Refused("may be written by everybody (chmod o-w)".to_owned());
        }
        if mode & GROUP_MAY_WRITE != 0 {
            return Verdict::Warning("may be written by its group (chmod g-w)");
        }
        Verdict::Trusted
    }

    /// Judges a path without links, and all directories above it. Gives the warnings.
    pub(super) fn check(self, path: &Path) -> Result<Vec<(PathBuf, &'static str)>, LoadError> {
        let mut warnings = Vec::new();
        let mut part = Part::Own;
        for place in path.ancestors() {
            let metadata = place
                .symlink_metadata()
                .map_err(|error| unreadable(place, &error))?;
            match self.judge(part, metadata.uid(), metadata.mode()) {
                Verdict::Trusted => {}
                Verdict::Warning(what) => warnings.push((place.to_owned(), what)),
                Verdict::Refused(what) if place == path => return Err(LoadError::Insecure(what)),
                Verdict::Refused(what) => {
                    let place = text::path(place);
                    return Err(LoadError::Insecure(format!(
                        "lies under {place}, which {what}"
                    )));
                }
            }
            // The directory that holds a file is as good as the file: not even sticky helps.
            let is_file = part == Part::Own && !metadata.is_dir();
            part = if is_file { Part::Own } else { Part::Above };
        }
        Ok(warnings)
    }
}

fn unreadable(place: &Path, error: &io::Error) -> LoadError {
    LoadError::Unreadable(format!("{}: {error}", text::path(place)))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TRUST: Trust = Trust {
        user: 1000,
        executable_owner: Some(990),
    };

    #[test]
    fn only_root_the_user_and_the_executables_owner_are_trusted() {
        for (owner, trusted) in [
            (0, true),
            (1000, true),
            (990, true),
            (1001, false),
            (65534, false),
        ] {
            for part in [Part::Own, Part::Above] {
                let verdict = TRUST.judge(part, owner, 0o755);
                assert_eq!(verdict == Verdict::Trusted, trusted, "{owner} {part:?}");
            }
        }
    }

    #[test]
    fn who_may_write_decides() {
        for (part, mode, expected) in [
            (Part::Own, 0o755, "trusted"),
            (Part::Own, 0o775, "warning"),
            (Part::Own, 0o757, "refused"),
            (Part::Own, 0o777, "refused"),
            (Part::Own, 0o1777, "refused"),
            (Part::Own, 0o002, "refused"),
            (Part::Above, 0o777, "refused"),
            (Part::Above, 0o1777, "trusted"),
            (Part::Above, 0o1775, "trusted"),
            (Part::Above, 0o775, "warning"),
        ] {
            let verdict = match TRUST.judge(part, 0, mode) {
                Verdict::Trusted => "trusted",
                Verdict::Warning(_) => "warning",
                Verdict::Refused(_) => "refused",
            };
            assert_eq!(verdict, expected, "{part:?} {mode:o}");
        }
    }

    #[test]
    fn sticky_does_not_excuse_a_strange_owner() {
        let verdict = TRUST.judge(Part::Above, 1001, 0o1777);
        assert!(matches!(verdict, Verdict::Refused(_)));
    }

    #[test]
    fn every_directory_above_counts() {
        let temp = tempfile::tempdir().unwrap();
        let (open, dir) = (temp.path().join("open"), temp.path().join("open/dir"));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("x.so");
        std::fs::write(&file, "").unwrap();
        let chmod = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        chmod(&dir, 0o755);
        chmod(&file, 0o644);
        let trust = Trust::of_this_process();
        let file = file.canonicalize().unwrap();
        for (mode, trusted) in [(0o755, true), (0o757, false), (0o1777, true)] {
            chmod(&open, mode);
            assert_eq!(trust.check(&file).is_ok(), trusted, "{mode:o}");
        }
        chmod(&dir, 0o1777);
        let error = trust.check(&file).unwrap_err().to_string();
        assert!(
            error.contains("open/dir, which may be written by everybody"),
            "{error}"
        );
        chmod(&dir, 0o775);
        assert_eq!(trust.check(&file).unwrap().len(), 1);
    }
}
