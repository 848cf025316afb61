//! fio's nbd engine, which writes, trims, reads back and checks every block's checksum.

use std::path::Path;

use crate::stage::{tcp, unix, Stage};
use crate::tools::{present, tool};

/// fio with its own checks fatal.
fn fio(uri: &str, dir: &Path, words: &[&str]) {
    let uri = format!("--uri={uri}");
    let dir = format!("--aux-path={}", dir.display());
    let common = [
        "--name=disk",
        "--ioengine=nbd",
        &uri,
        &dir,
        "--verify_state_save=0",
        "--verify=crc32c",
        "--verify_fatal=1",
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
        let words = ["--rw=randrw", "--bsrange=4k-64k", "--iodepth=16", "--size=64m"];
        fio(&uri, &stage.path(""), &words);
        fio(&uri, &stage.path(""), &["--rw=write", "--bs=1m", "--iodepth=4", "--size=64m"]);
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
    fio(&unix(&server, "disk"), &stage.path(""), &words);
    server.stop();
}

#[test]
fn c08_fio_reads_zeros_where_it_trimmed() {
    if !fio_speaks_nbd() {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 32 << 20);
    let server = stage.serve(&image);
    let words = [
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--size=16m",
        "--trim_percentage=30",
        "--trim_verify_zero=1",
        "--trim_backlog=64",
    ];
    fio(&unix(&server, "disk"), &stage.path(""), &words);
    server.stop();
}
