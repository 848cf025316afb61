//! What docs/architecture.md says of the code, held up against the code.

#[path = "common/source.rs"]
mod source;

use std::collections::BTreeSet;

use source::{code, files, functions, read, repository, without_tests};

/// The rooms of the host; imports go from left to right.
const ROOMS: [&str; 8] = [
    "cli", "serve", "nbd", "export", "journal", "layout", "backend", "plugin",
];
/// Known to all rooms, and to each other.
const COMMON: [&str; 5] = ["error", "location", "pool", "runtime", "secrets"];

/// Where `unsafe` may stand, outside of tests.
const UNSAFE: [&str; 7] = [
    "plugin-api/src/",
    "host/src/plugin/",
    "host/src/pool.rs",
    "plugins/file/src/mapping.rs",
    "plugins/file/src/lock.rs",
    // A counting allocator and a table of functions, for tests.
    "plugins/cache/tests/memory_bound.rs",
    "testing/fake/src/host.rs",
];

/// Files and directories that know no socket, file, clock or waiting.
const PURE: [&str; 37] = [
    "commit-log/src/",
    "host/src/nbd/wire/",
    "host/src/nbd/validate.rs",
    "host/src/nbd/errno.rs",
    "host/src/error.rs",
    "host/src/location.rs",
    "host/src/location/",
    "host/src/layout/dirty.rs",
    "host/src/layout/distributed/format/",
    "host/src/layout/distributed/placement.rs",
    "host/src/layout/distributed/roster.rs",
    "host/src/layout/distributed/state/",
    "host/src/layout/distributed/volume/batch.rs",
    "host/src/layout/frame.rs",
    "host/src/layout/geometry.rs",
    "host/src/layout/distributed/log/known.rs",
    "host/src/layout/distributed/log/object.rs",
    "host/src/layout/distributed/log/payloads.rs",
    "host/src/layout/split.rs",
    "host/src/layout/units.rs",
    "journal/src/format/",
    "journal/src/ring.rs",
    "journal/src/scan.rs",
    "journal/src/claim.rs",
    "journal/src/index/",
    "plugin-api/src/options.rs",
    "plugins/cache/src/config.rs",
    "plugins/cache/src/disk/record.rs",
    "plugins/cache/src/grid.rs",
    "plugins/cache/src/pattern.rs",
    "plugins/fault/src/config.rs",
    "plugins/fault/src/plan.rs",
    "plugins/file/src/config.rs",
    "plugins/log/src/config.rs",
    "plugins/mem/src/config.rs",
    "plugins/retry/src/config.rs",
    "plugins/retry/src/policy.rs",
];
/// What such a file does not say.
const IMPURE: [&str; 14] = [
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::env",
    "std::thread",
    "std::sync",
    "Instant",
    "SystemTime",
    "tokio",
    "rustix",
    "libc::",
    "async ",
];

/// The longest function, in lines, and those that are longer all the same. The list may only
/// shrink: who makes one shorter takes it off.
const FUNCTION_LINES: usize = 70;
const LONG_FUNCTIONS: [(&str, &str, usize); 2] = [
    (
        "host/tests/durability/resend.rs",
        "c03_f30_a_write_of_a_dead_connection_never_replaces_newer_data",
        81,
    ),
    // A flat match: one arm for each fault.
    ("testing/s3-server/src/fault.rs", "play", 86),
];

/// The longest file, in lines, and those that are longer all the same, as above.
const FILE_LINES: usize = 700;
const LONG_FILES: [(&str, usize); 1] = [("plugin-api/src/types.rs", 774)];

