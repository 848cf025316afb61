//! C5 with strace: the sync calls fail for a while, and then report success, as Linux does for
//! pages that it has given up on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::{tempdir, TempDir};

use crate::client::{Client, EIO, FLUSH, FUA, TRIM, WRITE_ZEROES};
use crate::server::{init_raw, Serve, Server};
use crate::tools::present;
use crate::trace::{Trace, SYNC};

const KIB: usize = 1024;

/// A served empty image of 8 MiB.
struct Stage {
    server: Server,
    dir: TempDir,
}

impl Stage {
    fn new() -> Option<Self> {
        if !present(&["strace"]) {
            return None;
        }
        let dir = tempdir().unwrap();
        let image = dir.path().join("disk.img");
        init_raw(&image, "8Mi");
        let server = serve(&image, dir.path());
        Some(Self { server, dir })
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// While this lives every sync fails.
    fn syncs_fail(&self) -> Trace {
        Trace::attach(
            &self.server,
            &self.dir.path().join("strace"),
            SYNC,
            "error=EIO",
        )
    }

    /// One FLUSH that meets a failing sync.
    fn failed_flush(&self, client: &mut Client) {
        let failing = self.syncs_fail();
        assert_eq!(
            client.flush(),
            EIO,
            "the sync failed, and FLUSH says it did not"
        );
        failing.detach();
    }
}

fn serve(image: &Path, dir: &Path) -> Server {
    Serve::raw("disk", image).unix(&dir.join("sock")).start()
}

#[test]
fn c05_flush_after_failed_sync_stays_an_error_until_all_is_written_again() {
    let Some(stage) = Stage::new() else { return };
    let mut a = Client::unix(&stage.server);
    let mut b = Client::unix(&stage.server);
    assert_eq!(a.write(0, 0, &[1; 4 * KIB]), 0);
    assert_eq!(a.flush(), 0, "a healthy FLUSH");
    assert_eq!(a.write(0, 0, &[2; 4 * KIB]), 0);
    stage.failed_flush(&mut a);
    for turn in 0..3 {
        assert_eq!(a.flush(), EIO, "FLUSH {turn} after the failed one");
        assert_eq!(b.flush(), EIO, "FLUSH {turn} on another connection");
    }
    let mut late = Client::unix(&stage.server);
    assert_eq!(late.flush(), EIO, "FLUSH on a new connection");
    assert_eq!(b.read(0, 4 * KIB).unwrap(), [2; 4 * KIB], "reads go on");
    assert_eq!(b.write(0, 0, &[3; 4 * KIB]), 0, "writes go on");
    assert_eq!(a.flush(), 0, "all was written again, and the sync works");
    assert_eq!(b.write(FUA, 64 * 1024, &[4; 4 * KIB]), 0, "FUA works again");
    assert_eq!(b.flush(), 0, "and FLUSH");
    stage.server.stop();
}

#[test]
fn c05_fua_elsewhere_is_an_error_too_after_a_failed_sync() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    assert_eq!(client.write(0, 0, &[1; 4 * KIB]), 0);
    stage.failed_flush(&mut client);
    assert_eq!(
        client.write(FUA, 1 << 20, &[2; 4 * KIB]),
        EIO,
        "FUA WRITE elsewhere"
    );
    assert_eq!(
        client.zero(WRITE_ZEROES, FUA, 2 << 20, 4 * KIB),
        EIO,
        "FUA WRITE_ZEROES"
    );
    assert_eq!(client.zero(TRIM, FUA, 3 << 20, 4 * KIB), EIO, "FUA TRIM");
    for offset in [0, 1 << 20, 2 << 20, 3 << 20] {
        assert_eq!(client.flush(), EIO, "before {offset} was written again");
        assert_eq!(client.write(0, offset, &[5; 4 * KIB]), 0);
    }
    assert_eq!(client.flush(), 0, "all four were written again");
    stage.server.stop();
}

#[test]
fn c05_half_of_the_bytes_written_again_is_not_enough() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    assert_eq!(client.write(0, 4096, &[1; 64 * KIB]), 0);
    stage.failed_flush(&mut client);
    assert_eq!(client.write(0, 4096, &[2; 32 * KIB]), 0);
    assert_eq!(client.flush(), EIO, "the second half was not written again");
    assert_eq!(client.write(0, 4096 + 32 * 1024, &[2; 31 * KIB]), 0);
    assert_eq!(client.flush(), EIO, "1 KiB was not written again");
    assert_eq!(client.write(0, 4096 + 63 * 1024, &[2; KIB]), 0);
    assert_eq!(client.flush(), 0, "all was written again");
    stage.server.stop();
}

