//! Objects that are lost or changed behind our back: an error each time, never zeros, and `check`
//! names them.

use nbd_rs_s3_server::{Fault, Rule};

use crate::client::{Client, EIO, TRIM};
use crate::places::{kill, one_line, Keeper, Place};

const SHARD: usize = 64 << 10;

/// Four written shards over a server of our own; the server is stopped.
fn written(chain: &str) -> Place {
    let place = Place::own(chain, "");
    place.init(64 * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    for shard in 0..4 {
        let at = (shard * SHARD) as u64;
        assert_eq!(client.write(0, at, &[shard as u8 + 1; SHARD]), 0);
    }
    assert_eq!(client.flush(), 0);
    server.stop();
    place
}

/// Shard 1 can't be read, its neighbours can; writes of a part of it are refused, too.
fn one_is_lost(place: &Place, whole: bool) {
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    for shard in [0, 2, 3u8] {
        let found = client.read(u64::from(shard) * SHARD as u64, SHARD);
        assert!(found == Ok(vec![shard + 1; SHARD]), "shard {shard}");
    }
    let at = SHARD as u64;
    assert_eq!(client.read(at + 8192, 4096), Err(EIO), "twice");
    assert_eq!(client.read(at + 8192, 4096), Err(EIO), "twice");
    assert_eq!(client.read(0, 4 * SHARD), Err(EIO), "in a larger READ");
    assert_eq!(client.write(0, at + 8200, &[9; 10]), EIO, "a part of it");
    if whole {
        assert_eq!(client.read(at, 4096), Err(EIO), "all of it is gone");
    }
    // What is replaced as a whole is well again.
    assert_eq!(client.write(0, at, &[9; SHARD]), 0);
    assert_eq!(client.read(at, SHARD), Ok(vec![9; SHARD]));
    assert_eq!(client.flush(), 0);
    server.stop();
    place.is_clean();
}

#[test]
fn c21_f54_a_written_shard_that_is_gone_is_an_error_and_never_zeros() {
    let place = written("cache+retry+s3:");
    let shard = place.object("/shard/000000000001");
    place.s3().remove(&shard);
    let output = place.try_run("check");
    assert_eq!(output.status.code(), Some(5), "data is lost");
    let said = String::from_utf8_lossy(&output.stdout);
    let named = |line: &str| line.starts_with("missing: ") && line.contains("000000000001");
    assert!(said.lines().any(named), "{said}");
    one_is_lost(&place, true);
}

#[test]
fn c21_f25_a_shard_file_that_is_gone_is_an_error_and_never_zeros() {
    let place = Place::directory("cache+file:", "");
    place.init(64 * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; 2 * SHARD]), 0);
    assert_eq!(client.flush(), 0);
    server.stop();
    assert!(matches!(place.keeper, Keeper::Directory(_)));
    std::fs::remove_file(place.object("/shard/000000000001")).expect("removed");
    let output = place.try_run("check");
    assert_eq!(output.status.code(), Some(5), "data is lost");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(SHARD as u64, 4096), Err(EIO));
    assert_eq!(client.read(0, SHARD), Ok(vec![1; SHARD]));
    server.stop();
}

#[test]
fn c25_f23_a_flipped_byte_of_a_shard_is_an_error_and_named() {
    for chain in ["s3:", "cache+retry+s3:"] {
        let place = written(chain);
        let shard = place.object("/shard/000000000001");
        place.s3().spoil(&shard, |bytes| bytes[8200] ^= 1);
        // Presence and size are all that a plain check looks at.
        place.run("check");
        let output = place.try_run("check --deep");
        assert_eq!(output.status.code(), Some(5), "data is lost");
        let said = String::from_utf8_lossy(&output.stdout);
        let named = |line: &str| line.starts_with("damaged: ") && line.contains("000000000001");
        assert!(said.lines().any(named), "{said}");
        one_is_lost(&place, false);
    }
}

#[test]
fn c25_f23_a_flipped_byte_of_a_trailer_is_an_error() {
    let place = written("cache+retry+s3:");
    let shard = place.object("/shard/000000000001");
    place.s3().spoil(&shard, |bytes| bytes[SHARD + 70] ^= 0x80);
    let output = place.try_run("check --deep");
    assert_eq!(output.status.code(), Some(5), "data is lost");
    one_is_lost(&place, true);
}

