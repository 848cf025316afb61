//! DRIVER and DRIVER_CFG: spellings, mistakes, and paths that need care.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::stage::Stage;

/// `nbd-rs info raw LOCATION`.
fn refused(stage: &Stage, location: &str, code: i32, words: &[&str]) {
    stage
        .nbd_rs(&["info", "raw", location])
        .refused(code, words);
}

#[test]
fn u5_an_unknown_scheme_names_the_known_ones_and_the_directories_searched() {
    let stage = Stage::new();
    let beside = crate::server::binary()
        .parent()
        .unwrap()
        .canonicalize()
        .unwrap();
    let words = [
        "\"gopher\"",
        "known: ",
        "file",
        "searched: ",
        "--plugin-dir",
    ];
    refused(&stage, "gopher://host/x", 2, &words);
    refused(
        &stage,
        "gopher:file:/x",
        2,
        &[&beside.display().to_string()],
    );
}

#[test]
fn u5_mistakes_in_a_location_are_told_with_the_way_out() {
    let stage = Stage::new();
    let long = format!("{}file:/x", "file:".repeat(1000));
    for (location, words) in [
        ("disk.img", &["no scheme", "write file:disk.img"][..]),
        ("/disk.img", &["write file:/disk.img"]),
        ("", &["no scheme"]),
        ("FILE:/x", &["\"FILE\"", "no scheme"]),
        ("file+file:/x", &["file is a store"]),
        ("file:x?", &["there is no volume"]),
        ("file:x?lend", &["has no value", "%3F"]),
        ("file:x?lend=maybe", &["lend", "neither true nor false"]),
        (
            "file:x?colour=red",
            &["\"colour\"", "file takes lend", "%3F"],
        ),
        ("file:x?file.colour=red", &["colour", "file takes lend"]),
        ("file:x?lend=true&lend=true", &["lend", "twice"]),
        ("file:x?cache.size=1GiB", &["cache.size", "file takes lend"]),
        (&long, &["File name too long"]),
    ] {
        let said = stage.nbd_rs(&["info", "raw", location]);
        let understood = words[0].starts_with("there") || location == long;
        let code = if understood { 1 } else { 2 };
        said.refused(code, words);
    }
}

#[test]
fn a_layout_in_the_wrong_place_or_of_no_such_name() {
    let stage = Stage::new();
    for (words, said) in [
        (
            "info file:x raw",
            &["the layout comes before the location"][..],
        ),
        ("info RAW file:x", &["\"RAW\"", "raw"]),
        ("info qcow2 file:x", &["\"qcow2\"", "known: "]),
    ] {
        stage.type_in(words).refused(2, said);
    }
}

#[test]
fn both_spellings_of_a_path_are_the_same_file() {
    let stage = Stage::new();
    stage.type_in("init --size 1M raw file:disk.img").worked();
    let path = stage.path("disk.img").display().to_string();
    for location in [
        "file:disk.img",
        "file:./disk.img",
        &format!("file:{path}"),
        &format!("file://{path}"),
    ] {
        stage.nbd_rs(&["info", "raw", location]).worked();
    }
    refused(
        &stage,
        "file://host/disk.img",
        2,
        &["names a host", "file:/host/disk.img"],
    );
    refused(&stage, "file:", 2, &["needs a path"]);
}

#[test]
fn u3_paths_are_decoded_once_and_only_escapes_need_care() {
    let stage = Stage::new();
    for (location, name) in [
        ("file:a b.img", "a b.img"),
        ("file:a+b.img", "a+b.img"),
        ("file:a,b;c.img", "a,b;c.img"),
        ("file:a%3Fb.img", "a?b.img"),
        ("file:a%25b.img", "a%b.img"),
        ("file:a%2520b.img", "a%20b.img"),
        ("file:a#b:c@d.img", "a#b:c@d.img"),
        ("file:schön.img", "schön.img"),
        ("file:%2e%2fe.img", "e.img"),
    ] {
        stage
            .nbd_rs(&["init", "--size", "1K", "raw", location])
            .worked();
        let path = stage.path(name);
        assert!(path.is_file(), "{location} is {:?}", stage.names());
        stage.nbd_rs(&["destroy", "raw", location]).worked();
        assert_eq!(stage.names(), [""; 0]);
    }
}

#[test]
fn u3_paths_that_can_not_be_meant_are_refused() {
    let stage = Stage::new();
    for (location, words) in [
        ("file:what?.img", &["%3F"][..]),
        ("file:a?b=c.img", &["%3F"]),
        ("file:100%.img", &["%25"]),
        ("file:a%zz.img", &["%25"]),
        ("file:a%00b.img", &["NUL"]),
        ("file:a%ffb.img", &["UTF-8"]),
        ("file:%c0%af.img", &["UTF-8"]),
        ("file:~/disk.img", &["did not expand the ~", "$HOME"]),
    ] {
        let said = stage.nbd_rs(&["init", "--size", "1K", "raw", location]);
        said.refused(2, words);
    }
    assert_eq!(stage.names(), [""; 0], "something was made");
}

#[test]
fn a_path_that_is_not_utf_8_is_refused_with_a_way_around() {
    let stage = Stage::new();
    let name = OsStr::from_bytes(b"file:a\xffb.img");
    let words = ["info", "raw"].map(OsStr::new).into_iter().chain([name]);
    let said = stage.nbd_rs(&words.collect::<Vec<_>>());
    said.refused(2, &["UTF-8", "symbolic link"]);
}

#[test]
fn u13_control_characters_in_a_path_stay_on_their_line() {
    let stage = Stage::new();
    let said = stage.nbd_rs(&["info", "raw", "file:a\n\x1b[2Jb"]);
    said.refused(1, &["a\\n\\u{1b}[2Jb"]);
}
