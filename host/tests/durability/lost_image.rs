//! F25, F13: the image is cut, removed, or turns read-only behind the server's back.

use std::fs;

use rustix::process::Signal;
use std::time::Duration;
use tempfile::tempdir;

use crate::client::{Client, TRIM, WRITE_ZEROES};
use crate::disks::{SmallDisk, SMALL_DISK};
use crate::rng::Rng;
use crate::server::{init_raw, Serve};
use crate::tools::{present_as_root, skip};

const MIB: usize = 1 << 20;

#[test]
fn f25_reads_beyond_the_cut_of_an_image_are_errors_and_the_server_lives() {
    let bytes = Rng::for_test("f25").bytes(8 * MIB);
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    fs::write(&image, &bytes).unwrap();
    let mut server = Serve::raw("disk", &image)
        .unix(&dir.path().join("sock"))
        .start();
    let mut client = Client::structured(&server);
    // So that a mapping, if there is one, knows these pages.
    assert!(client.read(0, 8 * MIB).unwrap() == bytes);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(4 * MIB as u64).unwrap();
    for length in [512, 4096, 65536, MIB] {
        let gone = client.read(6 << 20, length);
        assert!(
            gone.is_err(),
            "{length} bytes that are gone were read: never zeros for data"
        );
        let across = client.read((4 << 20) - 256, length.max(512));
        assert!(across.is_err(), "{length} bytes across the cut were read");
        let kept = client.read((4 << 20) - length as u64, length);
        assert!(
            kept.unwrap() == bytes[4 * MIB - length..4 * MIB],
            "what is left can be read"
        );
    }
    // Simple replies: an error, or the end of that connection when it was found too late.
    for length in [4096, MIB] {
        let mut simple = Client::unix(&server);
        simple
            .send(crate::client::READ, 0, 6 << 20, length, &[])
            .unwrap();
        if let Ok(reply) = simple.receive() {
            assert_ne!(reply.error, 0, "{length} bytes that are gone were read");
        }
    }
    server.assert_alive();
    assert!(Client::unix(&server).read(0, 4096).unwrap() == bytes[..4096]);
    drop(client);
    // How it ends is its own affair, but end it must.
    server.signal(Signal::TERM);
    server.wait(Duration::from_secs(35)).expect("it stops");
}

#[test]
fn f25_writes_beyond_the_cut_are_errors_and_do_not_grow_the_image_again() {
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    fs::write(&image, vec![1; 8 * MIB]).unwrap();
    let mut server = Serve::raw("disk", &image)
        .unix(&dir.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 6 << 20, &vec![2; MIB]), 0);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(4 * MIB as u64).unwrap();
    let length = || fs::metadata(&image).unwrap().len();
    for bytes in [512, 4096, 65536, MIB] {
        let error = client.write(0, 6 << 20, &vec![3; bytes]);
        assert_ne!(
            error, 0,
            "a WRITE of {bytes} into what is gone was answered"
        );
        assert_eq!(length(), 4 << 20, "a WRITE of {bytes} made the image grow");
        let error = client.zero(WRITE_ZEROES, 0, 6 << 20, bytes);
        assert_ne!(
            error, 0,
            "WRITE_ZEROES of {bytes} into what is gone was answered"
        );
        assert_eq!(
            length(),
            4 << 20,
            "WRITE_ZEROES of {bytes} made the image grow"
        );
        client.zero(TRIM, 0, 6 << 20, bytes.next_multiple_of(4096));
        assert_eq!(length(), 4 << 20, "TRIM of {bytes} made the image grow");
    }
    assert_eq!(
        client.write(0, 0, &[4; 4096]),
        0,
        "what is left can be written"
    );
    assert_eq!(client.read(0, 4096).unwrap(), [4; 4096]);
    server.assert_alive();
}

/// A page that holds the end of a file can be mapped whole: what lies behind the end reads as
/// zeros there, and what is stored there is in no file. A kernel's copy out of or into the mapping
/// sees no fault, so the size has to be looked at.
#[test]
fn f25_c11_a_cut_in_the_middle_of_a_page_is_no_place_for_zeros_or_lost_writes() {
    let bytes = Rng::for_test("f25_page").bytes(MIB);
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    fs::write(&image, &bytes).unwrap();
    let server = Serve::raw("disk", &image)
        .unix(&dir.path().join("sock"))
        .start();
    let mut client = Client::structured(&server);
    assert!(client.read(0, MIB).unwrap() == bytes);
    assert_eq!(client.write(0, 0, &bytes[..4096]), 0);
    let cut = MIB - 4096 + 700;
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(cut as u64).unwrap();
    for length in [512, 4096, 65536, MIB] {
        let offset = (MIB - length) as u64;
        assert!(client.read(offset, length).is_err(), "read {length}");
        assert_ne!(client.write(0, offset, &vec![3; length]), 0, "{length}");
    }
    assert_eq!(fs::metadata(&image).unwrap().len(), cut as u64);
    drop(client);
    server.signal(Signal::KILL);
}

#[test]
fn f25_a_removed_image_is_served_to_the_end() {
    let dir = tempdir().unwrap();
    let image = dir.path().join("disk.img");
    init_raw(&image, "8Mi");
    let server = Serve::raw("disk", &image)
        .unix(&dir.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    fs::remove_file(&image).unwrap();
    assert_eq!(client.write(0, 4096, &[2; 4096]), 0);
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(client.flush(), 0);
    let mut late = Client::unix(&server);
    assert_eq!(late.read(4096, 4096).unwrap(), [2; 4096]);
    late.disconnect();
    client.disconnect();
    server.stop();
    assert!(!image.exists(), "the name came back");
}

#[test]
fn f13_on_a_file_system_that_turned_read_only_no_flush_is_a_lie() {
    if !present_as_root(&SMALL_DISK) {
        return;
    }
    let disk = SmallDisk::new();
    let sockets = tempdir().unwrap();
    let image = disk.path("disk.img");
    init_raw(&image, "8Mi");
    let mut server = Serve::raw("disk", &image)
        .unix(&sockets.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &vec![1; MIB]), 0);
    assert_eq!(client.flush(), 0);
    if !disk.turn_read_only() {
        skip("this kernel cannot be told to break an ext4");
        return;
    }
    // A write may be taken into memory or refused; it must not be called durable.
    let mut written = false;
    for offset in [0, 4 << 20] {
        written |= client.write(0, offset, &[2; 65536]) == 0;
    }
    let flushed = client.flush();
    assert!(
        !written || flushed != 0,
        "FLUSH says that writes are on a read-only disk"
    );
    assert_eq!(
        client.read((1 << 20) - 4096, 4096).unwrap(),
        [1; 4096],
        "reads go on"
    );
    server.assert_alive();
    drop(client);
    server.signal(Signal::TERM);
    let status = server.wait(Duration::from_secs(35)).expect("it stops");
    assert!(
        !written || status.code() == Some(3),
        "written data may be lost: {status}"
    );
}
