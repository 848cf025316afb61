//! `nbd-rs journal`: what waits in journals, sending it, giving it up.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nbd_rs_plugin::options::display_size;
use serde_json::json;

use super::args::{
    Journal, JournalCommand, JournalDir, JournalDiscard, JournalReplay, JournalVerify,
};
use super::{say, volume, Done, Trouble};
use crate::error::{Error, Kind, Result};
use crate::journal::manage::{self, Uuid, Verified};
use crate::journal::open::{How, Place};
use crate::journal::{self, place};
use crate::layout::open::{Access, Ask, Volume};
use crate::layout::Layout;
use crate::plugin::Registry;
use crate::runtime;

/// Exit code: data is lost.
const DAMAGED: u8 = 5;

/// Runs one of its commands.
pub(super) fn run(args: &Journal, registry: &Registry) -> Done<ExitCode> {
    match &args.command {
        JournalCommand::Verify(args) => verify(args),
        JournalCommand::Replay(args) => replay(args, registry).map(|()| ExitCode::SUCCESS),
        JournalCommand::Discard(args) => discard(args).map(|()| ExitCode::SUCCESS),
    }
}

/// The directory that was named, or the one in the state directory.
fn directory(named: &JournalDir) -> Done<PathBuf> {
    named.path().ok_or_else(|| {
        let text = "neither STATE_DIRECTORY nor HOME says where journals are: say --journal DIR";
        Trouble::Wrong(Error::new(Kind::Invalid, text))
    })
}

fn volume_of(text: &str) -> Done<Uuid> {
    Uuid::parse(text).ok_or_else(|| {
        let text = "a volume is named by its uuid here, as nbd-rs info shows it";
        Trouble::Wrong(Error::new(Kind::Invalid, text))
    })
}

fn verify(args: &JournalVerify) -> Done<ExitCode> {
    let directory = directory(&args.directory)?;
    let volume = args.uuid.as_deref().map(volume_of).transpose()?;
    let verified = manage::verify(&directory, volume)?;
    if let Some(volume) = volume.filter(|_| verified.is_empty()) {
        let text = format!("no journal of volume {volume} in {}", directory.display());
        return Err(Error::new(Kind::NotFound, text).into());
    }
    if args.json {
        let all: Vec<serde_json::Value> = verified.iter().map(as_json).collect();
        say(format_args!("{:#}", json!(all)));
    } else {
        if verified.is_empty() {
            say(format_args!("no journal in {}", directory.display()));
        }
        verified.iter().for_each(|verified| say(as_text(verified)));
    }
    judge(verified)
}

