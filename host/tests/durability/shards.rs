//! What befalls an image, befalling a volume that lies in a directory in many files: the disk fails,
//! is full or turns read-only, descriptors run out, files are cut or replaced behind our back.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::{tempdir, TempDir};

use crate::client::handshake::Handshake;
use crate::client::line::Line;
use crate::client::{Client, Framing, EIO, ENOSPC, FUA, TRIM, WRITE, WRITE_ZEROES};
use crate::disks::{FailingDisk, SmallDisk, FAILING_DISK, SMALL_DISK};
use crate::server::{nbd_rs, text, Serve, Server};
use crate::tools::{present, present_as_root, skip, tool};

const SHARD: usize = 64 << 10;

/// A volume in a directory, and where its server listens.
struct Volume {
    dir: PathBuf,
    options: &'static str,
    sockets: TempDir,
}

impl Volume {
    fn new(dir: PathBuf, options: &'static str, shards: usize) -> Self {
        let sockets = tempdir().expect("a temporary folder");
        let volume = Self {
            dir,
            options,
            sockets,
        };
        let size = (shards * SHARD).to_string();
        volume.run(&["init", "--size", &size, "--shard-size", "64Ki"]);
        volume
    }

    fn location(&self) -> String {
        format!("file:{}/{}", self.dir.display(), self.options)
    }

    fn run(&self, words: &[&str]) {
        let location = self.location();
        let output = nbd_rs(&[words, &["sharded", &location]].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output));
    }

    fn serve(&self) -> Serve {
        Serve::sharded("disk", &self.location()).unix(&self.sockets.path().join("sock"))
    }

    /// The file of a shard.
    fn shard(&self, number: usize) -> PathBuf {
        let volumes = fs::read_dir(&self.dir).expect("a directory");
        let shards = volumes.map(|entry| {
            let dir = entry.expect("an entry").path();
            dir.join(format!("shard/{number:012}"))
        });
        shards
            .filter(|path| path.symlink_metadata().is_ok())
            .last()
            .unwrap_or_else(|| panic!("no shard {number} in {}", self.dir.display()))
    }
}

fn at(shard: usize) -> u64 {
    (shard * SHARD) as u64
}

fn kill(mut server: Server) {
    server.signal(Signal::KILL);
    server.wait(Duration::from_secs(10)).expect("it ends");
}

/// A volume of so many written and flushed shards on a disk that fails.
fn on_failing_disk(shards: usize) -> (FailingDisk, Volume) {
    let disk = FailingDisk::new(&[]);
    let volume = Volume::new(disk.image().with_file_name("chunks"), "", shards);
    let server = volume.serve().start();
    let mut client = Client::unix(&server);
    for shard in 0..shards {
        assert_eq!(client.write(0, at(shard), &[0xa0; SHARD]), 0);
    }
    assert_eq!(client.flush(), 0);
    drop(client);
    server.stop();
    (disk, volume)
}

#[test]
fn f11_c05_bytes_of_shards_that_the_disk_lost_never_pass_for_flushed() {
    if !present_as_root(&FAILING_DISK) {
        return;
    }
    let (mut disk, volume) = on_failing_disk(4);
    let server = volume.serve().start();
    let mut a = Client::unix(&server);
    let mut b = Client::unix(&server);
    // In two shards at once.
    let across = at(1) - 4096;
    assert_eq!(a.write(0, across, &[0xa1; 8192]), 0);
    disk.fail_writes(true);
    assert_eq!(b.flush(), EIO, "the disk refused the bytes");
    disk.fail_writes(false);
    // Here Linux says that all is well, and the bytes are not on the disk.
    for turn in 0..3 {
        assert_eq!(a.flush(), EIO, "FLUSH {turn} after the failed one");
    }
    assert_eq!(b.write(FUA, at(3), &[0xb1; 4096]), EIO, "FUA elsewhere");
    assert_eq!(b.write(0, at(3), &[0xb2; 4096]), 0);
    assert_eq!(a.write(0, across, &[0xa2; 4096]), 0);
    assert_eq!(a.flush(), EIO, "half was written again");
    assert_eq!(a.write(0, at(1), &[0xa2; 4096]), 0);
    assert_eq!(a.flush(), 0, "all was written again");
    kill(server);
    disk.remount();
    let server = volume.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(across, 8192), Ok(vec![0xa2; 8192]));
    assert_eq!(client.read(at(3), 4096), Ok(vec![0xb2; 4096]));
    assert_eq!(client.read(at(2), SHARD), Ok(vec![0xa0; SHARD]));
    server.stop();
}

