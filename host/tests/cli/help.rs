//! Help, version, and command lines that can't be understood.

use crate::stage::Stage;

const COMMANDS: [&str; 5] = ["init", "serve", "destroy", "info", "plugins"];

#[test]
fn version_is_one_line_of_name_and_number() {
    let said = Stage::new().type_in("--version");
    assert_eq!(said.worked(), concat!("nbd-rs ", env!("CARGO_PKG_VERSION")));
    assert_eq!(said.err, "");
}

#[test]
fn help_names_every_command_and_every_exit_code() {
    let stage = Stage::new();
    let said = stage.type_in("--help");
    let help = said.worked();
    for command in COMMANDS {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
    }
    let (_, codes) = help.split_once("Exit codes:").expect("exit codes");
    for code in ["0", "1", "2", "3", "4", "5", "6", "128 +"] {
        assert!(codes.contains(&format!("\n  {code} ")), "{code}: {codes}");
    }
    assert!(help.contains("nbd-rs init --size 100Mi raw \"file:$(pwd)/raw.bin\""));
    assert!(
        help.lines().all(|line| line.chars().count() <= 100),
        "{help}"
    );
}

#[test]
fn every_command_has_help_with_an_example_or_options() {
    let stage = Stage::new();
    for command in COMMANDS {
        let said = stage.type_in(&format!("{command} --help"));
        let help = said.worked();
        assert!(help.contains(&format!("Usage: nbd-rs {command}")), "{help}");
        assert!(help.contains("--plugin-dir"), "{help}");
        assert_eq!(said.err, "");
    }
    let serve = stage.type_in("serve --help");
    for word in [
        "127.0.0.1:10809",
        "unix:/path",
        "--read-only",
        "0600",
        "exits with 0; with 3",
    ] {
        assert!(serve.worked().contains(word), "{word}: {serve:?}");
    }
}

#[test]
fn readme_and_help_have_the_same_exit_codes() {
    let readme = include_str!("../../../README.md");
    for code in [
        "| 0 |",
        "| 1 |",
        "| 2 |",
        "| 3 |",
        "| 4 |",
        "| 5 |",
        "| 6 |",
        "| 128 + n |",
    ] {
        assert!(readme.contains(code), "README.md lacks {code}");
    }
}

#[test]
fn nothing_typed_shows_the_help_and_fails() {
    let said = Stage::new().nbd_rs::<&str>(&[]);
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
    assert!(said.err.contains("Usage: nbd-rs"), "{said:?}");
}

#[test]
fn a_wrong_command_line_is_one_line_that_names_the_help() {
    let stage = Stage::new();
    for (line, words) in [
        (
            "make",
            &["unrecognized subcommand 'make'", "(see nbd-rs --help)"][..],
        ),
        (
            "init raw file:x",
            &["--size <SIZE>", "(see nbd-rs init --help)"],
        ),
        ("init --size 1M raw", &["<DRIVER_CFG>", "init --help"]),
        (
            "init --size 1M --fast raw file:x",
            &["--fast", "init --help"],
        ),
        ("destroy raw file:x file:y", &["'file:y'", "destroy --help"]),
        (
            "serve",
            &["--export <NAME> <DRIVER> <DRIVER_CFG>", "serve --help"],
        ),
        ("serve raw file:x", &["'raw'", "serve --help"]),
        (
            "serve --export disk0 raw",
            &["3 values required", "serve --help"],
        ),
        ("serve --export a raw file:x --socket-mode rw", &["octal"]),
        (
            "serve --export a raw file:x --socket-mode 1777",
            &["octal number up to 0777"],
        ),
        (
            "serve --export a raw file:x --max-connections 0",
            &["from 1 on"],
        ),
        (
            "serve --export a raw file:x --memory 1Mi",
            &["at least 64 MiB"],
        ),
        (
            "serve --export a raw file:x --listen :10809",
            &["neither HOST:PORT nor unix:/path"],
        ),
        (
            "serve --export a raw file:x --listen 127.0.0.1",
            &["neither HOST:PORT"],
        ),
        (
            "serve --export a raw file:x --listen unix:",
            &["needs a path"],
        ),
        ("plugins remove", &["'remove'", "plugins --help"]),
        ("--log loud plugins", &["error, warn, info, debug, trace"]),
        (
            "--log plugin=loud plugins",
            &["error, warn, info, debug, trace"],
        ),
    ] {
        stage.type_in(line).refused(2, words);
    }
    assert_eq!(
        stage.names(),
        [""; 0],
        "a wrong command line changed something"
    );
}

