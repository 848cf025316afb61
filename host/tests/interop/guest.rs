//! The Linux kernel's own client on raw images.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::server::Serve;
use crate::stage::Stage;
use crate::tools::{present, run};
use crate::virtual_machine::{keeps_ext4, pieces};

#[test]
fn the_linux_kernel_keeps_an_ext4_file_system_on_one_and_on_two_connections() {
    if !present(&["e2fsck"]) {
        return;
    }
    let Some(pieces) = pieces() else {
        return;
    };
    let stage = Stage::new();
    let one = stage.empty("one.img", 192 << 20);
    let two = stage.empty("two.img", 192 << 20);
    let server = Serve::raw("one", &one).and_raw("two", &two).tcp().start();
    let (dir, port) = (stage.path(""), server.tcp().port());
    keeps_ext4(&pieces, &dir, port, &[("one", 1), ("two", 2)]);
    server.stop();
    for image in [&one, &two] {
        let name = image.display().to_string();
        run("e2fsck", &["-f", "-n", &name]);
        // fstrim has told the server which of the 192 MiB are free.
        let used = fs::metadata(image).unwrap().blocks() * 512;
        assert!(used < 160 << 20, "{name} uses {used} bytes after a trim");
    }
}
