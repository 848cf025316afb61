//! Plugins of the first version of the interface, as they were built then: every later host of the
//! major version loads them, and they keep their promises (docs/abi-policy.md).
#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]

use nbd_rs::plugin::Registry;

use crate::check::check;
use crate::support::{load, repository, Folder};

const KEPT: [&str; 2] = ["mem", "log"];

/// The kept libraries, in a folder that nobody else may write.
fn kept() -> Folder {
    let folder = Folder::new();
    for name in KEPT {
        let file = format!("{name}-1.0.so");
        folder.copy(&repository().join("testing/kept").join(&file), &file);
    }
    folder
}

#[test]
fn plugins_of_the_first_version_load() {
    let folder = kept();
    let registry: Registry = load(&[&folder]);
    assert!(registry.refused().is_empty(), "{:?}", registry.refused());
    for name in KEPT {
        let plugin = registry.get(name).expect(name);
        assert_eq!(plugin.abi_version, "1.0.0");
        assert!(plugin.path.starts_with(folder.path()));
    }
}

#[test]
fn plugins_of_the_first_version_keep_their_promises_and_stand_before_those_of_today() {
    let folder = kept();
    let file = |name: &str| folder.path().join(format!("{name}-1.0.so"));
    for (name, location, more) in [
        ("mem", "mem:", &[][..]),
        ("mem", "mem:?size=1MiB", &["--single"]),
        ("log", "log+mem:", &[]),
    ] {
        let (code, said) = check(&file(name), location, more);
        assert_eq!(code, Some(0), "{location}: {said}");
        assert!(said.contains("(interface 1.0.0)"), "{said}");
    }
}