#[test]
fn f12_c05_a_write_back_that_fails_before_the_flush_is_not_missed_in_a_shard() {
    if !present_as_root(&FAILING_DISK) {
        return;
    }
    // More than are kept open at the same time.
    const SHARDS: usize = 300;
    let (disk, volume) = on_failing_disk(SHARDS);
    for closed in [false, true] {
        let server = volume.serve().start();
        let mut client = Client::unix(&server);
        assert_eq!(client.write(0, 0, &[0xa1; 8192]), 0);
        disk.fail_writes(true);
        if closed {
            // So many others are opened that this one would be closed, and is synced before.
            for shard in 1..SHARDS {
                assert_eq!(client.read(at(shard), 1), Ok(vec![0xa0]));
            }
        } else {
            // Somebody else's sync meets the error first, and the kernel drops the bytes.
            tool("sync", &[volume.shard(0)]);
        }
        disk.fail_writes(false);
        for turn in 0..2 {
            let flushed = client.flush();
            assert_eq!(flushed, EIO, "FLUSH {turn} of lost bytes, closed: {closed}");
        }
        assert_eq!(client.write(0, 0, &[0xa2; 8192]), 0);
        assert_eq!(client.flush(), 0, "written again");
        drop(client);
        server.stop();
    }
}

#[test]
fn f22_c11_shards_that_cannot_be_read_are_errors_and_cost_no_other_request() {
    if !present_as_root(&FAILING_DISK) {
        return;
    }
    let (mut disk, volume) = on_failing_disk(8);
    disk.remount();
    let mut server = volume.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(0, SHARD), Ok(vec![0xa0; SHARD]));
    disk.fail_reads(true);
    for (shard, length) in [(3, 4096), (5, SHARD), (6, 100)] {
        assert_eq!(client.read(at(shard), length), Err(EIO));
        let known = client.read(0, SHARD);
        assert!(known == Ok(vec![0xa0; SHARD]), "what is in memory");
    }
    disk.fail_reads(false);
    for shard in 0..8 {
        assert_eq!(client.read(at(shard), SHARD), Ok(vec![0xa0; SHARD]));
    }
    assert_eq!(client.flush(), 0, "failed reads are no failed writes");
    drop(client);
    server.assert_alive();
    server.stop();
}

#[test]
fn f14_c24_in_a_full_directory_writes_are_enospc_and_all_else_goes_on() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    for (options, in_place) in [("", true), ("?way=whole", false)] {
        let disk = SmallDisk::new();
        let volume = Volume::new(disk.path("chunks"), options, 512);
        let mut server = volume.serve().start();
        let mut client = Client::unix(&server);
        client.line.receive_within(Duration::from_secs(60));
        assert_eq!(client.write(0, 0, &[0xaa; 16 * SHARD]), 0);
        assert_eq!(client.flush(), 0);
        disk.fill("filler");
        for shard in [100, 101, 300] {
            let refused = client.write(0, at(shard), &[1; SHARD]);
            assert_eq!(refused, ENOSPC, "{options}: a shard that needs space");
        }
        assert_eq!(client.read(at(100), SHARD), Ok(vec![0; SHARD]));
        assert_eq!(client.flush(), 0, "C10: refused writes spoil no FLUSH");
        if in_place {
            assert_eq!(client.write(0, 0, &[0xab; 4096]), 0, "this has its space");
            assert_eq!(client.flush(), 0);
        }
        // Longer than the lease: an owner must say that it lives, and that takes no space.
        std::thread::sleep(Duration::from_secs(12));
        let known = client.read(at(8), SHARD);
        assert!(
            known == Ok(vec![0xaa; SHARD]),
            "{options}: {:?}",
            known.err()
        );
        if in_place {
            assert_eq!(client.write(0, 0, &[0xac; 4096]), 0, "it still has");
            assert_eq!(client.flush(), 0);
        }
        server.assert_alive();

        fs::remove_file(disk.path("filler")).expect("removed");
        assert_eq!(client.write(0, at(100), &[2; SHARD]), 0, "{options}");
        assert_eq!(client.flush(), 0);
        kill(server);
        // No half of a shard was left anywhere.
        volume.run(&["check", "--deep"]);
        let server = volume.serve().start();
        let mut client = Client::unix(&server);
        assert_eq!(client.read(at(100), SHARD), Ok(vec![2; SHARD]));
        assert_eq!(client.read(at(300), SHARD), Ok(vec![0; SHARD]));
        assert_eq!(client.read(at(15), SHARD), Ok(vec![0xaa; SHARD]));
        server.stop();
    }
}

