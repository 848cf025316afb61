//! `nbd-rs plugins check`: on plugins that keep their promises, and on ones that do not.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::support::{build_dir, cargo_build, fixture, repository, Folder};

/// The project's own plugins, in a folder.
pub(crate) fn own() -> &'static Folder {
    static OWN: OnceLock<Folder> = OnceLock::new();
    OWN.get_or_init(|| {
        let names = ["fault", "file", "log", "mem"];
        let packages = names.map(|name| format!("nbd-rs-{name}"));
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        cargo_build(repository(), &packages);
        let folder = Folder::new();
        for name in names {
            let file = format!("libnbd_rs_{name}.so");
            folder.copy(&build_dir().join(&file), &file);
        }
        folder
    })
}

fn library(name: &str) -> PathBuf {
    own().path().join(format!("libnbd_rs_{name}.so"))
}

/// `nbd-rs plugins check`, with the project's own plugins at hand.
pub(crate) fn check(file: &Path, location: &str, more: &[&str]) -> (Option<i32>, String) {
    let output: Output = Command::new("timeout")
        .arg("300")
        .arg(env!("CARGO_BIN_EXE_nbd-rs"))
        .arg("--plugin-dir")
        .arg(own().path())
        .args(["plugins", "check"])
        .arg(file)
        .arg(location)
        .args(more)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), out + &err)
}

#[test]
fn plugins_that_keep_their_promises_pass() {
    let folder = Folder::new();
    let dir = folder.path().display().to_string();
    let image = folder.path().join("image").display().to_string();
    for (file, location, more) in [
        ("mem", "mem:".to_owned(), &[][..]),
        ("mem", "mem:?size=1MiB".to_owned(), &["--single"]),
        ("mem", "mem:?size=1MiB".to_owned(), &["--read-only"]),
        (
            "mem",
            "mem:?size=1MiB".to_owned(),
            &["--single", "--read-only"],
        ),
        ("file", format!("file:{dir}/"), &[]),
        ("file", format!("file:{image}"), &["--single"]),
        ("log", "log+mem:".to_owned(), &[]),
        ("fault", "fault+mem:?fault.rate=0".to_owned(), &[]),
    ] {
        let (code, said) = check(&library(file), &location, more);
        assert_eq!(code, Some(0), "{location}: {said}");
        assert!(said.contains(" 0 failed"), "{location}: {said}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.len() <= 2, "left behind: {left:?}");
}

#[test]
fn c22_plugins_that_lie_are_found_out_with_the_promise_and_the_way_to_see_it_again() {
    let logging = Folder::new();
    let link = logging.copy(&fixture("logging"), "log-a.so");
    for (file, location, check_name, seen) in [
        (
            library("fault"),
            "fault+mem:?fault.rate=100&fault.ops=put&fault.kind=lost",
            "what_was_put_is_read",
            "not_found",
        ),
        (
            library("fault"),
            "fault+mem:?fault.rate=100&fault.ops=get&fault.kind=flip",
            "what_was_put_is_read",
            "instead of 0x",
        ),
        (
            library("fault"),
            "fault+mem:?fault.rate=100&fault.ops=get&fault.kind=stale",
            "overwrites_are_seen_at_once",
            "get",
        ),
        (
            library("fault"),
            "fault+mem:?fault.rate=100&fault.ops=write&fault.kind=lost",
            "script",
            "step",
        ),
        (
            library("fault"),
            "fault+mem:?fault.rate=100&fault.ops=get&fault.kind=hang",
            "ranges",
            "no answer after 3s",
        ),
        (
            link.clone(),
            "log-a+mem:?log-a.lie=get",
            "ranges",
            "instead of",
        ),
        (
            link,
            "log-a+mem:?log-a.lie=delete",
            "deletes",
            "results for",
        ),
        (
            fixture("panics"),
            "panic:list",
            "nothing",
            "panicked: expected: list",
        ),
    ] {
        let more = ["--limit", "3s", "--only", check_name];
        let (code, said) = check(&file, location, &more);
        assert_eq!(code, Some(5), "{location}: {said}");
        let failed = format!("FAILED   {check_name}  ");
        assert!(
            said.contains(&failed) && said.contains(seen),
            "{location}: {said}"
        );
        let again = format!("again: nbd-rs plugins check {}", file.display());
        assert!(said.contains(&again), "{location}: {said}");
        assert!(
            said.contains(&format!("--only {check_name} --seed 1")),
            "{said}"
        );
    }
}

/// Memory crosses the border by counted owners: what is freed twice, late or never by whoever drops
/// a read half-way is seen by valgrind, and by nothing else.
#[test]
fn dropped_and_crowded_calls_misuse_no_memory() {
    if !crate::tools::present(&["valgrind"]) {
        return;
    }
    for (name, location) in [("mem", "mem:"), ("log", "log+mem:")] {
        let mut words = vec![
            "--quiet",
            "--error-exitcode=9",
            env!("CARGO_BIN_EXE_nbd-rs"),
        ];
        let (dir, file) = (own().path(), library(name));
        words.extend(["--plugin-dir", dir.to_str().unwrap(), "plugins", "check"]);
        words.extend([file.to_str().unwrap(), location]);
        for check in [
            "dropped_reads",
            "dropped_object_reads",
            "not_polled",
            "ranges",
            "script",
        ] {
            words.extend(["--only", check]);
        }
        let said = crate::tools::run("valgrind", &words);
        assert!(said.contains("5 passed, 0 skipped, 0 failed"), "{said}");
    }
}

#[test]
fn what_is_found_is_there_for_scripts_too() {
    let location = "fault+mem:?fault.rate=100&fault.ops=put&fault.kind=lost";
    let only = [
        "--json", "--only", "ranges", "--only", "nothing", "--seed", "9",
    ];
    let (code, said) = check(&library("fault"), location, &only);
    assert_eq!(code, Some(5), "{said}");
    // The link's own warning stands behind it, on standard error.
    let json = said.split("\n}\n").next().unwrap().to_owned() + "\n}";
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["conforms"], false);
    assert_eq!(
        (&json["seed"], &json["plugin"]),
        (&9.into(), &"fault".into())
    );
    assert_eq!(json["checks"][0]["outcome"], "failed");
    assert_eq!(json["checks"][1]["outcome"], "passed");
    let again = json["checks"][0]["again"].as_str().unwrap();
    assert!(again.ends_with("--only ranges --seed 9"), "{again}");
}

#[test]
fn what_can_not_be_checked_is_said_in_one_line() {
    let folder = Folder::new();
    let none = folder.write("none.so", "no library");
    for (file, location, more, code, words) in [
        (&none, "mem:", &[][..], 1, "is not a shared library"),
        (
            &library("mem"),
            "file:/x",
            &[],
            2,
            "which is not the plugin to check",
        ),
        (&library("mem"), "log+mem:", &[], 2, "log is served by"),
        (
            &library("mem"),
            "mem:?colour=red",
            &[],
            2,
            "unknown option \"colour\"",
        ),
        (
            &library("mem"),
            "mem:",
            &["--only", "all"],
            2,
            "known: capabilities, what_was",
        ),
        (
            &library("file"),
            "file:/no/such",
            &["--read-only"],
            1,
            "/no/such",
        ),
    ] {
        let (seen, said) = check(file, location, more);
        assert_eq!(seen, Some(code), "{location}: {said}");
        assert!(
            said.contains(words) && said.trim_end().lines().count() == 1,
            "{said}"
        );
    }
}
