//! The Linux kernel's own client (`nbd.ko`), in a virtual machine so that any machine can run it.
//!
//! The emulator, the kernel and the programs come from `scripts/fetch-guest.sh`, in
//! `$NBD_RS_GUEST_DIR` or `~/.cache/nbd-rs-test/guest`; here is only what the guest does.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::Serve;
use crate::stage::Stage;
use crate::tools::{present, run, skip};

/// Where the guest's pieces are, if they are.
fn pieces() -> Option<PathBuf> {
    let cache = || {
        env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
            .map(|cache| cache.join("nbd-rs-test/guest"))
    };
    let dir = env::var_os("NBD_RS_GUEST_DIR")
        .map(PathBuf::from)
        .or_else(cache)?;
    dir.join("complete").exists().then_some(dir)
}

/// One file of a cpio archive (newc), as the kernel unpacks it over what came before.
fn cpio_entry(name: &str, mode: u32, bytes: &[u8]) -> Vec<u8> {
    let mut entry = format!(
        "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
        0, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0
    )
    .into_bytes();
    let pad = |entry: &mut Vec<u8>| entry.resize(entry.len().next_multiple_of(4), 0);
    pad(&mut entry);
    entry.extend_from_slice(bytes);
    pad(&mut entry);
    entry
}

/// The fetched initramfs with our script as its first program.
fn initramfs(pieces: &Path, to: &Path) {
    fs::copy(pieces.join("initramfs.cpio"), to).expect("the initramfs is copied");
    let mut file = fs::File::options().append(true).open(to).unwrap();
    let script = include_bytes!("guest-init.sh");
    file.write_all(&cpio_entry("init", 0o100_755, script))
        .unwrap();
    file.write_all(&cpio_entry("TRAILER!!!", 0, &[])).unwrap();
}

#[test]
fn the_linux_kernel_keeps_an_ext4_file_system_on_one_and_on_two_connections() {
    if !present(&["e2fsck"]) {
        return;
    }
    let Some(pieces) = pieces() else {
        skip("no guest: run scripts/fetch-guest.sh");
        return;
    };
    let stage = Stage::new();
    let one = stage.empty("one.img", 192 << 20);
    let two = stage.empty("two.img", 192 << 20);
    let server = Serve::raw("one", &one).and_raw("two", &two).tcp().start();
    let init = stage.path("initramfs");
    initramfs(&pieces, &init);
    let root = pieces.join("root/usr");
    let library = root.join("lib/x86_64-linux-gnu");
    let libraries = [&library, &pieces.join("root/lib/x86_64-linux-gnu")];
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(root.join("bin/qemu-system-x86_64"))
        .env("LD_LIBRARY_PATH", env::join_paths(libraries).unwrap())
        .env("QEMU_MODULE_DIR", library.join("qemu"))
        .args([
            "-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "512",
        ])
        .args([
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .arg("-L")
        .arg(root.join("share/qemu"))
        .arg("-L")
        .arg(root.join("share/seabios"))
        .arg("-kernel")
        .arg(pieces.join("vmlinuz"))
        .arg("-initrd")
        .arg(&init)
        .args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ])
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 quiet nbd_port={}",
            server.tcp().port()
        ))
        .stdin(Stdio::null())
        .output()
        .expect("the emulator can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("GUEST: passed"),
        "{}: the guest said:\n{said}\n{errors}",
        output.status
    );
    assert!(
        !said.contains("I/O error"),
        "the kernel saw errors:\n{said}"
    );
    server.stop();
    for image in [&one, &two] {
        let name = image.display().to_string();
        run("e2fsck", &["-f", "-n", &name]);
        // fstrim has told the server which of the 192 MiB are free.
        let used = fs::metadata(image).unwrap().blocks() * 512;
        assert!(used < 160 << 20, "{name} uses {used} bytes after a trim");
    }
}
