//! Explores the commit protocol: `nbd-rs-model [small | full | mutants] [WORDS OF A NAME]`.

use std::process::ExitCode;
use std::time::Instant;

use nbd_rs_model::{
    breadth_first, depth_first, explain, Config, Named, Worlds, CAUGHT, FULL, SMALL,
};

/// So many fingerprints take less than 8 GiB, also while their table grows.
const MOST_STATES: usize = 460_000_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "small".to_owned());
    let name = arguments.collect::<Vec<_>>().join(" ");
    let is_meant = |named: &&Named| named.name.contains(&name);
    let all_well = match what.as_str() {
        "small" => all(SMALL.iter().filter(is_meant), false),
        "full" => all(FULL.iter().filter(is_meant), true),
        "mutants" => mutants(),
        _ => {
            eprintln!("nbd-rs-model [small | full | mutants] [WORDS OF A NAME]");
            return ExitCode::from(2);
        }
    };
    match all_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn all<'a>(worlds: impl Iterator<Item = &'a Named>, is_deep: bool) -> bool {
    println!(
        "{:>12} {:>13} {:>6} {:>8} {:>8}  world",
        "states", "steps", "depth", "ends", "seconds"
    );
    let mut all_well = true;
    for named in worlds {
        all_well &= one(named, is_deep);
    }
    all_well
}

fn one(named: &Named, is_deep: bool) -> bool {
    let Some(worlds) = Worlds::new(named.config) else {
        eprintln!("{}: no such quorum", named.name);
        return false;
    };
    let start = Instant::now();
    let explore = match is_deep {
        true => depth_first::<Worlds>,
        false => breadth_first::<Worlds>,
    };
    let (figures, found) = explore(&worlds, MOST_STATES);
    println!(
        "{:>12} {:>13} {:>6} {:>8} {:>8.1}  {} ({})",
        figures.states,
        figures.steps,
        figures.depth,
        figures.ends,
        start.elapsed().as_secs_f64(),
        named.name,
        size(&named.config),
    );
    let unseen: Vec<_> = named
        .sees
        .iter()
        .filter(|what| !worlds.has_seen(**what))
        .collect();
    if let Some(found) = &found {
        println!("{}", explain(&worlds, found).join("\n"));
    } else if !figures.is_complete {
        println!("  and there is more");
    } else if !unseen.is_empty() {
        println!("  never happened: {unseen:?}");
    }
    found.is_none() && figures.is_complete && unseen.is_empty()
}

fn size(config: &Config) -> String {
    let Config {
        backends,
        write,
        owners,
        records,
        checkpoints,
        ..
    } = config;
    let checkpoint = match checkpoints {
        0 => String::new(),
        _ => format!(" + {checkpoints} checkpoint"),
    };
    format!("N={backends} W={write}, {owners} owners, {records} records{checkpoint}")
}

fn mutants() -> bool {
    let mut all_caught = true;
    for &(rules, config, _) in CAUGHT {
        let Some(worlds) = Worlds::new(Config { rules, ..config }) else {
            continue;
        };
        let (figures, found) = breadth_first(&worlds, MOST_STATES);
        println!("{rules:?}, after {} states:", figures.states);
        match found {
            Some(found) => println!("  {}", explain(&worlds, &found).join("\n  ")),
            None => println!("  not caught"),
        }
        all_caught &= !figures.is_complete;
    }
    all_caught
}
