//! A map page: of 4096 shards, which version each is. Pure. This is also how the map is kept in
//! memory, 32 bytes a shard.

use nbd_rs_commit_log::Epoch;

use super::fields::{Fields, Writer};
use super::{Hash, Named, Version};
use crate::error::Result;
use crate::layout::frame::{corrupt, What};
use crate::layout::uuid::Uuid;

/// Shards of one page.
pub const PAGE_SHARDS: usize = 4096;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 32;
/// Epochs that a page in memory remembers before it forgets those that nobody needs.
const MAX_EPOCHS: usize = 2 * PAGE_SHARDS;

/// What a shard is, but for what waits in the log and in packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Base {
    /// Never written, or given back: it reads as zeros.
    #[default]
    Never,
    /// It reads as zeros, and keeps its space.
    Zero,
    /// This image.
    Image(Named),
}

/// As a shard lies in a page: its image's epoch is a number in the page's list.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    hash: Hash,
    seq: u64,
    epoch: u16,
    kind: u8,
}

const NEVER: u8 = 0;
const ZERO: u8 = 1;
const IMAGE: u8 = 2;

/// A page. Shards are counted from its start.
#[derive(Debug, Clone)]
pub struct MapPage {
    epochs: Vec<Epoch>,
    entries: Box<[Entry; PAGE_SHARDS]>,
}

impl Default for MapPage {
    fn default() -> Self {
        Self {
            epochs: Vec::new(),
            entries: Box::new([Entry::default(); PAGE_SHARDS]),
        }
    }
}

impl PartialEq for MapPage {
    fn eq(&self, other: &Self) -> bool {
        (0..PAGE_SHARDS).all(|at| self.get(at) == other.get(at))
    }
}

impl Eq for MapPage {}

impl MapPage {
    /// What a shard is.
    #[must_use]
    pub fn get(&self, at: usize) -> Base {
        let entry = &self.entries[at];
        match entry.kind {
            NEVER => Base::Never,
            ZERO => Base::Zero,
            _ => Base::Image(Named {
                version: Version {
                    epoch: self.epochs[usize::from(entry.epoch)],
                    seq: entry.seq,
                },
                hash: entry.hash,
            }),
        }
    }

    /// Makes a shard something else.
    pub fn set(&mut self, at: usize, base: Base) {
        let plain = |kind| Entry {
            kind,
            ..Entry::default()
        };
        self.entries[at] = match base {
            Base::Never => plain(NEVER),
            Base::Zero => plain(ZERO),
            Base::Image(Named { version, hash }) => Entry {
                hash,
                seq: version.seq,
                epoch: self.number_of(version.epoch),
                kind: IMAGE,
            },
        };
    }

    /// Whether all shards are never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.kind == NEVER)
    }

    fn number_of(&mut self, epoch: Epoch) -> u16 {
        let known = |epochs: &[Epoch]| epochs.iter().rposition(|known| *known == epoch);
        if known(&self.epochs).is_none() {
            if self.epochs.len() >= MAX_EPOCHS {
                *self = self.compact();
            }
            self.epochs.push(epoch);
        }
        known(&self.epochs).unwrap_or_default() as u16
    }

    /// The same with the epochs that are needed alone, in the order in which they come.
    fn compact(&self) -> Self {
        let mut page = Self::default();
        for at in 0..PAGE_SHARDS {
            page.set(at, self.get(at));
        }
        page
    }

    /// As bytes, and how a checkpoint names them.
    #[must_use]
    pub fn encode(&self, volume: Uuid, number: u32, version: Version) -> (Vec<u8>, Named) {
        let page = self.compact();
        let last = page.entries.iter().rposition(|entry| entry.kind != NEVER);
        let entries = &page.entries[..last.map_or(0, |last| last + 1)];
        let mut writer = Writer::new(version);
        writer.count(page.epochs.len());
        for epoch in &page.epochs {
            writer.u64(epoch.counter);
            writer.u64(epoch.owner);
        }
        writer.count(entries.len());
        for entry in entries {
            writer.u8(entry.kind);
            writer.u8(0);
            writer.u16(entry.epoch);
            writer.u32(0);
            writer.u64(entry.seq);
            writer.bytes(&entry.hash.0);
        }
        let bytes = writer.seal(What::Map, volume, u64::from(number));
        let hash = Hash::of(&bytes);
        (bytes, Named { version, hash })
    }

    /// Reads the page that a checkpoint names.
    ///
    /// # Errors
    /// [`Kind::Unsupported`](crate::error::Kind::Unsupported) for a newer version,
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is not exactly that one.
    pub fn decode(volume: Uuid, number: u32, named: &Named, bytes: &[u8]) -> Result<Self> {
        let (version, mut fields) = Fields::open(What::Map, volume, u64::from(number), bytes)?;
        let epochs = fields.count(16)?;
        fields.require(epochs <= PAGE_SHARDS)?;
        let mut page = Self::default();
        for _ in 0..epochs {
            let (counter, owner) = (fields.u64()?, fields.u64()?);
            page.epochs.push(Epoch { counter, owner });
        }
        let entries = fields.count(ENTRY_BYTES)?;
        fields.require(entries <= PAGE_SHARDS)?;
        for at in 0..entries {
            page.entries[at] = read_entry(&mut fields, epochs)?;
        }
        fields.end()?;
        if version != named.version || Hash::of(bytes) != named.hash {
            return Err(corrupt(format!(
                "another version of map page {number} lies in its place"
            )));
        }
        Ok(page)
    }
}

