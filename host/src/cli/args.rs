//! What was typed. No file and no socket is touched here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nbd_rs_plugin::options;

use crate::serve::listen::Address;

/// A Network Block Device server whose storage backends are plugins.
#[derive(Debug, Parser)]
#[command(
    name = "nbd-rs",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where plugins are looked for and what is logged.
    #[command(flatten)]
    pub common: Common,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Look for plugins here first (may be repeated).
    #[arg(long, value_name = "DIR", global = true)]
    pub plugin_dir: Vec<PathBuf>,
    /// Load plugins even if somebody else may write the file or its directory.
    #[arg(long, global = true)]
    pub allow_insecure_plugins: bool,
    /// What to log: error, warn, info, debug, trace, or filters as in RUST_LOG.
    #[arg(long, value_name = "FILTER", global = true)]
    pub log: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume.
    #[command(after_help = "Example: nbd-rs init --size 100Mi raw \"file:$(pwd)/raw.bin\"")]
    Init(Init),
    /// Serve volumes to NBD clients.
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Remove a volume and everything that belongs to it.
    #[command(after_help = "Example: nbd-rs destroy raw \"file:$(pwd)/raw.bin\"")]
    Destroy(Destroy),
    /// Say what a volume is and what its chain can do.
    Info(Info),
    /// List the plugins that were found, and what was refused and why.
    Plugins(Plugins),
}

const SERVE_HELP: &str = "\
Example:
  nbd-rs serve --export disk0 raw \"file:$(pwd)/raw.bin\" --export disk1 raw \"file:$(pwd)/raw2.bin\"

A client that names no export gets the first one. SIGTERM and SIGINT end the server: it finishes
what is in flight, flushes, and exits with 0; with 3 if something acknowledged may not be durable,
with 4 if requests did not end within 30 seconds. A second signal ends it at once.";

/// `nbd-rs init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The size: bytes, or K M G T P with an optional i or iB (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: u64,
    /// Start an empty volume even where one exists. Its contents are lost.
    #[arg(long)]
    pub force: bool,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Offer a volume under a name (may be repeated).
    #[arg(
        long,
        num_args = 3,
        value_names = ["NAME", "DRIVER", "DRIVER_CFG"],
        required = true,
        action = clap::ArgAction::Append
    )]
    pub export: Vec<String>,
    /// Listen on HOST:PORT or unix:/path (may be repeated) [default: 127.0.0.1:10809].
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<Address>,
    /// Refuse every change.
    #[arg(long)]
    pub read_only: bool,
    /// Permissions of unix sockets, octal.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = parse_mode)]
    pub socket_mode: u32,
    /// Connections at the same time, at the most.
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    pub max_connections: usize,
    /// Memory for payloads in flight, of all connections together.
    #[arg(long, value_name = "SIZE", default_value = "512Mi", value_parser = parse_size)]
    pub memory: u64,
}

/// `nbd-rs destroy`.
#[derive(Debug, Args)]
pub struct Destroy {
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs info`.
#[derive(Debug, Args)]
pub struct Info {
    /// For scripts.
    #[arg(long)]
    pub json: bool,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs plugins`.
#[derive(Debug, Args)]
pub struct Plugins {
    /// What to do with them.
    #[arg(value_parser = ["list"], default_value = "list", hide_default_value = true)]
    pub action: String,
    /// For scripts.
    #[arg(long)]
    pub json: bool,
}

/// A volume: layout and location.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// The layout: raw.
    pub driver: String,
    /// Where the volume lives, such as file:/path or cache+retry+s3://bucket/prefix/.
    pub driver_cfg: String,
}

fn parse_size(text: &str) -> Result<u64, String> {
    options::size(text).map_err(|error| error.message.into())
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("must be an octal number up to 0777".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn an_export_takes_three_words_and_may_be_repeated() {
        let words = "nbd-rs serve --export a raw file:/x --export b raw file:/y --read-only";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        let Command::Serve(serve) = cli.command else {
            panic!("not serve");
        };
        assert_eq!(serve.export, ["a", "raw", "file:/x", "b", "raw", "file:/y"]);
        assert!(serve.read_only);
        let short = "nbd-rs serve --export a raw";
        assert!(Cli::try_parse_from(short.split(' ')).is_err());
    }
}
