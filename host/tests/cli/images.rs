//! What people point the server at: files that nobody initialised, and things that are no file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::disk::{Loop, Mount};
use crate::server::Serve;
use crate::stage::{assert_logged, Stage};
use crate::tools::{present, present_as_root, run};

/// What `info --json` says of a path.
fn info(stage: &Stage, path: &Path) -> Value {
    let location = format!("file:{}", path.display());
    let said = stage.nbd_rs(&["info", "--json", "raw", &location]);
    serde_json::from_str(said.worked()).unwrap()
}

#[test]
fn a_file_that_nobody_initialised_is_served_as_it_is() {
    if !present(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let stage = Stage::new();
    // As an ISO may be: no multiple of 512.
    let bytes: Vec<u8> = (0..70_001u32).map(|at| (at % 251) as u8).collect();
    let image = stage.file("live.iso", &bytes);
    assert_eq!(info(&stage, &image)["size"], 70_001);
    let server = Serve::raw("iso", &image).unix(&stage.path("sock")).start();
    let url = format!("nbd+unix:///iso?socket={}", stage.path("sock").display());
    assert_eq!(run("nbdinfo", &["--size", &url]).trim(), "70001");
    let copy = stage.path("copy");
    run("nbdcopy", &[&url, &copy.display().to_string()]);
    assert!(fs::read(&copy).unwrap() == bytes);
    assert_logged(&server, "the first 69632 bytes only");
    server.stop();
    assert!(fs::read(&image).unwrap() == bytes);
    assert_eq!(
        stage.names(),
        ["copy", "live.iso"],
        "something lies beside the image"
    );
}

#[test]
fn an_empty_file_is_served_with_a_warning() {
    let stage = Stage::new();
    let image = stage.file("empty", b"");
    assert_eq!(info(&stage, &image)["size"], 0);
    let said = stage.type_in("info raw file:empty");
    assert!(said.worked().contains("size         0 bytes\n"), "{said:?}");
    let server = Serve::raw("x", &image).unix(&stage.path("sock")).start();
    assert_logged(&server, "is empty");
    assert_logged(&server, "init --force --size");
    server.stop();
}

/// Served, reads, refuses to be changed, and is said to be read-only.
fn assert_read_only(stage: &Stage, image: &Path) {
    let told = info(stage, image);
    assert_eq!(told["read_only"], true);
    let flags = told["flags"].as_array().unwrap();
    assert!(flags.iter().any(|flag| flag == "READ_ONLY"), "{flags:?}");
    let server = Serve::raw("x", image).unix(&stage.path("sock")).start();
    assert_logged(&server, "can't be written, so it is read-only");
    if present(&["nbdinfo"]) {
        let url = format!("nbd+unix:///x?socket={}", stage.path("sock").display());
        run("nbdinfo", &["--is", "read-only", &url]);
    }
    server.stop();
    let location = format!("file:{}", image.display());
    for words in [&["destroy"][..], &["init", "--force", "--size", "1M"]] {
        let words = words.iter().copied().chain(["raw", &location]);
        let said = stage.nbd_rs(&words.collect::<Vec<_>>());
        assert_eq!(said.code, Some(1), "{said:?}");
    }
    assert_eq!(fs::metadata(image).unwrap().len(), 8192);
}

/// `chattr +i` until dropped.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    fn new(path: &'a Path) -> Self {
        run("chattr", &["+i".as_ref(), path.as_os_str()]);
        Self(path)
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        crate::tools::tool("chattr", &["-i".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn a_file_that_can_not_be_written_is_read_only() {
    if !present_as_root(&["chattr", "mount"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.file("disk.img", &[7; 8192]);
    {
        let _immutable = Immutable::new(&image);
        assert_read_only(&stage, &image);
    }
    let dir = stage.dir().display().to_string();
    let place = tempfile::tempdir().unwrap();
    let mount = Mount::new(&["-o", "bind,ro", &dir], &place.path().join("ro"));
    assert_read_only(&stage, &mount.path("disk.img"));
}

#[test]
fn a_directory_is_no_volume() {
    let stage = Stage::new();
    fs::create_dir(stage.path("dir")).unwrap();
    fs::write(stage.path("dir/file"), "x").unwrap();
    for words in [
        "info raw file:dir",
        "info raw file:dir/",
        "serve --read-only --export x raw file:dir --listen unix:sock",
        "serve --export x raw file:dir --listen unix:sock",
        "init --size 1M raw file:dir",
        "init --force --size 1M raw file:dir",
        "init --size 1M raw file:fresh/",
    ] {
        stage
            .type_in(words)
            .refused(1, &["is a directory", "one file or block device"]);
    }
    let said = stage.type_in("destroy raw file:dir");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(stage.names(), ["dir"]);
    assert!(stage.path("dir/file").exists());
}

#[test]
fn a_fifo_and_a_character_device_are_no_volumes_and_nothing_hangs() {
    let stage = Stage::new();
    stage.shell("mkfifo fifo").worked();
    for path in ["fifo", "/dev/null", "/dev/zero"] {
        for command in [
            "info",
            "destroy",
            "init --size 1M",
            "init --force --size 1M",
            "serve --listen unix:sock --export x",
        ] {
            let said = stage.type_in(&format!("{command} raw file:{path}"));
            said.refused(1, &[path, "neither a file nor a block device"]);
        }
    }
    assert_eq!(stage.names(), ["fifo"]);
}

#[test]
fn a_file_that_is_missing_is_named_with_the_way_to_make_one() {
    let stage = Stage::new();
    let words = ["there is no volume at file:none", "nbd-rs init makes one"];
    stage.type_in("info raw file:none").refused(1, &words);
    let said = stage.type_in("serve --listen unix:sock --export x raw file:none");
    said.refused(1, &["export \"x\"", words[0], words[1]]);
    assert_eq!(
        stage.names(),
        [""; 0],
        "the socket stayed, or a file was made"
    );
}

#[test]
fn a_link_to_an_image_is_served_and_not_destroyed() {
    let stage = Stage::new();
    stage.type_in("init --size 1M raw file:disk.img").worked();
    let image = stage.path("disk.img");
    let link = stage.path("link");
    symlink("disk.img", &link).unwrap();
    assert_eq!(info(&stage, &link)["size"], 1 << 20);
    let server = Serve::raw("x", &link).unix(&stage.path("sock")).start();
    stage
        .type_in("destroy raw file:disk.img")
        .refused(1, &["in use"]);
    server.stop();
    stage
        .type_in("destroy raw file:link")
        .refused(1, &["link", "disk.img", "destroy that"]);
    assert!(image.exists() && link.is_symlink());
    stage
        .type_in("init --size 1M raw file:link")
        .refused(1, &["exists already"]);
    symlink("nowhere", stage.path("dangling")).unwrap();
    stage
        .type_in("info raw file:dangling")
        .refused(1, &["there is no volume"]);
    stage
        .type_in("init --size 1M raw file:dangling")
        .refused(1, &["dangling"]);
    assert!(!stage.path("nowhere").exists());
}

#[test]
fn a_block_device_is_served_and_neither_made_nor_destroyed() {
    if !present_as_root(&["losetup"]) {
        return;
    }
    let stage = Stage::new();
    let backing = stage.file("backing", &vec![7; 1 << 20]);
    let device = Loop::attach(&backing);
    let path = device.device();
    assert_eq!(info(&stage, path)["size"], 1 << 20);
    let server = Serve::raw("x", path).unix(&stage.path("sock")).start();
    server.stop();
    let location = format!("file:{}", path.display());
    for force in [&[][..], &["--force"]] {
        let words = ["init", "--size", "1M"].iter().chain(force).copied();
        let words = words.chain(["raw", &location]);
        let said = stage.nbd_rs(&words.collect::<Vec<_>>());
        said.refused(1, &["is a block device", "served as it is"]);
    }
    let said = stage.nbd_rs(&["destroy", "raw", &location]);
    said.refused(1, &["is a block device", "not removed"]);
    assert!(path.exists());
    assert!(fs::read(&backing).unwrap() == vec![7; 1 << 20]);
}
