//! SIGKILL under load, again and again; the objects survive in another process.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::load::{answered, loads, UNITS};
use crate::model::{Model, UNIT};
use crate::places::{kill, Place};
use crate::rng::Rng;

fn kill_again_and_again(name: &str, place: &Place, rounds: usize, deep: usize) {
    let mut rng = Rng::for_test(name);
    place.init(UNITS * UNIT, "64Ki");
    let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
    let begin = Instant::now();
    let mut total = 0;
    for round in 0..=rounds {
        let mut server = place.serve().start();
        // What the last kill left.
        let all = Client::unix(&server).read(0, UNITS * UNIT);
        let all = all.expect("the volume is read");
        model.lock().unwrap().check_after_crash(&all);
        if round == rounds {
            server.stop();
            break;
        }
        let loads = loads(&server, &model, &mut rng);
        thread::sleep(Duration::from_millis(5 + rng.next() % 120));
        kill(&mut server);
        total += answered(loads);
        if round % deep == 0 {
            place.is_clean();
        }
    }
    place.is_clean();
    println!(
        "{name}: {total} requests answered, {rounds} kills, {:?}",
        begin.elapsed()
    );
    assert!(total > 5 * rounds, "hardly any load: {total} answers");
}

#[test]
fn c12_f01_sigkill_a_hundred_times_loses_nothing_that_was_answered() {
    kill_again_and_again("c12 s3", &Place::own("cache+retry+s3:", ""), 100, 10);
}

#[test]
fn c12_f01_sigkill_loses_nothing_on_seaweedfs_and_in_directories() {
    if let Some(place) = Place::seaweedfs("cache+retry+s3:", "kill") {
        kill_again_and_again("c12 SeaweedFS", &place, 10, 1);
    }
    let place = Place::directory("cache+file:", "");
    kill_again_and_again("c12 file", &place, 15, 1);
    let place = Place::directory("retry:file:", "?way=whole");
    kill_again_and_again("c12 file, whole shards", &place, 15, 1);
}