/// The exit code: a journal that can't be read is one that is damaged, or an error of its own; one
/// that is in use is neither.
fn judge(verified: Vec<Verified>) -> Done<ExitCode> {
    let errors = verified
        .into_iter()
        .filter_map(|verified| verified.found.err());
    let errors: Vec<Error> = errors.filter(|error| error.kind != Kind::Busy).collect();
    if errors.iter().any(|error| error.kind == Kind::Corrupt) {
        return Ok(ExitCode::from(DAMAGED));
    }
    match errors.into_iter().next() {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn as_json(Verified { volume, found }: &Verified) -> serde_json::Value {
    let mut json = json!({ "volume": volume.to_string() });
    match found {
        Ok(found) => {
            json["journal"] = json!(found.superblock.journal.to_string());
            json["epoch"] = json!(found.superblock.epoch);
            json["closed"] = json!(!found.superblock.open);
            json["records"] = json!(found.records);
            json["bytes"] = json!(found.bytes);
            json["ring_bytes"] = json!(found.superblock.ring_bytes);
            json["last_record"] = json!(found.last_seq);
        }
        Err(error) => json["error"] = json!(error.to_string()),
    }
    json
}

fn as_text(Verified { volume, found }: &Verified) -> String {
    let found = match found {
        Ok(found) => found,
        Err(error) => return format!("volume {volume}: {error}"),
    };
    let end = match found.superblock.open {
        true => "left open",
        false => "closed",
    };
    let waits = match found.records {
        0 => "nothing waits".to_owned(),
        records => format!("{records} records wait ({})", display_size(found.bytes)),
    };
    let ring = display_size(found.superblock.ring_bytes);
    let journal = found.superblock.journal;
    format!("volume {volume}: {waits}; journal {journal} of {ring}, whole, {end}")
}

/// Opens the volume as a server would, which sends everything, and gives it back. Where nothing can
/// wait no journal is made for it.
fn replay(args: &JournalReplay, registry: &Registry) -> Done<()> {
    let volume = volume::asked(&args.volume, Ask::Replay, registry)?;
    let how = How {
        place: args.directory.place(),
        moved: args.moved,
        ..How::default()
    };
    let layout = runtime::block_on(volume::open(&volume, registry, Access::ReadWrite))?;
    let directory = args.directory.path();
    runtime::block_on(async {
        let layout = match may_wait(&*layout, directory.as_deref()).await {
            Ok(true) => journal::open::open(layout, &how).await?,
            Ok(false) => layout,
            Err(error) => {
                layout.close().await?;
                return Err(error);
            }
        };
        layout.flush().await?;
        layout.close().await
    })?;
    say(format_args!("{volume}: nothing waits in a journal"));
    Ok(())
}

/// Whether writes of a volume may wait anywhere: it says so, or it has a journal here.
async fn may_wait(volume: &dyn Layout, directory: Option<&Path>) -> Result<bool> {
    let Some(ledger) = volume.ledger() else {
        return Ok(false);
    };
    if ledger.read().await?.is_some() {
        return Ok(true);
    }
    let Some(directory) = directory else {
        return Ok(false);
    };
    manage::exists(directory, Uuid(ledger.volume().0))
}

fn discard(args: &JournalDiscard) -> Done<()> {
    let directory = directory(&args.directory)?;
    let volume = volume_of(&args.uuid)?;
    let verified = manage::verify(&directory, Some(volume))?;
    for Verified { found, .. } in verified {
        let what = match found {
            Err(error) if error.kind == Kind::Busy => return Err(error.into()),
            Ok(found) if found.records == 0 => continue,
            Ok(found) => format!("{} acknowledged writes wait in it", found.records),
            Err(error) => format!("nobody can say what waits in it ({error})"),
        };
        if !args.force {
            let text = format!("{what}: --force gives them up");
            return Err(Error::new(Kind::Invalid, text).into());
        }
    }
    match manage::discard(&directory, volume)? {
        true => say(format_args!("the journal of volume {volume} is gone")),
        false => say(format_args!("volume {volume} has no journal here")),
    }
    Ok(())
}

impl JournalDir {
    /// Which one it is, if there can be one.
    fn path(&self) -> Option<PathBuf> {
        self.journal.clone().or_else(place::of_this_process)
    }

    pub(super) fn place(&self) -> Place {
        match &self.journal {
            Some(path) => Place::At(path.clone()),
            None => Place::Default,
        }
    }

    /// What is here of the journal of a volume, if there is one.
    pub(super) fn look(&self, volume: Uuid) -> Option<(PathBuf, Verified)> {
        let directory = self.journal.clone().or_else(place::of_this_process);
        let directory = directory.filter(|path| path.is_dir())?;
        let found = match manage::verify(&directory, Some(volume)) {
            Ok(verified) => verified.into_iter().next()?,
            Err(error) => Verified {
                volume,
                found: Err(error),
            },
        };
        Some((directory, found))
    }

    /// Removes what is here of the journal of a volume that is gone.
    pub(super) fn forget(&self, volume: Option<Uuid>) {
        let directory = self.path().filter(|path| path.is_dir());
        let (Some(volume), Some(directory)) = (volume, directory) else {
            return;
        };
        if let Err(error) = manage::discard(&directory, volume) {
            tracing::warn!("the journal of volume {volume} was not removed: {error}");
        }
    }
}

/// The identity of a volume, if it has one.
pub(super) fn identity(volume: &Volume, registry: &Registry) -> Option<Uuid> {
    let facts = runtime::block_on(volume.facts(registry)).ok()??;
    Some(Uuid(facts.uuid().0))
}