/// Somebody takes every bit of space that gets free, for as long as this lives.
struct Hog {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hog {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let thread = thread::spawn(move || {
            let mut file = fs::File::create(path).expect("a file");
            while !is_over.load(Ordering::Relaxed) {
                if file.write_all(&[7; 4096]).is_err() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let thread = Some(thread);
        Self { stop, thread }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}

/// Found by a user: a client that filled the disk left a volume that could not be trimmed, stopped in
/// order, started or destroyed, for the records of all that are put as new files.
#[test]
fn f14_c24_a_volume_that_filled_its_directory_is_no_dead_end() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    for options in ["", "?way=whole"] {
        let disk = SmallDisk::new();
        // 128 MiB on 64.
        let volume = Volume::new(disk.path("chunks"), options, 2048);
        let server = volume.serve().start();
        let mut client = Client::unix(&server);
        client.line.receive_within(Duration::from_secs(60));
        let refused = (0..2048).find(|&shard| match client.write(0, at(shard), &[0xaa; SHARD]) {
            0 => false,
            error => {
                assert_eq!(error, ENOSPC, "{options}: shard {shard}");
                true
            }
        });
        let end = refused.expect("the disk is smaller");
        assert!(end > 400, "only {end} shards");
        // What gets free is somebody else's at once; but not what is kept for records.
        let hog = Hog::start(disk.path("hog"));
        assert_eq!(client.flush(), 0, "{options}: C10");
        // Longer than the lease: heartbeats take no space.
        thread::sleep(Duration::from_secs(12));
        if options.is_empty() {
            assert_eq!(client.write(0, at(7), &[0xab; 4096]), 0, "it has its space");
        }
        assert_eq!(client.write(0, at(end + 9), &[1; SHARD]), ENOSPC);
        assert_eq!(client.flush(), 0, "{options}");
        drop(client);
        server.stop();
        volume.run(&["info"]);
        volume.run(&["check"]);

        let mut server = volume.serve().start();
        let mut client = Client::unix(&server);
        client.line.receive_within(Duration::from_secs(60));
        let first = if options.is_empty() { 0xab } else { 0xaa };
        assert_eq!(client.read(at(7), 1), Ok(vec![first]), "{options}");
        drop(hog);
        let (from, to) = (10, 300);
        for (shard, command) in [(from, TRIM), (from + 100, WRITE_ZEROES)] {
            let done = client.zero(command, 0, at(shard), 100 * SHARD);
            assert_eq!(done, 0, "{options}: {command}");
        }
        let tried = Instant::now();
        // Their files go in the background.
        while client.write(0, at(to), &[2; SHARD]) != 0 {
            assert!(
                tried.elapsed() < Duration::from_secs(20),
                "{options}: no room"
            );
        }
        assert_eq!(client.write(0, at(end + 9), &[3; SHARD]), 0, "{options}");
        assert_eq!(client.flush(), 0, "{options}");
        assert_eq!(client.read(at(from), SHARD), Ok(vec![0; SHARD]));
        server.assert_alive();
        kill(server);
        volume.run(&["check", "--deep"]);
        let hog = Hog::start(disk.path("hog"));
        volume.run(&["destroy"]);
        drop(hog);
        let left = fs::read_dir(&volume.dir).expect("a directory");
        assert_eq!(left.count(), 0, "{options}");
    }
}

#[test]
fn f13_in_a_directory_that_turned_read_only_no_flush_is_a_lie() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    for options in ["", "?way=whole"] {
        let disk = SmallDisk::new();
        let volume = Volume::new(disk.path("chunks"), options, 64);
        let mut server = volume.serve().start();
        let mut client = Client::unix(&server);
        client.line.receive_within(Duration::from_secs(100));
        assert_eq!(client.write(0, 0, &[1; 4 * SHARD]), 0);
        assert_eq!(client.flush(), 0);
        if !disk.turn_read_only() {
            skip("this kernel cannot be told to break an ext4");
            return;
        }
        let mut written = false;
        for shard in [0, 8] {
            written |= client.write(0, at(shard), &[2; 4096]) == 0;
        }
        let flushed = client.flush();
        assert!(!written || flushed != 0, "{options}: FLUSH is a lie");
        let known = client.read(at(2), SHARD);
        assert!(known == Ok(vec![1; SHARD]), "{options}: reads go on");
        server.assert_alive();
        drop(client);
        server.signal(Signal::TERM);
        let status = server.wait(Duration::from_secs(60)).expect("it stops");
        assert_ne!(
            status.code(),
            Some(0),
            "{options}: the volume was given back?"
        );
    }
}

/// Found by a user: the server did not start.
#[test]
fn c12_without_room_in_the_state_directory_writes_go_through() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    let disk = SmallDisk::new();
    let elsewhere = tempdir().expect("a temporary folder");
    let volume = Volume::new(elsewhere.path().join("chunks"), "?way=whole", 64);
    fs::create_dir(disk.path("state")).expect("a directory");
    disk.fill("all of it");
    let no_words: [&str; 0] = [];
    let socket = volume.sockets.path().join("sock");
    let mut serve = Serve::gathering("disk", &volume.location(), &no_words).unix(&socket);
    let state = format!("STATE_DIRECTORY={}", disk.path("state").display());
    serve.before = ["env".to_owned(), state].map(Into::into).to_vec();
    let mut server = serve.start();
    assert!(server.log().contains("no journal"), "{}", server.log());
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, at(3), &[7; 4096]), 0);
    server.signal(Signal::KILL);
    server.wait(Duration::from_secs(10)).expect("it is killed");
    let server = volume.serve().start();
    assert_eq!(Client::unix(&server).read(at(3), 4096), Ok(vec![7; 4096]));
    server.stop();
}

