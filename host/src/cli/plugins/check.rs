//! `nbd-rs plugins check`: a plugin through the conformance suite, itself and not the guard before it.

use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nbd_rs_plugin::conformance::{self, host, Check, Options, Outcome, CHECKS};
use nbd_rs_plugin::{Next, OpenFlags};
use serde_json::json;

use super::super::args::PluginsCheck;
use super::super::{report, say, volume, Done, Trouble};
use crate::backend::chain::Opener;
use crate::error::{Error, Kind};
use crate::location::Location;
use crate::plugin::{Plugin, Registry, SearchPath};
use crate::runtime;

/// Exit code: a promise is broken.
const BROKEN: u8 = 5;
/// What all names begin with.
const PREFIX: &str = "nbd-rs-check/";

fn wrong(text: String) -> Trouble {
    Trouble::Wrong(Error::new(Kind::Invalid, text))
}

/// Checks and reports.
pub(super) fn run(
    args: &PluginsCheck,
    json: bool,
    search: &SearchPath,
    insecure: bool,
) -> Done<ExitCode> {
    let known = |name: &str| CHECKS.iter().any(|(known, _)| *known == name);
    if let Some(name) = args.only.iter().find(|name| !known(name)) {
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        return Err(wrong(format!("there is no check {name:?}; known: {names}")));
    }
    let registry = Registry::load_with(&args.file, search, insecure).map_err(|reason| {
        let file = args.file.display();
        Error::new(Kind::Unsupported, format!("{file} {reason}"))
    })?;
    report(&registry);
    let (plugin, location) = find(args, &registry)?;
    let next = open(args, &registry, &location)?;
    let mut checks = go_through(args, &next);
    if args.only.is_empty() {
        checks.push(closed(&next, args.limit));
    }
    match json {
        true => say(format_args!(
            "{:#}",
            to_json(args, plugin, &location, &checks)
        )),
        false => say(to_text(args, plugin, &location, &checks)),
    }
    let broken = checks.iter().any(|check| seen(check).is_some());
    Ok(match broken {
        true => ExitCode::from(BROKEN),
        false => ExitCode::SUCCESS,
    })
}

/// The plugin in the file, and the location, which must ask it first.
fn find<'r>(args: &PluginsCheck, registry: &'r Registry) -> Done<(&'r Plugin, Location)> {
    let location = volume::location(&args.location, registry)?;
    let plugin = registry.get(location.outermost())?;
    let file = args.file.canonicalize().unwrap_or_default();
    if plugin.path != file {
        let (scheme, path) = (location.outermost(), plugin.path.display());
        let text = format!("{scheme} is served by {path}, which is not the plugin to check");
        return Err(wrong(text));
    }
    Ok((plugin, location))
}

fn open(args: &PluginsCheck, registry: &Registry, location: &Location) -> Done<Next> {
    let writes = match args.read_only {
        true => OpenFlags::NONE,
        false => OpenFlags::WRITE | OpenFlags::CREATE,
    };
    let flags = match args.single {
        true => writes | OpenFlags::SINGLE_OBJECT,
        false => writes,
    };
    let chain = Opener::new(registry, location)?;
    let opening = runtime::timeout(args.limit, chain.open_bare(flags));
    match runtime::block_on(opening) {
        Ok(opened) => Ok(opened?.into()),
        Err(_) => Err(Error::new(Kind::Timeout, format!("{location} does not open")).into()),
    }
}

/// Runs a test of its own thread: what hangs, hangs there.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (answer, answers) = mpsc::channel();
    std::thread::spawn(move || answer.send(work()));
    answers.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => format!("no answer after {limit:?}"),
        RecvTimeoutError::Disconnected => "the check itself panicked".to_owned(),
    })
}

