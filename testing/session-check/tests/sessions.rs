//! Programs against the real server: those that the fuzzer starts from, and random ones.

use std::path::Path;

use session_check::seeds;

#[path = "../../../host/tests/common/rng.rs"]
mod rng;

use rng::Rng;

fn passes(name: &str, program: &[u8]) {
    if let Err(wrong) = session_check::session(program) {
        panic!("{name}: {wrong}; the program is {program:02x?}");
    }
}

#[test]
fn the_committed_seeds_are_those_that_are_made_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (target, seeds) in seeds::all() {
        let files = std::fs::read_dir(root.join(target)).unwrap().count();
        assert_eq!(files, seeds.len(), "{target}: run --example write-seeds");
        for (name, bytes) in seeds {
            let committed = std::fs::read(root.join(target).join(&name)).unwrap();
            assert_eq!(
                committed, bytes,
                "{target}/{name}: run --example write-seeds"
            );
        }
    }
}

#[test]
fn sessions_of_the_seeds_are_answered_as_the_specification_says() {
    let [(_, sessions), ..] = seeds::all();
    for (name, program) in sessions {
        passes(&name, &program);
    }
}

#[test]
fn every_decoder_takes_its_seeds_and_every_cut_of_them() {
    let [_, (_, inputs), ..] = seeds::all();
    for (_, input) in inputs {
        (0..=input.len()).for_each(|len| session_check::decoders::run(&input[..len]));
    }
}

#[test]
fn the_journal_s_decoders_take_their_seeds_and_every_cut_and_changed_bit_of_them() {
    let [_, _, (_, inputs), _] = seeds::all();
    for (_, input) in inputs {
        (0..=input.len()).for_each(|len| session_check::journal::run(&input[..len]));
        for bit in 8..input.len() * 8 {
            let mut changed = input.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            session_check::journal::run(&changed);
        }
    }
}

#[test]
fn a_distributed_volume_s_decoders_take_their_seeds_and_every_cut_and_changed_bit_of_them() {
    let [.., (_, inputs)] = seeds::all();
    for (name, input) in inputs {
        assert!(session_check::distributed::run(&input), "{name}");
        for len in 0..input.len() {
            session_check::distributed::run(&input[..len]);
        }
        for bit in 8..input.len() * 8 {
            let mut changed = input.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            session_check::distributed::run(&changed);
        }
    }
}

#[test]
fn a_small_library_is_taken_for_whole_and_no_cut_of_it_is() {
    let [_, (_, inputs), ..] = seeds::all();
    let (_, input) = inputs.iter().find(|(name, _)| name == "library").unwrap();
    let library = &input[1..];
    if cfg!(target_arch = "x86_64") {
        nbd_rs::plugin::check_library(library).unwrap();
    }
    for len in 0..library.len() {
        assert!(
            nbd_rs::plugin::check_library(&library[..len]).is_err(),
            "{len}"
        );
    }
}

/// Seeds with a few bytes changed: near enough to get far, and never twice the same.
#[test]
fn sessions_of_changed_seeds_are_answered_as_the_specification_says() {
    let mut rng = Rng::for_test("sessions_of_changed_seeds");
    let [(_, sessions), ..] = seeds::all();
    for round in 0..300 {
        let (name, mut program) = sessions[round % sessions.len()].clone();
        for _ in 0..=rng.next() % 4 {
            let at = rng.next() as usize % program.len();
            program[at] = rng.next() as u8;
        }
        passes(&name, &program);
    }
}

#[test]
fn sessions_of_noise_are_answered_as_the_specification_says() {
    let mut rng = Rng::for_test("sessions_of_noise");
    for _ in 0..200 {
        let len = rng.next() as usize % 200;
        passes("noise", &rng.bytes(len));
    }
}
