//! The owner record: who serves the volume read-write (contract C17). Pure; the facts about
//! processes come in from outside.

use super::frame::{array_at, corrupt, u32_at, u64_at, Frame, Stamp, What};
use super::uuid::Uuid;
use crate::error::{printable, Result};

/// Longest host name kept, in bytes.
const MAX_HOST_BYTES: usize = 255;
const FIXED_BYTES: usize = 60;
const RELEASED: u32 = 1;

/// Where a process runs, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// The machine's name, for people.
    pub(super) host: String,
    /// One run of one kernel.
    pub(super) boot_id: Uuid,
    /// The name space that the process number counts in: in another one it says nothing.
    pub(super) pid_namespace: u64,
    pub(super) pid: u32,
    /// When it started, in clock ticks since the boot, since numbers are used again.
    pub(super) started_ticks: u64,
}

/// The owner of a volume, or the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnerRecord {
    /// Which owner it is, and how many heartbeats it has made.
    pub(super) stamp: Stamp,
    /// Chosen anew each time the volume is taken.
    pub(super) id: Uuid,
    pub(super) process: Process,
    /// It has given the volume back, with everything settled.
    pub(super) released: bool,
    /// The last owner before that did not, 0 if there was none: what it had on its way may still
    /// arrive.
    pub(super) unclean: u64,
}

/// What can be seen of a process of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It started at this clock tick since the boot.
    Since(u64),
    /// It is there, and another user's, who keeps it to himself.
    Hidden,
    /// There is none, or a dead one that nobody has waited for.
    None,
}

/// What the record of another says to one who wants the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Given back: take it.
    Released,
    /// It died on this machine: take it.
    Dead,
    /// It lives on this machine.
    Alive,
    /// Nothing can be known from here but whether its heart beats.
    Unknown,
}

impl OwnerRecord {
    /// Judges the record. `life` looks up a process of this machine.
    pub(super) fn standing(&self, here: &Process, life: impl FnOnce(u32) -> Life) -> Standing {
        let there = &self.process;
        if self.released {
            return Standing::Released;
        }
        let same = there.boot_id == here.boot_id && there.pid_namespace == here.pid_namespace;
        if !same {
            return Standing::Unknown;
        }
        match life(there.pid) {
            // Taken apart from what a time name space adds, it may be off by one.
            Life::Since(ticks) if ticks.abs_diff(there.started_ticks) <= 1 => Standing::Alive,
            Life::Hidden => Standing::Unknown,
            // The number was used again, or is free.
            Life::Since(_) | Life::None => Standing::Dead,
        }
    }

    /// The last epoch that did not end in order, once this one is over; 0 if all did.
    pub(super) fn last_unclean(&self) -> u64 {
        match self.released {
            true => self.unclean,
            false => self.stamp.epoch,
        }
    }

    pub(super) fn encode(&self, uuid: Uuid) -> Vec<u8> {
        let process = &self.process;
        let mut end = process.host.len().min(MAX_HOST_BYTES);
        while !process.host.is_char_boundary(end) {
            end -= 1;
        }
        let host = &process.host[..end];
        let mut payload = Vec::with_capacity(FIXED_BYTES + host.len());
        payload.extend_from_slice(&self.id.0);
        payload.extend_from_slice(&process.boot_id.0);
        payload.extend_from_slice(&process.pid_namespace.to_le_bytes());
        payload.extend_from_slice(&process.started_ticks.to_le_bytes());
        payload.extend_from_slice(&process.pid.to_le_bytes());
        payload.extend_from_slice(&self.unclean.to_le_bytes());
        payload.extend_from_slice(host.as_bytes());
        let frame = Frame {
            what: What::Owner,
            uuid,
            number: 0,
            stamp: self.stamp,
            flags: if self.released { RELEASED } else { 0 },
            payload: &payload,
        };
        frame.encode()
    }

    pub(super) fn decode(uuid: Uuid, bytes: &[u8]) -> Result<Self> {
        let frame = Frame::decode_of(What::Owner, uuid, 0, bytes)?;
        let payload = frame.payload;
        let wrong = || corrupt("the owner record makes no sense");
        let sized = (FIXED_BYTES..=FIXED_BYTES + MAX_HOST_BYTES).contains(&payload.len());
        if !sized || frame.flags & !RELEASED != 0 {
            return Err(wrong());
        }
        let host = std::str::from_utf8(&payload[FIXED_BYTES..]).map_err(|_| wrong())?;
        Ok(Self {
            stamp: frame.stamp,
            id: Uuid(array_at(payload, 0)),
            process: Process {
                host: host.to_owned(),
                boot_id: Uuid(array_at(payload, 16)),
                pid_namespace: u64_at(payload, 32),
                started_ticks: u64_at(payload, 40),
                pid: u32_at(payload, 48),
            },
            released: frame.flags & RELEASED != 0,
            unclean: u64_at(payload, 52),
        })
    }
}

impl std::fmt::Display for OwnerRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "host {}, pid {}, epoch {}",
            printable(&self.process.host, 80),
            self.process.pid,
            self.stamp.epoch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn process() -> Process {
        Process {
            host: "a".to_owned(),
            boot_id: Uuid([1; 16]),
            pid_namespace: 4,
            pid: 100,
            started_ticks: 5000,
        }
    }

    fn record() -> OwnerRecord {
        OwnerRecord {
            stamp: Stamp {
                epoch: 2,
                sequence: 3,
            },
            id: Uuid([6; 16]),
            process: process(),
            released: false,
            unclean: 1,
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            host in "\\PC{0,80}", pid in any::<u32>(), ticks in any::<u64>(), released in any::<bool>(), unclean in any::<u64>(),
        ) {
            let mut record = record();
            record.process = Process { host, pid, started_ticks: ticks, ..record.process };
            (record.released, record.unclean) = (released, unclean);
            prop_assume!(record.process.host.len() <= MAX_HOST_BYTES);
            prop_assert_eq!(OwnerRecord::decode(Uuid([9; 16]), &record.encode(Uuid([9; 16]))).unwrap(), record);
        }
    }

    #[test]
    fn c17_only_this_kernel_and_name_space_may_pronounce_an_owner_dead() {
        let here = process();
        let alive = |pid: u32| match pid {
            100 => Life::Since(5000),
            _ => Life::None,
        };
        let mut other = record();
        assert_eq!(other.standing(&here, alive), Standing::Alive);
        assert_eq!(other.standing(&here, |_| Life::None), Standing::Dead);
        // The number was used again.
        assert_eq!(other.standing(&here, |_| Life::Since(5002)), Standing::Dead);
        // Another user's, and /proc does not show it: it may well be alive.
        assert_eq!(other.standing(&here, |_| Life::Hidden), Standing::Unknown);
        // In another container the same number is somebody else.
        other.process.pid_namespace = 5;
        assert_eq!(other.standing(&here, |_| Life::None), Standing::Unknown);
        other.process = process();
        other.process.boot_id = Uuid([2; 16]);
        assert_eq!(other.standing(&here, |_| Life::None), Standing::Unknown);
        other.released = true;
        assert_eq!(other.standing(&here, alive), Standing::Released);
    }

    #[test]
    fn a_host_name_that_is_too_long_is_cut_at_a_character() {
        let mut record = record();
        record.process.host = "é".repeat(200);
        let read = OwnerRecord::decode(Uuid([9; 16]), &record.encode(Uuid([9; 16]))).unwrap();
        assert_eq!(read.process.host, "é".repeat(127));
    }
}
