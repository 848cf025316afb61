//! One writer: a second server, QEMU, `destroy` and `init --force` are kept from a served image.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::server::{nbd_rs, text, url, Serve};
use crate::stage::{unix, Stage};
use crate::tools::{present, run, tool};

const MIB: usize = 1 << 20;

/// A refusal that somebody can act on: which image, and that somebody else has it.
fn assert_says_in_use(said: &str, image: &Path) {
    assert!(
        said.contains(&image.display().to_string()),
        "which image? {said}"
    );
    let lower = said.to_lowercase();
    let words = ["in use", "lock", "another process", "being served", "busy"];
    assert!(
        words.iter().any(|word| lower.contains(word)),
        "no reason is given: {said}"
    );
}

#[test]
fn a_second_server_is_refused_and_told_why() {
    if !present(&["nbdcopy"]) {
        return;
    }
    let stage = Stage::new();
    let (image, _) = stage.noise("disk.img", MIB);
    let mut first = stage.serve(&image);
    let said = Serve::raw("disk", &image)
        .unix(&stage.path("second"))
        .refused();
    assert_says_in_use(&said, &image);
    assert_eq!(
        said.trim().lines().count(),
        1,
        "one line was wanted: {said}"
    );
    // The same image by another name is the same image.
    let link = stage.path("link.img");
    fs::hard_link(&image, &link).unwrap();
    assert_says_in_use(
        &Serve::raw("disk", &link)
            .unix(&stage.path("second"))
            .refused(),
        &link,
    );
    first.assert_alive();
    run("nbdcopy", &[&unix(&first, "disk"), "null:"]);
    first.stop();
    Serve::raw("disk", &image)
        .unix(&stage.path("second"))
        .start()
        .stop();
}

#[test]
fn an_image_is_free_again_after_its_server_was_killed() {
    let stage = Stage::new();
    let (image, _) = stage.noise("disk.img", MIB);
    for _ in 0..3 {
        // Dropped: killed.
        let _killed = stage.serve(&image);
    }
    stage.serve(&image).stop();
}

#[test]
fn readers_share_an_image_but_not_with_a_writer() {
    let stage = Stage::new();
    let (image, _) = stage.noise("disk.img", MIB);
    let reader = |name: &str| {
        Serve::raw("disk", &image)
            .unix(&stage.path(name))
            .words(["--read-only"])
    };
    let first = reader("first").start();
    let second = reader("second").start();
    let said = Serve::raw("disk", &image)
        .unix(&stage.path("writer"))
        .refused();
    assert_says_in_use(&said, &image);
    first.stop();
    second.stop();
}

#[test]
fn one_image_cannot_be_two_writable_exports_of_one_server() {
    let stage = Stage::new();
    let (image, _) = stage.noise("disk.img", MIB);
    let said = Serve::raw("a", &image)
        .and_raw("b", &image)
        .unix(&stage.path("sock"))
        .refused();
    assert!(
        said.contains(&image.display().to_string()),
        "which image? {said}"
    );
}

#[test]
fn destroy_and_init_force_are_refused_while_an_image_is_served() {
    let stage = Stage::new();
    let (image, bytes) = stage.noise("disk.img", MIB);
    let server = stage.serve(&image);
    let destroy = nbd_rs(&["destroy", "raw", &url(&image)]);
    assert!(
        !destroy.status.success(),
        "a served image was destroyed: {}",
        text(&destroy)
    );
    assert_says_in_use(&text(&destroy), &image);
    let init = nbd_rs(&["init", "--force", "--size", "2Mi", "raw", &url(&image)]);
    assert!(
        !init.status.success(),
        "a served image was made anew: {}",
        text(&init)
    );
    assert_says_in_use(&text(&init), &image);
    assert!(
        fs::read(&image).unwrap() == bytes,
        "a refused command changed the image"
    );
    server.stop();
}

#[test]
fn qemu_is_kept_from_an_image_that_is_served() {
    if !present(&["qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let (image, bytes) = stage.noise("disk.img", MIB);
    let name = image.display().to_string();
    let write = ["-f", "raw", "-c", "write 0 4k", &name];
    let server = stage.serve(&image);
    let output = tool("qemu-io", &write);
    assert!(!output.status.success(), "QEMU wrote to a served image");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("lock"), "{said}");
    assert!(fs::read(&image).unwrap() == bytes);
    server.stop();
    run("qemu-io", &write);
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_qemu_uses_is_not_served() {
    if !present(&["qemu-nbd"]) {
        return;
    }
    let stage = Stage::new();
    let (image, _) = stage.noise("disk.img", MIB);
    let socket = stage.path("qemu");
    let qemu = Command::new("qemu-nbd")
        .args(["--persistent", "--format=raw", "--socket"])
        .args([&socket, &image])
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-nbd can be started");
    let qemu = Killed(qemu);
    for _ in 0..200 {
        if UnixStream::connect(&socket).is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(25));
    }
    let said = Serve::raw("disk", &image)
        .unix(&stage.path("sock"))
        .refused();
    assert_says_in_use(&said, &image);
    drop(qemu);
    stage.serve(&image).stop();
}
