//! f35: many connections on the same few units, and every READ gives what some order of all
//! requests allows.

use std::thread;
use std::time::Instant;

use crate::client::{Client, FRAMINGS, FUA, WRITE};
use crate::rng::Rng;
use crate::stage::{count, Stage};

const UNIT: usize = 4096;
const UNITS: usize = 8;
const CONNECTIONS: usize = 8;
const ROUNDS: usize = 400;

/// What one connection did to one unit, and between which moments.
#[derive(Clone, Copy)]
struct Event {
    unit: usize,
    id: u64,
    begin: Instant,
    end: Instant,
}

/// What one connection did.
#[derive(Default)]
struct Log {
    writes: Vec<Event>,
    reads: Vec<Event>,
}

/// The id that fills a unit, which is of one write only.
fn id_of(unit: &[u8]) -> u64 {
    let id = &unit[..8];
    assert!(
        unit.chunks(8).all(|word| word == id),
        "a unit of several writes"
    );
    u64::from_be_bytes(id.try_into().expect("8 bytes"))
}

fn work(mut client: Client, number: u64, mut rng: Rng) -> Log {
    let mut log = Log::default();
    for round in 1..=ROUNDS as u64 {
        let dice = rng.next();
        let first = dice as usize % UNITS;
        let count = 1 + (dice >> 8) as usize % (UNITS - first).min(3);
        let offset = (first * UNIT) as u64;
        let begin = Instant::now();
        if dice >> 16 & 1 == 0 {
            let id = number << 32 | round;
            let payload = id.to_be_bytes().repeat(count * UNIT / 8);
            let flags = if dice >> 17 & 31 == 0 { FUA } else { 0 };
            let reply = client.ask(WRITE, flags, offset, payload.len(), &payload);
            assert_eq!(reply.error, 0);
            let end = Instant::now();
            let event = |unit| Event {
                unit,
                id,
                begin,
                end,
            };
            log.writes.extend((first..first + count).map(event));
        } else {
            let bytes = client.read(offset, count * UNIT).expect("bytes");
            let end = Instant::now();
            for (n, unit) in bytes.chunks(UNIT).enumerate() {
                let (unit, id) = (first + n, id_of(unit));
                log.reads.push(Event {
                    unit,
                    id,
                    begin,
                    end,
                });
            }
        }
    }
    log
}

/// A read may give a write that began before it ended, if no other write lies wholly between the
/// two; and what was read once is not unread.
fn check(writes: &[Event], reads: &[Event], start: Instant) {
    let first = Event {
        unit: 0,
        id: 0,
        begin: start,
        end: start,
    };
    let write_of = |id: u64| {
        let found = writes.iter().find(|write| write.id == id);
        *found.unwrap_or_else(|| {
            assert_eq!(id, 0, "bytes that nobody wrote");
            &first
        })
    };
    for read in reads {
        let seen = write_of(read.id);
        assert!(seen.begin < read.end, "a write that had not begun was read");
        let between = |write: &&Event| seen.end < write.begin && write.end < read.begin;
        assert!(
            writes.iter().find(between).is_none(),
            "a READ gave old bytes"
        );
        for later in reads.iter().filter(|later| read.end < later.begin) {
            let next = write_of(later.id);
            assert!(next.end >= seen.begin, "bytes that were read were unread");
        }
    }
}

#[test]
fn f35_eight_connections_on_the_same_units_see_one_order_of_events() {
    let mut rng = Rng::for_test("f35");
    let stage = Stage::new();
    let start = Instant::now();
    let logs: Vec<Log> = thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS)
            .map(|n| {
                let client = stage.client(FRAMINGS[n % 3]);
                let rng = Rng::new(rng.next());
                scope.spawn(move || work(client, n as u64 + 1, rng))
            })
            .collect();
        let done = workers.into_iter().map(|worker| worker.join());
        done.map(|log| log.expect("no panic")).collect()
    });
    for unit in 0..UNITS {
        let of_unit = |events: fn(&Log) -> &Vec<Event>| -> Vec<Event> {
            let all = logs.iter().flat_map(events).copied();
            all.filter(|event| event.unit == unit).collect()
        };
        check(
            &of_unit(|log| &log.writes),
            &of_unit(|log| &log.reads),
            start,
        );
    }
    count("f35", CONNECTIONS * ROUNDS);
    stage.stop();
}

#[test]
fn the_check_of_f35_finds_old_bytes() {
    let start = Instant::now();
    let at = |n: u64| start + std::time::Duration::from_millis(n);
    let event = |id, begin, end| Event {
        unit: 0,
        id,
        begin: at(begin),
        end: at(end),
    };
    let writes = [event(1, 1, 2), event(2, 3, 6)];
    check(
        &writes,
        &[event(0, 0, 2), event(1, 4, 5), event(2, 4, 5)],
        start,
    );
    for wrong in [
        vec![event(1, 7, 8)],
        vec![event(2, 1, 2)],
        vec![event(0, 3, 4)],
        vec![event(3, 7, 8)],
    ] {
        let found = std::panic::catch_unwind(|| check(&writes, &wrong, start));
        assert!(found.is_err());
    }
}
