//! What was typed. No file and no socket is touched here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nbd_rs_plugin::options::{self, display_size};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::journal::open::RING_LIMITS;
use crate::journal::FlushTo;
use crate::serve::listen::Address;

/// A Network Block Device server whose storage backends are plugins.
#[derive(Debug, Parser)]
#[command(
    name = "nbd-rs",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = HELP
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where plugins are looked for and what is logged.
    #[command(flatten)]
    pub common: Common,
}

const HELP: &str = "\
Example:
  nbd-rs init --size 100Mi raw \"file:$(pwd)/raw.bin\"
  nbd-rs serve --export disk0 raw \"file:$(pwd)/raw.bin\"

Exit codes:
  0  done; of serve: stopped, and everything acknowledged is durable
  1  it failed; the last line on standard error says why
  2  the command line is wrong; nothing was opened or changed
  3  serve: something acknowledged may not be durable
  4  serve: requests did not end within 30 seconds
  5  check, scrub: data is lost; journal verify: a journal is damaged; plugins check: a promise is broken
  6  check, scrub, resync, replace-backend: no data is lost, and there is something to repair
  75 serve: another server took a volume over
  128 + the signal's number: serve was told to stop before it was ready, or twice";

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
    #[arg(long, value_name = "FILTER", global = true, value_parser = parse_filter)]
    pub log: Option<Filter>,
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
    /// Compare a volume with its objects; nothing is changed.
    #[command(after_help = CHECK_HELP)]
    Check(Check),
    /// Say how the backends of a distributed volume stand, also while it is served.
    Status(Status),
    /// Compare all copies of a distributed volume that is not being served, and mend them.
    #[command(after_help = SCRUB_HELP)]
    Scrub(Scrub),
    /// Make one backend of a distributed volume a full copy again, also one that was emptied.
    Resync(Resync),
    /// Put another backend in the place of one that is broken or to be given up.
    #[command(after_help = REPLACE_HELP)]
    ReplaceBackend(Replace),
    /// Shut out whoever serves a volume, without serving it. That server exits with 75.
    Takeover(Takeover),
    /// Grow a volume that is not being served.
    #[command(after_help = "Example: nbd-rs resize --size 200Gi sharded s3://bucket/prefix/")]
    Resize(Resize),
    /// Look at journals: acknowledged writes that the store does not have yet.
    Journal(Journal),
    /// List the plugins that were found; check one; begin one.
    Plugins(Plugins),
}

const SERVE_HELP: &str = "\
Example:
  nbd-rs serve --export disk0 raw \"file:$(pwd)/raw.bin\" --export disk1 raw \"file:$(pwd)/raw2.bin\"

A client that names no export gets the first one. SIGTERM and SIGINT end the server: it finishes
what is in flight, flushes, and exits with 0; with 3 if something acknowledged may not be durable,
with 4 if requests did not end within 30 seconds. A second signal ends it at once.";

const CHECK_HELP: &str = "\
Findings:
  missing  an object that was written is gone: its data is lost
  damaged  an object is not as it was put: data is lost
  orphan   a leftover of a shard that reads as zeros: harmless
  foreign  an object under the volume's name that is none of its own: harmless

Exits with 0 if no data is lost, with 5 if some is, and with 1 if that can't be found out. While the
volume is served, a finding may be a change that is going on.";

const SCRUB_HELP: &str = "\
Exits with 0 if every copy is as it should be or was put anew, with 6 if copies are missing or damaged and
no data is lost, with 5 if data is lost (its places are listed), and with 1 if that can't be found out, or
it was told to stop; then it says how to go on.";

const REPLACE_HELP: &str = "\
Example:
  nbd-rs replace-backend file:/mnt/old/ file:/mnt/new/ distributed \"replicas=3;backends=...;\"

The list is the one with the old backend, which need not answer; all others have to. From then on the
volume is typed with the new one in its place. What is interrupted is gone on with by nbd-rs resync.";

