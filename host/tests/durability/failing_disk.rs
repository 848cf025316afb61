//! A real file system on a disk that fails: F11, F22 and C5 without tricks.

use std::fs;

use rustix::process::Signal;

use crate::client::{Client, EIO, FUA};
use crate::disks::{FailingDisk, FAILING_DISK, IMAGE};
use crate::rng::Rng;
use crate::server::{Serve, Server};
use crate::tools::present_as_root;

const MIB: usize = 1 << 20;

fn serve(disk: &FailingDisk) -> Server {
    Serve::raw("disk", &disk.image())
        .unix(&disk.outside("sock"))
        .start()
}

#[test]
fn f11_c05_bytes_that_the_disk_lost_never_pass_for_flushed() {
    if !present_as_root(&FAILING_DISK) {
        return;
    }
    let mut disk = FailingDisk::new(&vec![0; IMAGE]);
    let server = serve(&disk);
    let mut a = Client::unix(&server);
    let mut b = Client::unix(&server);
    assert_eq!(a.write(0, 0, &[0xa1; 8192]), 0);
    disk.fail_writes(true);
    assert_eq!(b.flush(), EIO, "the disk refused the bytes");
    disk.fail_writes(false);
    // Here Linux says that all is well, and the bytes are not on the disk.
    for turn in 0..3 {
        assert_eq!(a.flush(), EIO, "FLUSH {turn} after the failed one");
        assert_eq!(b.flush(), EIO, "FLUSH {turn} on another connection");
    }
    assert_eq!(
        b.write(FUA, MIB as u64, &[0xb1; 4096]),
        EIO,
        "FUA elsewhere"
    );
    assert_eq!(b.write(0, MIB as u64, &[0xb2; 4096]), 0);
    assert_eq!(a.write(0, 0, &[0xa2; 4096]), 0);
    assert_eq!(a.flush(), EIO, "half was written again");
    assert_eq!(a.write(0, 4096, &[0xa2; 4096]), 0);
    assert_eq!(a.flush(), 0, "all was written again");
    server.signal(Signal::KILL);
    drop(server);
    disk.remount();
    let image = fs::read(disk.image()).unwrap();
    assert!(
        image[..8192].iter().all(|&byte| byte == 0xa2),
        "flushed bytes are not on the disk"
    );
    assert!(
        image[MIB..MIB + 4096].iter().all(|&byte| byte == 0xb2),
        "nor are these"
    );
}

#[test]
fn f22_c11_a_disk_that_cannot_be_read_costs_only_the_requests_that_need_it() {
    if !present_as_root(&FAILING_DISK) {
        return;
    }
    let bytes = Rng::for_test("f22").bytes(IMAGE);
    for structured in [false, true] {
        let disk = FailingDisk::new(&bytes);
        let mut server = serve(&disk);
        let connect = || {
            if structured {
                Client::structured(&server)
            } else {
                Client::unix(&server)
            }
        };
        let mut client = connect();
        assert!(client.read(0, 4096).unwrap() == bytes[..4096]);
        disk.fail_reads(true);
        for (offset, length) in [(4 * MIB, 4096), (5 * MIB, 65536), (6 * MIB, MIB)] {
            let got = client.read(offset as u64, length);
            assert_eq!(
                got.err(),
                Some(EIO),
                "READ of {length} that the disk refused"
            );
            let cached = client.read(0, 4096).expect("what is in memory can be read");
            assert!(cached == bytes[..4096]);
        }
        disk.fail_reads(false);
        for (offset, length) in [(4 * MIB, 4096), (5 * MIB, 65536), (6 * MIB, MIB)] {
            let got = client
                .read(offset as u64, length)
                .expect("the disk works again");
            assert!(
                got == bytes[offset..offset + length],
                "other bytes after the failure"
            );
        }
        assert_eq!(client.flush(), 0, "failed reads are no failed writes");
        drop(client);
        server.assert_alive();
        server.stop();
    }
}

#[test]
fn f12_c05_a_write_back_that_fails_before_the_flush_is_not_missed() {
    if !present_as_root(&FAILING_DISK) {
        return;
    }
    let disk = FailingDisk::new(&vec![0; IMAGE]);
    let server = serve(&disk);
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[0xa1; 8192]), 0);
    disk.fail_writes(true);
    // Somebody else's sync meets the error first, and the kernel drops the bytes.
    crate::tools::tool("sync", &[disk.image()]);
    disk.fail_writes(false);
    assert_eq!(client.flush(), EIO, "the bytes were lost before this FLUSH");
    assert_eq!(client.flush(), EIO, "and they still are");
    assert_eq!(client.write(0, 0, &[0xa2; 8192]), 0);
    assert_eq!(client.flush(), 0, "written again");
    server.stop();
}
