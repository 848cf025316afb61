//! A checkpoint: everything that the log said up to a record, by the objects that have it. Pure.

use nbd_rs_commit_log::Position;

use super::changes::{MAX_LEDGER_BYTES, MAX_UNITS};
use super::fields::{Fields, Writer, VERSION_BYTES};
use super::{Hash, Named, Version};
use crate::error::Result;
use crate::layout::frame::{corrupt, What};
use crate::layout::uuid::Uuid;

const NAMED_BYTES: usize = VERSION_BYTES + 16;
const PAGE_BYTES: usize = 4 + NAMED_BYTES;
/// Bytes of the entry of a pack with no units.
const PACK_BYTES: usize = VERSION_BYTES + 8;
const RUN_BYTES: usize = 16;

/// Numbers of packs that are none.
const ZERO: u32 = u32::MAX;
const TRIM: u32 = u32::MAX - 1;

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The last record that it stands for.
    pub through: Position,
    /// The checkpoint before it.
    pub previous: Option<Named>,
    /// What the volume keeps about the journal before it.
    pub ledger: Vec<u8>,
    /// The map pages that are not empty, in order.
    pub pages: Vec<(u32, Named)>,
    /// The packs that have units which are in no image yet.
    pub packs: Vec<PackUnits>,
    /// These units, and those that were zeroed since their shard's image was made, in order.
    pub runs: Vec<Run>,
}

/// What is known of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackUnits {
    /// Its name.
    pub version: Version,
    /// Where its units begin, in bytes.
    pub data_at: u32,
    /// The checksums of all its units.
    pub sums: Vec<u32>,
}

/// Units of the volume that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first in the volume.
    pub unit: u64,
    /// How many.
    pub units: u16,
    /// Where they are.
    pub holds: Holds,
}

/// Where units are that are in no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// They read as zeros, and keep their space.
    Zero,
    /// They read as zeros.
    Trim,
    /// In a pack, one behind the other.
    Pack {
        /// Which of the checkpoint's packs.
        pack: u32,
        /// Which of its units is the first.
        ordinal: u16,
    },
}

impl Root {
    /// As bytes, and how the checkpoint's record names them.
    #[must_use]
    pub fn encode(&self, volume: Uuid, version: Version) -> (Vec<u8>, Named) {
        let mut writer = Writer::new(version);
        let Position { epoch, seq } = self.through;
        writer.version(Version { epoch, seq });
        writer.u8(u8::from(self.previous.is_some()));
        writer.named(self.previous.unwrap_or_default());
        writer.count(self.ledger.len());
        writer.bytes(&self.ledger);
        writer.count(self.pages.len());
        for (page, named) in &self.pages {
            writer.u32(*page);
            writer.named(*named);
        }
        writer.count(self.packs.len());
        for pack in &self.packs {
            writer.version(pack.version);
            writer.u32(pack.data_at);
            writer.count(pack.sums.len());
            writer.sums(&pack.sums);
        }
        writer.count(self.runs.len());
        self.runs.iter().for_each(|run| run.write(&mut writer));
        let bytes = writer.seal(What::Root, volume, 0);
        let hash = Hash::of(&bytes);
        (bytes, Named { version, hash })
    }

    /// Reads the checkpoint that its record names.
    ///
    /// # Errors
    /// [`Kind::Unsupported`](crate::error::Kind::Unsupported) for a newer version,
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is not exactly that one.
    pub fn decode(volume: Uuid, named: &Named, bytes: &[u8]) -> Result<Self> {
        let (version, mut fields) = Fields::open(What::Root, volume, 0, bytes)?;
        let root = Self {
            through: fields.position()?,
            previous: read_previous(&mut fields)?,
            ledger: read_ledger(&mut fields)?,
            pages: read_pages(&mut fields)?,
            packs: read_packs(&mut fields)?,
            runs: read_runs(&mut fields)?,
        };
        fields.end()?;
        fields.require(root.is_sound())?;
        if version != named.version || Hash::of(bytes) != named.hash {
            return Err(corrupt(format!(
                "checkpoint {version} lies in the place of another"
            )));
        }
        Ok(root)
    }