#[test]
fn f24_two_shards_that_were_swapped_are_errors() {
    let place = written("cache+retry+s3:");
    let names = [1, 2].map(|n| place.object(&format!("/shard/00000000000{n}")));
    let [one, two] = [0, 1].map(|n| place.s3().object(&names[n]).expect("an object"));
    place.s3().insert(&names[0], &two);
    place.s3().insert(&names[1], &one);
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    for shard in [1, 2] {
        assert_eq!(client.read(shard * SHARD as u64, 4096), Err(EIO));
    }
    server.stop();
    assert_eq!(place.try_run("check --deep").status.code(), Some(5));
}

#[test]
fn f23_a_flipped_byte_of_the_volume_owner_or_index_is_refused_with_a_reason() {
    for (ending, word) in [
        ("/volume", "volume"),
        ("/owner", "owner"),
        ("/index", "index"),
    ] {
        let place = written("cache+retry+s3:");
        let object = place.object(ending);
        let bytes = place.s3().object(&object).expect("an object");
        for at in 0..bytes.len() {
            // Each place, though not each through a process of its own.
            if at % 13 != 0 && at + 1 != bytes.len() {
                continue;
            }
            place.s3().spoil(&object, |bytes| bytes[at] ^= 1);
            let said = place.serve().refused();
            let line = one_line(&said, &[]);
            println!("{ending} byte {at}: {line}");
            assert!(line.len() < 400, "{line}");
            place.s3().spoil(&object, |bytes| bytes[at] ^= 1);
        }
        place.s3().spoil(&object, |bytes| bytes[60] ^= 1);
        let line = one_line(&place.serve().refused(), &[]);
        assert!(line.contains(word) || line.contains("checksum"), "{line}");
        // Which object: the volume record has one name, the others the volume's before it.
        let name = object.rsplit_once("chunks/").map(|(_, name)| name);
        assert!(line.contains(name.expect("a name")), "{object}: {line}");
        place.s3().spoil(&object, |bytes| bytes[60] ^= 1);
        // And nothing was changed by all this.
        place.is_clean();
        place.serve().start().stop();
    }
}

#[test]
fn c17_f23_a_lost_or_damaged_owner_record_is_refused_and_a_takeover_is_the_way_out() {
    for is_gone in [true, false] {
        let place = written("cache+retry+s3:");
        let owner = place.object("/owner");
        match is_gone {
            true => place.s3().remove(&owner),
            false => place.s3().spoil(&owner, |bytes| bytes[70] ^= 1),
        }
        one_line(&place.serve().refused(), &["owner record", "--takeover"]);
        for command in ["destroy", "resize --size 8Mi"] {
            place.refused(command, 1, &["owner record", "--takeover"]);
        }
        let output = place.try_run("check");
        assert_eq!(output.status.code(), Some(6), "no data is lost");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("/owner") && said.contains("--repair"),
            "{said}"
        );
        let server = place.serve().words(["--takeover"]).start();
        let mut client = Client::unix(&server);
        assert_eq!(client.read(SHARD as u64, SHARD), Ok(vec![2; SHARD]));
        assert_eq!(client.write(0, SHARD as u64, &[9; 4096]), 0);
        assert_eq!(client.flush(), 0);
        server.stop();
        place.is_clean();
        let server = place.serve().start();
        let mut client = Client::unix(&server);
        assert_eq!(client.read(SHARD as u64, 4096), Ok(vec![9; 4096]));
        server.stop();
    }
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn c17_c21_check_repairs_what_can_be_known_and_makes_errors_of_the_rest() {
    let place = written("cache+retry+s3:");
    let [owner, page, index] = ["/owner", "/state/00000000", "/index"].map(|end| place.object(end));
    place.s3().remove(&owner);
    let output = place.try_run("check --repair");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).starts_with("mended: the owner record"));
    place.is_clean();
    place.s3().remove(&page);
    place.s3().spoil(&index, |bytes| bytes[60] ^= 1);
    assert_eq!(place.try_run("check").status.code(), Some(5));
    let output = place.try_run("check --repair --json");
    assert_eq!(output.status.code(), Some(5), "60 shards are not known");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["mended"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["counts"]["missing"], 60);
    assert_eq!(report["needs_repair"], false);
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    for shard in 0..4 {
        let found = client.read((shard * SHARD) as u64, SHARD);
        assert_eq!(found, Ok(vec![shard as u8 + 1; SHARD]));
    }
    let end = 64 * SHARD;
    assert_eq!(client.read((end - SHARD) as u64, 4096), Err(EIO));
    let rest = client.zero(TRIM, 0, (4 * SHARD) as u64, end - 4 * SHARD);
    assert_eq!(rest, 0, "whoever knows that nothing was there says so");
    assert_eq!(client.read((end - SHARD) as u64, 4096), Ok(vec![0; 4096]));
    assert_eq!(client.flush(), 0);
    let refused = place.try_run("check --repair");
    assert_eq!(refused.status.code(), Some(0), "there is nothing to repair");
    server.stop();
    place.is_clean();
}

