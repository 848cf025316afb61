//! init, info, destroy, plugins: the mission's commands word for word, and what they refuse.

use std::fs;

use serde_json::Value;

use crate::server::Serve;
use crate::stage::Stage;
use crate::tools::{present, run};

#[test]
fn the_missions_commands_work_word_for_word() {
    let stage = Stage::new();
    let init = stage.shell("nbd-rs init --size 100Mi raw \"file:$(pwd)/raw.bin\"");
    assert!(
        init.worked().ends_with("raw.bin: 100 MiB, all zeros"),
        "{init:?}"
    );
    stage
        .shell("nbd-rs init --size 200Mi raw \"file:$(pwd)/raw2.bin\"")
        .worked();
    assert_eq!(stage.names(), ["raw.bin", "raw2.bin"]);
    let server = Serve::raw("disk0", &stage.path("raw.bin"))
        .and_raw("disk1", &stage.path("raw2.bin"))
        .tcp()
        .start();
    if present(&["nbdinfo"]) {
        for (name, bytes) in [
            ("disk0", 100u64 << 20),
            ("disk1", 200 << 20),
            ("", 100 << 20),
        ] {
            let url = format!("nbd://{}/{name}", server.tcp());
            assert_eq!(run("nbdinfo", &["--size", &url]).trim(), bytes.to_string());
        }
    }
    server.stop();
    let destroy = stage.shell("nbd-rs destroy raw \"file:$(pwd)/raw.bin\"");
    assert!(
        destroy.worked().ends_with("raw.bin: destroyed"),
        "{destroy:?}"
    );
    assert_eq!(stage.names(), ["raw2.bin"]);
}

#[test]
fn u7_init_refuses_what_exists_and_force_says_what_it_destroyed() {
    let stage = Stage::new();
    let image = stage.file("disk.img", &[7; 8192]);
    let said = stage.type_in("init --size 1M raw file:disk.img");
    said.refused(1, &["disk.img exists already", "--force"]);
    assert!(
        fs::read(&image).unwrap() == [7; 8192],
        "a refused init changed the image"
    );
    let said = stage.type_in("init --force --size 1M raw file:disk.img");
    assert_eq!(
        said.worked(),
        "raw file:disk.img: 1 MiB, all zeros; the 8 KiB that were there are gone"
    );
    assert!(fs::read(&image).unwrap() == vec![0; 1 << 20], "not empty");
    let said = stage.type_in("init --force --size 1M raw file:fresh.img");
    assert_eq!(said.worked(), "raw file:fresh.img: 1 MiB, all zeros");
}

#[test]
fn u7_init_makes_missing_directories() {
    let stage = Stage::new();
    stage
        .type_in("init --size 1M raw file:a/b/disk.img")
        .worked();
    assert_eq!(
        fs::metadata(stage.path("a/b/disk.img")).unwrap().len(),
        1 << 20
    );
    stage
        .type_in("info raw file:c/disk.img")
        .refused(1, &["c/disk.img"]);
    assert_eq!(stage.names(), ["a"], "looking made something");
}

#[test]
fn u7_u8_a_served_volume_is_neither_made_anew_nor_destroyed() {
    let stage = Stage::new();
    let image = stage.file("disk.img", &[7; 8192]);
    let server = Serve::raw("disk", &image).unix(&stage.path("sock")).start();
    let force = stage.type_in("init --force --size 1M raw file:disk.img");
    force.refused(1, &["disk.img is in use"]);
    stage
        .type_in("destroy raw file:disk.img")
        .refused(1, &["disk.img is in use"]);
    assert!(fs::read(&image).unwrap() == [7; 8192]);
    server.stop();
    stage.type_in("destroy raw file:disk.img").worked();
    assert!(!image.exists());
}

#[test]
fn u8_destroy_names_what_is_not_there_and_touches_nothing_else() {
    let stage = Stage::new();
    stage.file("other", b"x");
    let said = stage.type_in("destroy raw file:disk.img");
    said.refused(1, &["there is no volume at file:disk.img"]);
    for empty in [
        "destroy raw file:",
        "destroy raw file:/",
        "destroy raw file:.",
    ] {
        let said = stage.type_in(empty);
        assert!(matches!(said.code, Some(1 | 2)), "{said:?}");
    }
    assert_eq!(stage.names(), ["other"]);
}

#[test]
fn info_says_what_a_volume_is_also_while_it_is_served() {
    let stage = Stage::new();
    stage
        .type_in("init --size 1.5Mi raw file:disk.img")
        .worked();
    let image = stage.path("disk.img");
    let idle = stage.type_in("info raw file:disk.img");
    for line in [
        "layout       raw",
        "location     file:disk.img",
        "size         1.5 MiB (1572864 bytes)",
        "access       read-write",
        "max payload  32 MiB",
    ] {
        assert!(
            idle.worked().lines().any(|one| one == line),
            "{line}: {idle:?}"
        );
    }
    let server = Serve::raw("disk", &image).unix(&stage.path("sock")).start();
    let served = stage.type_in("info raw file:disk.img");
    assert_eq!(served.worked(), idle.worked());
    server.stop();
}

#[test]
fn info_json_is_for_scripts() {
    let stage = Stage::new();
    stage.type_in("init --size 1M raw file:disk.img").worked();
    let said = stage.type_in("info --json raw file:disk.img");
    let info: Value = serde_json::from_str(said.worked()).unwrap();
    assert_eq!(info["layout"], "raw");
    assert_eq!(info["location"], "file:disk.img");
    assert_eq!(info["size"], 1 << 20);
    assert_eq!(info["read_only"], false);
    assert_eq!(info["block_sizes"]["maximum"], 32 << 20);
    let flags = info["flags"].as_array().unwrap();
    for flag in ["SEND_FLUSH", "SEND_FUA", "SEND_TRIM", "CAN_MULTI_CONN"] {
        assert!(flags.iter().any(|one| one == flag), "{flag}: {flags:?}");
    }
}

#[test]
fn plugins_are_listed_for_people_and_for_scripts() {
    let stage = Stage::new();
    for words in ["plugins", "plugins list"] {
        let said = stage.type_in(words);
        for word in [
            "file ",
            "(store, MIT OR Apache-2.0",
            "libnbd_rs_file.so",
            "lend=<bool> [true]",
        ] {
            assert!(said.worked().contains(word), "{word}: {said:?}");
        }
    }
    let said = stage.type_in("plugins --json");
    let listed: Value = serde_json::from_str(said.worked()).unwrap();
    let plugins = listed["plugins"].as_array().unwrap();
    let file = plugins
        .iter()
        .find(|plugin| plugin["name"] == "file")
        .unwrap();
    assert_eq!(file["role"], "store");
    assert_eq!(file["schemes"][0]["name"], "file");
    assert_eq!(file["options"][0]["name"], "lend");
    assert!(!listed["searched"].as_array().unwrap().is_empty());
}

#[test]
fn a_plugin_directory_that_is_missing_is_a_warning_that_names_it() {
    let stage = Stage::new();
    stage.file("disk.img", &[0; 512]);
    let said = stage.type_in("--plugin-dir nowhere info raw file:disk.img");
    said.worked();
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    assert!(
        said.err.contains("WARN") && said.err.contains("nowhere"),
        "{said:?}"
    );
    let listed = stage.type_in("--plugin-dir nowhere plugins");
    assert!(
        listed.worked().contains("refused:\n  nowhere: "),
        "{listed:?}"
    );
}
