//! The checker against servers that answer wrongly: what the real one said, with a change.

use super::*;
use crate::play::play;
use crate::program::{Opening, Program, RequestStep, Step};

fn request(command: u8, offset: u16, length: u16) -> Step {
    Step::Request(RequestStep {
        command,
        flags: 0,
        offset_kind: 1,
        offset,
        length_kind: 1,
        length,
        payload: 9,
    })
}

/// Reads of data and of holes, a write that is read again, extents, errors.
fn played(opening: Opening) -> Played {
    let with_context = opening == Opening::ExtendedWithContext;
    let mut steps = vec![
        request(0, 4096, 64),
        request(1, 4000, 100),
        request(0, 3990, 120),
    ];
    if with_context {
        steps.insert(0, request(7, 0, 8192));
    }
    steps.extend([request(0, 9000, 32), request(0x0c, 0, 0), request(2, 0, 0)]);
    let program = Program {
        opening,
        hangs_up: false,
        slow: false,
        failing_reads: false,
        failing_syncs: 0,
        steps,
    };
    play(&program).unwrap()
}

const OPENINGS: [Opening; 4] = [
    Opening::Simple,
    Opening::Structured,
    Opening::ExtendedWithContext,
    Opening::Old,
];

#[test]
fn what_the_server_says_is_right_and_each_cut_of_it_is_wrong() {
    for opening in OPENINGS {
        let played = played(opening);
        check(&played).unwrap();
        for len in 0..played.received.len() {
            let mut cut = played.clone();
            cut.received.truncate(len);
            assert!(check(&cut).is_err(), "{opening:?} cut at {len}");
            // A client that hung up can't tell, unless a rule is broken.
            cut.to_the_end = false;
            check(&cut).unwrap();
        }
    }
}

#[test]
fn a_byte_more_is_wrong() {
    for opening in OPENINGS {
        let mut played = played(opening);
        played.received.push(0);
        assert!(check(&played).is_err(), "{opening:?}");
    }
}

/// Everything is determined but what stands in the flags of the export, in a text for people, and
/// where an extent ends.
#[test]
fn a_changed_bit_is_noticed_nearly_everywhere() {
    for opening in OPENINGS {
        let played = played(opening);
        let mut unnoticed = Vec::new();
        for at in 0..played.received.len() {
            let mut changed = played.clone();
            changed.received[at] ^= 4;
            if check(&changed).is_ok() {
                unnoticed.push(at);
            }
        }
        // Two bytes of flags, a text of 15 bytes, the lengths of two extents.
        assert!(unnoticed.len() <= 2 + 15 + 2, "{opening:?}: {unnoticed:?}");
    }
}

/// Where the simple reply to the request of that number begins; the first one is 1.
fn simple_reply(played: &Played, number: u64) -> usize {
    let cookie = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let mut windows = played.received.windows(8);
    windows.position(|window| window == cookie).unwrap() - 8
}

#[test]
fn answers_are_given_once_and_to_those_who_asked() {
    let played = played(Opening::Simple);
    // The write.
    let at = simple_reply(&played, 2);
    let reply = played.received[at..at + 16].to_vec();
    let mut twice = played.clone();
    twice.received.extend(&reply);
    assert!(check(&twice).unwrap_err().contains("second reply"));
    let mut unasked = played.clone();
    unasked.received[at + 15] ^= 1;
    assert!(check(&unasked).unwrap_err().contains("nobody sent"));
    let mut missing = played;
    missing.received.drain(at..at + 16);
    assert!(check(&missing).unwrap_err().contains("never answered"));
}

#[test]
fn reads_that_miss_a_write_are_wrong() {
    let mut played = played(Opening::Simple);
    // The byte at 4050, which was written, of the read that begins at 3990.
    let at = simple_reply(&played, 3) + 16 + 60;
    played.received[at] = 0;
    assert!(check(&played).unwrap_err().contains("never was there"));
}
