//! C17 with a journal: who takes a volume over has what the old server acknowledged.

use std::time::Duration;

use nbd_rs_s3_server::{Fault, Rule};

use crate::client::{Client, FLUSH, WRITE};
use crate::model::{Model, UNIT};
use crate::places::{kill, one_line, Place};
use crate::rng::Rng;

/// Exit code of a server whose volume was taken over.
const TAKEN_OVER: i32 = 75;
const UNITS: usize = 512;

/// Writes single units all over, in no order.
fn write(client: &mut Client, model: &mut Model, rng: &mut Rng, count: usize) {
    for _ in 0..count {
        let unit = rng.next() as usize % UNITS;
        let (sent, payload) = model.send(unit, 1, false);
        assert_eq!(client.write(0, (unit * UNIT) as u64, &payload), 0);
        model.answer(unit, 1, sent);
    }
}

fn is_all_there(client: &mut Client, model: &mut Model) {
    let all = client.read(0, UNITS * UNIT).expect("the volume");
    model.check_after_crash(&all);
}

#[test]
fn c17_c12_a_takeover_beside_a_living_server_keeps_what_that_acknowledged() {
    let mut rng = Rng::for_test("takeover");
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 8Mi");
    place.init(UNITS * UNIT, "64Ki");
    let mut model = Model::zeros(rng.next(), UNITS);
    let mut first = place.serve().start();
    let mut old = Client::unix(&first);
    write(&mut old, &mut model, &mut rng, 100);
    assert_eq!(old.flush(), 0);
    // From here on the store does not get a shard from it: all of this is in the journal alone.
    let refuse = || Rule::on("PUT", "/shard/", Fault::Error(503, "SlowDown"));
    place.s3().script((0..100_000).map(|_| refuse()));
    write(&mut old, &mut model, &mut rng, 300);
    let told = first.pid().as_raw_nonzero().to_string();
    one_line(&place.serve_at("second").refused(), &[&told, "--takeover"]);

    let second = std::thread::scope(|scope| {
        let second = scope.spawn(|| place.serve_at("second").words(["--takeover"]).start());
        let ended = first.wait(Duration::from_secs(18));
        let code = ended.expect("the old server ends").code();
        assert_eq!(code, Some(TAKEN_OVER), "{}", first.log());
        place.s3().forget_script();
        second.join().expect("the new server starts")
    });
    assert!(second.log().contains("replaying"), "{}", second.log());
    let mut new = Client::unix(&second);
    is_all_there(&mut new, &mut model);
    write(&mut new, &mut model, &mut rng, 100);
    assert_eq!(new.flush(), 0);
    is_all_there(&mut new, &mut model);
    second.stop();
    let third = place.serve().start();
    is_all_there(&mut Client::unix(&third), &mut model);
    third.stop();
    place.is_clean();
}

#[test]
fn c17_a_server_that_was_taken_over_acknowledges_no_flush_and_nothing_of_it_arrives() {
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 8Mi");
    place.init(UNITS * UNIT, "64Ki");
    let mut first = place.serve().start();
    let mut old = Client::unix(&first);
    assert_eq!(old.write(0, 0, &[1; 4096]), 0);
    assert_eq!(old.flush(), 0);
    // It is held up; its journal stays locked, so the new server has one of its own.
    first.signal(rustix::process::Signal::STOP);
    let elsewhere = place.dir().join("second-journal").display().to_string();
    let words = [
        "--journal",
        &elsewhere,
        "--takeover",
        "--accept-lost-writes",
    ];
    let second = place.gathering(&words).start();
    let mut new = Client::unix(&second);
    assert_eq!(new.write(0, 0, &[2; 4096]), 0);
    assert_eq!(new.flush(), 0);
    // Taken in before it hears of anything: a write may be acknowledged, a flush must not.
    old.send(WRITE, 0, 0, 4096, &[3; 4096]).expect("sent");
    let flush = old.send(FLUSH, 0, 0, 0, &[]).expect("sent");
    first.signal(rustix::process::Signal::CONT);
    while let Ok(reply) = old.receive() {
        assert!(reply.cookie != flush || reply.error != 0, "a false flush");
    }
    let ended = first.wait(Duration::from_secs(20));
    assert_eq!(ended.expect("it ends").code(), Some(TAKEN_OVER));
    assert_eq!(new.read(0, 4096), Ok(vec![2; 4096]));
    second.stop();
    // What the first one has left is not believed later.
    one_line(&place.serve().refused(), &["journal discard"]);
    place.is_clean();
}

/// Two servers die one after the other with writes in the same journal.
#[test]
fn c12_f03_a_server_that_dies_while_it_replays_leaves_all_to_the_next() {
    let mut rng = Rng::for_test("replay");
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 8Mi --flush local");
    place.init(UNITS * UNIT, "64Ki");
    let mut model = Model::zeros(rng.next(), UNITS);
    for _ in 0..5 {
        let mut server = place.serve().start();
        let mut client = Client::unix(&server);
        is_all_there(&mut client, &mut model);
        write(&mut client, &mut model, &mut rng, 200);
        kill(&mut server);
        for _ in 0..5 {
            // Somewhere in the middle of its start.
            let time = Duration::from_millis(10 + rng.next() % 150);
            place.serve().killed_after(time);
        }
    }
    let server = place.serve().start();
    is_all_there(&mut Client::unix(&server), &mut model);
    server.stop();
    place.is_clean();
}
