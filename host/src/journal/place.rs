//! Where journals are, and on which machine.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_rs_journal::disk::Disk;
use nbd_rs_journal::uuid::Uuid;

use crate::error::{Error, Kind, Result};

const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Stands in the place of a machine's identity where it has none.
const OWN_MACHINE_ID: &str = "machine-id";
const OWN_MACHINE_NEW: &str = "machine-id.new";
const OWN_MACHINE_LOCK: &str = "machine-id.lock";
const UUID_CHARS: usize = 36;
/// The lock is held for as long as a small file takes.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// The directory for journals if none was named, from the environment and the user's number:
/// systemd's state directory, the system's for root, else the user's (XDG Base Directory).
pub fn default_directory(
    environment: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> Option<PathBuf> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let state = match set("STATE_DIRECTORY") {
        // Several are separated by colons (systemd.exec(5)).
        Some(directories) => std::env::split_paths(&directories).next()?,
        None if is_root => PathBuf::from("/var/lib/nbd-rs"),
        None => match set("XDG_STATE_HOME").map(PathBuf::from) {
            Some(home) if home.is_absolute() => home.join("nbd-rs"),
            _ => PathBuf::from(set("HOME")?).join(".local/state/nbd-rs"),
        },
    };
    Some(state.join("journal"))
}

/// That of this process.
pub fn of_this_process() -> Option<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    default_directory(|name| std::env::var_os(name), is_root)
}

/// 32 hexadecimal digits, with dashes or without.
fn parse(text: &str) -> Option<Uuid> {
    let digits: Vec<u32> = text
        .trim()
        .chars()
        .filter(|&c| c != '-')
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    let pairs = digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8);
    let bytes: Vec<u8> = pairs.collect();
    (digits.len() == 32).then(|| <[u8; 16]>::try_from(bytes).ok().map(Uuid))?
}

fn read(path: &Path) -> Option<Uuid> {
    parse(&std::fs::read_to_string(path).ok()?)
}

/// This machine: its own identity, or one that lies beside the journals.
///
/// # Errors
/// If it has none, and none can be kept there.
pub(super) fn machine(disk: &dyn Disk) -> Result<Uuid> {
    match read(Path::new(MACHINE_ID)) {
        Some(machine) => Ok(machine),
        None => {
            beside(disk).map_err(|error| Error::os(&error, "keeping an identity of the machine"))
        }
    }
}

/// The identity that lies beside the journals. It is durable before any journal has it: with another
/// one after a loss of power they would be refused. Of those who start at the same time one makes it.
fn beside(disk: &dyn Disk) -> io::Result<Uuid> {
    let _lock = loop {
        match disk.lock(OWN_MACHINE_LOCK) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOCK_RETRY),
            taken => break taken?,
        }
    };
    let mut text = [0; UUID_CHARS];
    let kept = disk
        .open(OWN_MACHINE_ID)
        .and_then(|file| file.read_at(0, &mut text));
    if let Some(machine) = kept
        .ok()
        .and_then(|()| parse(std::str::from_utf8(&text).ok()?))
    {
        return Ok(machine);
    }
    let machine = random().map_err(io::Error::other)?;
    // One that a crash left.
    let _ = disk.remove(OWN_MACHINE_NEW);
    let file = disk.create(OWN_MACHINE_NEW)?;
    file.write_at(0, &[IoSlice::new(machine.to_string().as_bytes())])?;
    file.sync_all()?;
    disk.rename(OWN_MACHINE_NEW, OWN_MACHINE_ID)?;
    disk.sync()?;
    Ok(machine)
}

/// This run of its kernel; one that does not say is taken for a new one each time.
pub(super) fn boot() -> Result<Uuid> {
    read(Path::new(BOOT_ID)).map_or_else(random, Ok)
}

fn random() -> Result<Uuid> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    // So few bytes come at once or not at all (getrandom(2)).
    got.map_err(|errno| Error::new(Kind::Io, format!("random numbers: {errno}")))?;
    Ok(Uuid::from_random(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_rs_journal::disk::Directory;
    use nbd_rs_recorder_disk::{Image, Recorder};

    #[test]
    fn journals_are_in_the_state_directory() {
        let place = |pairs: &[(&str, &str)], is_root| {
            let find = |name: &str| {
                let pair = pairs.iter().find(|(key, _)| *key == name);
                pair.map(|(_, value)| OsString::from(value))
            };
            default_directory(find, is_root).map(|path| path.display().to_string())
        };
        let home = ("HOME", "/home/u");
        let tests = [
            (
                place(&[home, ("STATE_DIRECTORY", "/s:/t")], true),
                "/s/journal",
            ),
            (place(&[home], true), "/var/lib/nbd-rs/journal"),
            (place(&[home], false), "/home/u/.local/state/nbd-rs/journal"),
            (
                place(&[home, ("XDG_STATE_HOME", "/x")], false),
                "/x/nbd-rs/journal",
            ),
            // The specification: relative ones are to be ignored.
            (
                place(&[home, ("XDG_STATE_HOME", "x")], false),
                "/home/u/.local/state/nbd-rs/journal",
            ),
        ];
        for (found, expected) in tests {
            assert_eq!(found.as_deref(), Some(expected));
        }
        assert_eq!(place(&[], false), None);
    }

    #[test]
    fn identities_are_read_with_dashes_or_without() {
        let id = "00112233445566778899aabbccddeeff";
        let expected = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(parse(&format!("{id}\n")).unwrap().to_string(), expected);
        assert_eq!(parse(expected).unwrap().to_string(), expected);
        for wrong in ["", "0011", "uninitialized", &id.replace('0', "g")] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_machine_without_an_identity_keeps_one_beside_its_journals() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Directory::open(directory.path()).unwrap();
        let first = beside(&*disk).unwrap();
        assert_eq!(beside(&*disk).unwrap(), first);
        // As it was written before it was synced, and by people.
        let path = directory.path().join(OWN_MACHINE_ID);
        assert_eq!(read(&path), Some(first));
    }

    /// Found by reading: it was not synced, and after a loss of power the machine was another one,
    /// which all journals refused.
    #[test]
    fn c13_the_identity_of_a_machine_survives_a_loss_of_power() {
        let disk = Recorder::start(Image::default());
        let first = beside(&*disk.disk()).unwrap();
        let left = Recorder::start(disk.power_cut_at_its_worst());
        assert_eq!(beside(&*left.disk()).unwrap(), first);
        // Cut off anywhere before, it is made anew.
        for moment in 0..disk.moment() {
            let left = disk.after_kill(moment);
            let second = beside(&*left.disk()).unwrap();
            assert_eq!(beside(&*left.disk()).unwrap(), second);
        }
    }
}
