//! Whatever file or device there is can be served as it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::disk::{Loop, Mount};
use crate::server::{init_raw, nbd_rs, text, url, Serve};
use crate::stage::{unix, Stage};
use crate::tools::{present, present_as_root, run, tool};

const MIB: usize = 1 << 20;

/// Reads all of an export.
fn read_all(stage: &Stage, uri: &str) -> Vec<u8> {
    let copy = stage.path("read-all");
    run("nbdcopy", &[uri, &copy.display().to_string()]);
    fs::read(&copy).unwrap()
}

#[test]
fn a_file_that_was_never_initialised_is_served_as_it_is() {
    if !present(&["nbdcopy"]) {
        return;
    }
    let stage = Stage::new();
    let folder = stage.path("folder");
    fs::create_dir(&folder).unwrap();
    let (made, bytes) = stage.noise("made", 3 * MIB + 2048);
    let image = folder.join("debian-12.iso");
    fs::rename(made, &image).unwrap();
    let server = stage.serve(&image);
    assert!(
        read_all(&stage, &unix(&server, "disk")) == bytes,
        "other bytes were served"
    );
    server.stop();
    assert!(
        fs::read(&image).unwrap() == bytes,
        "serving has changed the file"
    );
    assert_eq!(
        fs::read_dir(&folder).unwrap().count(),
        1,
        "something was left beside the image"
    );
}

#[test]
fn init_makes_an_empty_image_and_keeps_what_exists() {
    if !present(&["nbdinfo"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.path("raw.bin");
    init_raw(&image, "10Mi");
    let length = fs::metadata(&image).unwrap().len();
    assert_eq!(length, 10 << 20);
    fs::write(&image, b"precious").unwrap();
    let again = nbd_rs(&["init", "--size", "10Mi", "raw", &url(&image)]);
    assert!(
        !again.status.success(),
        "init wrote over a file: {}",
        text(&again)
    );
    assert_eq!(fs::read(&image).unwrap(), b"precious");
    let forced = nbd_rs(&["init", "--force", "--size", "1Mi", "raw", &url(&image)]);
    assert!(
        forced.status.success(),
        "init --force failed: {}",
        text(&forced)
    );
    assert!(
        fs::read(&image).unwrap() == vec![0; MIB],
        "an empty image of 1 MiB was wanted"
    );
    let server = stage.serve(&image);
    assert_eq!(
        run("nbdinfo", &["--size", &unix(&server, "disk")]).trim(),
        "1048576"
    );
    server.stop();
    let gone = nbd_rs(&["destroy", "raw", &url(&image)]);
    assert!(gone.status.success(), "destroy failed: {}", text(&gone));
    assert!(!image.exists(), "destroy left the image");
}

#[test]
fn a_size_that_is_no_multiple_of_a_sector_is_served_to_the_last_byte() {
    if !present(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let stage = Stage::new();
    let (image, bytes) = stage.noise("odd.img", 1_000_003);
    let (other, other_bytes) = stage.noise("other", 1_000_003);
    let server = stage.serve(&image);
    let uri = unix(&server, "disk");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "1000003");
    assert!(read_all(&stage, &uri) == bytes, "other bytes were served");
    run("nbdcopy", &["--flush", &other.display().to_string(), &uri]);
    assert!(
        read_all(&stage, &uri) == other_bytes,
        "what was written is not there"
    );
    server.stop();
    assert!(
        fs::read(&image).unwrap() == other_bytes,
        "the image has another length or bytes"
    );
}

#[test]
fn a_block_device_is_served_and_never_destroyed() {
    if !present_as_root(&["nbdinfo", "nbdcopy", "losetup"]) {
        return;
    }
    let stage = Stage::new();
    let (backing, bytes) = stage.noise("backing.img", 8 * MIB);
    let device = Loop::attach(&backing);
    let server = stage.serve(device.device());
    let uri = unix(&server, "disk");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "8388608");
    assert!(read_all(&stage, &uri) == bytes, "other bytes were served");
    let (other, other_bytes) = stage.noise("other", 8 * MIB);
    run("nbdcopy", &["--flush", &other.display().to_string(), &uri]);
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -z 1M 1M",
            "-c",
            "discard 2M 1M",
            "-c",
            "flush",
            &uri,
        ],
    );
    let now = read_all(&stage, &uri);
    assert!(now[..MIB] == other_bytes[..MIB] && now[3 * MIB..] == other_bytes[3 * MIB..]);
    assert!(
        now[MIB..3 * MIB].iter().all(|&byte| byte == 0),
        "no zeros where they were asked for"
    );
    server.stop();
    assert!(
        fs::read(device.device()).unwrap() == now,
        "the device has other bytes"
    );
    let destroy = nbd_rs(&["destroy", "raw", &url(device.device())]);
    assert!(
        !destroy.status.success(),
        "destroy took a block device: {}",
        text(&destroy)
    );
    let init = nbd_rs(&["init", "--size", "4Mi", "raw", &url(device.device())]);
    assert!(
        !init.status.success(),
        "init took what exists: {}",
        text(&init)
    );
    assert!(
        fs::read(device.device()).unwrap() == now,
        "the device was changed"
    );
}

/// What cannot be written is served read-only, whether that was asked for or not; if not, the log
/// says so.
fn only_readable(stage: &Stage, image: &Path, bytes: &[u8]) {
    for asked in [true, false] {
        let mut serve = Serve::raw("disk", image).unix(&stage.path("sock"));
        if asked {
            serve = serve.words(["--read-only"]);
        }
        let server = serve.start();
        let uri = unix(&server, "disk");
        assert!(read_all(stage, &uri) == bytes, "other bytes were served");
        let json = run("nbdinfo", &["--json", &uri]);
        assert!(json.contains("\"is_read_only\": true"), "{json}");
        let write = tool("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]);
        assert!(!write.status.success(), "a read-only export was written");
        let log = server.log();
        let told = log.contains("read-only") && log.contains(&image.display().to_string());
        assert!(asked || told, "nobody said that it is read-only: {log}");
        server.stop();
    }
    assert!(fs::read(image).unwrap() == bytes, "the bytes have changed");
}

#[test]
fn an_immutable_file_is_served_read_only() {
    if !present_as_root(&["nbdcopy", "qemu-io", "chattr"]) {
        return;
    }
    let stage = Stage::new();
    let (image, bytes) = stage.noise("immutable.img", MIB);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let name = image.display().to_string();
    if !tool("chattr", &["+i", &name]).status.success() {
        crate::tools::skip("this file system has no immutable files");
        return;
    }
    /// Else the folder could not be removed.
    struct Mutable(String);
    impl Drop for Mutable {
        fn drop(&mut self) {
            tool("chattr", &["-i", &self.0]);
        }
    }
    let _mutable = Mutable(name);
    only_readable(&stage, &image, &bytes);
}

#[test]
fn a_file_on_a_read_only_mount_is_served_read_only() {
    if !present_as_root(&["nbdcopy", "qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let (_, bytes) = stage.noise("disk.img", MIB);
    let source = stage.path("").display().to_string();
    let mount = Mount::new(&["--bind", "-o", "ro", &source], &stage.path("mount"));
    only_readable(&stage, &mount.path("disk.img"), &bytes);
}