/// How much is compared, and how fast.
#[derive(Debug, Args)]
pub struct Effort {
    /// Read every copy and compare it with its checksums.
    #[arg(long)]
    pub deep: bool,
    /// Read so many bytes a second at the most.
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub rate: Option<u64>,
    /// Go on behind so many objects.
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "0",
        hide_default_value = true
    )]
    pub from: u64,
    /// For scripts.
    #[arg(long)]
    pub json: bool,
}

/// `nbd-rs status`.
#[derive(Debug, Args)]
pub struct Status {
    /// For scripts.
    #[arg(long)]
    pub json: bool,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs scrub`.
#[derive(Debug, Args)]
pub struct Scrub {
    /// Put copies anew that are missing, and with --deep those that are damaged.
    #[arg(long)]
    pub repair: bool,
    /// How much.
    #[command(flatten)]
    pub effort: Effort,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs resync`.
#[derive(Debug, Args)]
pub struct Resync {
    /// How much.
    #[command(flatten)]
    pub effort: Effort,
    /// The backend, as it stands in the list.
    pub backend: String,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs replace-backend`.
#[derive(Debug, Args)]
pub struct Replace {
    /// How much.
    #[command(flatten)]
    pub effort: Effort,
    /// The backend that goes, as it stands in the list.
    pub old: String,
    /// The one that comes.
    pub new: String,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs takeover`.
#[derive(Debug, Args)]
pub struct Takeover {
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The size: bytes, or K M G T P with an optional i or iB (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = parse_volume_size, allow_hyphen_values = true)]
    pub size: u64,
    /// The size of its shards, where it has some, a power of two from 64Ki to 64Mi [default: 4Mi].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub shard_size: Option<u64>,
    /// Start an empty volume even where one exists. Its contents are lost.
    #[arg(long)]
    pub force: bool,
    /// The journal of one that is replaced goes with it.
    #[command(flatten)]
    pub directory: JournalDir,
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
    /// Serve volumes even if another server has them; that server is shut out and exits with 75.
    /// Not for raw.
    #[arg(long, conflicts_with = "read_only")]
    pub takeover: bool,
    /// How acknowledged writes are kept until the store has them.
    #[command(flatten)]
    pub gather: Gather,
    /// Permissions of unix sockets, octal.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = parse_mode)]
    pub socket_mode: u32,
    /// Connections at the same time, at the most.
    #[arg(long, value_name = "COUNT", default_value = "4096", value_parser = parse_connections)]
    pub max_connections: usize,
    /// Memory for payloads in flight, of all connections together; at least 64Mi.
    #[arg(long, value_name = "SIZE", default_value = "512Mi", value_parser = parse_memory)]
    pub memory: u64,
}

/// Where acknowledged writes wait until the store has them.
#[derive(Debug, Args)]
pub struct Gather {
    /// Keep acknowledged writes in a journal in this directory until the store has them
    /// [default: in the state directory]. Not for raw.
    #[arg(long, value_name = "DIR")]
    pub journal: Option<PathBuf>,
    /// Have every write in the store before it is acknowledged.
    #[arg(long, conflicts_with = "journal")]
    pub no_journal: bool,
    /// The journal's size; half of it is what may wait in memory.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "128Mi",
        value_parser = parse_journal_size,
        conflicts_with = "no_journal"
    )]
    pub journal_size: u64,
    /// What a flush waits for: the store (remote), or this machine's disk (local).
    #[arg(long, value_name = "WHAT", default_value = "remote", value_parser = parse_flush)]
    pub flush: FlushTo,
    /// Give up acknowledged writes that wait in a journal that is not here.
    #[arg(long)]
    pub accept_lost_writes: bool,
    /// The journal was moved here from another machine or place, and the first one is gone.
    #[arg(long, conflicts_with = "no_journal")]
    pub journal_moved: bool,
}

/// `nbd-rs journal`.
#[derive(Debug, Args)]
#[command(after_help = JOURNAL_HELP)]
pub struct Journal {
    /// What to do.
    #[command(subcommand)]
    pub command: JournalCommand,
}

