//! Whose journal it is: what the volume knows of it, held up against what it says itself. Pure.

use crate::error::{Error, Kind, Result};
use crate::format::superblock::{FileIdentity, Superblock};
use crate::uuid::Uuid;

/// What the volume's record on the store says of the journal that its unshipped writes are in.
///
/// It is stored before the first write of an epoch is acknowledged, and taken away after the
/// journal was closed with everything shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The journal.
    pub journal: Uuid,
    /// The owner who stored this.
    pub epoch: u64,
    /// The last record that the store has, as far as the store was told.
    pub shipped_seq: u64,
    /// The journal's disk had failed, and what came later went to the store alone: nothing in the
    /// journal is needed, and it may be in any state.
    pub passed_by: bool,
}

/// Who opens a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The volume whose writes it keeps.
    pub volume: Uuid,
    /// This machine.
    pub host: Uuid,
    /// This run of its kernel (`/proc/sys/kernel/random/boot_id`).
    pub boot: Uuid,
    /// The new owner's number, greater than that of every owner before.
    pub epoch: u64,
    /// What the volume says, if it says that writes may wait in a journal.
    pub ticket: Option<Ticket>,
    /// The operator says that the file, or its disk, was moved here.
    pub moved: bool,
}

impl Claim {
    /// Before its records are read: whether the journal is the one that is meant.
    ///
    /// # Errors
    /// [`Kind::Foreign`] or [`Kind::Moved`] with the reason.
    pub fn check(&self, superblock: &Superblock, identity: FileIdentity) -> Result<()> {
        let Self { volume, epoch, .. } = self;
        let journal = superblock.journal;
        if superblock.volume != *volume {
            return refuse(format!(
                "the journal is of volume {}, not of {volume}",
                superblock.volume
            ));
        }
        if let Some(ticket) = self.ticket.filter(|ticket| ticket.journal != journal) {
            return refuse(format!(
                "this is journal {journal}, and the volume's writes are in journal {}",
                ticket.journal
            ));
        }
        if let Some(ticket) = self.ticket.filter(|ticket| ticket.epoch > superblock.epoch) {
            return refuse(format!(
                "the journal is an older copy: it is of epoch {} and was used in epoch {}",
                superblock.epoch, ticket.epoch
            ));
        }
        if superblock.epoch >= *epoch {
            return refuse(format!(
                "the journal is of epoch {}, which volume {volume} has not reached: the volume is an older copy",
                superblock.epoch
            ));
        }
        self.check_place(superblock, identity)
    }

    pub(crate) fn check_place(
        &self,
        superblock: &Superblock,
        identity: FileIdentity,
    ) -> Result<()> {
        if self.moved {
            return Ok(());
        }
        let reason = if superblock.host != self.host {
            format!(
                "the journal was written on another machine ({}, this one is {})",
                superblock.host, self.host
            )
        } else if superblock.identity != identity {
            format!(
                "the journal's file is a copy (inode {} was {}), unless the first one is gone",
                identity.inode, superblock.identity.inode
            )
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Moved, reason))
    }

    /// After its records were read: whether they are all that the volume knows of.
    ///
    /// # Errors
    /// [`Kind::Foreign`] or [`Kind::Unknown`] with the reason.
    pub fn check_records(&self, superblock: &Superblock, last_seq: u64) -> Result<()> {
        let volume = self.volume;
        match self.ticket {
            None if last_seq > superblock.shipped_seq => Err(Error::new(
                Kind::Unknown,
                format!(
                    "the journal has {} records that volume {volume} does not know of: it was served without this journal since, or they were given up",
                    last_seq - superblock.shipped_seq
                ),
            )),
            Some(ticket) if last_seq < ticket.shipped_seq && !ticket.passed_by => refuse(format!(
                "the journal ends at record {last_seq} and the store has {}: it is an older copy, or its disk did not keep what it said",
                ticket.shipped_seq
            )),
            _ => Ok(()),
        }
    }

    /// No journal was found: whether that is well.
    ///
    /// # Errors
    /// [`Kind::Missing`] if there should be one.
    pub fn check_absence(&self) -> Result<()> {
        let Some(ticket) = self.ticket.filter(|ticket| !ticket.passed_by) else {
            return Ok(());
        };
        let text = format!(
            "writes to volume {} wait in journal {}, which is not here",
            self.volume, ticket.journal
        );
        Err(Error::new(Kind::Missing, text))
    }
}

