//! C24, F14: the file system below an image has no space left.

use std::fs;

use tempfile::tempdir;

use crate::client::{Client, ENOSPC, FUA, NO_HOLE, TRIM, WRITE_ZEROES};
use crate::disks::{SmallDisk, SMALL_DISK};
use crate::server::{init_raw, Serve};
use crate::tools::present_as_root;

const MIB: usize = 1 << 20;

#[test]
fn f14_a_write_that_finds_no_space_is_enospc_and_all_works_when_there_is_some() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    let disk = SmallDisk::new();
    let sockets = tempdir().unwrap();
    let image = disk.path("disk.img");
    init_raw(&image, "32Mi");
    let mut server = Serve::raw("disk", &image)
        .unix(&sockets.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &vec![0xaa; MIB]), 0);
    assert_eq!(client.flush(), 0);
    disk.fill("filler");
    // Small, large, and on another connection that sends the next ones without waiting.
    assert_eq!(client.write(0, 8 << 20, &[1; 4096]), ENOSPC);
    assert_eq!(client.write(0, 9 << 20, &vec![1; MIB]), ENOSPC);
    assert_eq!(client.write(FUA, 10 << 20, &[1; 65536]), ENOSPC);
    assert_eq!(
        client.zero(WRITE_ZEROES, NO_HOLE, 12 << 20, MIB),
        ENOSPC,
        "NO_HOLE is a promise"
    );
    assert_eq!(
        client.write(0, 0, &[0xab; 4096]),
        0,
        "what has its space can be written"
    );
    assert_eq!(client.read(0, 8192).unwrap()[4095..4097], [0xab, 0xaa]);
    assert_eq!(
        client.read(8 << 20, 4096).unwrap(),
        [0; 4096],
        "the refused one left zeros"
    );
    assert_eq!(
        client.flush(),
        0,
        "C10: a refused write does not spoil the next FLUSH"
    );
    server.assert_alive();

    fs::remove_file(disk.path("filler")).unwrap();
    assert_eq!(client.flush(), 0);
    assert_eq!(client.write(0, 8 << 20, &[2; 4096]), 0);
    assert_eq!(client.write(0, 9 << 20, &vec![2; MIB]), 0);
    assert_eq!(client.zero(WRITE_ZEROES, NO_HOLE, 12 << 20, MIB), 0);
    assert_eq!(client.flush(), 0);
    assert_eq!(client.read(9 << 20, MIB).unwrap(), vec![2; MIB]);
    drop(client);
    server.stop();
}

#[test]
fn f14_trim_makes_the_space_that_a_write_lacked() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    let disk = SmallDisk::new();
    let sockets = tempdir().unwrap();
    let image = disk.path("disk.img");
    init_raw(&image, "32Mi");
    let server = Serve::raw("disk", &image)
        .unix(&sockets.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &vec![0xaa; 4 * MIB]), 0);
    assert_eq!(client.flush(), 0);
    disk.fill("filler");
    assert_eq!(client.write(0, 8 << 20, &vec![1; MIB]), ENOSPC);
    assert_eq!(client.zero(TRIM, 0, 0, 4 * MIB), 0, "TRIM needs no space");
    assert_eq!(client.flush(), 0);
    assert_eq!(
        client.write(0, 8 << 20, &vec![1; MIB]),
        0,
        "TRIM gave 4 MiB back"
    );
    assert_eq!(client.read(0, 4096).unwrap(), [0; 4096]);
    assert_eq!(client.flush(), 0);
    server.stop();
}

#[test]
fn f14_every_byte_of_a_write_that_was_answered_is_there_when_the_disk_runs_full() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    let disk = SmallDisk::new();
    let sockets = tempdir().unwrap();
    let image = disk.path("disk.img");
    // Larger than the disk.
    init_raw(&image, "200Mi");
    let server = Serve::raw("disk", &image)
        .unix(&sockets.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    let mut good = Vec::new();
    let mut refused = 0;
    for block in 0..300_u64 {
        let offset = block * 640 * 1024;
        match client.write(0, offset, &[block as u8 | 1; 300_000]) {
            0 => good.push((offset, block as u8 | 1)),
            error => {
                assert_eq!(error, ENOSPC);
                refused += 1;
            }
        }
    }
    assert!(
        good.len() > 100 && refused > 50,
        "{} written, {refused} refused",
        good.len()
    );
    assert_eq!(client.flush(), 0);
    for (offset, byte) in good {
        let got = client.read(offset, 300_000).unwrap();
        assert!(
            got.iter().all(|&got| got == byte),
            "the write at {offset} was answered"
        );
    }
    server.stop();
}
