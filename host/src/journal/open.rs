//! A start: the journal of the volume is found or made, what a crash left in it goes to the store,
//! and the volume hears where its writes wait from now on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use nbd_rs_journal::claim::Claim;
use nbd_rs_journal::disk::{Directory, Disk};
use nbd_rs_journal::error::Kind as JournalKind;
use nbd_rs_journal::uuid::Uuid;
use nbd_rs_journal::{Journal, Opened, Options};
use nbd_rs_plugin::options::display_size;
use tokio::sync::{watch, Notify};

use super::unshipped::Unshipped;
use super::{care, of_disk, place, Core, FlushTo, Journaled, Progress};
use crate::error::{Error, Kind, Result};
use crate::layout::ledger::{Entry, Ledger};
use crate::layout::Layout;
use crate::runtime;

/// Bytes of a journal's ring, if nothing else is said.
pub const RING_BYTES: u64 = 128 << 20;
/// The least and the most that may be asked for.
pub const RING_LIMITS: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;
/// A server that was shut out holds its journal until it notices, and has ended.
const SUCCESSION: Duration = Duration::from_secs(20);
/// Progress of a long start is told so often.
const TELL: Duration = Duration::from_secs(2);

/// Where writes are gathered, if they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// In the state directory, if there can be one.
    #[default]
    Default,
    /// In this directory.
    At(PathBuf),
    /// Nowhere: they go through.
    None,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let default;
        let path = match self {
            Place::At(path) => Some(path),
            Place::Default => {
                default = place::of_this_process();
                default.as_ref()
            }
            Place::None => None,
        };
        match path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("no directory"),
        }
    }
}

/// How a journal is opened.
#[derive(Debug, Clone)]
pub struct How {
    /// Where it is.
    pub place: Place,
    /// Bytes of its ring. A half of it is what may wait in memory.
    pub ring_bytes: u64,
    /// What a flush waits for.
    pub flush_to: FlushTo,
    /// Writes that wait in a journal that is not here are given up.
    pub accept_lost_writes: bool,
    /// The journal's file was moved here from another place or machine.
    pub moved: bool,
    /// The volume was taken from a server that may still live.
    pub takeover: bool,
    /// How long it has patience.
    pub timing: Timing,
}

/// How long things take at the most while the store, or the journal's disk, does not answer.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A flush.
    pub flush: Duration,
    /// To ship at the end what waits; where a flush does not wait for the store, to ship it after
    /// all.
    pub close: Duration,
    /// What was sent before the end, on top of that.
    pub sent: Duration,
    /// And then to give the volume back, where a flush does not wait for the store.
    pub give_back: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            flush: Duration::from_secs(30),
            close: Duration::from_secs(20),
            sent: Duration::from_secs(10),
            give_back: Duration::from_secs(10),
        }
    }
}

impl Default for How {
    fn default() -> Self {
        Self {
            place: Place::Default,
            ring_bytes: RING_BYTES,
            flush_to: FlushTo::Remote,
            accept_lost_writes: false,
            moved: false,
            takeover: false,
            timing: Timing::default(),
        }
    }
}

/// The disk that journals are on, and the machine that it belongs to.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) host: Uuid,
    pub(super) boot: Uuid,
}

impl Site {
    fn at(directory: &Path) -> Result<Self> {
        let disk = Directory::open(directory).map_err(of_disk)?;
        Ok(Self {
            host: place::machine(&*disk)?,
            boot: place::boot()?,
            disk,
        })
    }

    /// The one that is meant, if there can be one.
    fn of(place: &Place) -> Result<Option<Self>> {
        let directory = match place {
            Place::None => return Ok(None),
            Place::At(path) => return Self::at(path).map(Some),
            Place::Default => place::of_this_process(),
        };
        let unknown = || {
            Error::new(
                Kind::NotFound,
                "neither STATE_DIRECTORY nor HOME says where",
            )
        };
        let site = directory
            .ok_or_else(unknown)
            .and_then(|path| Self::at(&path));
        Ok(site.inspect_err(warn_of_none).ok())
    }
}

fn warn_of_none(why: &Error) {
    tracing::warn!("no journal, every write goes to the store before its answer: {why}");
}

