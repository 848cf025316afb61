//! SIGKILL under load, again and again.

use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::tempdir;

use crate::client::Client;
use crate::load::{answered, loads, UNITS};
use crate::model::{Model, UNIT};
use crate::rng::Rng;
use crate::server::{init_raw, Serve, Server};

fn serve(image: &std::path::Path, socket: &std::path::Path) -> Server {
    Serve::raw("disk", image).unix(socket).start()
}

#[test]
fn c12_sigkill_a_hundred_times_loses_nothing_that_was_answered() {
    let mut rng = Rng::for_test("c12");
    let dir = tempdir().unwrap();
    let (image, socket) = (dir.path().join("disk.img"), dir.path().join("sock"));
    init_raw(&image, "8Mi");
    let model = Arc::new(Mutex::new(Model::zeros(rng.next(), UNITS)));
    let begin = Instant::now();
    let mut total = 0;
    for _ in 0..100 {
        let mut server = serve(&image, &socket);
        // What the last kill left.
        let volume = Client::unix(&server)
            .read(0, UNITS * UNIT)
            .expect("the volume is read");
        model.lock().unwrap().check_after_crash(&volume);
        let loads = loads(&server, &model, &mut rng);
        thread::sleep(Duration::from_millis(5 + rng.next() % 120));
        server.signal(Signal::KILL);
        server
            .wait(Duration::from_secs(10))
            .expect("SIGKILL ends it");
        total += answered(loads);
    }
    let volume = fs::read(&image).unwrap();
    model.lock().unwrap().check_after_crash(&volume);
    println!(
        "c12: {total} requests answered, 100 kills, {:?}",
        begin.elapsed()
    );
    assert!(
        total > 2000,
        "hardly any load: {total} answers in 100 rounds"
    );
}

#[test]
fn a_server_that_stands_still_keeps_its_image() {
    let dir = tempdir().unwrap();
    let (image, socket) = (dir.path().join("disk.img"), dir.path().join("sock"));
    init_raw(&image, "8Mi");
    let first = serve(&image, &socket);
    let mut client = Client::unix(&first);
    assert_eq!(client.write(0, 0, &[1; UNIT]), 0);
    first.signal(Signal::STOP);
    let second = dir.path().join("second");
    let said = Serve::raw("disk", &image).unix(&second).refused();
    first.signal(Signal::CONT);
    assert!(said.contains("disk.img"), "which image? {said}");
    assert_eq!(client.write(0, 0, &[2; UNIT]), 0, "the first one goes on");
    first.stop();
}
