//! fio's nbd engine, which writes, trims, reads back and checks every block's checksum.

use std::path::Path;

use crate::stage::{tcp, unix, Stage};
use crate::tools::{present, tool};

/// Every block carries its checksum, and the first wrong one ends the run.
const VERIFY: [&str; 3] = [
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
];

/// Runs fio, which must find nothing wrong.
fn fio(uri: &str, dir: &Path, words: &[&str]) {
    let uri = format!("--uri={uri}");
    let dir = format!("--aux-path={}", dir.display());
    let common = [
        "--name=disk",
        "--ioengine=nbd",
        &uri,
        &dir,
        "--group_reporting",
        "--output-format=terse",
    ];
    let output = tool("fio", &[&common, words].concat());
    assert!(
        output.status.success(),
        "fio {words:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether fio is here and knows the engine.
fn fio_speaks_nbd() -> bool {
    present(&["fio"]) && {
        let engines = String::from_utf8_lossy(&tool("fio", &["--enghelp"]).stdout).into_owned();
        engines.contains("nbd") || crate::tools::skip("this fio has no nbd engine")
    }
}

#[test]
fn fio_verifies_a_random_mix_of_reads_and_writes() {
    if !fio_speaks_nbd() {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 64 << 20);
    let server = stage.serve(&image);
    for uri in [unix(&server, "disk"), tcp(&server, "disk")] {
        let random = [
            "--rw=randrw",
            "--bsrange=4k-64k",
            "--iodepth=16",
            "--size=64m",
        ];
        let large = ["--rw=write", "--bs=1m", "--iodepth=4", "--size=64m"];
        for words in [random, large] {
            fio(&uri, &stage.path(""), &[&VERIFY, words.as_slice()].concat());
        }
    }
    server.stop();
}

#[test]
fn fio_verifies_several_jobs_at_once() {
    if !fio_speaks_nbd() {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 64 << 20);
    let server = stage.serve(&image);
    let words = [
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--numjobs=4",
        "--size=8m",
        "--offset_increment=16m",
        "--fsync=64",
    ];
    fio(
        &unix(&server, "disk"),
        &stage.path(""),
        &[&VERIFY, words.as_slice()].concat(),
    );
    server.stop();
}

#[test]
fn c08_what_fio_trims_reads_as_zeros() {
    if !fio_speaks_nbd() {
        return;
    }
    let stage = Stage::new();
    let (image, _) = stage.noise("disk.img", 32 << 20);
    let server = stage.serve(&image);
    let uri = unix(&server, "disk");
    let dir = stage.path("");
    fio(
        &uri,
        &dir,
        &["--rw=randtrimwrite", "--bs=4k", "--iodepth=8", "--size=8m"],
    );
    // Every block once, in no order.
    fio(
        &uri,
        &dir,
        &[
            "--rw=randtrim",
            "--bs=64k",
            "--iodepth=16",
            "--size=32m",
            "--end_fsync=1",
        ],
    );
    server.stop();
    let zeros = std::fs::read(&image).unwrap().iter().all(|&byte| byte == 0);
    assert!(zeros, "a trimmed block still has data");
}
