//! SIGKILL under load, again and again; the backends survive in another process.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::cluster::{kill, Cluster};
use crate::load::{answered, loads, UNITS};
use crate::model::{Model, UNIT};
use crate::rng::Rng;

/// One backend of the first ones is away in every so manieth round, from the start on.
const AWAY: usize = 4;

fn kill_again_and_again(name: &str, cluster: &Cluster, rounds: usize) {
    let mut rng = Rng::for_test(name);
    cluster.init(UNITS * UNIT, "64Ki");
    let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
    let begin = Instant::now();
    let mut total = 0;
    for round in 0..=rounds {
        let away = (rng.next() as usize) % cluster.stores.len().max(1);
        let is_away = round % AWAY == AWAY - 1 && cluster.stores.len() > 1;
        if is_away {
            cluster.stores[away].set_away(true);
        }
        let mut server = cluster.serve().start();
        // What the last kill left.
        let all = Client::unix(&server).read(0, UNITS * UNIT);
        let all = all.expect("the volume is read");
        model.lock().unwrap().check_after_crash(&all);
        if round == rounds {
            server.stop();
            break;
        }
        let loads = loads(&server, &model, &mut rng);
        thread::sleep(Duration::from_millis(5 + rng.next() % 300));
        kill(&mut server);
        total += answered(loads);
        if is_away {
            cluster.stores[away].set_away(false);
        }
    }
    println!(
        "{name}: {total} requests answered, {rounds} kills, {:?}",
        begin.elapsed()
    );
    assert!(total > 5 * rounds, "hardly any load: {total} answers");
}

#[test]
fn c12_f01_f56_f58_sigkill_a_hundred_times_with_backends_that_come_and_go_loses_nothing() {
    let cluster = Cluster::new(3, "cache:s3:", 0).journaled("--journal-size 8Mi");
    kill_again_and_again("distributed, journal", &cluster, 100);
}

#[test]
fn c12_f01_sigkill_loses_nothing_without_a_journal_and_in_directories() {
    let cluster = Cluster::new(3, "s3:", 0);
    kill_again_and_again("distributed, no journal", &cluster, 15);
    let cluster = Cluster::new(0, "", 3).journaled("--journal-size 8Mi --flush local");
    kill_again_and_again("distributed, directories", &cluster, 15);
}
