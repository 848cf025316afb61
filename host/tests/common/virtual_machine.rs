//! The Linux kernel's own client (`nbd.ko`), in a virtual machine so that any machine can run it.
//!
//! The emulator, the kernel and the programs come from `scripts/fetch-guest.sh`, in
//! `$NBD_RS_GUEST_DIR` or `~/.cache/nbd-rs-test/guest`; here is only what the guest does.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools::skip;

/// Where the guest's pieces are, if they are.
fn find_pieces() -> Option<PathBuf> {
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

/// The guest's pieces; nothing, and a word why, without them.
pub(crate) fn pieces() -> Option<PathBuf> {
    let pieces = find_pieces();
    if pieces.is_none() {
        skip("no guest: run scripts/fetch-guest.sh");
    }
    pieces
}

/// What the guest does with its disks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// All that a user does with a file system.
    Keep,
    /// Files, each of them synced before the next, until it is ended.
    #[allow(dead_code)] // Used by one of the suites.
    Work,
    /// That many of those files are there.
    #[allow(dead_code)]
    Look(usize),
}

/// Boots the guest, which keeps an ext4 file system on each of these exports of the server at
/// `port`, over so many connections, and must find all as it left it. `dir` is for its files.
pub(crate) fn keeps_ext4(pieces: &Path, dir: &Path, port: u16, disks: &[(&str, u32)]) {
    passes(pieces, dir, port, disks, Task::Keep);
}

/// The guest, about to be booted for that.
pub(crate) fn guest(
    pieces: &Path,
    dir: &Path,
    port: u16,
    disks: &[(&str, u32)],
    task: Task,
) -> Command {
    let init = dir.join("initramfs");
    initramfs(pieces, &init);
    let disks = disks.iter();
    let disks: Vec<String> = disks
        .map(|(name, count)| format!("{name}:{count}"))
        .collect();
    let task = match task {
        Task::Keep => "keep".to_owned(),
        Task::Work => "work".to_owned(),
        Task::Look(synced) => format!("look nbd_synced={synced}"),
    };
    let append = format!(
        "console=ttyS0 panic=-1 quiet nbd_port={port} nbd_disks={} nbd_task={task}",
        disks.join(",")
    );
    let mut guest = emulator(pieces);
    guest.arg("-initrd").args([&init]);
    guest.args(["-append", &append]);
    guest
}

/// Boots the guest for something that comes to an end, and must be done without an error.
pub(crate) fn passes(pieces: &Path, dir: &Path, port: u16, disks: &[(&str, u32)], task: Task) {
    let output = guest(pieces, dir, port, disks, task)
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
}

/// The emulator with its machine, without what it boots from.
fn emulator(pieces: &Path) -> Command {
    let root = pieces.join("root/usr");
    let library = root.join("lib/x86_64-linux-gnu");
    let libraries = [&library, &pieces.join("root/lib/x86_64-linux-gnu")];
    let machine = "-machine pc -accel tcg -cpu max -smp 2 -m 512 \
                   -nodefaults -no-reboot -display none -serial stdio \
                   -netdev user,id=net -device virtio-net-pci,netdev=net,romfile=";
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", "120"])
        .arg(root.join("bin/qemu-system-x86_64"))
        .env("LD_LIBRARY_PATH", env::join_paths(libraries).unwrap())
        .env("QEMU_MODULE_DIR", library.join("qemu"))
        .args(machine.split_whitespace())
        .arg("-L")
        .arg(root.join("share/qemu"))
        .arg("-L")
        .arg(root.join("share/seabios"))
        .arg("-kernel")
        .arg(pieces.join("vmlinuz"))
        .stdin(Stdio::null());
    command
}
