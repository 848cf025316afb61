//! Clients that take their time (w05, w06, f33): 10 s for a handshake, and room for others.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::handshake::{option_bytes, option_header};
use crate::client::line::{is_end, Line};
use crate::client::{Framing, OPT_LIST};
use crate::stage::{count, Stage};

/// What a handshake may take, in seconds.
const SECONDS: f64 = 10.0;

/// Sends the bytes one by one, each after a while, and then waits; how long until it was over.
fn trickle(mut line: Line, bytes: &[u8], pause: Duration) -> Duration {
    let begin = Instant::now();
    for byte in bytes {
        if line.send(&[*byte]).is_err() {
            break;
        }
        thread::sleep(pause);
    }
    line.receive_within(Duration::from_secs(20));
    line.rest().expect("it hung up");
    begin.elapsed()
}

#[test]
fn w05_a_handshake_is_over_after_10_seconds_however_it_is_drawn_out() {
    let stage = Stage::new();
    let flags = 3_u32.to_be_bytes();
    let long = [&flags[..], &option_header(99, 100_000), &[0; 100]].concat();
    let lists = [&flags[..], &option_bytes(OPT_LIST, b"").repeat(60)].concat();
    let table: [(&str, &[u8], u64); 7] = [
        ("silence", &[], 0),
        ("half the flags", &flags[..2], 0),
        ("the flags", &flags, 0),
        ("half an option", &long[..12], 0),
        ("half an option's data", &long, 0),
        ("a byte every half a second", &long, 500),
        // Each is answered, and that is no progress.
        ("options without end, slowly", &lists, 40),
    ];
    thread::scope(|scope| {
        for (name, bytes, pause_ms) in table {
            for tcp in [false, true] {
                let line = match tcp {
                    true => Line::tcp(&stage.server),
                    false => Line::unix(&stage.server),
                };
                let line = line.expect("accepted");
                scope.spawn(move || {
                    let pause = Duration::from_millis(pause_ms);
                    let took = trickle(line, bytes, pause).as_secs_f64();
                    let near = SECONDS - 0.5..SECONDS + 1.5;
                    assert!(near.contains(&took), "{name}, TCP {tcp}: {took} s");
                });
            }
        }
        // Who has finished it may be silent as long as it likes.
        scope.spawn(|| {
            let mut client = stage.client(Framing::Simple);
            thread::sleep(Duration::from_secs(11));
            assert_eq!(client.read(0, 1), Ok(vec![0]));
        });
    });
    count("w05", 2 * table.len());
    stage.stop();
}

#[test]
fn w06_f33_a_thousand_silent_connections_keep_nobody_out() {
    const SILENT: usize = 1000;
    let stage = Stage::new();
    let begin = Instant::now();
    let mut silent = Vec::new();
    let mut longest = Duration::ZERO;
    for n in 0..SILENT {
        silent.push(Line::tcp(&stage.server).expect("accepted"));
        if n % 100 == 99 {
            let knock = Instant::now();
            stage.still_serves();
            longest = longest.max(knock.elapsed());
        }
    }
    println!("f33: the longest that an honest client took: {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let threads = stage.status("Threads");
    assert!(
        threads < 300,
        "{threads} threads for clients that say nothing"
    );
    let left = |line: &mut Line| {
        line.receive_within(Duration::from_millis(1));
        line.rest().is_err()
    };
    // The oldest made room, the youngest have their ten seconds.
    let gone = silent[..500]
        .iter_mut()
        .filter_map(|line| left(line).then_some(()));
    assert_eq!(gone.count(), 0, "old ones are still there");
    let until = begin + Duration::from_secs(13);
    thread::sleep(Duration::from_secs(11));
    while silent.iter_mut().any(left) {
        assert!(Instant::now() < until, "silent ones are still there");
        thread::sleep(Duration::from_millis(50));
    }
    count("f33", SILENT);
    stage.stop();
}

#[test]
fn a_handshake_cut_short_is_told_from_one_that_was_refused() {
    // What the two tests above rely on: an end is an end, and a timeout is none.
    let stage = Stage::new();
    let mut line = stage.line();
    line.bytes(18).expect("a greeting");
    line.stays_silent(Duration::from_millis(50));
    line.half_close();
    line.ends();
    assert!(is_end(&ErrorKind::UnexpectedEof.into()));
    assert!(!is_end(&ErrorKind::WouldBlock.into()));
    stage.stop();
}
