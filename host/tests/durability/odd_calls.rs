//! F17: system calls that are interrupted, or do less than they were asked to.

use std::fs;

use tempfile::{tempdir, TempDir};

use crate::client::{Client, FUA, NO_HOLE, TRIM, WRITE_ZEROES};
use crate::rng::Rng;
use crate::server::{init_raw, Serve, Server};
use crate::tools::present;
use crate::trace::Trace;

const READS: &str = "pread64,preadv,preadv2";
const WRITES: &str = "pwrite64,pwritev,pwritev2";
const MIB: usize = 1 << 20;

/// A served image of 8 MiB of noise, and a server some of whose calls go wrong.
fn serve(calls: &str, how: &str) -> (TempDir, Vec<u8>, Server, Trace) {
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "8Mi");
    let bytes = Rng::for_test("f17").bytes(8 * MIB);
    fs::write(&image, &bytes).unwrap();
    let server = Serve::raw("disk", &image)
        .unix(&dir.path().join("sock"))
        .start();
    // Not from the start: programs are loaded with such calls too.
    let trace = Trace::attach(&server, &dir.path().join("strace"), calls, how);
    (dir, bytes, server, trace)
}

#[test]
fn f17_every_second_call_is_interrupted_and_nobody_notices() {
    if !present(&["strace"]) {
        return;
    }
    let calls = format!("{READS},{WRITES},fallocate,process_vm_writev");
    let (dir, mut bytes, server, trace) = serve(&calls, "error=EINTR:when=1+2");
    let mut client = Client::unix(&server);
    for (n, length) in [512, 4096, 65536, 300_000, MIB].into_iter().enumerate() {
        let offset = n * MIB;
        assert!(client.read(offset as u64, length).unwrap() == bytes[offset..offset + length]);
        bytes[offset..offset + length].fill(n as u8 + 1);
        assert_eq!(
            client.write(0, offset as u64, &vec![n as u8 + 1; length]),
            0
        );
        assert!(client.read(offset as u64, length).unwrap() == bytes[offset..offset + length]);
        assert_eq!(
            client.write(FUA, offset as u64, &vec![n as u8 + 1; length]),
            0
        );
    }
    for (offset, command, flags) in [
        (5, TRIM, 0),
        (6, WRITE_ZEROES, 0),
        (7, WRITE_ZEROES, NO_HOLE),
    ] {
        assert_eq!(client.zero(command, flags, offset << 20, 65536), 0);
        bytes[(offset as usize) << 20..][..65536].fill(0);
    }
    assert_eq!(client.flush(), 0);
    assert!(client.read(0, 8 * MIB).unwrap() == bytes);
    trace.detach();
    drop(client);
    server.stop();
    assert!(fs::read(dir.path().join("disk.img")).unwrap() == bytes);
}

#[test]
fn f17_a_read_call_that_gives_nothing_is_never_taken_for_zeros() {
    if !present(&["strace"]) {
        return;
    }
    let (_dir, bytes, mut server, _trace) = serve(READS, "retval=0");
    let mut client = Client::structured(&server);
    for length in [512, 4096, 65536, MIB] {
        // A server that reads in other ways gives the right bytes.
        if let Ok(got) = client.read(MIB as u64, length) {
            assert!(
                got == bytes[MIB..MIB + length],
                "{length} bytes came from nowhere"
            );
        }
    }
    server.assert_alive();
}

#[test]
fn f17_a_write_call_that_takes_nothing_is_never_taken_for_written() {
    if !present(&["strace"]) {
        return;
    }
    let (dir, _, mut server, _trace) = serve(WRITES, "retval=0");
    let mut client = Client::unix(&server);
    for length in [512, 4096, 65536, MIB] {
        if client.write(0, MIB as u64, &vec![0x77; length]) == 0 {
            let image = fs::read(dir.path().join("disk.img")).unwrap();
            let there = image[MIB..MIB + length].iter().all(|&byte| byte == 0x77);
            assert!(there, "{length} bytes were answered and are not there");
        }
    }
    server.assert_alive();
}
