//! Where plugins lie, who may have put them there, and who wins.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nbd_rs::plugin::{Places, Registry, SearchPath};

use crate::support::{chmod, fixture, load, reason, search, Folder};

/// A folder with the fixture in it.
fn folder_with(name: &str) -> (Folder, PathBuf) {
    let folder = Folder::new();
    let path = folder.copy(&fixture("panics"), name);
    (folder, path)
}

fn insecure(folder: &Folder) -> Registry {
    Registry::load(&search(&[folder.path()]), true)
}

#[test]
fn the_first_directory_wins_and_the_second_is_shadowed() {
    let ((first, winner), (second, loser)) = (folder_with("a.so"), folder_with("b.so"));
    let registry = load(&[&first, &second]);
    assert_eq!(registry.get("panic").unwrap().path, winner);
    let shadowed = &registry.shadowed()[0];
    assert_eq!((&shadowed.path, &shadowed.by), (&loser, &winner));
    assert!(registry.refused().is_empty());
    assert!(registry.to_text().contains("shadowed:\n  panic: "));
}

#[test]
fn two_files_for_one_scheme_in_one_directory_refuse_it_and_name_both() {
    let (folder, a) = folder_with("a.so");
    let b = folder.copy(&fixture("panics"), "b.so");
    let registry = load(&[&folder]);
    let error = registry.get("panic").unwrap_err().message;
    for path in [&a, &b] {
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(reason(&registry, &a), error);
}

#[test]
fn a_file_with_several_names_counts_once() {
    let (folder, path) = folder_with("a.so");
    symlink(&path, folder.path().join("b.so")).unwrap();
    std::fs::hard_link(&path, folder.path().join("c.so")).unwrap();
    let second = Folder::new();
    symlink(&path, second.path().join("d.so")).unwrap();
    let registry = load(&[&folder, &second]);
    assert_eq!(registry.plugins().len(), 1);
    assert!(
        registry.shadowed().is_empty() && registry.refused().is_empty(),
        "{registry:?}"
    );
}

#[test]
fn a_file_that_others_may_write_is_refused_unless_allowed() {
    let (folder, path) = folder_with("a.so");
    chmod(&path, 0o666);
    let why = reason(&load(&[&folder]), &path);
    assert!(
        why.contains("by everybody") && why.contains("--allow-insecure-plugins"),
        "{why}"
    );
    assert!(insecure(&folder).get("panic").is_ok());
}

#[test]
fn a_directory_that_others_may_write_is_refused_even_if_sticky() {
    for mode in [0o777, 0o1777] {
        let (folder, _) = folder_with("a.so");
        chmod(&folder.path(), mode);
        let why = reason(&load(&[&folder]), &folder.path());
        assert!(why.contains("by everybody"), "{why}");
        assert!(insecure(&folder).get("panic").is_ok());
    }
}

#[test]
fn a_directory_above_that_others_may_write_is_refused() {
    let outer = Folder::new();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let path = inner.join("a.so");
    std::fs::copy(fixture("panics"), &path).unwrap();
    for (mode, refused) in [(0o777, true), (0o1777, false), (0o755, false)] {
        chmod(&outer.path(), mode);
        let registry = Registry::load(&search(std::slice::from_ref(&inner)), false);
        assert_eq!(registry.get("panic").is_err(), refused, "{mode:o}");
    }
}

#[test]
fn a_link_does_not_launder_what_it_points_at() {
    let (open, path) = folder_with("a.so");
    chmod(&open.path(), 0o777);
    let folder = Folder::new();
    let link = folder.path().join("innocent.so");
    symlink(&path, &link).unwrap();
    let why = reason(&load(&[&folder]), &link);
    assert!(why.contains("lies under"), "{why}");
}

#[test]
fn a_group_that_may_write_is_a_warning() {
    let (folder, path) = folder_with("a.so");
    chmod(&path, 0o664);
    let registry = load(&[&folder]);
    assert!(registry.get("panic").is_ok());
    assert!(
        registry.warnings()[0].contains("by its group"),
        "{:?}",
        registry.warnings()
    );
}

#[test]
fn a_file_or_directory_of_a_stranger_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let stranger = rustix::fs::Uid::from_raw(12345);
    let give = |path: &Path| rustix::fs::chown(path, Some(stranger), None).unwrap();
    let (folder, path) = folder_with("a.so");
    give(&path);
    assert!(reason(&load(&[&folder]), &path).contains("belongs to user 12345"));
    assert!(insecure(&folder).get("panic").is_ok());
    let (folder, _) = folder_with("a.so");
    give(&folder.path());
    assert!(reason(&load(&[&folder]), &folder.path()).contains("belongs to user 12345"));
}

#[test]
fn a_directory_that_was_named_and_is_missing_is_a_line() {
    let (folder, _) = folder_with("a.so");
    let none = folder.path().join("none");
    let registry = Registry::load(&search(&[none.clone(), folder.path()]), false);
    assert!(reason(&registry, &none).contains("No such file"));
    assert!(registry.get("panic").is_ok());
}

#[test]
fn beside_the_executable_other_libraries_are_left_alone() {
    let (folder, _) = folder_with("libnbd_rs_panics.so");
    folder.write("libother.so", "not ours");
    let places = Places {
        executable: Some(folder.path().join("nbd-rs")),
        ..Places::default()
    };
    let registry = Registry::load(&SearchPath::new(&places), false);
    assert!(registry.get("panic").is_ok());
    assert!(registry.refused().is_empty(), "{registry:?}");
}

#[test]
fn an_unknown_scheme_points_at_the_file_that_was_refused() {
    let folder = Folder::new();
    let path = folder.write("libnbd_rs_tape.so", "half a download");
    let error = load(&[&folder]).get("tape").unwrap_err().message;
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    let error = load(&[&folder]).get("disk").unwrap_err().message;
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
}