/// They were failures with exit code 1, some of them after the store had been spoken to.
#[test]
fn what_is_wrong_in_the_command_line_alone_is_2_and_nothing_is_opened() {
    let stage = Stage::new();
    stage.type_in("init --size 1M raw file:disk.img").worked();
    // Whoever opens this store waits and fails with another code.
    let away = "s3:http://127.0.0.1:1/b/";
    for (line, words) in [
        (
            "init --size 1M --shard-size 5Ki sharded file:v/",
            &["5 KiB", "power of two"][..],
        ),
        (
            "init --size 1M --shard-size 64Ki raw file:v.img",
            &["--shard-size", "raw"],
        ),
        ("init --size 8000P sharded file:v/", &["too many shards"]),
        (
            "init --size 1M sharded file:v/?way=hole",
            &["option way", "\"hole\""],
        ),
        (
            "init --size 1M sharded file:v/?fencing=no",
            &["option fencing"],
        ),
        (
            "init --size 1M sharded retry+file:v/?retry.attempts=0",
            &["retry: attempts must be"],
        ),
        (
            "init --size 1M sharded cache+retry+s3:http://127.0.0.1:1/b/?cache.size=1Mi",
            &["cache: size must"],
        ),
        (
            "init --size 1M sharded file:v/?way=whole&way=whole",
            &["option way", "twice"],
        ),
        ("init --size 1M sharded s3://", &["names no bucket"]),
        ("init --size 1M sharded file://host/v/", &["names a host"]),
        ("init --size 1M raw s3://bucket/x", &["use sharded"]),
        (
            "info sharded s3://bucket/x?connections=0",
            &["option connections"],
        ),
        ("resize --size 2M raw file:disk.img", &["resize", "raw"]),
        ("check raw file:disk.img", &["check", "raw"]),
        ("journal replay raw file:disk.img", &["journal", "raw"]),
        (
            "serve --export a raw file:disk.img --export b sharded file:v/?way=hole",
            &["option way"],
        ),
        (
            "serve --export a sharded file:x --no-journal --journal-size 1Gi",
            &["--journal-size", "--no-journal"],
        ),
        (
            "serve --export a sharded file:x --no-journal --journal-moved",
            &["--journal-moved", "--no-journal"],
        ),
    ] {
        stage.type_in(line).refused(2, words);
        assert_eq!(stage.names(), ["disk.img"], "{line}: something was made");
    }
    let said = stage.nbd_rs(&["info", "sharded", away]);
    assert_eq!(said.code, Some(1), "a store that is away: {said:?}");
}

#[test]
fn u6_sizes_are_refused_with_a_hint() {
    let stage = Stage::new();
    for (size, words) in [
        ("0", &["a volume needs a size, such as 100Mi"][..]),
        ("-1", &["must begin with a number, such as 100Mi"]),
        ("1e3", &["K, M, G, T or P"]),
        ("10GB", &["a power of 1000 or of 1024? Write Gi"]),
        ("10gb", &["K, M, G, T or P"]),
        ("9223372036854775808", &["the most is 8 EiB - 1"]),
        ("18446744073709551616", &["the most is 8 EiB - 1"]),
        ("8192P", &["the most is 8 EiB - 1"]),
        ("1.5", &["a fraction of a byte"]),
        ("Mi", &["must begin with a number"]),
        ("", &["must begin with a number"]),
    ] {
        let said = stage.nbd_rs(&["init", "--size", size, "raw", "file:x"]);
        said.refused(2, words);
    }
    assert_eq!(stage.names(), [""; 0]);
}

#[test]
fn u6_sizes_are_bytes_or_powers_of_1024() {
    let stage = Stage::new();
    for (size, bytes) in [
        ("4096", 4096),
        ("1K", 1024),
        ("100Mi", 100 << 20),
        ("1.5GiB", 3 << 29),
        ("2T", 2 << 40),
    ] {
        let path = stage.path("x");
        let said = stage.nbd_rs(&["init", "--size", size, "raw", "file:x"]);
        said.worked();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes, "{size}");
        assert_eq!(said.err, "");
        std::fs::remove_file(path).unwrap();
    }
    let said = stage.type_in("init --size 513 raw file:x");
    said.worked();
    let hint = "as a Linux block device it has the first 512 bytes only";
    assert!(said.err.contains(hint), "{said:?}");
}

#[test]
fn a_size_that_the_file_system_has_no_room_for_leaves_nothing_behind() {
    let stage = Stage::new();
    let said = stage.type_in("init --size 8191P raw file:huge");
    said.refused(1, &["huge", "too large"]);
    assert_eq!(stage.names(), [""; 0]);
}
