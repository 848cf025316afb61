//! A load that knows what it has done: reads, writes, zeroes, trims and flushes of several units,
//! many in flight, on units that connections share.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::client::{Client, ESHUTDOWN, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES};
use crate::model::{Model, Moment, UNIT};
use crate::rng::Rng;
use crate::server::Server;

/// Few enough that connections often meet on a unit.
pub(crate) const UNITS: usize = 2048;
const DEPTH: usize = 16;

/// What waits for a reply.
enum Sent {
    Write {
        first: usize,
        count: usize,
        at: Moment,
    },
    Read {
        first: usize,
        at: Moment,
    },
    Flush,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Done {
    /// Requests answered without error.
    pub(crate) answered: usize,
    /// Requests answered with ESHUTDOWN; after the first one no more are sent.
    pub(crate) refused: usize,
}

/// Three connections under load, each in a thread of its own.
pub(crate) fn loads(
    server: &Server,
    model: &Arc<Mutex<Model>>,
    rng: &mut Rng,
) -> Vec<JoinHandle<Done>> {
    let mut start = || {
        let (client, model) = (Client::unix(server), Arc::clone(model));
        let rng = Rng::new(rng.next());
        thread::spawn(move || load(client, &model, rng))
    };
    (0..3).map(|_| start()).collect()
}

/// Requests that a server answered until it was killed: with no error, since nothing told it.
pub(crate) fn answered(loads: Vec<JoinHandle<Done>>) -> usize {
    let done = loads.into_iter().map(|load| {
        let done = load.join().expect("a client saw something illegal");
        assert_eq!(done.refused, 0, "a killed server refuses nothing");
        done.answered
    });
    done.sum()
}

/// One connection that keeps many requests in flight until the server is gone.
fn load(mut client: Client, model: &Mutex<Model>, mut rng: Rng) -> Done {
    let mut waiting = Vec::new();
    let mut done = Done::default();
    loop {
        while waiting.len() < DEPTH && done.refused == 0 {
            let dice = rng.next();
            let first = (dice >> 32) as usize % (UNITS - 8);
            let count = 1 + (dice >> 16) as usize % 8;
            let (offset, length) = ((first * UNIT) as u64, count * UNIT);
            let fua = if dice & 0x300 == 0 { FUA } else { 0 };
            let (sent, cookie) = match dice % 16 {
                0..=3 => {
                    let at = model.lock().expect("the model").moment();
                    let sent = Sent::Read { first, at };
                    (sent, client.send(READ, 0, offset, UNIT, &[]))
                }
                4 => (Sent::Flush, client.send(FLUSH, 0, 0, 0, &[])),
                kind @ 5..=6 => {
                    let (at, _) = model.lock().expect("the model").send(first, count, true);
                    let command = if kind == 5 { TRIM } else { WRITE_ZEROES };
                    let sent = Sent::Write { first, count, at };
                    (sent, client.send(command, fua, offset, length, &[]))
                }
                _ => {
                    let (at, payload) = model.lock().expect("the model").send(first, count, false);
                    let sent = Sent::Write { first, count, at };
                    (sent, client.send(WRITE, fua, offset, length, &payload))
                }
            };
            let Ok(cookie) = cookie else {
                return done;
            };
            waiting.push((cookie, sent));
        }
        if waiting.is_empty() {
            return done;
        }
        let Ok(reply) = client.receive() else {
            return done;
        };
        let index = waiting
            .iter()
            .position(|(cookie, _)| *cookie == reply.cookie);
        let (_, sent) = waiting.swap_remove(index.expect("a cookie that we sent"));
        if reply.error == ESHUTDOWN {
            done.refused += 1;
            continue;
        }
        assert_eq!(reply.error, 0, "an error on a healthy disk");
        done.answered += 1;
        match sent {
            Sent::Write { first, count, at } => {
                model.lock().expect("the model").answer(first, count, at)
            }
            Sent::Read { first, at } => {
                let checked = model
                    .lock()
                    .expect("the model")
                    .check(first, &reply.data, at);
                checked.expect("C1: a READ gives what was answered before it, or newer");
            }
            Sent::Flush => {}
        }
    }
}
