//! Who wins, with plugins that came from no file.

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RResult;
use nbd_rs_plugin::abi::{DynBackend, HostRef, PluginTable};
use nbd_rs_plugin::{OpenRequest, Started};

use super::*;
use crate::plugin::Origin;

extern "C" fn describe() -> RResult<Description, Error> {
    RResult::RErr(Error::unsupported("describe"))
}

extern "C" fn check(_: OpenRequest) -> RResult<(), Error> {
    RResult::ROk(())
}

extern "C" fn open(_: HostRef, _: OpenRequest) -> Started<'static, DynBackend> {
    Started::ready(Err(Error::unsupported("open")))
}

impl Registry {
    /// What a search might have found.
    pub(in crate::plugin) fn of_parts(
        plugins: Vec<Plugin>,
        refused: Vec<Refused>,
        shadowed: Vec<Shadowed>,
        warnings: Vec<String>,
    ) -> Self {
        let mut registry = Self {
            refused,
            shadowed,
            warnings,
            ..Self::default()
        };
        registry.add(plugins);
        registry
    }
}

/// A plugin that came from no file.
pub(in crate::plugin) fn plugin(path: &str, description: Description) -> Plugin {
    let schemes = description.schemes.iter();
    Plugin {
        schemes: schemes.map(|scheme| scheme.name.to_string()).collect(),
        description,
        path: path.into(),
        abi_version: "1.0.0".to_owned(),
        table: PluginTable {
            describe,
            unwinds: true,
            check,
            open,
        }
        .leak_into_prefix(),
    }
}

fn store(path: &str, schemes: &[&str]) -> Plugin {
    let said = Description::store("test", "1");
    let said = schemes
        .iter()
        .fold(said, |said, scheme| said.scheme(scheme, ""));
    plugin(path, said)
}

fn registry(dirs: Vec<Vec<Plugin>>) -> Registry {
    let mut registry = Registry::default();
    for plugins in dirs {
        registry.add(plugins);
    }
    registry
}

fn path_of<'a>(registry: &'a Registry, scheme: &str) -> &'a str {
    registry.get(scheme).unwrap().path.to_str().unwrap()
}

#[test]
fn the_first_directory_wins_and_later_ones_are_shadowed() {
    let registry = registry(vec![
        vec![store("/a/x.so", &["x", "y"])],
        vec![store("/b/x.so", &["x", "z"]), store("/b/y.so", &["y"])],
    ]);
    assert_eq!(path_of(&registry, "x"), "/a/x.so");
    assert_eq!(path_of(&registry, "z"), "/b/x.so");
    let shadowed = |scheme: &str, path: &str| Shadowed {
        path: path.into(),
        scheme: scheme.to_owned(),
        by: "/a/x.so".into(),
    };
    assert_eq!(
        registry.shadowed(),
        [shadowed("x", "/b/x.so"), shadowed("y", "/b/y.so")]
    );
    assert_eq!(registry.plugins().len(), 2);
}

#[test]
fn two_files_of_a_directory_refuse_the_scheme_and_no_other() {
    let registry = registry(vec![
        vec![store("/a/1.so", &["x", "y"]), store("/a/2.so", &["x"])],
        vec![store("/b/x.so", &["x"])],
    ]);
    let error = registry.get("x").unwrap_err().message;
    assert!(error.contains("/a/1.so and /a/2.so"), "{error}");
    assert_eq!(path_of(&registry, "y"), "/a/1.so");
    assert_eq!(registry.refused().len(), 1);
    assert_eq!(registry.shadowed()[0].by, Path::new("/a/1.so"));
    assert_eq!(registry.schemes().collect::<Vec<_>>(), ["y"]);
}

#[test]
fn an_unknown_scheme_names_the_known_ones_and_where_it_looked() {
    let mut registry = registry(vec![vec![store("/a/x.so", &["x", "y"])]]);
    registry.dirs = vec![PluginDir {
        path: "/a".into(),
        origin: Origin::Option,
    }];
    let error = registry.get("z\n").unwrap_err();
    let expected =
        r#"no plugin serves "z\\n"; known: x, y; searched: /a; --plugin-dir names another place"#;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (Kind::Unsupported, expected)
    );
    let empty = Registry::default().get("z").unwrap_err();
    assert!(empty.message.contains("known: none; searched: nowhere"));
}

#[test]
fn an_unknown_scheme_whose_file_was_refused_says_so() {
    let mut registry = Registry::default();
    registry.refused.push(Refused {
        path: "/a/libnbd_rs_my_s3.so".into(),
        reason: LoadError::Truncated,
    });
    for scheme in ["s3", "my-s3"] {
        let error = registry.get(scheme).unwrap_err().message;
        assert!(error.contains("libnbd_rs_my_s3.so is cut short"), "{error}");
    }
    assert!(!registry.get("3").unwrap_err().message.contains("cut short"));
}
