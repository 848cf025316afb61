//! `nbd-rs serve`: volumes are opened, clients let in, and the end awaited.

use std::process::ExitCode;
use std::sync::Arc;

use nbd_rs_plugin::options::display_size;
use percent_encoding::{percent_encode, utf8_percent_encode, AsciiSet, NON_ALPHANUMERIC};
use tokio::signal::unix::{signal, Signal, SignalKind};

use super::args::Serve;
use super::info::access;
use super::{say, volume, Done, Trouble};
use crate::error::{quoted as named, Error, Kind, Result};
use crate::export::Export;
use crate::journal::open::{How, Place};
use crate::journal::{self, FlushTo};
use crate::layout::open::{Access, Volume};
use crate::layout::Layout;
use crate::nbd::options::Exports;
use crate::nbd::wire::constants::MAX_STRING_BYTES;
use crate::plugin::Registry;
use crate::runtime;
use crate::serve::listen::{Address, Listener};
use crate::serve::shared::Limits;
use crate::serve::{self, Server};

const DEFAULT_ADDRESS: &str = "127.0.0.1:10809";
/// Exit code: something acknowledged may not be durable.
const NOT_FLUSHED: u8 = 3;
/// Exit code: requests in flight did not come to their end.
const NOT_FINISHED: u8 = 4;
/// Exit code of one that a signal ended, but for the signal's number.
const SIGNALLED: u8 = 128;
/// Exit code: another server took a volume over (EX_TEMPFAIL of sysexits.h).
const TAKEN_OVER: u8 = 75;
/// What a write beyond the file-size limit raises; without a handler it kills.
const SIGXFSZ: i32 = 25;

/// Serves until a signal comes.
pub(super) fn run(args: Serve, registry: &Registry) -> Done<ExitCode> {
    if args.gather.no_journal && args.gather.flush == FlushTo::Local {
        let text = "--flush local waits for the journal, and --no-journal leaves it out";
        return Err(Trouble::Wrong(Error::new(Kind::Invalid, text)));
    }
    let asked = understand(&args.export, args.read_only, registry)?;
    let mut signals = runtime::block_on(async { Signals::catch() })?;
    let how = gathering(&args);
    let mut addresses = args.listen;
    if addresses.is_empty() {
        addresses.push(DEFAULT_ADDRESS.parse()?);
    }
    // The doors come first: somebody else's server there is noticed before a volume is locked.
    let bind = |address: &Address| Listener::bind(address, args.socket_mode);
    let listeners: Vec<Listener> = addresses.iter().map(bind).collect::<Result<_>>()?;
    let access = Access::serving(args.read_only, args.takeover);
    let mut exports = Exports::default();
    let opened = runtime::block_on(async {
        tokio::select! {
            opened = open_exports(asked, access, &how, registry, &mut exports) => Ok(opened),
            signal = signals.next() => Err(signal),
        }
    });
    let ended_early = match opened {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Err(error.into())),
        Err((number, name)) => {
            tracing::info!("{name}: ending before the server is ready");
            Some(Ok(ExitCode::from(SIGNALLED + number)))
        }
    };
    if let Some(ended) = ended_early {
        give_back(signals, &exports);
        return ended;
    }
    announce(&listeners, &exports);
    let limits = Limits {
        connections: args.max_connections,
        memory_bytes: args.memory,
    };
    let all = exports.0.clone();
    let server = Server::start(listeners, exports, limits)?;
    say("ready");
    let lost = runtime::block_on(async {
        tokio::select! {
            (_, name) = signals.next() => {
                tracing::info!("{name}: finishing what is in flight");
                false
            }
            (name, error) = lost(&all) => {
                tracing::error!("export {name}: {error}; ending");
                true
            }
        }
    });
    end_at_once_if_told(signals);
    let code = judge(server);
    Ok(match lost {
        true => ExitCode::from(TAKEN_OVER),
        false => code,
    })
}

