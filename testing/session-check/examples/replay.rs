//! Plays one program again: `cargo run -p session-check --example replay FILE [TIMES]`.

use session_check::{check, play::play, program::Program};

fn main() {
    let mut words = std::env::args().skip(1);
    let bytes = std::fs::read(words.next().expect("a file")).expect("readable");
    let times = words
        .next()
        .map_or(1, |times| times.parse().expect("a number"));
    let program = Program::decode(&bytes);
    println!("{program:#?}");
    for round in 0..times {
        let outcome = play(&program).and_then(|played| check::check(&played));
        println!("{round}: {outcome:?}");
    }
}
