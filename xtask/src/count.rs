//! Instructions that each kind of request takes, counted by valgrind: unlike time they are the
//! same on a busy machine, so a change that makes a request dearer is seen before it lands.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, failed, root, run, target, Outcome};

/// Stores and kinds. The `file` plugin decides by the clock whether it writes at once, and under
/// valgrind everything is slow: its writes are measured by `cargo bench` alone.
const COUNTED: [(&str, &str); 5] = [
    ("memory", "read-4k"),
    ("memory", "write-4k"),
    ("memory", "read-64k"),
    ("file", "read-4k"),
    ("file", "read-64k"),
];
/// What the start takes cancels out between a short and a long run.
const SHORT_RUN: u64 = 500;
const LONG_RUN: u64 = 2500;
/// A request may become dearer by so much, in percent.
const TOLERANCE_PERCENT: u64 = 10;
/// The C library copies in its plainest way, whatever the processor can do.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM,\
    -AVX_Fast_Unaligned_Load,-Prefer_ERMS:glibc.cpu.x86_rep_movsb_threshold=1000000000:\
    glibc.cpu.x86_rep_stosb_threshold=1000000000";

type Counts = BTreeMap<String, u64>;

/// The counts that are compared with; they belong to one compiler.
struct Known {
    compiler: String,
    counts: Counts,
}

/// `[--update]`: counts, and compares with what is committed or takes its place.
pub(crate) fn count(words: &[OsString]) -> Outcome {
    let update = match words {
        [] => false,
        [word] if word == "--update" => true,
        _ => return Err("usage: cargo xtask count [--update]".to_owned()),
    };
    let program = build()?;
    let mut counts = Counts::new();
    for (store, kind) in COUNTED {
        let per_request = instructions(&program, store, kind)?;
        println!("{store} {kind}: {per_request}");
        counts.insert(format!("{store} {kind}"), per_request);
    }
    let compiler = compiler()?;
    if update {
        let text = render(&compiler, &counts);
        return fs::write(file(), text).map_err(failed("writing the counts"));
    }
    let text = fs::read_to_string(file()).map_err(failed("reading the counts"))?;
    judge(&parse(&text)?, &compiler, &counts)
}

fn file() -> PathBuf {
    root().join("testing/instruction-counts.txt")
}

/// Builds what ships, and the program that sends the requests; where that is.
fn build() -> Result<PathBuf, String> {
    let packages = ["--package", "nbd-rs", "--package", "nbd-rs-file"];
    let what = ["--lib", "--example", "count_requests"];
    run(cargo()
        .args(["build", "--release"])
        .args(packages)
        .args(what))?;
    Ok(target().join("release/examples/count_requests"))
}

fn instructions(program: &Path, store: &str, kind: &str) -> Result<u64, String> {
    let short = total(program, store, kind, SHORT_RUN)?;
    let long = total(program, store, kind, LONG_RUN)?;
    Ok(long.saturating_sub(short) / (LONG_RUN - SHORT_RUN))
}

fn total(program: &Path, store: &str, kind: &str, number: u64) -> Result<u64, String> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command
        .arg(program)
        .args([store, kind, &number.to_string()]);
    let output = command.env("GLIBC_TUNABLES", TUNABLES).output();
    let output = output.map_err(failed("starting valgrind"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let collected = told
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    match collected.and_then(|(_, number)| number.trim().parse().ok()) {
        Some(number) if output.status.success() => Ok(number),
        _ => Err(format!(
            "{store} {kind} ended with {}:\n{told}",
            output.status
        )),
    }
}

fn compiler() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let output = output.map_err(failed("asking rustc for its version"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn render(compiler: &str, counts: &Counts) -> String {
    let mut text = "# Instructions per request in the host's own code and its plugin, without the \
        kernel.\n# Written by `cargo xtask count --update`, on x86_64.\n"
        .to_owned();
    text += &format!("{compiler}\n");
    for (name, count) in counts {
        text += &format!("{name} {count}\n");
    }
    text
}

fn parse(text: &str) -> Result<Known, String> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let compiler = lines.next().unwrap_or_default().to_owned();
    let mut counts = Counts::new();
    for line in lines {
        let pair = line.rsplit_once(' ');
        let pair = pair.and_then(|(name, count)| Some((name, count.parse().ok()?)));
        let (name, count) = pair.ok_or_else(|| format!("no count: {line:?}"))?;
        counts.insert(name.to_owned(), count);
    }
    Ok(Known { compiler, counts })
}

/// Compares. Another compiler makes other code: then it is only said.
fn judge(known: &Known, compiler: &str, counts: &Counts) -> Outcome {
    let mut dearer = Vec::new();
    for (name, count) in counts {
        match known.counts.get(name) {
            None => dearer.push(format!("{name}: {count}, never counted before")),
            Some(before) if count * 100 > before * (100 + TOLERANCE_PERCENT) => {
                dearer.push(format!("{name}: {count} instead of {before}"));
            }
            Some(before) if count * (100 + TOLERANCE_PERCENT) < before * 100 => {
                println!("{name} became cheaper, {count} instead of {before}: --update keeps it");
            }
            Some(_) => {}
        }
    }
    if dearer.is_empty() {
        return Ok(());
    }
    let dearer = dearer.join("\n  ");
    if known.compiler != compiler {
        println!(
            "warning: the counts are of {}, this is {compiler}:\n  {dearer}",
            known.compiler
        );
        return Ok(());
    }
    Err(format!(
        "requests take more instructions than before; if that is meant, cargo xtask count \
         --update:\n  {dearer}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(count: u64) -> Counts {
        Counts::from([("memory read-4k".to_owned(), count)])
    }

    #[test]
    fn counts_are_read_as_they_were_written() {
        let known = parse(&render("rustc 1", &counts(1000))).unwrap();
        assert_eq!(
            (known.compiler, known.counts),
            ("rustc 1".to_owned(), counts(1000))
        );
        assert!(parse("rustc 1\nmemory read-4k many\n").is_err());
    }

    #[test]
    fn more_than_a_tenth_more_is_refused_unless_the_compiler_is_another() {
        let known = parse(&render("rustc 1", &counts(1000))).unwrap();
        for (count, fine) in [(500, true), (1100, true), (1101, false)] {
            assert_eq!(
                judge(&known, "rustc 1", &counts(count)).is_ok(),
                fine,
                "{count}"
            );
            assert!(judge(&known, "rustc 2", &counts(count)).is_ok());
        }
        let other = Counts::from([("file read-4k".to_owned(), 1)]);
        assert!(judge(&known, "rustc 1", &other).is_err());
    }
}