/// Thaws whatever becomes of the test, for a frozen file system can't be unmounted.
struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        tool("fsfreeze", &["--unfreeze".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn f27_on_a_frozen_file_system_requests_wait_longer_than_the_lease_and_are_then_done() {
    if !present_as_root(&SMALL_DISK) || !present(&["fsfreeze"]) {
        return;
    }
    for options in ["", "?way=whole"] {
        let disk = SmallDisk::new();
        let volume = Volume::new(disk.path("chunks"), options, 64);
        let mut server = volume.serve().start();
        let mut client = Client::unix(&server);
        client.line.receive_within(Duration::from_secs(60));
        assert_eq!(client.write(0, 0, &[1; 4 * SHARD]), 0);
        assert_eq!(client.flush(), 0);
        let mount = disk.path("");
        tool("fsfreeze", &["--freeze".as_ref(), mount.as_os_str()]);
        let frozen = Frozen(mount);
        let asked = client.send(WRITE, FUA, at(2) + 512, 4096, &[2; 4096]);
        asked.expect("a request");
        std::thread::sleep(Duration::from_secs(12));
        drop(frozen);
        let reply = client.receive().expect("a reply");
        assert_eq!(reply.error, 0, "{options}: {}", reply.text);
        assert_eq!(client.flush(), 0, "{options}");
        let expected = [vec![1; 512], vec![2; 4096], vec![1; 512]].concat();
        assert_eq!(client.read(at(2), 5120), Ok(expected), "{options}");
        server.assert_alive();
        drop(client);
        server.stop();
    }
}

#[test]
fn f08_with_few_descriptors_no_shard_that_was_written_is_lost() {
    if !present(&["prlimit"]) {
        return;
    }
    const SHARDS: usize = 200;
    for options in ["", "?way=whole"] {
        let dir = tempdir().expect("a temporary folder");
        let volume = Volume::new(dir.path().join("chunks"), options, SHARDS);
        let mut serve = volume.serve();
        serve.before = vec!["prlimit".into(), "--nofile=64:64".into()];
        let mut server = serve.start();
        let mut client = Client::unix(&server);
        let byte = |shard: usize| shard as u8 | 1;
        for shard in 0..SHARDS {
            let written = client.write(0, at(shard), &[byte(shard); 4096]);
            assert_eq!(written, 0, "{options}: shard {shard}");
        }
        assert_eq!(client.flush(), 0, "{options}");
        for shard in 0..SHARDS {
            let found = client.read(at(shard), 4096);
            assert_eq!(found, Ok(vec![byte(shard); 4096]), "{options}: {shard}");
        }
        server.assert_alive();
        kill(server);
        let server = volume.serve().start();
        let mut client = Client::unix(&server);
        for shard in 0..SHARDS {
            let found = client.read(at(shard), 4096);
            assert_eq!(found, Ok(vec![byte(shard); 4096]), "{options}: {shard}");
        }
        server.stop();
    }
}

/// Each volume kept as many open as if it were the only one.
#[test]
fn f08_several_volumes_share_the_descriptors() {
    if !present(&["prlimit"]) {
        return;
    }
    const SHARDS: usize = 64;
    const VOLUMES: usize = 6;
    let dir = tempdir().expect("a temporary folder");
    let volume = |number: usize| Volume::new(dir.path().join(number.to_string()), "", SHARDS);
    let volumes: Vec<Volume> = (0..VOLUMES).map(volume).collect();
    let mut serve = volumes[0].serve();
    for (number, volume) in volumes.iter().enumerate().skip(1) {
        let words = [
            "--export",
            &number.to_string(),
            "sharded",
            &volume.location(),
        ];
        serve = serve.words(words.map(str::to_owned));
    }
    serve.before = vec!["prlimit".into(), "--nofile=128:128".into()];
    let mut server = serve.start();
    let connect = |number: usize| {
        let line = Line::unix(&server).expect("the server accepts");
        let handshake = Handshake::begin(line).expect("a greeting");
        let name = match number {
            0 => "disk".to_owned(),
            number => number.to_string(),
        };
        let client = handshake.go(Framing::Simple, name.as_bytes());
        client.expect("a handshake")
    };
    let mut clients: Vec<Client> = (0..VOLUMES).map(connect).collect();
    for shard in 0..SHARDS {
        for (number, client) in clients.iter_mut().enumerate() {
            let written = client.write(0, at(shard), &[number as u8 + 1; 4096]);
            assert_eq!(written, 0, "volume {number}, shard {shard}");
        }
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.flush(), 0, "volume {number}");
        for shard in 0..SHARDS {
            let found = client.read(at(shard), 4096);
            assert_eq!(found, Ok(vec![number as u8 + 1; 4096]), "{number}: {shard}");
        }
    }
    server.assert_alive();
    drop(clients);
    server.stop();
}

/// Replaces the file of a shard.
fn replace(path: &Path, with: &str, elsewhere: &Path) {
    if with == "a cut" {
        let file = fs::OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(8192)).expect("cut");
        return;
    }
    fs::remove_file(path).expect("removed");
    match with {
        "a directory" => fs::create_dir(path).expect("a directory"),
        "a link" => symlink(elsewhere, path).expect("a link"),
        "a pipe" => {
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            );
            made.expect("a pipe");
        }
        _ => unreachable!("{with}"),
    }
}