#[test]
fn check_says_what_it_did_not_look_at() {
    let place = Place::directory("file:", "");
    place.init(4 * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 0, &[1; SHARD]), 0);
    assert_eq!(client.flush(), 0);
    server.stop();
    let output = place.try_run("check --deep");
    assert!(said(&output).contains("no checksums"), "{}", said(&output));
    let shard = place.object("/shard/000000000000");
    let file = std::fs::OpenOptions::new().append(true).open(&shard);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, b"more"))
        .expect("it grows");
    assert_eq!(place.try_run("check").status.code(), Some(6));
    place.run("check --repair");
    place.is_clean();

    let place = Place::own("cache+retry+s3:", "").journaled("");
    place.init(4 * SHARD, "64Ki");
    let mut server = place.serve().start();
    let mut client = Client::unix(&server);
    let refuse = || Rule::on("PUT", "/shard/", Fault::Error(503, "SlowDown"));
    place.s3().script((0..100_000).map(|_| refuse()));
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    kill(&mut server);
    place.s3().forget_script();
    let output = place.try_run("check");
    assert!(said(&output).contains("may wait"), "{}", said(&output));
    let output = place.try_run(&format!("check --journal {}", place.journal().display()));
    assert!(said(&output).contains("1 records of"), "{}", said(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn f23_a_flipped_byte_of_a_state_page_makes_its_shards_errors() {
    let place = written("cache+retry+s3:");
    let page = place.object("/state/00000000");
    place.s3().spoil(&page, |bytes| bytes[56] ^= 2);
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    // Also where it would have said `never`: nobody knows.
    for shard in [0, 1, 40u64] {
        assert_eq!(client.read(shard * SHARD as u64, 4096), Err(EIO));
        let at = shard * SHARD as u64;
        assert_eq!(client.write(0, at, &[1; SHARD]), EIO);
    }
    drop(client);
    drop(server);
    place.refused("info", 1, &["/state/00000000: ", "damaged"]);
    let output = place.try_run("check");
    assert_eq!(output.status.code(), Some(5));
    let said = String::from_utf8_lossy(&output.stdout);
    let named = |line: &str| line.starts_with("damaged: ") && line.contains("/state/00000000");
    assert!(said.lines().any(named), "{said}");
    place.s3().spoil(&page, |bytes| bytes[56] ^= 2);
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(SHARD as u64, SHARD), Ok(vec![2; SHARD]));
    server.stop();
}

#[test]
fn c26_f55_a_place_without_a_volume_or_with_another_ones_objects_is_refused() {
    let place = written("cache+retry+s3:");
    let empty = Place::on(
        match &place.keeper {
            Keeper::Own(server) => server.clone(),
            _ => unreachable!("a server of ours"),
        },
        "cache+retry+s3:",
        "elsewhere/",
    );
    empty.refused("info", 1, &["there is no volume"]);
    // A directory that is not there was only that to those who knew.
    let nowhere = Place::directory("file:", "");
    for command in ["info", "destroy", "check", "resize --size 64Mi"] {
        nowhere.refused(command, 1, &["there is no volume at file:", "chunks"]);
    }
    let said = nowhere.serve().refused();
    one_line(&said, &["there is no volume at file:", "nbd-rs init"]);
    empty.refused("destroy", 1, &["there is no volume"]);
    // Another volume's shard under this one's name.
    let other = written("cache+retry+s3:");
    let theirs = other.s3().object(&other.object("/shard/000000000001"));
    let ours = place.object("/shard/000000000001");
    place.s3().insert(&ours, &theirs.expect("an object"));
    one_is_lost(&place, true);
}