/// From now on a signal ends the process whatever it is at.
fn end_at_once_if_told(mut signals: Signals) {
    runtime::handle().spawn(async move {
        let (number, name) = signals.next().await;
        tracing::warn!("{name}: ending at once");
        // What was acknowledged is with the kernel: only the last flush is left out.
        std::process::exit(i32::from(SIGNALLED + number));
    });
}

/// A start that came to nothing leaves no volume taken. No client was there: nothing can be lost.
fn give_back(signals: Signals, exports: &Exports) {
    end_at_once_if_told(signals);
    // Whatever failed has been told.
    let _ = runtime::block_on(serve::close(&exports.0));
}

/// Waits until a volume may not be served any longer.
async fn lost(exports: &[Arc<Export>]) -> (String, Error) {
    let each = exports
        .iter()
        .map(|export| Box::pin(async move { (named(&export.name, 80), export.lost().await) }));
    futures_util::future::select_all(each).await.0
}

/// Stops the server; the exit code tells how that went.
fn judge(server: Server) -> ExitCode {
    let ending = server.stop();
    if ending.flushed.is_err() {
        tracing::error!("something acknowledged may not be durable");
        return ExitCode::from(NOT_FLUSHED);
    }
    if ending.unfinished > 0 {
        tracing::error!("{} connections did not end in time", ending.unfinished);
        return ExitCode::from(NOT_FINISHED);
    }
    tracing::info!("flushed, good bye");
    ExitCode::SUCCESS
}

/// Names and volumes, before any of them is opened.
fn understand(
    words: &[String],
    read_only: bool,
    registry: &Registry,
) -> Done<Vec<(String, Volume)>> {
    let mut asked: Vec<(String, Volume)> = Vec::new();
    let wrong = |text: String| Trouble::Wrong(Error::new(Kind::Invalid, text));
    for three in words.chunks_exact(3) {
        let [name, driver, config] = three else {
            continue;
        };
        let shown = named(name, 80);
        if name.len() > MAX_STRING_BYTES {
            let text = format!("the export name {shown} is longer than {MAX_STRING_BYTES} bytes");
            return Err(wrong(text));
        }
        let volume = volume::parse(driver, config, registry)?;
        for (other, has) in &asked {
            if other == name {
                return Err(wrong(format!("two exports are named {shown}")));
            }
            if !read_only && has.to_string() == volume.to_string() {
                let other = named(other, 80);
                return Err(wrong(format!(
                    "exports {other} and {shown} are the same volume, {volume}: \
                     one writer is all it can have"
                )));
            }
        }
        asked.push((name.clone(), volume));
    }
    Ok(asked)
}

/// How writes are gathered.
fn gathering(args: &Serve) -> How {
    let gather = &args.gather;
    How {
        place: match &gather.journal {
            _ if gather.no_journal => Place::None,
            Some(path) => Place::At(path.clone()),
            None => Place::Default,
        },
        ring_bytes: gather.journal_size,
        flush_to: gather.flush,
        accept_lost_writes: gather.accept_lost_writes,
        moved: gather.journal_moved,
        takeover: args.takeover,
        ..How::default()
    }
}

async fn open_exports(
    asked: Vec<(String, Volume)>,
    access: Access,
    how: &How,
    registry: &Registry,
    exports: &mut Exports,
) -> Result<()> {
    for (name, volume) in asked {
        let shown = named(&name, 80);
        let opened = async {
            let layout = volume::open(&volume, registry, access).await?;
            warn_of_no_journal(&shown, &*layout, how);
            journal::open::open(layout, how).await
        };
        let layout = opened
            .await
            .map_err(|error| error.context(format_args!("export {shown}")))?;
        volume::warn_of_size(&volume, layout.size());
        let export = Export::new(name, volume.to_string(), layout, access == Access::ReadOnly);
        exports.0.push(Arc::new(export));
    }
    Ok(())
}

/// A journal was asked for, and this volume has none.
fn warn_of_no_journal(shown: &str, layout: &dyn Layout, how: &How) {
    if matches!(how.place, Place::At(_)) && layout.ledger().is_none() {
        tracing::warn!(
            "export {shown}: --journal is not used: only volumes whose shards are put as whole \
             objects have a journal, and only if they are written"
        );
    }
}