/// The names that a source imports from its crate's root.
fn imports(code: &str) -> BTreeSet<String> {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let word = |text: &str| -> String {
        let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
        text.trim_start().chars().take_while(is_word).collect()
    };
    let mut found = BTreeSet::new();
    for behind in flat.split("crate::").skip(1) {
        let Some(group) = behind.strip_prefix('{') else {
            found.insert(word(behind));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in group.char_indices() {
            if start && depth == 0 {
                found.insert(word(&group[at..]));
            }
            start = c == ',' || (start && c == ' ');
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

/// The room of a file of the host: `host/src/ROOM/...` or `host/src/ROOM.rs`.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("host/src/")?;
    inside.split('/').next()?.split('.').next()
}

#[test]
fn imports_go_one_way() {
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    let mut wrong = Vec::new();
    for path in files(".rs") {
        let Some(here) = room(&path).filter(|room| !["lib", "main"].contains(room)) else {
            continue;
        };
        let is_common = COMMON.contains(&here);
        assert!(
            is_common || place(here).is_some(),
            "{path}: a new room: where does it stand?"
        );
        let code = code(&read(&path));
        for name in imports(without_tests(&code)) {
            let allowed = match place(&name) {
                Some(there) => place(here).is_some_and(|here| here <= there),
                None => COMMON.contains(&name.as_str()),
            };
            if !allowed {
                wrong.push(format!("{path} imports {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn plugins_know_the_interface_alone() {
    let manifests = files("Cargo.toml");
    let borders = ["plugins/", "plugin-api/"];
    let of_plugins = manifests
        .iter()
        .filter(|path| borders.iter().any(|border| path.starts_with(border)));
    for path in of_plugins {
        let manifest = read(path);
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies
            .lines()
            .filter(|line| line.starts_with("nbd-rs"))
        {
            assert!(line.starts_with("nbd-rs-plugin"), "{path}: {line}");
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_must() {
    let is_word = |before: Option<char>, after: Option<char>| {
        let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !part(before) && !part(after)
    };
    let mut wrong = Vec::new();
    for path in files(".rs") {
        if UNSAFE.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let code = code(&read(&path));
        let code = without_tests(&code);
        let used = code.match_indices("unsafe").any(|(at, _)| {
            is_word(
                code[..at].chars().next_back(),
                code[at + "unsafe".len()..].chars().next(),
            )
        });
        if used {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "unsafe in {wrong:#?}");
}

#[test]
fn pure_parts_know_no_socket_file_clock_or_waiting() {
    let mut wrong = Vec::new();
    for path in files(".rs") {
        if !PURE.iter().any(|pure| path.starts_with(pure)) {
            continue;
        }
        let code = code(&read(&path));
        let code = without_tests(&code);
        let found = IMPURE.iter().filter(|word| code.contains(*word));
        wrong.extend(found.map(|word| format!("{path}: {word}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn functions_are_short() {
    let mut wrong = Vec::new();
    let mut needless: BTreeSet<_> = LONG_FUNCTIONS.iter().map(|(_, name, _)| *name).collect();
    for path in files(".rs") {
        for (name, lines) in functions(&code(&read(&path))) {
            let exception = LONG_FUNCTIONS
                .iter()
                .find(|(file, function, _)| *file == path && *function == name);
            if lines <= FUNCTION_LINES {
                continue;
            }
            match exception {
                Some((_, function, most)) if lines <= *most => drop(needless.remove(function)),
                _ => wrong.push(format!("{path}: {name} has {lines} lines")),
            }
        }
    }
    assert!(wrong.is_empty(), "over {FUNCTION_LINES} lines: {wrong:#?}");
    assert!(
        needless.is_empty(),
        "short enough now, take them off the list: {needless:?}"
    );
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    let mut needless: BTreeSet<_> = LONG_FILES.iter().map(|(path, _)| *path).collect();
    for path in files(".rs") {
        let lines = read(&path).lines().count();
        let exception = LONG_FILES.iter().find(|(file, _)| *file == path);
        if lines <= FILE_LINES {
            continue;
        }
        match exception {
            Some((file, most)) if lines <= *most => drop(needless.remove(file)),
            _ => wrong.push(format!("{path}: {lines} lines")),
        }
    }
    assert!(wrong.is_empty(), "over {FILE_LINES} lines: {wrong:#?}");
    assert!(
        needless.is_empty(),
        "short enough now, take them off the list: {needless:?}"
    );
}

/// The targets of Markdown's links: what stands between `](` and `)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let behind = text.split("](").skip(1);
    behind.filter_map(|link| link.split(')').next())
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in files(".md") {
        let text = read(&path);
        let here = repository().join(&path);
        let here = here.parent().unwrap_or(repository());
        for link in links(&text).filter(|link| !link.contains("://")) {
            seen += 1;
            let file = link.split('#').next().unwrap_or_default();
            if !here.join(file).exists() {
                wrong.push(format!("{path}: {link}"));
            }
        }
    }
    assert!(seen > 5, "only {seen} links found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["todo!", "unimplemented!", "TODO", "FIXME"];
    let mut wrong = Vec::new();
    let sources = files(".rs")
        .into_iter()
        .chain(files(".md"))
        .chain(files(".sh"));
    for path in sources.filter(|path| path != "host/tests/architecture.rs") {
        let text = read(&path);
        let found = words.iter().filter(|word| text.contains(*word));
        wrong.extend(found.map(|word| format!("{path}: {word}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn these_tests_see_what_they_look_for() {
    let source = "use crate::{a, b::{c, d}, e};\n// crate::no\nlet x = \"crate::no {\";\n\
                  fn f() { r#\"}\"#; '{'; crate::g::h(); }\nfn t();\nfn l<'a>(x: [u8; 2]) -> &'a u8\n{\n}\n";
    let code = code(source);
    let names: Vec<_> = imports(&code).into_iter().collect();
    assert_eq!(names, ["a", "b", "e", "g"], "{code}");
    let found = functions(&code);
    assert_eq!(found, [("f".to_owned(), 1), ("l".to_owned(), 3)], "{code}");
    assert_eq!(room("host/src/serve/listen.rs"), Some("serve"));
    assert_eq!(room("host/src/pool.rs"), Some("pool"));
    assert_eq!(
        links("[a](b.md) and [c](d#e)").collect::<Vec<_>>(),
        ["b.md", "d#e"]
    );
}