#[test]
fn c05_new_writes_elsewhere_do_not_heal_a_failed_sync() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    assert_eq!(client.write(0, 0, &[1; 4 * KIB]), 0);
    stage.failed_flush(&mut client);
    for unit in 1..50 {
        assert_eq!(client.write(0, unit * 4096, &[2; 4 * KIB]), 0);
    }
    assert_eq!(client.flush(), EIO, "the first unit was not written again");
    assert_eq!(client.write(0, 0, &[3; 4 * KIB]), 0);
    assert_eq!(
        client.flush(),
        0,
        "it was, and the others are synced with it"
    );
    stage.server.stop();
}

#[test]
fn c05_trimmed_and_zeroed_ranges_count_as_written() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    assert_eq!(client.write(0, 0, &[1; 128 * KIB]), 0);
    assert_eq!(client.flush(), 0);
    assert_eq!(client.zero(TRIM, 0, 0, 64 * KIB), 0);
    assert_eq!(client.zero(WRITE_ZEROES, 0, 64 * 1024, 64 * KIB), 0);
    stage.failed_flush(&mut client);
    assert_eq!(client.write(0, 0, &[2; 64 * KIB]), 0);
    assert_eq!(
        client.flush(),
        EIO,
        "the zeroed range was not written again"
    );
    assert_eq!(client.write(0, 64 * 1024, &[2; 64 * KIB]), 0);
    assert_eq!(client.flush(), 0, "both were");
    stage.server.stop();
}

#[test]
fn c05_a_second_failed_sync_starts_over() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    assert_eq!(client.write(0, 0, &[1; 4 * KIB]), 0);
    stage.failed_flush(&mut client);
    assert_eq!(client.write(0, 0, &[2; 4 * KIB]), 0);
    stage.failed_flush(&mut client);
    assert_eq!(client.flush(), EIO, "what was written again was lost again");
    assert_eq!(client.write(0, 0, &[3; 4 * KIB]), 0);
    assert_eq!(client.flush(), 0);
    stage.server.stop();
}

#[test]
fn c05_what_is_written_while_a_sync_fails_may_be_lost_with_it() {
    // The kernel's own write-back takes a page whenever it likes, and whichever sync comes next
    // tells of its failure, once.
    let Some(stage) = Stage::new() else { return };
    let mut a = Client::unix(&stage.server);
    let mut b = Client::unix(&stage.server);
    assert_eq!(a.write(0, 0, &[1; 4 * KIB]), 0);
    let log = stage.dir.path().join("strace");
    let how = "error=EIO:delay_enter=700000";
    let failing = Trace::attach(&stage.server, &log, SYNC, how);
    a.send(FLUSH, 0, 0, 0, &[]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(b.write(0, 1 << 20, &[1; 4 * KIB]), 0, "while the sync runs");
    assert_eq!(a.receive().unwrap().error, EIO);
    failing.detach();
    assert_eq!(a.write(0, 0, &[2; 4 * KIB]), 0);
    assert_eq!(a.flush(), EIO, "the error may have been the other unit's");
    assert_eq!(b.write(0, 1 << 20, &[2; 4 * KIB]), 0);
    assert_eq!(a.flush(), 0, "both were written again");
    stage.server.stop();
}

#[test]
fn c05_a_failed_fua_write_is_not_durable_later_by_itself() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    let failing = stage.syncs_fail();
    let error = client.write(FUA, 0, &[1; 4 * KIB]);
    failing.detach();
    // 0: made durable by another call than those that fail here.
    if error != 0 {
        assert_eq!(error, EIO, "the sync of a FUA write failed");
        assert_eq!(client.flush(), EIO, "its bytes may be lost");
        assert_eq!(client.write(0, 0, &[2; 4 * KIB]), 0);
        assert_eq!(client.flush(), 0, "they were written again");
    }
    stage.server.stop();
}

#[test]
fn c04_flush_on_one_connection_fails_for_what_another_wrote() {
    let Some(stage) = Stage::new() else { return };
    let mut a = Client::unix(&stage.server);
    let mut b = Client::unix(&stage.server);
    assert_eq!(a.write(0, 0, &[1; 4 * KIB]), 0);
    stage.failed_flush(&mut b);
    assert_eq!(a.flush(), EIO, "the writer hears of it as well");
    a.disconnect();
    assert_eq!(b.flush(), EIO, "also when the writer is gone");
    assert_eq!(b.write(0, 0, &[2; 4 * KIB]), 0);
    assert_eq!(b.flush(), 0);
    stage.server.stop();
}

#[test]
fn c05_a_restart_forgets_the_failure() {
    let Some(stage) = Stage::new() else { return };
    let mut client = Client::unix(&stage.server);
    assert_eq!(client.write(0, 0, &[1; 4 * KIB]), 0);
    stage.failed_flush(&mut client);
    let image = stage.image();
    let Stage { mut server, dir } = stage;
    server.signal(Signal::KILL);
    server.wait(Duration::from_secs(5)).expect("killed");
    drop(server);
    let server = serve(&image, dir.path());
    assert_eq!(
        Client::unix(&server).flush(),
        0,
        "a new server knows of no failure"
    );
    server.stop();
}
