//! `nbd-rs serve` from the outside: addresses, names, what it prints. How it stops is told in
//! tests/durability.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixListener;

use crate::server::{Serve, STATE_DIRECTORY};
use crate::stage::Stage;

fn stage() -> Stage {
    let stage = Stage::new();
    stage.file("disk.img", &[7; 8192]);
    stage.file("other.img", &[8; 8192]);
    stage
}

#[test]
fn u11_an_address_beyond_this_machine_costs_one_loud_line() {
    let stage = stage();
    // An address for documentation: nobody has it, so nobody is let in.
    let said = stage.type_in("serve --export x raw file:disk.img --listen 192.0.2.1:10809");
    assert_eq!(said.code, Some(1), "{said:?}");
    let warnings = said.err.lines().filter(|line| line.contains("WARN"));
    let warnings: Vec<_> = warnings.collect();
    assert_eq!(warnings.len(), 1, "{said:?}");
    for word in ["192.0.2.1:10809", "other machines", "no encryption"] {
        assert!(warnings[0].contains(word), "{warnings:?}");
    }
    let local = Serve::raw("x", &stage.path("disk.img")).tcp().start();
    assert!(local.tcp().ip().is_loopback());
    assert!(!local.log().contains("WARN"), "{}", local.log());
    local.stop();
}

#[test]
fn an_address_that_is_taken_is_told_with_the_way_out() {
    let stage = stage();
    let first = Serve::raw("x", &stage.path("disk.img")).tcp().start();
    let second = format!(
        "serve --export x raw file:other.img --listen {}",
        first.tcp()
    );
    let words = [
        &first.tcp().to_string(),
        "in use",
        "--listen chooses another",
    ];
    stage.type_in(&second).refused(1, &words);
    first.stop();
    let nowhere = "serve --export x raw file:other.img --listen unix:none/sock";
    stage
        .type_in(nowhere)
        .refused(1, &["none/sock", "No such file"]);
}

#[test]
fn two_exports_of_one_name_or_of_one_volume_are_refused_before_anything_is_opened() {
    let stage = stage();
    let socket = "--listen unix:sock";
    let names = "--export x raw file:disk.img --export x raw file:other.img";
    let said = stage.type_in(&format!("serve {socket} {names}"));
    said.refused(2, &["two exports are named \"x\""]);
    let twice = "--export a raw file:disk.img --export b raw file:disk.img";
    let said = stage.type_in(&format!("serve {socket} {twice}"));
    said.refused(2, &["\"a\"", "\"b\"", "same volume", "file:disk.img"]);
    // The same file by another name is noticed by its lock.
    let linked = "--export a raw file:disk.img --export b raw file:./disk.img";
    let said = stage.type_in(&format!("serve {socket} {linked}"));
    said.refused(1, &["export \"b\"", "in use"]);
    assert_eq!(stage.names(), ["disk.img", "other.img"]);
    let image = stage.path("disk.img");
    let shared = Serve::raw("a", &image).and_raw("b", &image);
    let shared = shared.words(["--read-only"]).unix(&stage.path("sock"));
    shared.start().stop();
}

#[test]
fn export_names_may_be_anything_up_to_4096_bytes() {
    let stage = stage();
    let long = "x".repeat(4096);
    let server = Serve::raw(&long, &stage.path("disk.img")).unix(&stage.path("sock"));
    server.start().stop();
    let words = ["serve", "--listen", "unix:sock", "--export"];
    let longer = "x".repeat(4097);
    let words = words
        .into_iter()
        .chain([&longer[..], "raw", "file:disk.img"]);
    let said = stage.nbd_rs(&words.collect::<Vec<_>>());
    said.refused(2, &["longer than 4096 bytes"]);
    Serve::raw("", &stage.path("disk.img"))
        .unix(&stage.path("sock"))
        .start()
        .stop();
}

#[test]
fn u13_control_characters_in_an_export_name_are_escaped() {
    let stage = stage();
    let words = [
        "serve",
        "--listen",
        "unix:sock",
        "--export",
        "a\n\x1b[2Jb",
        "raw",
    ];
    let words = words
        .into_iter()
        .chain(["file:disk.img"])
        .collect::<Vec<_>>();
    // It runs into the time limit of 20 s unless it is stopped, so it stops by itself.
    let stop =
        "nbd-rs \"$@\" > out 2>&1 & pid=$!; while ! grep -q ready out; do sleep 0.02; done; \
                kill $pid; wait $pid";
    let mut shell = std::process::Command::new("timeout");
    shell.args(["20", "sh", "-c", stop, "sh"]).args(words);
    let path = std::env::var("PATH").unwrap_or_default();
    let here = crate::server::binary().parent().unwrap().display();
    shell
        .env("PATH", format!("{here}:{path}"))
        .env(STATE_DIRECTORY.0, STATE_DIRECTORY.1)
        .current_dir(stage.dir());
    assert_eq!(shell.status().unwrap().code(), Some(0));
    let out = fs::read_to_string(stage.path("out")).unwrap();
    assert!(!out.contains('\x1b'), "{out:?}");
    assert!(out.contains("a\\n\\u{1b}[2Jb"), "{out:?}");
}

#[test]
fn unix_sockets_are_for_their_owner_unless_said_otherwise() {
    let stage = stage();
    let image = stage.path("disk.img");
    let socket = stage.path("sock");
    let mode = || fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    let server = Serve::raw("x", &image).unix(&socket).start();
    assert_eq!(mode(), 0o600);
    server.stop();
    assert!(!socket.exists(), "a stopped server leaves its socket");
    let open = Serve::raw("x", &image)
        .unix(&socket)
        .words(["--socket-mode", "660"]);
    let server = open.start();
    assert_eq!(mode(), 0o660);
    server.stop();
}

#[test]
fn u14_nothing_is_put_in_the_place_of_a_file_or_behind_a_link() {
    let stage = stage();
    let precious = stage.file("precious", b"precious");
    symlink(&precious, stage.path("link")).unwrap();
    symlink(stage.path("fresh"), stage.path("dangling")).unwrap();
    for name in ["precious", "link", "dangling"] {
        let words = format!("serve --export x raw file:disk.img --listen unix:{name}");
        stage.type_in(&words).refused(1, &[name, "in use"]);
    }
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(!stage.path("fresh").exists());
    let names = ["dangling", "disk.img", "link", "other.img", "precious"];
    assert_eq!(stage.names(), names);
}

#[test]
fn the_socket_of_a_living_server_is_left_alone_and_a_dead_ones_is_replaced() {
    let stage = stage();
    let socket = stage.path("sock");
    let other = UnixListener::bind(&socket).unwrap();
    let words = "serve --export x raw file:disk.img --listen unix:sock";
    stage.type_in(words).refused(1, &["sock", "in use"]);
    drop(other);
    assert!(socket.exists(), "std leaves the path");
    Serve::raw("x", &stage.path("disk.img"))
        .unix(&socket)
        .start()
        .stop();
}