    /// Whether pages and runs are in order, and the runs inside their packs.
    fn is_sound(&self) -> bool {
        let inside = |run: &Run| match run.holds {
            Holds::Zero | Holds::Trim => true,
            Holds::Pack { pack, ordinal } => {
                let pack = self.packs.get(pack as usize);
                let end = usize::from(ordinal) + usize::from(run.units);
                pack.is_some_and(|pack| end <= pack.sums.len())
            }
        };
        let whole = |run: &Run| run.units > 0 && run.unit.checked_add(run.units.into()).is_some();
        let apart = |two: &[Run]| two[0].unit + u64::from(two[0].units) <= two[1].unit;
        self.pages.windows(2).all(|two| two[0].0 < two[1].0)
            && self.runs.iter().all(|run| whole(run) && inside(run))
            && self.runs.windows(2).all(apart)
    }
}

fn read_previous(fields: &mut Fields<'_>) -> Result<Option<Named>> {
    let (known, previous) = (fields.u8()?, fields.named()?);
    fields.require(known == 1 || (known == 0 && previous == Named::default()))?;
    Ok((known == 1).then_some(previous))
}

fn read_ledger(fields: &mut Fields<'_>) -> Result<Vec<u8>> {
    let len = fields.count(1)?;
    fields.require(len <= MAX_LEDGER_BYTES)?;
    Ok(fields.bytes(len)?.to_vec())
}

fn read_pages(fields: &mut Fields<'_>) -> Result<Vec<(u32, Named)>> {
    let count = fields.count(PAGE_BYTES)?;
    let pages = (0..count).map(|_| Ok((fields.u32()?, fields.named()?)));
    pages.collect()
}

fn read_packs(fields: &mut Fields<'_>) -> Result<Vec<PackUnits>> {
    let count = fields.count(PACK_BYTES)?;
    let packs = (0..count).map(|_| {
        let (version, data_at, units) = (fields.version()?, fields.u32()?, fields.count(4)?);
        fields.require((1..=MAX_UNITS).contains(&units))?;
        Ok(PackUnits {
            version,
            data_at,
            sums: fields.sums(units)?,
        })
    });
    packs.collect()
}

fn read_runs(fields: &mut Fields<'_>) -> Result<Vec<Run>> {
    let count = fields.count(RUN_BYTES)?;
    (0..count).map(|_| Run::read(fields)).collect()
}

