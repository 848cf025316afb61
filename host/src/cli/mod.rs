//! The command line: what was typed, what is meant, what is done.

pub mod args;
mod info;
mod serve;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use nbd_rs_plugin::options::display_size;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Kind, Result};
use crate::layout::open::Volume;
use crate::plugin::{self, Places, Registry, SearchPath};
use crate::runtime;
use args::{Cli, Command, Common, Init, VolumeArgs};

/// Exit code: something failed, and the last line says what.
const FAILED: u8 = 1;

/// Runs the program to its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(&cli.common);
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nbd-rs: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Prints a line for whoever reads standard output; that nobody does is no failure.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn start_log(common: &Common) {
    let filter = match &common.log {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn run(cli: Cli) -> Result<ExitCode> {
    plugin::start(runtime::handle().clone());
    let places = Places::of_this_process(cli.common.plugin_dir.clone());
    let search = SearchPath::new(&places);
    let registry = Registry::load(&search, cli.common.allow_insecure_plugins);
    if let Command::Plugins(args) = cli.command {
        let text = match args.json {
            true => registry.to_json(),
            false => registry.to_text(),
        };
        say(text.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    report(&registry);
    match cli.command {
        Command::Init(args) => init(&args, &registry)?,
        Command::Destroy(args) => {
            let volume = volume(&args.volume, &registry)?;
            runtime::block_on(volume.destroy(&registry))?;
            say(format_args!("{volume}: destroyed"));
        }
        Command::Info(args) => {
            info::print(&volume(&args.volume, &registry)?, &registry, args.json)?
        }
        Command::Serve(args) => return serve::run(args, &registry),
        Command::Plugins(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn init(args: &Init, registry: &Registry) -> Result<()> {
    let volume = volume(&args.volume, registry)?;
    if args.size == 0 {
        return Err(Error::new(Kind::Invalid, "a volume of no size"));
    }
    runtime::block_on(volume.create(registry, args.size, args.force))?;
    let size = display_size(args.size);
    say(format_args!("{volume}: {size}, all zeros"));
    Ok(())
}

fn volume(args: &VolumeArgs, registry: &Registry) -> Result<Volume> {
    Volume::parse(&args.driver, &args.driver_cfg, registry)
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
