//! `nbd-rs check`: does what lies on the store agree with what the volume says of itself?

use std::process::ExitCode;

use serde_json::json;

use super::args::Check;
use super::progress::Progress;
use super::{say, volume, Done};
use crate::layout::open::{Finding, Report, Volume};
use crate::plugin::Registry;
use crate::runtime;

/// Exit code: data is lost.
const DAMAGED: u8 = 5;

/// Compares and reports.
pub(super) fn run(args: &Check, registry: &Registry) -> Done<ExitCode> {
    let volume = volume::of(&args.volume, registry)?;
    let mut progress = Progress::new("shards");
    let mut show = |done, of| progress.show(done, Some(of));
    let report = runtime::block_on(volume.check(registry, args.deep, &mut show));
    progress.end();
    let report = report.map_err(|error| volume::missing(&volume, error, ""))?;
    match args.json {
        true => say(format_args!("{:#}", json(&volume, &report))),
        false => say(text(&volume, &report)),
    }
    Ok(match report.has_damage() {
        true => ExitCode::from(DAMAGED),
        false => ExitCode::SUCCESS,
    })
}

fn json(volume: &Volume, report: &Report) -> serde_json::Value {
    let count = |finding| report.counts.get(&finding).copied().unwrap_or(0);
    let finding = |(finding, object, text): &(Finding, String, String)| json!({ "finding": finding.name(), "object": object, "text": text });
    json!({
        "location": volume.location.to_string(),
        "damaged": report.has_damage(),
        "shards": report.shards,
        "verified": report.verified,
        "counts": {
            "missing": count(Finding::Missing),
            "damaged": count(Finding::Damaged),
            "orphan": count(Finding::Orphan),
            "foreign": count(Finding::Foreign),
        },
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
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
    let verified = match report.verified {
        0 => String::new(),
        verified => format!(", {verified} of them compared with their checksums"),
    };
    lines.push(format!(
        "{volume}: {} shards with data{verified}; {verdict}",
        report.shards
    ));
    lines.join("\n")
}