/// What is served, and how to attach a client.
fn announce(listeners: &[Listener], exports: &Exports) {
    for export in &exports.0 {
        let name = named(&export.name, 80);
        let size = display_size(export.size());
        let mode = access(export);
        let volume = &export.description;
        say(format_args!(
            "export {name}: {size}, {mode}, {volume}; a flush is {}",
            export.flush_means()
        ));
    }
    for listener in listeners {
        say(format_args!("listening on {}", listener.address));
    }
    if let (Some(listener), Some(export)) = (listeners.first(), exports.0.first()) {
        say("to attach a client:");
        for line in attach_lines(&listener.address, &export.name) {
            say(format_args!("  {line}"));
        }
    }
}

/// What needs no escape in a URL, and means nothing to a shell or to qemu.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/');

/// A word as a shell takes it, also when it holds control characters.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    if !word.contains(char::is_control) {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    let bytes = word.bytes().map(|byte| format!("\\x{byte:02x}"));
    format!("$'{}'", bytes.collect::<String>())
}

/// The lines that attach common clients to an export.
fn attach_lines(address: &Address, name: &str) -> Vec<String> {
    let escaped = utf8_percent_encode(name, ESCAPED);
    match address {
        Address::Tcp(address) => {
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "10809"));
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let url = format!("nbd://{address}/{escaped}");
            vec![
                format!("qemu-system-x86_64 -drive file={url},format=raw ..."),
                format!("nbd-client -N {} {host} {port} /dev/nbd0", quoted(name)),
                format!("nbdcopy {url} copy.img"),
            ]
        }
        Address::Unix(path) => {
            let (name, path) = (quoted(name), path.as_os_str());
            let socket = percent_encode(path.as_encoded_bytes(), ESCAPED);
            let path = quoted(&path.to_string_lossy());
            let url = format!("nbd+unix:///{escaped}?socket={socket}");
            vec![
                format!("qemu-system-x86_64 -drive 'file={url},format=raw' ..."),
                format!("nbd-client -N {name} -unix {path} /dev/nbd0"),
                format!("nbdcopy '{url}' copy.img"),
            ]
        }
    }
}

/// The signals that end the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Caught so that a write beyond the file-size limit is an error and not the end.
    _file_size: Signal,
}

impl Signals {
    fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).map_err(|error| Error::os(&error, "catching signals"));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            _file_size: catch(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// Number and name of the next one.
    async fn next(&mut self) -> (u8, &'static str) {
        tokio::select! {
            _ = self.terminate.recv() => (15, "SIGTERM"),
            _ = self.interrupt.recv() => (2, "SIGINT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attach_lines_quote_what_needs_it() {
        let lines = attach_lines(&Address::Tcp("127.0.0.1:10809".into()), "my disk");
        let nbd_client = "nbd-client -N 'my disk' 127.0.0.1 10809 /dev/nbd0";
        assert_eq!(lines[1], nbd_client);
        assert_eq!(lines[2], "nbdcopy nbd://127.0.0.1:10809/my%20disk copy.img");
        let lines = attach_lines(&Address::Tcp("[::1]:1".into()), "a/b");
        assert_eq!(lines[1], "nbd-client -N a/b ::1 1 /dev/nbd0");
        assert_eq!(lines[2], "nbdcopy nbd://[::1]:1/a/b copy.img");
        let lines = attach_lines(&Address::Unix("/run/a b,c".into()), "it's\x1b");
        assert_eq!(
            lines[0],
            "qemu-system-x86_64 -drive \
             'file=nbd+unix:///it%27s%1B?socket=/run/a%20b%2Cc,format=raw' ..."
        );
        let nbd_client = r"nbd-client -N $'\x69\x74\x27\x73\x1b' -unix '/run/a b,c' /dev/nbd0";
        assert_eq!(lines[1], nbd_client);
    }
}
