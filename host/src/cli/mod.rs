//! The command line: what was typed, what is meant, what is done.

pub mod args;
mod argv;
mod check;
mod distributed;
mod info;
mod journal;
mod plugins;
mod progress;
mod serve;
mod usage;
mod volume;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::error::{one_line, Error};
use crate::plugin::{self, Places, Registry, SearchPath};
use crate::{pool, runtime, secrets};
use args::{Cli, Command, Common};

/// Exit code: something failed, and the last line says what.
const FAILED: u8 = 1;
/// Exit code: the command line is wrong; nothing was opened or changed.
const WRONG: u8 = 2;

/// The longest line that an error may be, in characters.
const LINE_CHARS: usize = 2000;

/// Why a command did not do what it was told to.
enum Trouble {
    /// The command line asks for what can't be.
    Wrong(Error),
    /// It failed on the way.
    Failed(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Failed(error)
    }
}

type Done<T> = Result<T, Trouble>;

/// Runs the program to its exit code.
pub fn main() -> ExitCode {
    pool::give_back_large_blocks();
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(line) => return complain(WRONG, &line),
    };
    start_log(&cli.common);
    match run(cli) {
        Ok(code) => code,
        Err(Trouble::Wrong(error)) => complain(WRONG, &error.message),
        Err(Trouble::Failed(error)) => complain(FAILED, &error.message),
    }
}

/// The last line: one, whatever the text holds.
fn complain(code: u8, text: &str) -> ExitCode {
    let text = secrets::masked(text);
    let _ = writeln!(std::io::stderr(), "nbd-rs: {}", one_line(&text, LINE_CHARS));
    ExitCode::from(code)
}

/// Prints a line for whoever reads standard output; that nobody does is no failure.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn start_log(common: &Common) {
    let filter = match &common.log {
        Some(filter) => filter.into(),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn run(cli: Cli) -> Done<ExitCode> {
    plugin::start(runtime::handle().clone());
    let places = Places::of_this_process(cli.common.plugin_dir.clone());
    let search = SearchPath::new(&places);
    let insecure = cli.common.allow_insecure_plugins;
    if let Command::Plugins(args) = cli.command {
        return plugins::run(&args, &search, insecure);
    }
    let registry = Registry::load(&search, insecure);
    report(&registry);
    match cli.command {
        Command::Init(args) => volume::init(&args, &registry)?,
        Command::Destroy(args) => volume::destroy(&args, &registry)?,
        Command::Info(args) => info::print(&args, &registry)?,
        Command::Check(args) => return check::run(&args, &registry),
        Command::Status(args) => distributed::status(&args, &registry)?,
        Command::Scrub(args) => return distributed::scrub(&args, &registry),
        Command::Resync(args) => return distributed::resync(&args, &registry),
        Command::ReplaceBackend(args) => return distributed::replace(&args, &registry),
        Command::Takeover(args) => distributed::takeover(&args, &registry)?,
        Command::Resize(args) => volume::resize(&args, &registry)?,
        Command::Serve(args) => return serve::run(args, &registry),
        Command::Journal(args) => return journal::run(&args, &registry),
        Command::Plugins(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what of the plugins is not as it should be; `nbd-rs plugins` tells all of it.
fn report(registry: &Registry) {
    for refused in registry.refused() {
        tracing::warn!(
            "plugin {} refused: {}",
            refused.path.display(),
            refused.reason
        );
    }
    for warning in registry.warnings() {
        tracing::warn!("{warning}");
    }
}