fn go_through(args: &PluginsCheck, next: &Next) -> Vec<Check> {
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut checks = Vec::new();
    for (name, promise) in CHECKS.iter().filter(|(name, _)| wanted(name)) {
        let options = Options {
            only: vec![(*name).to_owned()],
            ..match args.single {
                true => Options::single(args.seed),
                false => Options::named(PREFIX, args.seed),
            }
        };
        let next = next.clone();
        let run = move || host::block_on(conformance::run(next, &options)).checks;
        match within(args.limit, run) {
            Ok(ran) => checks.extend(ran),
            Err(why) => checks.push(Check {
                name,
                promise,
                outcome: Outcome::Failed(why),
            }),
        }
    }
    checks
}

fn closed(next: &Next, limit: Duration) -> Check {
    let next = next.clone();
    let closed = within(limit, move || host::block_on(next.close()));
    let closed = closed.and_then(|closed| closed.map_err(|error| error.to_string()));
    Check {
        name: "close",
        promise: "it closes without an error",
        outcome: closed.map_or_else(Outcome::Failed, |()| Outcome::Passed),
    }
}

/// What was seen instead of what is promised.
fn seen(check: &Check) -> Option<&str> {
    match &check.outcome {
        Outcome::Failed(why) => Some(why),
        _ => None,
    }
}

/// How to see it again.
fn again(args: &PluginsCheck, location: &Location, check: &Check) -> String {
    let mut line = format!("nbd-rs plugins check {} '{location}'", args.file.display());
    for (given, flag) in [(args.single, " --single"), (args.read_only, " --read-only")] {
        if given {
            line += flag;
        }
    }
    if check.name != "close" {
        line += &format!(" --only {} --seed {}", check.name, args.seed);
    }
    line
}

fn to_text(args: &PluginsCheck, plugin: &Plugin, location: &Location, checks: &[Check]) -> String {
    let said = &plugin.description;
    let (name, version, interface) = (&said.name, &said.version, &plugin.abi_version);
    let mut lines = vec![format!(
        "{name} {version} (interface {interface}), {location}"
    )];
    let width = checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or_default();
    let mut counts = [0; 3];
    for check in checks {
        let (at, word) = match &check.outcome {
            Outcome::Passed => (0, "passed "),
            Outcome::Skipped(_) => (1, "skipped"),
            Outcome::Failed(_) => (2, "FAILED "),
        };
        counts[at] += 1;
        lines.push(format!("{word}  {:width$}  {}", check.name, check.promise));
        match &check.outcome {
            Outcome::Passed => {}
            Outcome::Skipped(why) => lines.push(format!("         {why}")),
            Outcome::Failed(why) => {
                lines.push(format!(
                    "         seen: {}",
                    crate::error::one_line(why, 1000)
                ));
                lines.push(format!("         again: {}", again(args, location, check)));
            }
        }
    }
    let [passed, skipped, failed] = counts;
    lines.push(format!(
        "{passed} passed, {skipped} skipped, {failed} failed"
    ));
    crate::secrets::masked(&lines.join("\n")).into_owned()
}

fn to_json(
    args: &PluginsCheck,
    plugin: &Plugin,
    location: &Location,
    checks: &[Check],
) -> serde_json::Value {
    let said = &plugin.description;
    let row = |check: &Check| {
        let (outcome, why) = match &check.outcome {
            Outcome::Passed => ("passed", None),
            Outcome::Skipped(why) => ("skipped", Some(why)),
            Outcome::Failed(why) => ("failed", Some(why)),
        };
        let why = why.map(|why| crate::secrets::masked(why).into_owned());
        let again = seen(check).map(|_| again(args, location, check));
        json!({
            "check": check.name,
            "promise": check.promise,
            "outcome": outcome,
            "why": why,
            "again": again,
        })
    };
    json!({
        "plugin": said.name.as_str(),
        "version": said.version.as_str(),
        "interface": plugin.abi_version,
        "location": location.to_string(),
        "seed": args.seed,
        "conforms": !checks.iter().any(|check| seen(check).is_some()),
        "checks": checks.iter().map(row).collect::<Vec<_>>(),
    })
}
