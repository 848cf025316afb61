//! C23: SIGTERM and DISC with much in flight, on objects.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_rs_s3_server::{Fault, Rule};
use rustix::process::Signal;

use crate::client::{Client, DISC, WRITE};
use crate::load::{loads, UNITS};
use crate::model::{Model, UNIT};
use crate::places::Place;
use crate::rng::Rng;

fn places() -> [(&'static str, Place); 4] {
    let s3 = || Place::own("cache+retry+s3:", "");
    [
        ("s3", s3()),
        ("s3 with a journal", s3().journaled("--journal-size 8Mi")),
        (
            "s3 with local flushes",
            s3().journaled("--journal-size 8Mi --flush local"),
        ),
        ("a directory", Place::directory("file:", "")),
    ]
}

#[test]
fn c23_f05_sigterm_under_load_loses_nothing_and_exits_with_0() {
    let mut rng = Rng::for_test("c23 objects");
    for (name, place) in places() {
        place.init(UNITS * UNIT, "64Ki");
        let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
        for round in 0..4 {
            let mut server = place.serve().start();
            let found = Client::unix(&server).read(0, UNITS * UNIT);
            let found = found.expect("the volume is read");
            model.lock().unwrap().check_after_crash(&found);
            if round == 3 {
                server.stop();
                break;
            }
            let loads = loads(&server, &model, &mut rng);
            thread::sleep(Duration::from_millis(50 + rng.next() % 300));
            server.signal(Signal::TERM);
            let status = server.wait(Duration::from_secs(60));
            let code = status.expect("it stops").code();
            assert_eq!(code, Some(0), "{name}: {}", server.log());
            let done = loads.into_iter().map(|load| load.join().expect("a client"));
            let answered: usize = done.map(|done| done.answered).sum();
            println!("c23: {name}: {answered} answered");
            // It was given back with nothing open, so nobody has to look for anything.
            assert_eq!(place.info()["owner"]["standing"], "gave it back", "{name}");
            place.is_clean();
        }
    }
}

#[test]
fn c23_f36_what_is_in_flight_at_a_disc_is_carried_out() {
    const SHARD: usize = 64 << 10;
    for (name, place) in places() {
        place.init(64 * SHARD, "64Ki");
        if name.starts_with("s3") {
            let slow = Fault::Slow(Duration::from_millis(20));
            let slow = (0..50).map(|_| Rule::on("PUT", "/shard/", slow.clone()));
            place.s3().script(slow);
        }
        let server = place.serve().start();
        let mut client = Client::unix(&server);
        for shard in 0..64 {
            let at = (shard * SHARD + 512) as u64;
            let sent = client.send(WRITE, 0, at, 4096, &[shard as u8 | 1; 4096]);
            sent.expect("a request");
        }
        client.send(DISC, 0, 0, 0, &[]).expect("a request");
        // No reply was read, and the end of the connection comes right behind.
        let mut replies = 0;
        while let Ok(reply) = client.receive() {
            assert_eq!(reply.error, 0, "{name}: {}", reply.text);
            replies += 1;
        }
        assert_eq!(replies, 64, "{name}");
        let found = Client::unix(&server).read(0, 64 * SHARD).expect("all");
        for (shard, found) in found.chunks(SHARD).enumerate() {
            assert_eq!(found[511..513], [0, shard as u8 | 1], "{name}: {shard}");
        }
        server.stop();
        place.is_clean();
    }
}

/// Found by a user: a server that was still starting on a store that hung did not heed SIGTERM.
#[test]
fn c23_a_start_on_a_store_that_hangs_ends_when_told_to() {
    let place = Place::own("cache+retry+s3:", "").journaled("");
    place.init(UNITS * UNIT, "64Ki");
    let hang = Fault::Hang(Duration::from_secs(60));
    for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
        let hangs = (0..20).map(|_| Rule::next(method, hang.clone()));
        place.s3().script(hangs);
    }
    let asked = place.s3().seen().len();
    let (mut server, _said) = place.serve().begin();
    while place.s3().seen().len() == asked {
        thread::sleep(Duration::from_millis(5));
    }
    server.signal(Signal::TERM);
    let ended = server.wait(Duration::from_secs(30)).expect("it ends");
    assert_eq!(ended.code(), Some(128 + 15), "{}", server.log());
    place.s3().forget_script();
    place.serve().start().stop();
    place.is_clean();
}
