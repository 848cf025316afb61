//! Disks of our own: small ones, and ones that fail when they are told to.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{fadvise, Advice};
use rustix::process::{kill_process, Pid, Signal};
use tempfile::{tempdir, TempDir};

use crate::disk::{Loop, Mount};
use crate::tools::{run, tool};

/// Programs that [`SmallDisk`] needs.
pub(crate) const SMALL_DISK: [&str; 3] = ["losetup", "mke2fs", "mount"];

/// Programs that [`FailingDisk`] needs besides.
pub(crate) const FAILING_DISK: [&str; 5] = ["losetup", "mke2fs", "mount", "nbdkit", "nbdfuse"];

/// A mounted ext4 file system of 64 MiB. Fields go in the order in which they must be undone.
pub(crate) struct SmallDisk {
    mount: Mount,
    device: Loop,
    _dir: TempDir,
}

impl SmallDisk {
    /// Makes and mounts it.
    pub(crate) fn new() -> Self {
        let dir = tempdir().expect("a temporary folder");
        let file = dir.path().join("backing");
        fs::File::create(&file)
            .and_then(|file| file.set_len(64 << 20))
            .expect("a sparse file");
        let device = Loop::attach(&file);
        let name = device.device().display().to_string();
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", &name]);
        let words = ["-t", "ext4", "-o", "errors=remount-ro", &name];
        let mount = Mount::new(&words, &dir.path().join("mount"));
        Self {
            mount,
            device,
            _dir: dir,
        }
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }

    /// Takes all the space that is left, in a file of that name.
    pub(crate) fn fill(&self, name: &str) {
        let filler = self.path(name).display().to_string();
        // Ends when the disk is full; the rest by small steps.
        for step in ["1M", "4k"] {
            let words = [
                "if=/dev/zero".to_owned(),
                format!("of={filler}"),
                format!("bs={step}"),
                "oflag=append".to_owned(),
                "conv=notrunc,fsync".to_owned(),
            ];
            tool("dd", &words);
        }
    }

    /// What the kernel does when it finds the file system broken: from now on it is read-only.
    /// Says whether this kernel can be told so.
    pub(crate) fn turn_read_only(&self) -> bool {
        let device = self.device.device().file_name().expect("a name");
        let switch = Path::new("/sys/fs/ext4")
            .join(device)
            .join("trigger_fs_error");
        fs::write(switch, "a test").is_ok()
    }
}

/// A process that is asked to end when dropped.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// The FUSE mount whose only file is the disk.
struct Fuse(PathBuf);

impl Drop for Fuse {
    fn drop(&mut self) {
        tool("umount", &["--lazy".as_ref(), self.0.as_os_str()]);
    }
}

/// Whatever nbdkit serves, seen through nbdfuse as a file, attached as a loop device.
pub(crate) struct FuseDevice {
    device: Loop,
    _fuse: Fuse,
    _fuse_process: Helper,
    _nbdkit: Helper,
}

impl FuseDevice {
    /// Runs nbdkit with these words behind those on where it listens; all it needs is in `dir`.
    pub(crate) fn new<S: AsRef<OsStr>>(dir: &Path, words: &[S]) -> Self {
        let at = |name: &str| dir.join(name);
        let nbdkit = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(at("nbdkit.sock"))
            .args(words)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit can be started");
        let nbdkit = Helper(nbdkit);
        wait_for(&at("nbdkit.sock"));
        fs::create_dir(at("fuse")).expect("a folder");
        let fuse_process = Command::new("nbdfuse")
            .arg(at("fuse/disk"))
            .arg("--unix")
            .arg(at("nbdkit.sock"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdfuse can be started");
        let fuse_process = Helper(fuse_process);
        let fuse = Fuse(at("fuse"));
        wait_for(&at("fuse/disk"));
        Self {
            device: Loop::attach(&at("fuse/disk")),
            _fuse: fuse,
            _fuse_process: fuse_process,
            _nbdkit: nbdkit,
        }
    }

    /// The device's name.
    pub(crate) fn name(&self) -> String {
        self.device.device().display().to_string()
    }
}

/// An ext4 file system with an image of 8 MiB, on a disk that fails to order: a file served by
/// nbdkit's error filter.
///
/// Without a journal, so that one failed write of data is just that, and the file system goes on.
pub(crate) struct FailingDisk {
    mount: Option<Mount>,
    device: FuseDevice,
    dir: TempDir,
}

/// The image's length on a [`FailingDisk`].
pub(crate) const IMAGE: usize = 8 << 20;

impl FailingDisk {
    /// Makes it with an image of these bytes, of which none is in memory.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let dir = tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name);
        let disk = at("disk");
        fs::File::create(&disk)
            .and_then(|file| file.set_len(64 << 20))
            .expect("a sparse file");
        let words = [
            "--filter=error".to_owned(),
            "file".to_owned(),
            disk.display().to_string(),
            "error=EIO".to_owned(),
            "error-pread-rate=1".to_owned(),
            "error-pwrite-rate=1".to_owned(),
            format!("error-pread-file={}", at("fail-read").display()),
            format!("error-pwrite-file={}", at("fail-write").display()),
        ];
        let device = FuseDevice::new(dir.path(), &words);
        let name = device.name();
        run(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", "-O", "^has_journal", &name],
        );
        let mut failing = Self {
            mount: None,
            device,
            dir,
        };
        failing.mount();
        fs::write(failing.image(), bytes).expect("the image is written");
        failing.remount();
        failing
    }

    fn mount(&mut self) {
        let device = self.device.name();
        let words = ["-t", "ext4", "-o", "noatime,errors=continue", &device];
        self.mount = Some(Mount::new(&words, &self.dir.path().join("mount")));
    }

    /// Forgets all that is only in memory, as a restart of the machine would.
    pub(crate) fn remount(&mut self) {
        self.mount = None;
        // The disk is a file, of which the kernel keeps pages too.
        let file = fs::File::open(self.dir.path().join("fuse/disk")).expect("the disk");
        file.sync_all().expect("a healthy disk");
        fadvise(&file, 0, None, Advice::DontNeed).expect("advice is taken");
        self.mount();
    }

    /// Where the image is.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("mount/disk.img")
    }

    /// A path outside, where nothing fails.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// From now on the disk cannot be read, or can again.
    pub(crate) fn fail_reads(&self, fail: bool) {
        self.switch("fail-read", fail);
    }

    /// From now on the disk cannot be written, or can again.
    pub(crate) fn fail_writes(&self, fail: bool) {
        self.switch("fail-write", fail);
    }

    fn switch(&self, name: &str, on: bool) {
        let path = self.dir.path().join(name);
        if on {
            fs::write(path, "").expect("the switch is set");
        } else {
            // Not set? Fine.
            let _ = fs::remove_file(path);
        }
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // Else it could not be unmounted.
        self.fail_reads(false);
        self.fail_writes(false);
    }
}

fn wait_for(path: &Path) {
    for _ in 0..500 {
        if path.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{} does not appear", path.display());
}
