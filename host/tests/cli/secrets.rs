//! U1, U2: a secret that was typed is on no line that anybody reads later.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::server::{binary, Serve};
use crate::stage::{assert_logged, Said, Stage};

/// Long enough to be looked for, and in no other word.
const PASSWORD: &str = "cAnArY-pAsSwOrD-0123456789";
const TOKEN: &str = "cAnArY-tOkEn-0123456789";

/// The library of the fixture that says all it knows, built once.
fn fixture() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = binary().parent().unwrap();
        let profile = match built.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--offline",
            "--package",
            "fixture-logging",
        ]);
        cargo
            .args(["--profile", profile, "--target-dir"])
            .arg(built.parent().unwrap());
        assert!(cargo.status().unwrap().success());
        built.join("libfixture_logging.so")
    })
}

/// A stage with a directory of plugins: a link and a store that say all they know.
fn stage() -> Stage {
    let stage = Stage::new();
    fs::create_dir(stage.path("plugins")).unwrap();
    for name in ["log-a", "log-store"] {
        fs::copy(fixture(), stage.path(&format!("plugins/{name}.so"))).unwrap();
    }
    stage.file("disk.img", &[0; 8192]);
    stage
}

/// A location with both secrets in it.
fn location() -> String {
    format!("log-a+log-store://KEY:{PASSWORD}@host:9000/bucket?token={TOKEN}")
}

fn assert_clean(what: &str, text: &str) {
    let text = text.to_lowercase();
    for secret in [PASSWORD, TOKEN, "canary", "p@ss/word"] {
        assert!(
            !text.contains(&secret.to_lowercase()),
            "{what} shows a secret: {text}"
        );
    }
}

fn told(stage: &Stage, words: &[&str]) -> Said {
    let common = ["--plugin-dir", "plugins", "--log", "trace"];
    let words: Vec<&str> = common.iter().chain(words).copied().collect();
    let said = stage.nbd_rs(&words);
    assert_clean("standard output", &said.out);
    assert_clean("standard error", &said.err);
    said
}

#[test]
fn u1_no_command_shows_a_secret() {
    let stage = stage();
    let location = location();
    for words in [&["info", "raw"][..], &["info", "--json", "raw"]] {
        let words: Vec<&str> = words.iter().copied().chain([&location[..]]).collect();
        let said = told(&stage, &words);
        assert!(
            said.worked().contains("//KEY:***@host:9000/bucket"),
            "{said:?}"
        );
        assert!(
            said.err.contains("log-store opens"),
            "the plugin logged nothing: {said:?}"
        );
        let hints = said
            .err
            .lines()
            .filter(|line| line.contains("the shell's history"));
        assert_eq!(hints.count(), 1, "{said:?}");
    }
}

/// A line about the keys came with every attempt, besides the one that tells of them.
#[test]
fn u1_that_a_secret_was_typed_is_said_once() {
    let stage = Stage::new();
    let location = format!("s3:http://KEY:{PASSWORD}@127.0.0.1:1/bucket/p");
    let said = stage.nbd_rs(&["info", "sharded", &location]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_clean("standard error", &said.err);
    let about = |line: &&str| line.contains("command line") || line.contains("keys");
    assert_eq!(said.err.lines().filter(about).count(), 1, "{said:?}");
    let last = said.err.lines().last().unwrap_or_default();
    assert!(last.contains("at http://127.0.0.1:1: "), "{last}");
}

#[test]
fn u1_no_error_shows_a_secret() {
    let stage = stage();
    let location = location();
    let errors = [
        // The plugin puts it into its error.
        format!("{location}&ask=open"),
        format!("{location}&colour=red"),
        format!("{location}&pin=cAnArY"),
        format!("{location}&token={TOKEN}"),
        format!("log-store://KEY:p?{PASSWORD}@host/b"),
        format!("log-store://KEY:p?token={PASSWORD}@host/b"),
        format!("log-store://b?token={TOKEN}%ff"),
        format!("log-store://b?{TOKEN}@host"),
        format!("gopher://KEY:{PASSWORD}@host/b"),
        format!("LOG://KEY:{PASSWORD}@host/b"),
    ];
    for location in &errors {
        let said = told(&stage, &["info", "raw", location]);
        assert!(matches!(said.code, Some(1 | 2)), "{location}: {said:?}");
    }
    for words in [
        &["info", &location, "raw"][..],
        &["init", "--size", &location, "raw", "x"],
        &[
            "serve",
            "--export",
            "x",
            "raw",
            "file:disk.img",
            "--listen",
            &location,
        ],
        &["info", "raw", "file:x", &location],
        &[&location],
    ] {
        told(&stage, words).refused(2, &[]);
    }
}

#[test]
fn u1_a_server_shows_no_secret_in_its_log_and_in_the_list_of_processes() {
    let stage = stage();
    let plugins = stage.path("plugins").display().to_string();
    let server = Serve::raw("file", &stage.path("disk.img"))
        .words(["--plugin-dir", &plugins, "--log", "trace"])
        .words(["--export", "kept", "raw", &location()])
        .unix(&stage.path("sock"))
        .start();
    let id = server.pid().as_raw_nonzero();
    let line = fs::read(format!("/proc/{id}/cmdline")).unwrap();
    let line = String::from_utf8(line).expect("still text");
    let words: Vec<&str> = line.split('\0').collect();
    assert_clean("/proc/PID/cmdline", &line);
    let shown = words.iter().find(|word| word.starts_with("log-a"));
    let shown = shown.unwrap_or_else(|| panic!("the location is gone altogether: {words:?}"));
    assert_eq!(
        shown.len(),
        location().len(),
        "other words were moved: {words:?}"
    );
    assert_eq!(
        shown.trim_end(),
        "log-a:log-store://KEY:***@host:9000/bucket?token=***"
    );
    let image = format!("file:{}", stage.path("disk.img").display());
    assert!(
        words.contains(&&image[..]),
        "a word without a secret changed: {words:?}"
    );
    assert_eq!(words.last(), Some(&""), "the line ends where it ended");
    assert_logged(&server, "log-store opens");
    assert_clean("the log", &server.log());
    let status = fs::read_to_string(format!("/proc/{id}/comm")).unwrap();
    assert_eq!(status.trim(), "nbd-rs");
    server.stop();
}

#[test]
fn u2_a_secret_with_characters_of_urls_in_it_reaches_the_store_and_no_line() {
    let stage = stage();
    // p@ss/word:%2F+#?, as it is typed.
    let typed = "p%40ss%2Fword%3A%252F+%23%3F";
    let location = format!("log-store://KEY:{typed}@host/b?token={typed}&ask=open");
    let said = told(&stage, &["info", "raw", &location]);
    said.refused_after_log("can't open //KEY:***@host/b with Some(\"***\")");
    for part in [typed, "p@ss/word", "%2F+#?", "%252F"] {
        assert!(!said.err.contains(part), "{said:?}");
    }
}

impl Said {
    /// As `refused`, when log lines stand before the last one.
    #[track_caller]
    fn refused_after_log(&self, words: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        let last = self.err.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("nbd-rs: ") && last.contains(words),
            "{last}"
        );
    }
}