/// Puts a journal before a volume, if it is open to write and its writes are worth gathering. The
/// volume is closed if that fails.
///
/// # Errors
/// [`Kind::NotFound`] if writes wait in a journal that is not here; [`Kind::Invalid`] or
/// [`Kind::Corrupt`] if the one that is here is not the one, or damaged; what keeps what is in it
/// from the store.
pub async fn open(volume: Arc<dyn Layout>, how: &How) -> Result<Arc<dyn Layout>> {
    let Some(ledger) = volume.ledger() else {
        if how.flush_to == FlushTo::Local {
            tracing::warn!("--flush local is for volumes with a journal: this one has none");
        }
        return Ok(volume);
    };
    let opened = match Site::of(&how.place) {
        Ok(Some(site)) => match open_at(&volume, ledger.clone(), how, &site).await {
            // A place that nobody chose, and no room there.
            Err(full) if full.kind == Kind::NoSpace && how.place == Place::Default => {
                warn_of_none(&full);
                without(&*ledger, how).await.map(|()| None)
            }
            opened => opened.map(Some),
        },
        Ok(None) => without(&*ledger, how).await.map(|()| None),
        Err(error) => Err(error),
    };
    match opened {
        Ok(Some(journaled)) => Ok(Arc::new(journaled)),
        Ok(None) => Ok(volume),
        Err(error) => {
            if let Err(error) = volume.close().await {
                tracing::warn!("the volume could not be given back: {error}");
            }
            Err(error)
        }
    }
}