impl Run {
    fn write(&self, writer: &mut Writer) {
        let (pack, ordinal) = match self.holds {
            Holds::Zero => (ZERO, 0),
            Holds::Trim => (TRIM, 0),
            Holds::Pack { pack, ordinal } => (pack, ordinal),
        };
        writer.u64(self.unit);
        writer.u32(pack);
        writer.u16(ordinal);
        writer.u16(self.units);
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self> {
        let (unit, pack) = (fields.u64()?, fields.u32()?);
        let (ordinal, units) = (fields.u16()?, fields.u16()?);
        let holds = match pack {
            ZERO => Holds::Zero,
            TRIM => Holds::Trim,
            _ => Holds::Pack { pack, ordinal },
        };
        fields.require(ordinal == 0 || pack < TRIM)?;
        Ok(Self { unit, units, holds })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{named, refuses_damage, tells_a_newer_version, versions};
    use super::*;

    const VOLUME: Uuid = Uuid([2; 16]);

    /// Runs one behind the other, with the gaps and lengths that were drawn.
    fn runs(drawn: Vec<(u64, u16, u8, u16)>, packs: &[PackUnits]) -> Vec<Run> {
        let mut unit = 0;
        let run = |(gap, units, kind, at): (u64, u16, u8, u16)| {
            let pack = usize::from(at) % packs.len().max(1);
            let len = packs.get(pack).map_or(0, |pack| pack.sums.len() as u16);
            let (units, holds) = match kind {
                0 => (units, Holds::Zero),
                _ if len == 0 || kind == 1 => (units, Holds::Trim),
                _ => {
                    let ordinal = at % len;
                    let pack = pack as u32;
                    (units.min(len - ordinal), Holds::Pack { pack, ordinal })
                }
            };
            unit += gap + u64::from(units);
            Run {
                unit: unit - u64::from(units),
                units,
                holds,
            }
        };
        drawn.into_iter().map(run).collect()
    }

    fn roots() -> impl Strategy<Value = Root> {
        let pack = (
            versions(),
            any::<u32>(),
            prop::collection::vec(any::<u32>(), 1..6),
        );
        let pack = pack.prop_map(|(version, data_at, sums)| PackUnits {
            version,
            data_at,
            sums,
        });
        let run = (0_u64..1 << 40, 1_u16..9, 0_u8..5, any::<u16>());
        let lists = (
            prop::collection::btree_map(any::<u32>(), named(), 0..5),
            prop::collection::vec(pack, 0..4),
            prop::collection::vec(run, 0..9),
        );
        let note = prop::collection::vec(any::<u8>(), 0..30);
        let parts = (versions(), prop::option::of(named()), note, lists);
        parts.prop_map(|(through, previous, ledger, (pages, packs, drawn))| Root {
            through: Position {
                epoch: through.epoch,
                seq: through.seq,
            },
            previous,
            ledger,
            pages: pages.into_iter().collect(),
            runs: runs(drawn, &packs),
            packs,
        })
    }

    fn example() -> Root {
        let named = Named::default();
        let pack = PackUnits {
            version: named.version,
            data_at: 100,
            sums: vec![1, 2, 3],
        };
        let run = |unit, holds| Run {
            unit,
            units: 2,
            holds,
        };
        Root {
            through: Position {
                epoch: named.version.epoch,
                seq: 9,
            },
            previous: None,
            ledger: b"note".to_vec(),
            pages: vec![(0, named), (4, named)],
            packs: vec![pack],
            runs: vec![
                run(
                    3,
                    Holds::Pack {
                        pack: 0,
                        ordinal: 1,
                    },
                ),
                run(5, Holds::Zero),
                run(9, Holds::Trim),
            ],
        }
    }

    proptest! {
        #[test]
        fn a_checkpoint_is_read_as_it_was_written(root in roots(), version in versions(), other in versions()) {
            let (bytes, named) = root.encode(VOLUME, version);
            prop_assert_eq!(&Root::decode(VOLUME, &named, &bytes).unwrap(), &root);
            let another = Named { version: other, ..named };
            prop_assert_eq!(Root::decode(VOLUME, &another, &bytes).is_ok(), version == other);
            prop_assert!(Root::decode(Uuid([9; 16]), &named, &bytes).is_err());
        }
    }

    #[test]
    fn every_changed_bit_of_a_checkpoint_is_noticed() {
        let (bytes, named) = example().encode(VOLUME, Version::default());
        refuses_damage(&bytes, |bytes| Root::decode(VOLUME, &named, bytes));
        tells_a_newer_version(&bytes, |bytes| Root::decode(VOLUME, &named, bytes));
    }

    #[test]
    fn checkpoints_that_make_no_sense_are_refused() {
        let wrong: [fn(&mut Root); 7] = [
            |it| it.pages.swap(0, 1),
            |it| it.runs.swap(0, 1),
            |it| it.runs[0].units = 3,
            |it| it.runs[1].units = 0,
            |it| it.runs[1].unit = 4,
            |it| it.runs[2].unit = u64::MAX,
            |it| it.packs.clear(),
        ];
        for change in wrong {
            let mut root = example();
            change(&mut root);
            let (bytes, named) = root.encode(VOLUME, Version::default());
            assert!(Root::decode(VOLUME, &named, &bytes).is_err(), "{root:?}");
        }
    }
}
