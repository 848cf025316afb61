//! `nbd-rs plugins`: what there is, whether one keeps its promises, and the beginning of a new one.

mod check;
mod new;

use std::process::ExitCode;

use super::args::{Plugins, PluginsCommand};
use super::{say, Done};
use crate::plugin::{Registry, SearchPath};

pub(super) fn run(args: &Plugins, search: &SearchPath, insecure: bool) -> Done<ExitCode> {
    match &args.command {
        None | Some(PluginsCommand::List) => list(&Registry::load(search, insecure), args.json),
        Some(PluginsCommand::Check(check)) => {
            return check::run(check, args.json, search, insecure);
        }
        Some(PluginsCommand::New(new)) => new::run(new, args.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(registry: &Registry, json: bool) {
    let text = match json {
        true => registry.to_json(),
        false => registry.to_text(),
    };
    say(text.trim_end());
}
