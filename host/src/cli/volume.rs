//! Volumes by what was typed: understood, made, removed, and what to say when that fails.

use nbd_rs_plugin::options::display_size;

use super::args::{Destroy, Init, Resize, VolumeArgs};
use super::progress::Progress;
use super::{argv, journal, say, Done, Trouble};
use crate::error::{Error, Kind, Result};
use crate::export::Export;
use crate::layout::open::{Access, Ask, NewVolume, Volume};
use crate::location::Location;
use crate::plugin::Registry;
use crate::{runtime, secrets};

/// What Linux counts the size of a disk in, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A volume as it was typed. From here on nobody can read its secrets from the list of processes.
pub(super) fn parse(driver: &str, location: &str, registry: &Registry) -> Done<Volume> {
    let volume = Volume::parse(driver, location, registry).map_err(Trouble::Wrong)?;
    let secrets = volume.location.secrets().cloned().collect();
    hide(location, &volume.location.to_string(), secrets);
    volume.check_options(registry).map_err(Trouble::Wrong)?;
    Ok(volume)
}

/// A volume of which that may be asked.
pub(super) fn asked(args: &VolumeArgs, ask: Ask<'_>, registry: &Registry) -> Done<Volume> {
    let volume = of(args, registry)?;
    volume.takes(ask).map_err(Trouble::Wrong)?;
    Ok(volume)
}

/// One location as it was typed, likewise.
pub(super) fn location(text: &str, registry: &Registry) -> Done<Location> {
    let lookup = |scheme: &str| Ok(&registry.get(scheme)?.description);
    let location = Location::parse(text, &lookup).map_err(Trouble::Wrong)?;
    hide(text, &location.to_string(), location.secrets().to_vec());
    Ok(location)
}

fn hide(typed: &str, shown: &str, secrets: Vec<String>) {
    if secrets.is_empty() {
        return;
    }
    secrets.iter().for_each(|secret| secrets::remember(secret));
    tracing::warn!(
        "{shown}: a secret on the command line was visible to all users until now, and stays \
         in the shell's history: the environment or a profile file keeps it to itself"
    );
    if let Err(error) = argv::hide(typed, shown) {
        tracing::warn!("{shown}: its secret stays visible in the list of processes: {error}");
    }
}

pub(super) fn of(args: &VolumeArgs, registry: &Registry) -> Done<Volume> {
    parse(&args.driver, &args.driver_cfg, registry)
}

/// `nbd-rs init`.
pub(super) fn init(args: &Init, registry: &Registry) -> Done<()> {
    let new = NewVolume {
        size_bytes: args.size,
        shard_bytes: args.shard_size,
        force: args.force,
    };
    let volume = asked(&args.volume, Ask::Create(&new), registry)?;
    let before = match args.force {
        true => size_of(&volume, registry),
        false => None,
    };
    let old = args.force.then(|| journal::identity(&volume, registry));
    let mut progress = Progress::new("objects of the old volume deleted");
    let mut show = |done| progress.show(done, None);
    let made = runtime::block_on(volume.create(registry, &new, &mut show));
    progress.end();
    made?;
    args.directory.forget(old.flatten());
    let size = display_size(args.size);
    let lost = match before {
        Some(before) => format!("; the {} that were there are gone", display_size(before)),
        None => String::new(),
    };
    say(format_args!("{volume}: {size}, all zeros{lost}"));
    warn_of_size(&volume, args.size);
    Ok(())
}

/// The size of what is there, if something is.
fn size_of(volume: &Volume, registry: &Registry) -> Option<u64> {
    let layout = runtime::block_on(volume.open(registry, Access::Look)).ok()?;
    let size = layout.size();
    // It was only looked at: nothing can be lost.
    let _ = runtime::block_on(layout.close());
    Some(size)
}

/// `nbd-rs destroy`.
pub(super) fn destroy(args: &Destroy, registry: &Registry) -> Done<()> {
    let volume = of(&args.volume, registry)?;
    let identity = journal::identity(&volume, registry);
    let mut progress = Progress::new("objects deleted");
    let mut show = |done| progress.show(done, None);
    let destroyed = runtime::block_on(volume.destroy(registry, &mut show));
    progress.end();
    destroyed.map_err(|error| missing(&volume, error, ""))?;
    args.directory.forget(identity);
    say(format_args!("{volume}: destroyed"));
    Ok(())
}

/// `nbd-rs resize`.
pub(super) fn resize(args: &Resize, registry: &Registry) -> Done<()> {
    let volume = asked(&args.volume, Ask::Grow, registry)?;
    let grown = runtime::block_on(volume.grow(registry, args.size));
    grown.map_err(|error| missing(&volume, error, ""))?;
    let size = display_size(args.size);
    say(format_args!("{volume}: {size} now, the new part all zeros"));
    warn_of_size(&volume, args.size);
    Ok(())
}

/// Opens one to look at it, also while it is served.
pub(super) fn look(args: &VolumeArgs, registry: &Registry) -> Done<(Volume, Export)> {
    let volume = of(args, registry)?;
    let layout = runtime::block_on(open(&volume, registry, Access::Look))?;
    let export = Export::new(String::new(), volume.to_string(), layout, false);
    Ok((volume, export))
}

/// Opens one.
///
/// # Errors
/// What keeps it from being opened, and what to do if it is not there.
pub(super) async fn open(
    volume: &Volume,
    registry: &Registry,
    access: Access,
) -> Result<std::sync::Arc<dyn crate::layout::Layout>> {
    let opened = volume.open(registry, access).await;
    opened.map_err(|error| missing(volume, error, "; nbd-rs init makes one"))
}

pub(super) fn missing(volume: &Volume, error: Error, advice: &str) -> Error {
    if error.kind != Kind::NotFound {
        return error;
    }
    let text = format!(
        "there is no volume at {}{advice} ({error})",
        volume.location
    );
    Error {
        message: text.into(),
        ..error
    }
}

/// Sizes that clients have trouble with.
pub(super) fn warn_of_size(volume: &Volume, bytes: u64) {
    if bytes == 0 {
        tracing::warn!(
            "{volume} is empty, and few clients take such a disk; \
             nbd-rs init --force --size SIZE gives it a size"
        );
    } else if !bytes.is_multiple_of(SECTOR_BYTES) {
        let seen = bytes - bytes % SECTOR_BYTES;
        tracing::warn!(
            "{volume}: {bytes} bytes is no multiple of {SECTOR_BYTES}; \
             as a Linux block device it has the first {seen} bytes only"
        );
    }
}
