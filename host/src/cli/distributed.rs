//! `nbd-rs status`, `scrub`, `resync`, `replace-backend` and `takeover`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use nbd_rs_plugin::options::display_size;
use serde_json::json;

use super::args::{Effort, Replace, Resync, Scrub, Status, Takeover};
use super::progress::Progress;
use super::{say, volume, Done, Trouble};
use crate::error::{Error, Kind, Result};
use crate::layout::open::{
    Access, Ask, Audit, AuditReport as Report, Flaw, LogStatus, Survey, Volume,
};
use crate::plugin::Registry;
use crate::runtime;

/// Exit code: data is lost.
const LOST: u8 = 5;
/// Exit code: copies are missing, and no data is lost.
const FLAWED: u8 = 6;

/// Set by the first SIGINT or SIGTERM: what is under way is ended, and said how to go on.
static STOP: AtomicBool = AtomicBool::new(false);

fn stops_when_told() {
    runtime::handle().spawn(async {
        let terminate = tokio::signal::unix::SignalKind::terminate();
        let Ok(mut terminate) = tokio::signal::unix::signal(terminate) else {
            return;
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        STOP.store(true, Ordering::Release);
    });
}

fn audit(effort: &Effort, repair: bool) -> Audit {
    Audit {
        deep: effort.deep,
        repair,
        only: None,
        rate_bytes: effort.rate,
        skip: effort.from,
        stop: &STOP,
    }
}

/// Runs one of them, with a bar, and reports.
fn audited(
    volume: &Volume,
    json: bool,
    run: impl AsyncFnOnce(&mut (dyn FnMut(u64, u64) + Send)) -> Result<Report>,
) -> Done<ExitCode> {
    stops_when_told();
    let mut progress = Progress::new("objects");
    let mut show = |done, of| progress.show(done, Some(of));
    let report = runtime::block_on(run(&mut show));
    progress.end();
    let report = report.map_err(|error| volume::missing(volume, error, ""))?;
    match json {
        true => say(format_args!("{:#}", report_json(volume, &report))),
        false => say(report_text(volume, &report)),
    }
    Ok(match () {
        () if !report.lost.is_empty() => ExitCode::from(LOST),
        () if report.repaired < report.flawed => ExitCode::from(FLAWED),
        () if report.is_cut => ExitCode::from(super::FAILED),
        () => ExitCode::SUCCESS,
    })
}

/// Compares all copies.
pub(super) fn scrub(args: &Scrub, registry: &Registry) -> Done<ExitCode> {
    let volume = volume::asked(&args.volume, Ask::Copies("scrub"), registry)?;
    let audit = audit(&args.effort, args.repair);
    audited(&volume, args.effort.json, async |show| {
        volume.scrub(registry, &audit, show).await
    })
}

/// Makes one backend a full copy again.
pub(super) fn resync(args: &Resync, registry: &Registry) -> Done<ExitCode> {
    let volume = volume::asked(&args.volume, Ask::Copies("resync"), registry)?;
    let backend = place_of(&volume, &args.backend, registry)?;
    let audit = audit(&args.effort, true);
    audited(&volume, args.effort.json, async |show| {
        volume.resync(registry, backend, &audit, show).await
    })
}

/// Puts one backend in the place of another.
pub(super) fn replace(args: &Replace, registry: &Registry) -> Done<ExitCode> {
    let volume = volume::asked(&args.volume, Ask::Copies("replace-backend"), registry)?;
    let old = place_of(&volume, &args.old, registry)?;
    let new = volume::location(&args.new, registry)?;
    let audit = audit(&args.effort, true);
    audited(&volume, args.effort.json, async |show| {
        volume.replace(registry, old, &new, &audit, show).await
    })
}

/// Which of the list a backend is.
fn place_of(volume: &Volume, backend: &str, registry: &Registry) -> Done<usize> {
    let location = volume::location(backend, registry)?;
    let place = volume.place_of(&location);
    place.ok_or_else(|| {
        let text = format!("{location} is none of the volume's backends: {volume}");
        Trouble::Wrong(Error::new(Kind::Invalid, text))
    })
}

/// Shuts out whoever serves a volume.
pub(super) fn takeover(args: &Takeover, registry: &Registry) -> Done<()> {
    let volume = volume::of(&args.volume, registry)?;
    let layout = runtime::block_on(volume::open(&volume, registry, Access::TakeOver))?;
    runtime::block_on(layout.close())?;
    say(format_args!("{volume}: whoever served it is shut out"));
    Ok(())
}

/// How a volume stands, also while it is served.
pub(super) fn status(args: &Status, registry: &Registry) -> Done<()> {
    let volume = volume::asked(&args.volume, Ask::Copies("status"), registry)?;
    let status = runtime::block_on(volume.status(registry));
    let status = status.map_err(|error| volume::missing(&volume, error, ""))?;
    match args.json {
        true => say(format_args!("{:#}", status_json(&volume, &status))),
        false => say(status_text(&volume, &status)),
    }
    Ok(())
}

fn status_json(volume: &Volume, status: &LogStatus) -> serde_json::Value {
    let newest = status.newest();
    let backends = status.backends.iter().map(|backend| {
        let (log, error) = match &backend.log {
            Ok(log) => (log.as_ref(), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let owner = backend.owner.as_ref();
        json!({
            "name": backend.name,
            "there": backend.log.is_ok(),
            "error": error,
            "owner": owner.map(|(who, standing)| json!({ "who": who, "standing": standing })),
            "log": log.map(|log| json!({
                "epoch": log.newest.counter,
                "last_record": log.last.map(|last| last.seq),
                "behind": newest - log.last.map_or(0, |last| last.seq),
                "records": log.records,
                "bytes": log.bytes,
            })),
        })
    });
    let identity = &status.identity;
    json!({
        "location": volume.location.to_string(),
        "uuid": identity.volume.to_string(),
        "degraded": is_degraded(status),
        "warnings": status.warnings,
        "copies": identity.copies(),
        "write_quorum": identity.write_quorum,
        "last_record": newest,
        "backends": backends.collect::<Vec<_>>(),
    })
}

/// Whether a backend is away, or lacks more than what may be on its way.
fn is_degraded(status: &LogStatus) -> bool {
    let newest = status.newest();
    let is_fine = |log: &Result<Option<Survey>>| {
        let last = |log: &Option<Survey>| {
            log.as_ref()
                .and_then(|log| log.last)
                .map_or(0, |last| last.seq)
        };
        log.as_ref()
            .is_ok_and(|log| log.is_some() && last(log) + 1 >= newest)
    };
    !status.backends.iter().all(|backend| is_fine(&backend.log))
}

fn status_text(volume: &Volume, status: &LogStatus) -> String {
    let newest = status.newest();
    let mut lines = vec![format!(
        "{volume}: {}, last record {newest}",
        match is_degraded(status) {
            true => "degraded",
            false => "all backends are level",
        }
    )];
    for backend in &status.backends {
        let owner = match &backend.owner {
            Some((who, standing)) => format!("; {who} {standing}"),
            None => String::new(),
        };
        let said = match &backend.log {
            Err(error) => format!("away: {error}"),
            Ok(None) => "no volume there".to_owned(),
            Ok(Some(log)) => format!(
                "epoch {}, {} records behind, {} records with {} in its log{owner}",
                log.newest.counter,
                newest - log.last.map_or(0, |last| last.seq),
                log.records,
                display_size(log.bytes),
            ),
        };
        lines.push(format!("  {}: {said}", backend.name));
    }
    lines.extend(status.warnings.iter().map(|warning| format!("  {warning}")));
    lines.join("\n")
}

fn name(flaw: Flaw) -> &'static str {
    match flaw {
        Flaw::Missing => "missing",
        Flaw::Damaged => "damaged",
    }
}

fn report_json(volume: &Volume, report: &Report) -> serde_json::Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "finding": name(finding.flaw),
            "backend": finding.backend,
            "object": finding.object,
            "repaired": finding.is_repaired,
        })
    });
    let lost = report.lost.iter();
    let lost =
        lost.map(|bytes| json!({ "offset": bytes.start, "length": bytes.end - bytes.start }));
    json!({
        "location": volume.location.to_string(),
        "objects": report.objects,
        "of": report.of,
        "copies": report.copies,
        "verified_bytes": report.verified_bytes,
        "flawed": report.flawed,
        "repaired": report.repaired,
        "orphans": report.orphans,
        "away": report.away,
        "lost": lost.collect::<Vec<_>>(),
        "next": report.is_cut.then_some(report.objects),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn report_text(volume: &Volume, report: &Report) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let mended = match finding.is_repaired {
            true => ", put anew",
            false => "",
        };
        let flaw = name(finding.flaw);
        lines.push(format!(
            "{flaw}: {}: {}{mended}",
            finding.backend, finding.object
        ));
    }
    let listed = report.findings.len() as u64;
    if report.flawed > listed {
        lines.push(format!("and {} more", report.flawed - listed));
    }
    for bytes in &report.lost {
        let len = bytes.end - bytes.start;
        lines.push(format!("lost: {len} bytes at {}", bytes.start));
    }
    for away in &report.away {
        lines.push(format!("away: {away}"));
    }
    let verified = match report.verified_bytes {
        0 => String::new(),
        bytes => format!(", {} compared with their checksums", display_size(bytes)),
    };
    let verdict = match (report.lost.is_empty(), report.flawed, report.repaired) {
        (false, ..) => "data is lost".to_owned(),
        (true, 0, _) if report.away.is_empty() => "clean".to_owned(),
        (true, 0, _) => "clean, as far as it could be seen".to_owned(),
        (true, flawed, repaired) if flawed == repaired => format!("{repaired} copies put anew"),
        (true, flawed, repaired) => format!(
            "no data is lost; {flawed} copies are not as they should be, {repaired} of them were put \
             anew"
        ),
    };
    if report.is_cut {
        lines.push(format!("ended early; --from {} goes on", report.objects));
    }
    let (objects, of, copies) = (report.objects, report.of, report.copies);
    lines.push(format!(
        "{volume}: {objects} of {of} objects, {copies} copies{verified}; {verdict}"
    ));
    lines.join("\n")
}
