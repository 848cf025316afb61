//! qemu-img and qemu-io, which since QEMU 8.2 speak extended headers when the server does.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::server::Serve;
use crate::stage::{tcp, unix, Stage};
use crate::tools::{present, run, tool};

const MIB: usize = 1 << 20;

/// qemu-io with these commands, which must all succeed.
fn qemu_io(uri: &str, commands: &[&str]) {
    let mut words = vec!["-f", "raw"];
    words.extend(commands.iter().flat_map(|command| ["-c", command]));
    words.push(uri);
    let said = run("qemu-io", &words);
    assert!(!said.contains("failed"), "{uri} {commands:?}:\n{said}");
}

#[test]
fn qemu_img_converts_and_compares_over_both_sockets() {
    if !present(&["qemu-img"]) {
        return;
    }
    let stage = Stage::new();
    let (source, mut bytes) = stage.noise("source", 32 * MIB);
    // Half of it zeros, so that convert also sends WRITE_ZEROES.
    bytes[8 * MIB..24 * MIB].fill(0);
    fs::write(&source, &bytes).unwrap();
    let source = source.display().to_string();
    let image = stage.empty("disk.img", bytes.len() as u64);
    let server = stage.serve(&image);
    for uri in [unix(&server, "disk"), tcp(&server, "disk")] {
        fs::write(&image, vec![0xee; bytes.len()]).unwrap();
        run(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri],
        );
        assert!(
            fs::read(&image).unwrap() == bytes,
            "the image differs after convert to {uri}"
        );
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &source, &uri],
        );
        let back = stage.path("back.qcow2").display().to_string();
        run(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "qcow2", &uri, &back],
        );
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "qcow2", &source, &back],
        );
        let info = run("qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
        assert!(info.contains("\"virtual-size\": 33554432"), "{info}");
        let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        assert!(
            map.contains("\"zero\": true"),
            "no zeros in the map:\n{map}"
        );
        assert!(map.contains("\"data\": true"), "no data in the map:\n{map}");
    }
    server.stop();
}

#[test]
fn qemu_img_sees_a_difference() {
    if !present(&["qemu-img"]) {
        return;
    }
    let stage = Stage::new();
    let (source, mut bytes) = stage.noise("source", 2 * MIB);
    let image = stage.path("disk.img");
    bytes[MIB + 5] ^= 1;
    fs::write(&image, &bytes).unwrap();
    let server = stage.serve(&image);
    let source = source.display().to_string();
    let words = [
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        &source,
        &unix(&server, "disk"),
    ];
    assert_eq!(
        tool("qemu-img", &words).status.code(),
        Some(1),
        "a flipped bit was not seen"
    );
    server.stop();
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    if !present(&["qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 64 << 20);
    let server = stage.serve(&image);
    for uri in [unix(&server, "disk"), tcp(&server, "disk")] {
        qemu_io(
            &uri,
            &[
                "write -P 0xa1 0 8M",
                "write -f -P 0xa2 8M 512",
                "writev -P 0xa3 9M 512 4096 65536",
                "aio_write -P 0xa4 10M 2M",
                "aio_flush",
                "write -z 1M 1M",
                "write -z -u 2M 1M",
                "write -z 3145984 1280",
                "discard 4M 1M",
                "discard 5243392 512",
                "flush",
                "read -P 0xa1 0 1M",
                "read -P 0 1M 2M",
                "read -P 0xa1 3M 256",
                "read -P 0 3145984 1280",
                "read -P 0xa1 3147264 512",
                "read -P 0 4M 1M",
                "read -P 0xa1 6M 2M",
                "read -P 0xa2 8M 512",
                "read -P 0xa3 9M 70144",
                "read -P 0xa4 10M 2M",
                "read -P 0 63M 1M",
            ],
        );
    }
    server.stop();
    let bytes = fs::read(&image).unwrap();
    assert!(bytes[6 * MIB..8 * MIB].iter().all(|&byte| byte == 0xa1));
    assert!(bytes[4 * MIB..5 * MIB].iter().all(|&byte| byte == 0));
}

#[test]
fn discard_gives_space_back_and_write_zeroes_keeps_it() {
    if !present(&["qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 16 << 20);
    let server = stage.serve(&image);
    let uri = unix(&server, "disk");
    let used = || fs::metadata(&image).unwrap().blocks() * 512;
    qemu_io(&uri, &["write -P 1 0 16M", "flush"]);
    let full = used();
    assert!(
        full >= 16 << 20,
        "16 MiB were written, {full} bytes are in use"
    );
    qemu_io(&uri, &["write -z 0 4M", "flush"]);
    assert!(used() >= 16 << 20, "WRITE_ZEROES with NO_HOLE made a hole");
    qemu_io(&uri, &["discard 4M 4M", "flush"]);
    assert!(used() <= full - (4 << 20), "TRIM freed nothing");
    qemu_io(&uri, &["write -z -u 8M 4M", "flush"]);
    assert!(
        used() <= full - (8 << 20),
        "WRITE_ZEROES that may make a hole freed nothing"
    );
    server.stop();
}

#[test]
fn qemu_img_bench_keeps_many_requests_with_flushes_in_flight() {
    if !present(&["qemu-img"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 64 << 20);
    let server = stage.serve(&image);
    let uri = unix(&server, "disk");
    run(
        "qemu-img",
        &[
            "bench", "-f", "raw", "-c", "4000", "-d", "64", "-s", "8192", &uri,
        ],
    );
    let write = [
        "-w",
        "--pattern=90",
        "--flush-interval=64",
        "-c",
        "4000",
        "-d",
        "64",
    ];
    run(
        "qemu-img",
        &[["bench", "-f", "raw"].as_slice(), &write, &[&uri]].concat(),
    );
    server.stop();
    let bytes = fs::read(&image).unwrap();
    assert!(
        bytes[..4000 * 4096].iter().all(|&byte| byte == 90),
        "writes are missing"
    );
}

#[test]
fn a_read_only_export_says_so_and_keeps_its_bytes() {
    if !present(&["qemu-io", "nbdinfo"]) {
        return;
    }
    let stage = Stage::new();
    let (image, bytes) = stage.noise("disk.img", 2 * MIB);
    let server = Serve::raw("disk", &image)
        .unix(&stage.path("sock"))
        .words(["--read-only"])
        .start();
    let uri = unix(&server, "disk");
    let json = run("nbdinfo", &["--json", &uri]);
    assert!(json.contains("\"is_read_only\": true"), "{json}");
    for command in ["write 0 4k", "write -z 0 4k", "discard 0 4k"] {
        let output = tool("qemu-io", &["-f", "raw", "-c", command, &uri]);
        assert!(!output.status.success(), "{command} on a read-only export");
    }
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &image.display().to_string(),
            &uri,
        ],
    );
    server.stop();
    assert!(
        fs::read(&image).unwrap() == bytes,
        "a read-only image has changed"
    );
}
