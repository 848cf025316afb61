//! `nbd-rs check`: does what lies on the store agree with what the volume says of itself?

use std::path::PathBuf;
use std::process::ExitCode;

use nbd_rs_plugin::options::display_size;
use serde_json::json;

use super::args::Check;
use super::progress::Progress;
use super::{say, volume, Done};
use crate::journal::manage::{Uuid, Verified};
use crate::layout::open::{self, Ask, Finding, Report, Volume, Way};
use crate::plugin::Registry;
use crate::runtime;

/// Exit code: data is lost.
const DAMAGED: u8 = 5;
/// Exit code: no data is lost, and `check --repair` is needed.
const MENDABLE: u8 = 6;

/// Compares and reports.
pub(super) fn run(args: &Check, registry: &Registry) -> Done<ExitCode> {
    let volume = volume::asked(&args.volume, Ask::Check, registry)?;
    let mut progress = Progress::new("shards");
    let mut show = |done, of| progress.show(done, Some(of));
    let how = open::Check {
        deep: args.deep,
        repair: args.repair,
    };
    let report = runtime::block_on(volume.check(registry, how, &mut show));
    progress.end();
    let report = report.map_err(|error| volume::missing(&volume, error, ""))?;
    let waits = args.directory.look(Uuid(report.record.uuid.0));
    match args.json {
        true => {
            let mut json = json(&volume, &report);
            json["compared"] = json!(compared(how.deep, &report));
            json["journal_here"] = json!(waits.as_ref().map(|(_, found)| here(found)));
            say(format_args!("{json:#}"));
        }
        false => {
            let mut lines = notes(how.deep, &report, waits.as_ref());
            lines.push(text(&volume, &report));
            say(lines.join("\n"));
        }
    }
    Ok(match (report.has_damage(), report.needs_repair()) {
        (true, _) => ExitCode::from(DAMAGED),
        (false, true) => ExitCode::from(MENDABLE),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// What was compared of each shard.
fn compared(deep: bool, report: &Report) -> &'static str {
    match (deep, report.record.way) {
        (true, Way::Whole) => "checksums",
        _ => "presence and length",
    }
}

fn here(found: &Verified) -> serde_json::Value {
    match &found.found {
        Ok(found) => json!({ "records": found.records, "bytes": found.bytes }),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

/// What was mended, and what a reader of the verdict should know besides.
fn notes(deep: bool, report: &Report, waits: Option<&(PathBuf, Verified)>) -> Vec<String> {
    let mended = report.mended.iter();
    let mut lines: Vec<String> = mended.map(|text| format!("mended: {text}")).collect();
    if deep && report.record.way == Way::InPlace {
        let text = "note: shards that are written in place have no checksums: only that they are \
                    there, and how long they are, was compared";
        lines.push(text.to_owned());
    }
    match waits {
        Some((
            directory,
            Verified {
                found: Ok(found), ..
            },
        )) if found.records > 0 => {
            lines.push(format!(
                "note: {} records of acknowledged writes ({}) wait in the volume's journal in {}, \
                 which are no part of what was checked; serve or journal replay sends them",
                found.records,
                display_size(found.bytes),
                directory.display()
            ));
        }
        Some((
            directory,
            Verified {
                found: Err(error), ..
            },
        )) => lines.push(format!(
            "note: what waits in the volume's journal in {} can't be said: {error}",
            directory.display()
        )),
        _ => {
            let entry = report.journal.as_ref();
            if let Some(entry) = entry.filter(|entry| !entry.ticket.passed_by) {
                let text = "note: acknowledged writes may wait, which are no part of what was \
                            checked, in ";
                lines.push(format!("{text}{entry}"));
            }
        }
    }
    lines
}

fn json(volume: &Volume, report: &Report) -> serde_json::Value {
    let count = |finding| report.counts.get(&finding).copied().unwrap_or(0);
    let finding = |(finding, object, text): &(Finding, String, String)| json!({ "finding": finding.name(), "object": object, "text": text });
    json!({
        "location": volume.location.to_string(),
        "damaged": report.has_damage(),
        "needs_repair": report.needs_repair(),
        "mended": report.mended,
        "shards": report.shards,
        "verified": report.verified,
        "counts": {
            "missing": count(Finding::Missing),
            "damaged": count(Finding::Damaged),
            "mendable": count(Finding::Mendable),
            "orphan": count(Finding::Orphan),
            "foreign": count(Finding::Foreign),
        },
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "journal": report.journal.as_ref().map(|entry| json!({
            "journal": entry.ticket.journal.to_string(),
            "host": entry.host,
            "needed": !entry.ticket.passed_by,
        })),
    })
}

fn text(volume: &Volume, report: &Report) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (finding, object, text) in &report.findings {
        lines.push(format!("{}: {object}: {text}", finding.name()));
    }
    let all: u64 = report.counts.values().sum();
    let listed = report.findings.len() as u64;
    if all > listed {
        lines.push(format!("and {} more", all - listed));
    }
    let counts = report.counts.iter();
    let counts: Vec<String> = counts
        .map(|(finding, count)| format!("{count} {}", finding.name()))
        .collect();
    let verdict = match (report.has_damage(), counts.is_empty()) {
        (true, _) => format!("data is lost: {}", counts.join(", ")),
        (false, true) => "clean".to_owned(),
        (false, false) => format!("no data is lost: {}", counts.join(", ")),
    };
    let advice = match report.needs_repair() {
        true => "; check --repair mends what it can",
        false => "",
    };
    let verified = match report.verified {
        0 => String::new(),
        verified => format!(", {verified} of them compared with their checksums"),
    };
    lines.push(format!(
        "{volume}: {} shards with data{verified}; {verdict}{advice}",
        report.shards
    ));
    lines.join("\n")
}
