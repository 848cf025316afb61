//! Fuzzing with libFuzzer on a stable compiler: the coverage counters come from flags that need no
//! nightly, and the fuzzer itself is C++ that the `libfuzzer-sys` crate builds.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{cargo, failed, root, run, Outcome};

const TARGETS: [&str; 4] = ["wire", "journal", "distributed", "session"];
/// Named, so that the flags below reach the targets and not what is run while building.
const MACHINE: &str = env!("XTASK_HOST");
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// `[TARGET]... [--seconds N]`: builds the targets and runs each for so long.
pub(crate) fn fuzz(words: &[OsString]) -> Outcome {
    let (mut seconds, mut chosen) = (60_u32, Vec::new());
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match &*word {
            "--seconds" => {
                let number = words.next().and_then(|number| number.parse().ok());
                seconds = number.ok_or("--seconds needs a number")?;
            }
            name => match TARGETS.iter().find(|target| **target == name) {
                Some(target) => chosen.push(*target),
                None => return Err(format!("no target {name}: {} are", TARGETS.join(", "))),
            },
        }
    }
    if chosen.is_empty() {
        chosen = TARGETS.to_vec();
    }
    build()?;
    chosen
        .iter()
        .try_for_each(|target| run_target(target, seconds))
}

fn build() -> Outcome {
    let mut command = cargo();
    command
        .current_dir(root().join("fuzz"))
        .args(["build", "--release", "--locked", "--target", MACHINE])
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", root().join("fuzz/target"));
    run(&mut command)
}

fn run_target(target: &str, seconds: u32) -> Outcome {
    let fuzz = root().join("fuzz");
    let program = fuzz
        .join("target")
        .join(MACHINE)
        .join("release")
        .join(target);
    let (corpus, artifacts) = (fuzz.join("corpus").join(target), fuzz.join("artifacts"));
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).map_err(failed("making the fuzzer's folders"))?;
    }
    let prefix = artifacts.join(format!("{target}-"));
    let mut command = Command::new(&program);
    command
        // What is found lands in the first folder; the second is where it starts from.
        .args([&corpus, &fuzz.join("seeds").join(target)])
        .arg(format!("-artifact_prefix={}", prefix.display()))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=30", "-rss_limit_mb=2048", "-max_len=65536"])
        .args(["-print_final_stats=1", "-verbosity=0"]);
    println!("fuzzing {target} for {seconds} s");
    run(&mut command).map_err(|error| format!("{error}\n{}", replay(&program, &prefix)))
}

fn replay(program: &Path, prefix: &Path) -> String {
    format!(
        "to see it again: {} {}...",
        program.display(),
        prefix.display()
    )
}
