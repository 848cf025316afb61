//! The command line: what was typed, what is meant, what is done.

pub mod args;
mod info;
mod serve;

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

fn start_log(common: &Common) {
    let filter = match &common.log {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
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
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    report(&registry);
    match cli.command {
        Command::Init(args) => init(&args, &registry)?,
        Command::Destroy(args) => {
            let volume = volume(&args.volume, &registry)?;
            runtime::block_on(volume.destroy(&registry))?;
            println!("{volume}: destroyed");
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
    println!("{volume}: {}, all zeros", display_size(args.size));
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
