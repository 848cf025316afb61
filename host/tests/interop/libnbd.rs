//! nbdinfo and nbdcopy.

use std::fs;

use crate::server::Serve;
use crate::stage::{tcp, unix, Stage};
use crate::tools::{present, run, tool};

const MIB: usize = 1 << 20;

#[test]
fn nbdinfo_sees_the_size_and_what_a_raw_image_can_do() {
    if !present(&["nbdinfo"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 100 << 20);
    let server = stage.serve(&image);
    for uri in [
        unix(&server, "disk"),
        tcp(&server, "disk"),
        tcp(&server, ""),
    ] {
        assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "104857600");
        let json = run("nbdinfo", &["--json", &uri]);
        for fact in [
            "\"is_read_only\": false",
            "\"can_flush\": true",
            "\"can_fua\": true",
            "\"can_trim\": true",
            "\"can_zero\": true",
            "\"can_multi_conn\": true",
        ] {
            assert!(json.contains(fact), "{uri} lacks {fact}:\n{json}");
        }
    }
    server.stop();
}

#[test]
fn nbdinfo_lists_both_exports_and_their_bytes_are_not_mixed() {
    if !present(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let stage = Stage::new();
    let (first, first_bytes) = stage.noise("first.img", 3 * MIB);
    let (second, second_bytes) = stage.noise("second.img", 5 * MIB);
    let server = Serve::raw("first", &first)
        .and_raw("second", &second)
        .unix(&stage.path("sock"))
        .start();
    let list = run("nbdinfo", &["--list", "--json", &unix(&server, "")]);
    for fact in [
        "\"export-name\": \"first\"",
        "\"export-name\": \"second\"",
        "\"export-size\": 3145728",
        "\"export-size\": 5242880",
    ] {
        assert!(list.contains(fact), "the list lacks {fact}:\n{list}");
    }
    // The first one is also the one without a name.
    for (export, bytes) in [
        ("first", &first_bytes),
        ("second", &second_bytes),
        ("", &first_bytes),
    ] {
        let copy = stage.path("copy");
        run(
            "nbdcopy",
            &[&unix(&server, export), &copy.display().to_string()],
        );
        assert!(
            fs::read(&copy).unwrap() == *bytes,
            "export {export:?} has other bytes"
        );
    }
    let unknown = tool("nbdinfo", &["--size", &unix(&server, "third")]);
    assert!(!unknown.status.success(), "an unknown export was served");
    server.stop();
}

#[test]
fn nbdinfo_map_covers_the_volume_and_tells_data_from_holes() {
    if !present(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let image = stage.empty("disk.img", 16 << 20);
    let server = stage.serve(&image);
    let uri = unix(&server, "disk");
    run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 4M 1M", "-c", "flush", &uri],
    );
    let map = run("nbdinfo", &["--map", &uri]);
    let rows: Vec<(u64, u64, u64)> = map
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace().map(|word| word.parse().unwrap());
            let mut word = || words.next().unwrap();
            (word(), word(), word())
        })
        .collect();
    let mut end = 0;
    for &(offset, length, _) in &rows {
        assert_eq!(offset, end, "a gap in the map:\n{map}");
        end = offset + length;
    }
    assert_eq!(end, 16 << 20, "the map ends early:\n{map}");
    let kind = |at: u64| {
        rows.iter()
            .find(|row| row.0 <= at && at < row.0 + row.1)
            .unwrap()
            .2
    };
    for at in [4 << 20, (5 << 20) - 4096] {
        assert_eq!(kind(at), 0, "data at {at} is called a hole:\n{map}");
    }
    assert_eq!(
        kind(12 << 20) & 2,
        2,
        "a hole is not known to read as zeros:\n{map}"
    );
    server.stop();
}

#[test]
fn nbdcopy_brings_the_same_bytes_in_and_out() {
    if !present(&["nbdcopy"]) {
        return;
    }
    let stage = Stage::new();
    let (source, mut bytes) = stage.noise("source", 48 * MIB);
    let image = stage.empty("disk.img", bytes.len() as u64);
    let server = stage.serve(&image);
    let copy = stage.path("copy");
    let many = ["--connections=4", "--requests=16"].as_slice();
    let large = ["--request-size=4194304", "--synchronous"].as_slice();
    for (uri, options) in [
        (unix(&server, "disk"), [].as_slice()),
        (unix(&server, "disk"), many),
        (tcp(&server, "disk"), many),
        (tcp(&server, "disk"), large),
    ] {
        // Other bytes each time.
        bytes.rotate_left(4097);
        fs::write(&source, &bytes).unwrap();
        let (source, copy_name) = (source.display().to_string(), copy.display().to_string());
        run("nbdcopy", &[options, &["--flush", &source, &uri]].concat());
        assert!(
            fs::read(&image).unwrap() == bytes,
            "the image differs, {uri} {options:?}"
        );
        run("nbdcopy", &[options, &[uri.as_str(), &copy_name]].concat());
        assert!(
            fs::read(&copy).unwrap() == bytes,
            "the copy differs, {uri} {options:?}"
        );
    }
    server.stop();
}
