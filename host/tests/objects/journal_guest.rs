//! The Linux kernel's own client on a journaled volume: what a program in the guest has synced
//! survives SIGKILL of the server.
//!
//! `nbd-client` 3.24 attaches a device so that it fails at once when its connections are gone, so
//! the guest is ended with the server.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{kill_process, Pid, Signal};

use crate::client::Client;
use crate::guest::copied;
use crate::places::{kill, Place};
use crate::rng::Rng;
use crate::tools::{present, run, tool};
use crate::virtual_machine::{guest, passes, pieces, Task};

const SIZE: usize = 96 << 20;
/// Connections of the guest.
const DISKS: [(&str, u32); 1] = [("disk", 2)];

/// The guest is ended by its signal, or at the latest with the test.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // To timeout(1), which passes it on. Ended already? Then there is nothing to end.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Lets the guest work on a new file system until it has synced so many files, and then kills the
/// server; how many it knows to be synced.
fn work(place: &Place, boot: impl FnOnce(u16) -> Guest, least: usize, wait: Duration) -> usize {
    let mut server = place.serve().tcp().start();
    let mut guest = boot(server.tcp().port());
    let stdout = guest.0.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let synced = |line: &str| line.trim().strip_prefix("GUEST: synced ")?.parse().ok();
    while said.last().and_then(|line: &String| synced(line)) != Some(least) {
        let line = lines.next();
        said.push(line.unwrap_or_else(|| panic!("it ended: {said:#?}")));
    }
    std::thread::sleep(wait);
    kill(&mut server);
    // What it said until then; it ends by itself, or is ended.
    kill_process(Pid::from_child(&guest.0), Signal::TERM).expect("it runs");
    let after: Vec<usize> = lines.filter_map(|line| synced(&line)).collect();
    after.last().copied().unwrap_or(least)
}

#[test]
fn c12_c13_what_the_guests_ext4_has_synced_is_there_after_a_kill_and_fsck_is_clean() {
    if !present(&["e2fsck"]) {
        return;
    }
    let Some(pieces) = pieces() else {
        return;
    };
    let mut rng = Rng::for_test("journal guest");
    for how in ["", "--flush local"] {
        let place = Place::own("cache+retry+s3:", "");
        let place = place.journaled(&format!("--journal-size 16Mi {how}"));
        place.init(SIZE, "1Mi");
        let boot = |port| {
            let mut guest = guest(&pieces, place.dir(), port, &DISKS, Task::Work);
            let child = guest.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            Guest(child.expect("the emulator can be started"))
        };
        let wait = Duration::from_millis(rng.next() % 500);
        let synced = work(&place, boot, 30, wait);
        let server = place.serve().tcp().start();
        // On a slow machine the guest pauses for so long that the store has everything.
        let replayed = server.log().contains("the journal was replayed");
        println!("journal guest: {synced} files were synced, replayed: {replayed}");
        let image = copied(&mut Client::unix(&server), &place, SIZE);
        // As at the boot of a machine: its own journal is replayed, and nothing else is to be done.
        let output = tool("e2fsck", &["-f".as_ref(), "-p".as_ref(), image.as_os_str()]);
        let code = output.status.code();
        assert!(
            matches!(code, Some(0 | 1)),
            "{}",
            crate::server::text(&output)
        );
        run("e2fsck", &["-f".as_ref(), "-n".as_ref(), image.as_os_str()]);
        let port = server.tcp().port();
        passes(&pieces, place.dir(), port, &DISKS, Task::Look(synced));
        server.stop();
        place.is_clean();
    }
}