const JOURNAL_HELP: &str = "\
Examples:
  nbd-rs journal verify
  nbd-rs journal replay sharded cache+retry+s3://bucket/prefix/
  nbd-rs journal discard 5f0c1e52-0d5c-4f5e-9c0a-3f5f7e1f0a11

verify exits with 5 if a journal is damaged.";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Check every byte of all journals, or of one volume's; nothing is changed.
    Verify(JournalVerify),
    /// Send what waits in a volume's journal to its store, without serving the volume.
    Replay(JournalReplay),
    /// Remove a volume's journal.
    Discard(JournalDiscard),
}

/// `nbd-rs journal verify`.
#[derive(Debug, Args)]
pub struct JournalVerify {
    /// Which directory.
    #[command(flatten)]
    pub directory: JournalDir,
    /// For scripts.
    #[arg(long)]
    pub json: bool,
    /// The volume's identity [default: all that are there].
    pub uuid: Option<String>,
}

/// `nbd-rs journal replay`.
#[derive(Debug, Args)]
pub struct JournalReplay {
    /// Which directory.
    #[command(flatten)]
    pub directory: JournalDir,
    /// The journal was moved here from another machine or place, and the first one is gone.
    #[arg(long = "journal-moved")]
    pub moved: bool,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs journal discard`.
#[derive(Debug, Args)]
pub struct JournalDiscard {
    /// Which directory.
    #[command(flatten)]
    pub directory: JournalDir,
    /// Also if acknowledged writes wait in it: they are lost.
    #[arg(long)]
    pub force: bool,
    /// The volume's identity, as nbd-rs info shows it.
    pub uuid: String,
}

/// The directory of journals.
#[derive(Debug, Args)]
pub struct JournalDir {
    /// The directory of journals [default: in the state directory].
    #[arg(long, value_name = "DIR")]
    pub journal: Option<PathBuf>,
}

/// `nbd-rs destroy`.
#[derive(Debug, Args)]
pub struct Destroy {
    /// Its journal goes with it.
    #[command(flatten)]
    pub directory: JournalDir,
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

/// `nbd-rs check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Read every shard and compare it with its checksums.
    #[arg(long)]
    pub deep: bool,
    /// Make lost records again from what is there, while nobody serves the volume; shards of which
    /// nobody can say what they held read as errors, never as zeros.
    #[arg(long)]
    pub repair: bool,
    /// For scripts.
    #[arg(long)]
    pub json: bool,
    /// Writes that wait in its journal are told.
    #[command(flatten)]
    pub directory: JournalDir,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs resize`.
#[derive(Debug, Args)]
pub struct Resize {
    /// The new size, larger than the old one.
    #[arg(long, value_name = "SIZE", value_parser = parse_volume_size, allow_hyphen_values = true)]
    pub size: u64,
    /// The volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `nbd-rs plugins`.
#[derive(Debug, Args)]
#[command(after_help = PLUGINS_HELP)]
pub struct Plugins {
    /// What to do with them [default: list].
    #[command(subcommand)]
    pub command: Option<PluginsCommand>,
    /// For scripts.
    #[arg(long, global = true)]
    pub json: bool,
}

const PLUGINS_HELP: &str = "\
Examples:
  nbd-rs plugins
  nbd-rs plugins new myfs
  nbd-rs plugins check target/release/libmyfs.so myfs:
  nbd-rs plugins check target/release/libmylink.so mylink+mem:

check exits with 5 if the plugin breaks a promise.";

/// Its commands.
#[derive(Debug, Subcommand)]
pub enum PluginsCommand {
    /// List the plugins that were found, and what was refused and why.
    List,
    /// Run a plugin through the conformance suite: does it keep what the interface promises?
    #[command(after_help = PLUGINS_CHECK_HELP)]
    Check(PluginsCheck),
    /// Write the source of a new plugin: a crate that builds, conforms, and can be served.
    #[command(
        after_help = "Examples:\n  nbd-rs plugins new myfs\n  nbd-rs plugins new --link mylink"
    )]
    New(PluginsNew),
}

const PLUGINS_CHECK_HELP: &str = "\
Examples:
  nbd-rs plugins check libmyfs.so myfs:/scratch/
  nbd-rs plugins check libmylink.so mylink+mem:?mylink.size=1Mi
  nbd-rs plugins check --single libmyfs.so myfs:/scratch.img

FILE must serve the first scheme of LOCATION. All that is made there has names that begin with
nbd-rs-check/; with --single the object itself is written over. What was left of a check that
failed is left.";

/// `nbd-rs plugins check`.
#[derive(Debug, Args)]
pub struct PluginsCheck {
    /// The plugin: a shared library.
    pub file: PathBuf,
    /// A place to try it on, such as myfs:/scratch/ or mylink+mem:
    #[arg(value_name = "LOCATION")]
    pub location: String,
    /// The location is one object, as for the raw layout. Without --read-only what it holds is lost.
    #[arg(long)]
    pub single: bool,
    /// Open it without writing.
    #[arg(long)]
    pub read_only: bool,
    /// Run these checks alone (may be repeated).
    #[arg(long, value_name = "CHECK")]
    pub only: Vec<String>,
    /// Of all that is random.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// A check that takes longer has failed.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub limit: Duration,
}

/// `nbd-rs plugins new`.
#[derive(Debug, Args)]
pub struct PluginsNew {
    /// Its name, which is its scheme and the crate's name: a letter, then a-z, 0-9 and -.
    pub name: String,
    /// A link, which stands before another backend; else a store.
    #[arg(long)]
    pub link: bool,
    /// Where to write it [default: NAME in the working directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The plugin-api of a checkout, to build against; else the published one.
    #[arg(long, value_name = "DIR")]
    pub plugin_api: Option<PathBuf>,
}

/// A volume: layout and location.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// The layout: raw, sharded or distributed.
    pub driver: String,
    /// Where the volume lives, such as file:/path or cache+retry+s3://bucket/prefix/; of a distributed
    /// one "replicas=3;backends=URL,URL,URL;".
    pub driver_cfg: String,
}

/// Smallest memory budget that keeps the largest payloads going, in bytes.
const MIN_MEMORY_BYTES: u64 = 64 << 20;

fn parse_size(text: &str) -> Result<u64, String> {
    options::size(text).map_err(|error| error.message.into())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    options::duration(text).map_err(|error| error.message.into())
}

fn parse_journal_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes if RING_LIMITS.contains(&bytes) => Ok(bytes.next_multiple_of(4096)),
        _ => Err(format!(
            "must be from {} to {}",
            display_size(*RING_LIMITS.start()),
            display_size(*RING_LIMITS.end())
        )),
    }
}

fn parse_flush(text: &str) -> Result<FlushTo, String> {
    match text {
        "remote" => Ok(FlushTo::Remote),
        "local" => Ok(FlushTo::Local),
        _ => Err("must be remote or local".to_owned()),
    }
}

fn parse_volume_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("a volume needs a size, such as 100Mi".to_owned()),
        bytes => Ok(bytes),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes if bytes >= MIN_MEMORY_BYTES => Ok(bytes),
        _ => Err(format!(
            "must be at least {}",
            display_size(MIN_MEMORY_BYTES)
        )),
    }
}

fn parse_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("must be a number from 1 on".to_owned()),
    }
}

/// What to log, checked.
#[derive(Debug, Clone)]
pub struct Filter(String);

impl From<&Filter> for EnvFilter {
    fn from(filter: &Filter) -> Self {
        EnvFilter::new(&filter.0)
    }
}

/// A level, or filters with an `=`: a lone word that is no level would filter everything out.
fn parse_filter(text: &str) -> Result<Filter, String> {
    let known = |part: &str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    match EnvFilter::builder().parse(text) {
        Ok(_) if text.split(',').all(known) => Ok(Filter(text.to_owned())),
        _ => Err(
            "must be error, warn, info, debug, trace, or filters such as info,plugin=debug"
                .to_owned(),
        ),
    }
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