#[test]
fn f25_a_shard_that_somebody_replaced_is_an_error_and_never_zeros_or_other_bytes() {
    for options in ["", "?way=whole"] {
        for with in ["a cut", "a directory", "a link", "a pipe"] {
            let dir = tempdir().expect("a temporary folder");
            let volume = Volume::new(dir.path().join("chunks"), options, 8);
            let server = volume.serve().start();
            let mut client = Client::unix(&server);
            assert_eq!(client.write(0, 0, &[7; 3 * SHARD]), 0);
            assert_eq!(client.flush(), 0);
            drop(client);
            server.stop();
            let elsewhere = dir.path().join("elsewhere");
            fs::copy(volume.shard(1), &elsewhere).expect("a copy");
            replace(&volume.shard(1), with, &elsewhere);
            let mut server = volume.serve().start();
            let mut client = Client::unix(&server);
            let name = format!("{with} {options}");
            assert_eq!(client.read(at(1) + 16384, 4096), Err(EIO), "{name}");
            assert_eq!(client.write(0, at(1) + 16384, &[8; 512]), EIO, "{name}");
            assert_eq!(client.read(at(1) + 16384, 4096), Err(EIO), "{name}");
            for shard in [0, 2] {
                assert_eq!(client.read(at(shard), SHARD), Ok(vec![7; SHARD]), "{name}");
            }
            assert_eq!(client.flush(), 0, "{name}");
            server.assert_alive();
            drop(client);
            server.stop();
            let kept = fs::read(&elsewhere).expect("the file elsewhere");
            assert!(kept[..SHARD].iter().all(|&byte| byte == 7), "{name}");
        }
    }
}

#[test]
fn f25_a_shard_that_is_cut_while_it_is_served_is_an_error_and_the_server_lives() {
    let dir = tempdir().expect("a temporary folder");
    let volume = Volume::new(dir.path().join("chunks"), "", 8);
    let mut server = volume.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[7; 3 * SHARD]), 0);
    assert_eq!(client.read(0, 3 * SHARD), Ok(vec![7; 3 * SHARD]));
    let shard = volume.shard(1);
    replace(&shard, "a cut", &shard);
    assert_eq!(client.read(at(1) + 16384, 4096), Err(EIO));
    assert_eq!(client.read(at(1), SHARD), Err(EIO));
    assert_eq!(client.write(0, at(1) + 16384, &[8; 4096]), EIO);
    let len = fs::metadata(&shard).expect("the file").len();
    assert_eq!(len, 8192, "it grew, with zeros where data was");
    assert_eq!(client.read(at(1), 4096), Ok(vec![7; 4096]));
    assert_eq!(client.read(at(2), SHARD), Ok(vec![7; SHARD]));
    server.assert_alive();
}