fn read_entry(fields: &mut Fields<'_>, epochs: usize) -> Result<Entry> {
    let (kind, zero, epoch, zeros) = (fields.u8()?, fields.u8()?, fields.u16()?, fields.u32()?);
    let entry = Entry {
        seq: fields.u64()?,
        hash: fields.hash()?,
        epoch,
        kind,
    };
    let is_plain = (entry.seq, entry.hash, epoch) == (0, Hash::default(), 0);
    fields.require((zero, zeros) == (0, 0))?;
    fields.require(match kind {
        NEVER | ZERO => is_plain,
        IMAGE => usize::from(epoch) < epochs,
        _ => false,
    })?;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{named, refuses_damage, tells_a_newer_version, versions};
    use super::*;

    const VOLUME: Uuid = Uuid([8; 16]);

    fn bases() -> impl Strategy<Value = Base> {
        prop_oneof![
            Just(Base::Never),
            Just(Base::Zero),
            named().prop_map(Base::Image)
        ]
    }

    proptest! {
        #[test]
        fn a_page_is_what_was_set_and_is_read_as_it_was_written(
            sets in prop::collection::vec((0..PAGE_SHARDS, bases()), 0..80), number in any::<u32>(),
            version in versions(), other in versions(),
        ) {
            let mut page = MapPage::default();
            let mut model = vec![Base::Never; PAGE_SHARDS];
            for (at, base) in sets {
                page.set(at, base);
                model[at] = base;
            }
            let all: Vec<Base> = (0..PAGE_SHARDS).map(|at| page.get(at)).collect();
            prop_assert_eq!(&all, &model);
            prop_assert_eq!(page.is_empty(), model.iter().all(|base| *base == Base::Never));
            let (bytes, named) = page.encode(VOLUME, number, version);
            let read = MapPage::decode(VOLUME, number, &named, &bytes).unwrap();
            prop_assert_eq!(&read, &page);
            prop_assert_eq!(read.encode(VOLUME, number, version).0, bytes.clone());
            let another = Named { version: other, ..named };
            prop_assert_eq!(MapPage::decode(VOLUME, number, &another, &bytes).is_ok(), version == other);
            prop_assert!(MapPage::decode(VOLUME, number.wrapping_add(1), &named, &bytes).is_err());
            prop_assert!(MapPage::decode(Uuid([9; 16]), number, &named, &bytes).is_err());
        }
    }

    #[test]
    fn every_changed_bit_of_a_page_is_noticed() {
        let mut page = MapPage::default();
        page.set(0, Base::Zero);
        page.set(5, Base::Image(Named::default()));
        let (bytes, named) = page.encode(VOLUME, 7, Version::default());
        refuses_damage(&bytes, |bytes| MapPage::decode(VOLUME, 7, &named, bytes));
        tells_a_newer_version(&bytes, |bytes| MapPage::decode(VOLUME, 7, &named, bytes));
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let page = |entries: &[[u8; ENTRY_BYTES]]| {
            let mut writer = Writer::new(Version::default());
            writer.count(1);
            writer.bytes(&[1; 16]);
            writer.count(entries.len());
            entries.iter().for_each(|entry| writer.bytes(entry));
            let bytes = writer.seal(What::Map, VOLUME, 0);
            let named = Named {
                version: Version::default(),
                hash: Hash::of(&bytes),
            };
            MapPage::decode(VOLUME, 0, &named, &bytes)
        };
        let entry = |kind, at: usize, byte| {
            let mut entry = [0; ENTRY_BYTES];
            entry[0] = kind;
            entry[at] = byte;
            entry
        };
        page(&[entry(IMAGE, 8, 1), entry(ZERO, 0, ZERO)]).unwrap();
        for wrong in [
            entry(3, 0, 3),
            entry(IMAGE, 1, 1),
            entry(IMAGE, 2, 1),
            entry(IMAGE, 7, 1),
            entry(ZERO, 8, 1),
            entry(NEVER, 31, 1),
        ] {
            assert!(page(&[wrong]).is_err(), "{wrong:?}");
        }
        assert!(page(&vec![entry(ZERO, 0, ZERO); PAGE_SHARDS + 1]).is_err());
    }

    /// An owner that starts over and over does not fill the page with its epochs.
    #[test]
    fn epochs_that_nobody_needs_are_forgotten() {
        let mut page = MapPage::default();
        for counter in 0..3 * MAX_EPOCHS as u64 {
            let epoch = Epoch { counter, owner: 1 };
            let named = Named {
                version: Version { epoch, seq: 2 },
                hash: Hash::default(),
            };
            page.set(counter as usize % 7, Base::Image(named));
            assert_eq!(page.get(counter as usize % 7), Base::Image(named));
            assert!(page.epochs.len() <= MAX_EPOCHS);
        }
        assert_eq!(page.compact(), page);
        assert_eq!(page.compact().epochs.len(), 7);
    }
}