/// The same with a journal at that site. A server that was shut out is given the time to end, and
/// what the volume says is asked again then.
pub(super) async fn open_at(
    volume: &Arc<dyn Layout>,
    ledger: Arc<dyn Ledger>,
    how: &How,
    site: &Site,
) -> Result<Journaled> {
    let end = Instant::now() + SUCCESSION;
    loop {
        let entry = ledger.read().await?;
        match open_file(&*ledger, entry.as_ref(), how, site).await {
            Ok(opened) => return start(volume, ledger, how, opened).await,
            Err(error) if error.kind == Kind::Busy && how.takeover && Instant::now() < end => {
                tracing::info!("waiting for the server that was shut out: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Serves without a journal: nothing may wait in one.
async fn without(ledger: &dyn Ledger, how: &How) -> Result<()> {
    if how.flush_to == FlushTo::Local {
        let text = "--flush local needs a journal: name a directory with --journal";
        return Err(Error::new(Kind::Invalid, text));
    }
    let Some(entry) = ledger.read().await? else {
        return Ok(());
    };
    if entry.ticket.passed_by {
        // It stays said: whoever serves with that journal again must not ask what is in it.
        return Ok(());
    }
    if !how.accept_lost_writes {
        return Err(elsewhere(&entry));
    }
    tracing::warn!("given up: writes that waited in {entry}");
    ledger.write(None).await
}

fn elsewhere(entry: &Entry) -> Error {
    Error::new(
        Kind::NotFound,
        format!(
            "acknowledged writes wait in {entry}: serve the volume there, or with that journal (--journal DIR), or give them up with --accept-lost-writes"
        ),
    )
}

async fn open_file(
    ledger: &dyn Ledger,
    entry: Option<&Entry>,
    how: &How,
    site: &Site,
) -> Result<Opened> {
    let claim = Claim {
        volume: ledger.volume(),
        host: site.host,
        boot: site.boot,
        epoch: ledger.epoch(),
        ticket: entry.map(|entry| entry.ticket),
        moved: how.moved,
    };
    let error = match open_with(claim, how, site).await {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    match (error.kind, entry) {
        (JournalKind::Missing, Some(entry)) if !how.accept_lost_writes => Err(elsewhere(entry)),
        (kind, _) if how.accept_lost_writes && is_given_up(kind) => {
            tracing::warn!("given up, with whatever waits there: {error}");
            nbd_rs_journal::discard(&*site.disk, claim.volume).map_err(of_disk)?;
            let claim = Claim {
                ticket: None,
                ..claim
            };
            open_with(claim, how, site).await.map_err(of_disk)
        }
        (JournalKind::InUse, _) => Err(Error::new(
            Kind::Busy,
            format!("{error}; it holds acknowledged writes of this volume: end that process first"),
        )),
        _ => Err(of_disk(advised(error, claim.volume, how))),
    }
}

/// Whether --accept-lost-writes is about that.
fn is_given_up(kind: JournalKind) -> bool {
    use JournalKind::{Foreign, Missing, Moved, Unknown};
    matches!(kind, Missing | Foreign | Moved | Unknown)
}

/// What can be done about a journal that is refused, in its error.
fn advised(
    error: nbd_rs_journal::error::Error,
    volume: Uuid,
    how: &How,
) -> nbd_rs_journal::error::Error {
    let directory = match &how.place {
        Place::At(path) => format!(" --journal {}", path.display()),
        Place::Default | Place::None => String::new(),
    };
    let discard = format!("nbd-rs journal discard{directory} --force {volume}");
    let advice = match error.kind {
        JournalKind::Moved => {
            format!("--journal-moved says that it was moved here, {discard} gives it up")
        }
        JournalKind::Unknown => {
            format!("what waits here is older than what was written since: {discard} gives it up, and so does --accept-lost-writes")
        }
        JournalKind::Foreign | JournalKind::Damaged => format!("{discard} gives it up"),
        JournalKind::NoSpace => {
            let size = display_size(how.ring_bytes);
            format!(
                "{} has no room for the {size} of --journal-size: make some, say less, or name \
                 another directory with --journal",
                how.place
            )
        }
        _ => return error,
    };
    nbd_rs_journal::error::Error {
        message: format!("{error} ({advice})"),
        ..error
    }
}

async fn open_with(claim: Claim, how: &How, site: &Site) -> nbd_rs_journal::error::Result<Opened> {
    let options = Options {
        ring_bytes: how.ring_bytes,
    };
    let disk = site.disk.clone();
    let opening = runtime::handle().spawn_blocking(move || Journal::open(disk, &claim, &options));
    // A panic in there is one of this program.
    opening.await.expect("opening a journal does not panic")
}

/// Says where writes wait, and ships what a crash left.
async fn start(
    volume: &Arc<dyn Layout>,
    ledger: Arc<dyn Ledger>,
    how: &How,
    opened: Opened,
) -> Result<Journaled> {
    let Opened {
        journal, records, ..
    } = opened;
    ledger.write(Some(journal.ticket())).await?;
    let shipped_seq = journal.last_seq() - records.len() as u64;
    let ring_bytes = journal.usage().ring_bytes;
    let unshipped = Unshipped::new(shipped_seq, ring_bytes / 2);
    let replayed = records.len();
    for record in records {
        unshipped.insert(record.seq, &record.changes);
    }
    let progress = Progress {
        stored_seq: shipped_seq,
        ..Progress::default()
    };
    let core = Arc::new(Core {
        volume: volume.clone(),
        ledger,
        journal,
        unshipped,
        flush_to: how.flush_to,
        timing: how.timing,
        progress: watch::Sender::new(progress),
        wake: Notify::new(),
        wanted_seq: AtomicU64::new(0),
        closing: AtomicBool::new(false),
        went_past: AtomicU64::new(0),
        past_flushed: AtomicU64::new(0),
        in_store_seq: AtomicU64::new(shipped_seq),
        refused_seq: AtomicU64::new(0),
        told: Mutex::new((Instant::now(), shipped_seq)),
        ring_bytes,
        rounds: AtomicU64::new(0),
        answers: AtomicU64::new(0),
        round: Arc::default(),
        sync_turn: Arc::default(),
        ahead_bytes: AtomicU64::new(0),
        order: RwLock::default(),
    });
    let journaled = Journaled::new(core.clone());
    if replayed > 0 {
        replay(&core, replayed).await?;
    }
    Ok(journaled)
}

/// What a crash left goes to the store before anything is served.
async fn replay(core: &Arc<Core>, records: usize) -> Result<()> {
    let kib = core.unshipped.bytes().div_ceil(1024);
    tracing::info!("replaying the journal: {records} records, {kib} KiB");
    let shipped = core.stored(core.journal.last_seq());
    let mut shipped = std::pin::pin!(shipped);
    loop {
        match runtime::timeout(TELL, shipped.as_mut()).await {
            Ok(Ok(())) => break,
            // What lies there refuses them: they stay where they are, and flushes say so. On a full
            // store it is the volume's own clients who can make room.
            Ok(Err(error)) if care::is_final(&error) || error.kind == Kind::NoSpace => {
                tracing::error!("the store refuses a part of the journal: {error}");
                return Ok(());
            }
            Ok(Err(error)) => {
                return Err(error.context("the journal can't be replayed"));
            }
            Err(_) => {
                let kib = core.unshipped.bytes().div_ceil(1024);
                tracing::info!("replaying the journal: {kib} KiB left");
            }
        }
    }
    tracing::info!("the journal was replayed");
    Ok(())
}