fn refuse(reason: String) -> Result<()> {
    Err(Error::new(Kind::Foreign, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: FileIdentity = FileIdentity {
        inode: 1,
        born_ns: 2,
    };

    fn superblock() -> Superblock {
        Superblock {
            volume: Uuid([1; 16]),
            journal: Uuid([2; 16]),
            host: Uuid([3; 16]),
            identity: IDENTITY,
            epoch: 5,
            shipped_seq: 10,
            ..Superblock::default()
        }
    }

    fn claim() -> Claim {
        Claim {
            volume: Uuid([1; 16]),
            host: Uuid([3; 16]),
            boot: Uuid([4; 16]),
            epoch: 6,
            ticket: Some(Ticket {
                journal: Uuid([2; 16]),
                epoch: 5,
                shipped_seq: 10,
                passed_by: false,
            }),
            moved: false,
        }
    }

    fn ticket(change: impl FnOnce(&mut Ticket)) -> Claim {
        let mut claim = claim();
        change(claim.ticket.as_mut().unwrap());
        claim
    }

    #[test]
    fn f71_a_journal_of_something_else_is_refused_with_its_reason() {
        claim().check(&superblock(), IDENTITY).unwrap();
        // The owner before opened the journal and died before the volume heard of it.
        ticket(|t| t.epoch = 4)
            .check(&superblock(), IDENTITY)
            .unwrap();
        let copy = FileIdentity {
            inode: 9,
            ..IDENTITY
        };
        let reborn = FileIdentity {
            born_ns: 9,
            ..IDENTITY
        };
        let other_volume = Claim {
            volume: Uuid([9; 16]),
            ..claim()
        };
        let other_host = Claim {
            host: Uuid([9; 16]),
            ..claim()
        };
        let tests = [
            (other_volume, IDENTITY, "is of volume"),
            (
                ticket(|t| t.journal = Uuid([9; 16])),
                IDENTITY,
                "writes are in journal",
            ),
            (
                ticket(|t| t.epoch = 6),
                IDENTITY,
                "an older copy: it is of epoch 5",
            ),
            (
                Claim {
                    epoch: 5,
                    ..claim()
                },
                IDENTITY,
                "the volume is an older copy",
            ),
        ];
        let places = [
            (other_host, IDENTITY, "another machine"),
            (claim(), copy, "a copy (inode 9 was 1)"),
            (claim(), reborn, "a copy"),
        ];
        let foreign = tests.map(|test| (test, Kind::Foreign)).into_iter();
        let moved = places.map(|test| (test, Kind::Moved));
        for ((claim, identity, reason), kind) in foreign.chain(moved) {
            let error = claim.check(&superblock(), identity).unwrap_err();
            assert_eq!(error.kind, kind);
            assert!(error.message.contains(reason), "{error}");
            assert!(!error.message.contains('\n'));
        }
        let moved = Claim {
            moved: true,
            ..other_host
        };
        moved.check(&superblock(), copy).unwrap();
        let moved = Claim {
            moved: true,
            ..ticket(|t| t.epoch = 6)
        };
        moved.check(&superblock(), IDENTITY).unwrap_err();
    }

    #[test]
    fn f21_f71_records_that_are_missing_or_unknown_are_refused() {
        let check = |claim: Claim, last| claim.check_records(&superblock(), last);
        check(claim(), 10).unwrap();
        check(claim(), 12).unwrap();
        let error = check(ticket(|t| t.shipped_seq = 13), 12).unwrap_err();
        assert!(error.message.contains("did not keep"), "{error}");
        let unknown = Claim {
            ticket: None,
            ..claim()
        };
        check(unknown, 10).unwrap();
        let error = check(unknown, 12).unwrap_err();
        assert_eq!(error.kind, Kind::Unknown);
        assert!(error.message.contains("2 records that volume"), "{error}");
        unknown.check_absence().unwrap();
        assert_eq!(claim().check_absence().unwrap_err().kind, Kind::Missing);
    }
}
