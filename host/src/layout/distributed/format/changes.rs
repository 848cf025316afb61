//! What a record of the log says about the volume: the payload that the log carries. Pure.
//!
//! ```text
//! payload = header | unit | unit | ...        units of its data parts, in their order
//! pack    = header | unit | unit | ...        of one table
//! ```
//!
//! The header alone is enough to apply a record. Changes are in whole units: who writes less has
//! read the rest before.

use std::ops::Range;

use super::fields::{Fields, Writer, SEALED_BYTES, VERSION_BYTES};
use super::{Named, UnitSums, Version, UNIT_BYTES};
use crate::error::{Error, Kind, Result};
use crate::layout::frame::{corrupt, Frame, What};
use crate::layout::uuid::Uuid;

/// Most units behind one header, in a record or a pack: 8 MiB.
pub const MAX_UNITS: usize = 2048;
/// The longest header, in bytes: room for the tables of 128 packs with nothing but single units.
pub const MAX_HEADER_BYTES: u64 = 5 << 20;
/// The longest note of the journal, in bytes.
pub const MAX_LEDGER_BYTES: usize = 4096;

const EXTENT_BYTES: usize = 12;
/// Bytes of the shortest part, its kind included.
const MIN_PART_BYTES: usize = 5;

/// What a record says, all of it or nothing. Later parts are newer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The parts.
    pub parts: Vec<Part>,
}

/// A part of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Units that were written. Their bytes are in the payload, behind those of earlier parts.
    Data(Table),
    /// The same, with the bytes in a pack of this very table, that was put before.
    Pack {
        /// The pack.
        pack: Version,
        /// What is in it.
        table: Table,
    },
    /// A shard is now this version.
    Image {
        /// The shard.
        shard: u32,
        /// The version.
        image: Named,
        /// It has everything up to the record of this number, and nothing newer; without a number,
        /// everything before this record, and what else this record stands for.
        through: Option<u64>,
    },
    /// These units read as zeros, and keep their space.
    Zero(Range<u64>),
    /// These units read as zeros, and give their space back.
    Trim(Range<u64>),
    /// The checkpoint that the record is: it stands for everything before.
    Root(Named),
    /// What the volume keeps about the journal before it, in the journal's words.
    Ledger(Vec<u8>),
}

/// Units that follow one another in the volume, and in a payload or pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Number of the first in the volume.
    pub unit: u64,
    /// How many, at least one.
    pub units: u32,
}

/// Which units are behind a header, with their checksums.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    extents: Vec<Extent>,
    sums: Vec<u32>,
}

impl Table {
    /// Takes in whole units from number `unit` of the volume on. None, and nothing is taken in, if
    /// there is no room for them, or they are not whole.
    pub fn push(&mut self, sums: UnitSums, unit: u64, data: &[u8]) -> Option<()> {
        let whole = !data.is_empty() && data.len().is_multiple_of(UNIT_BYTES as usize);
        let fits = self.sums.len() + data.len() / UNIT_BYTES as usize <= MAX_UNITS;
        match whole && fits {
            true => self.push_summed(unit, &sums.sums(unit, [data])),
            false => None,
        }
    }

    /// The same, of units whose checksums are known.
    pub fn push_summed(&mut self, unit: u64, sums: &[u32]) -> Option<()> {
        let extent = Extent {
            unit,
            units: u32::try_from(sums.len()).ok()?,
        };
        if !extent.is_sound() || self.sums.len() + sums.len() > MAX_UNITS {
            return None;
        }
        self.sums.extend_from_slice(sums);
        match self.extents.last_mut().filter(|last| last.end() == unit) {
            Some(last) => last.units += extent.units,
            None => self.extents.push(extent),
        }
        Some(())
    }

    /// The extents, in the order of their units.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// A checksum for each unit.
    #[must_use]
    pub fn sums(&self) -> &[u32] {
        &self.sums
    }

    /// Bytes of all units.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.sums.len() as u64 * UNIT_BYTES
    }

    fn encoded_bytes(&self) -> usize {
        8 + self.extents.len() * EXTENT_BYTES + self.sums.len() * 4
    }

    fn write(&self, writer: &mut Writer) {
        writer.count(self.extents.len());
        writer.count(self.sums.len());
        for extent in &self.extents {
            writer.u64(extent.unit);
            writer.u32(extent.units);
        }
        writer.sums(&self.sums);
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self> {
        let (extents, units) = (fields.count(EXTENT_BYTES)?, fields.count(4)?);
        fields.require((1..=MAX_UNITS).contains(&units) && extents <= units)?;
        let mut table = Self::default();
        let mut counted = 0;
        for _ in 0..extents {
            let extent = Extent {
                unit: fields.u64()?,
                units: fields.u32()?,
            };
            counted += u64::from(extent.units);
            fields.require(extent.is_sound())?;
            table.extents.push(extent);
        }
        fields.require(counted == units as u64)?;
        table.sums = fields.sums(units)?;
        Ok(table)
    }

    /// Holds all units up against their checksums.
    fn verify(&self, sums: UnitSums, data: &[u8]) -> Result<()> {
        let (mut data, mut table) = (data, &self.sums[..]);
        for extent in &self.extents {
            let units = extent.units as usize;
            let (bytes, rest) = data.split_at(units * UNIT_BYTES as usize);
            if let Some(unit) = sums.first_damaged(extent.unit, bytes, table) {
                return Err(corrupt(format!("unit {unit} of the volume is damaged")));
            }
            (data, table) = (rest, &table[units..]);
        }
        Ok(())
    }
}

impl Extent {
    /// The number behind its last unit.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.unit + u64::from(self.units)
    }

    fn is_sound(&self) -> bool {
        self.units > 0 && self.unit.checked_add(u64::from(self.units)).is_some()
    }
}

impl Part {
    fn encoded_bytes(&self) -> usize {
        1 + match self {
            Self::Data(table) => table.encoded_bytes(),
            Self::Pack { table, .. } => VERSION_BYTES + table.encoded_bytes(),
            Self::Image { .. } => 4 + VERSION_BYTES + 16 + 8,
            Self::Zero(_) | Self::Trim(_) => 16,
            Self::Root(_) => VERSION_BYTES + 16,
            Self::Ledger(note) => 4 + note.len(),
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Data(table) => {
                writer.u8(1);
                table.write(writer);
            }
            Self::Pack { pack, table } => {
                writer.u8(2);
                writer.version(*pack);
                table.write(writer);
            }
            Self::Image {
                shard,
                image,
                through,
            } => {
                writer.u8(3);
                writer.u32(*shard);
                writer.named(*image);
                // Numbers of records begin at 1.
                writer.u64(through.unwrap_or(0));
            }
            Self::Zero(units) => write_range(writer, 4, units),
            Self::Trim(units) => write_range(writer, 5, units),
            Self::Root(root) => {
                writer.u8(6);
                writer.named(*root);
            }
            Self::Ledger(note) => {
                writer.u8(7);
                writer.count(note.len());
                writer.bytes(note);
            }
        }
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self> {
        let kind = fields.u8()?;
        Ok(match kind {
            1 => Self::Data(Table::read(fields)?),
            2 => Self::Pack {
                pack: fields.version()?,
                table: Table::read(fields)?,
            },
            3 => Self::Image {
                shard: fields.u32()?,
                image: fields.named()?,
                through: Some(fields.u64()?).filter(|through| *through > 0),
            },
            4 => Self::Zero(read_range(fields)?),
            5 => Self::Trim(read_range(fields)?),
            6 => Self::Root(fields.named()?),
            _ => {
                let len = fields.count(1)?;
                fields.require(kind == 7 && len <= MAX_LEDGER_BYTES)?;
                Self::Ledger(fields.bytes(len)?.to_vec())
            }
        })
    }
}

fn write_range(writer: &mut Writer, kind: u8, units: &Range<u64>) {
    writer.u8(kind);
    writer.u64(units.start);
    writer.u64(units.end);
}

fn read_range(fields: &mut Fields<'_>) -> Result<Range<u64>> {
    let units = fields.u64()?..fields.u64()?;
    fields.require(!units.is_empty())?;
    Ok(units)
}

impl Changes {
    /// Where the units begin, in bytes from the start of the payload.
    #[must_use]
    pub fn data_at(&self) -> u64 {
        let parts = self.parts.iter().map(Part::encoded_bytes);
        (SEALED_BYTES + 4 + parts.sum::<usize>()) as u64
    }

    /// Bytes of all units in the payload.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.tables().map(Table::data_bytes).sum()
    }

    /// The tables of the units in the payload.
    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.parts.iter().filter_map(|part| match part {
            Part::Data(table) => Some(table),
            _ => None,
        })
    }

    /// The header, as bytes. The units of the data parts follow, in their order.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is more than a record can have.
    pub fn encode(&self, volume: Uuid) -> Result<Vec<u8>> {
        let units = self.data_bytes() / UNIT_BYTES;
        let whole = |part: &Part| match part {
            Part::Data(table) | Part::Pack { table, .. } => !table.sums.is_empty(),
            Part::Zero(units) | Part::Trim(units) => !units.is_empty(),
            Part::Ledger(note) => note.len() <= MAX_LEDGER_BYTES,
            // Numbers of records begin at 1, and 0 is how none is written.
            Part::Image { through, .. } => *through != Some(0),
            Part::Root(_) => true,
        };
        let fits = units <= MAX_UNITS as u64 && self.data_at() <= MAX_HEADER_BYTES;
        if !fits || !self.parts.iter().all(whole) {
            return Err(Error::new(Kind::Invalid, "more than a log record can say"));
        }
        let mut writer = Writer::new(Version::default());
        writer.count(self.parts.len());
        self.parts.iter().for_each(|part| part.write(&mut writer));
        Ok(writer.seal(What::Changes, volume, 0))
    }

    /// How many bytes the header has that begins with these, so that it can be fetched without
    /// the units. 64 bytes are enough to tell.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode), and if it is longer than any header.
    pub fn header_bytes(first: &[u8]) -> Result<u64> {
        header_bytes(What::Changes, first)
    }

    /// Reads the header from the start of a payload; the units need not be there.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a newer version, [`Kind::Corrupt`] for anything that is not what
    /// [`encode`](Self::encode) writes for this volume.
    pub fn decode(volume: Uuid, payload: &[u8]) -> Result<Self> {
        let (header, _) = split_header(What::Changes, payload)?;
        let (version, mut fields) = Fields::open(What::Changes, volume, 0, header)?;
        fields.require(version == Version::default())?;
        let count = fields.count(MIN_PART_BYTES)?;
        let mut changes = Self::default();
        for _ in 0..count {
            changes.parts.push(Part::read(&mut fields)?);
        }
        fields.end()?;
        fields.require(changes.data_bytes() / UNIT_BYTES <= MAX_UNITS as u64)?;
        Ok(changes)
    }

    /// Reads a whole payload, and holds all units up against their checksums.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode), and [`Kind::Corrupt`] for units that are not what was written.
    pub fn decode_whole(volume: Uuid, payload: &[u8]) -> Result<Self> {
        let changes = Self::decode(volume, payload)?;
        let (_, mut data) = split_header(What::Changes, payload)?;
        if data.len() as u64 != changes.data_bytes() {
            return Err(corrupt("a record of changes has a wrong length"));
        }
        for table in changes.tables() {
            let (units, rest) = data.split_at(table.data_bytes() as usize);
            table.verify(UnitSums::of(volume), units)?;
            data = rest;
        }
        Ok(changes)
    }
}

/// Where the units of a pack with this table begin, in bytes from its start.
#[must_use]
pub fn pack_data_at(table: &Table) -> u64 {
    (SEALED_BYTES + table.encoded_bytes()) as u64
}

/// The header of a pack. The units of the table follow.
///
/// # Errors
/// [`Kind::Invalid`] for a table without units.
pub fn encode_pack(volume: Uuid, version: Version, table: &Table) -> Result<Vec<u8>> {
    if table.sums.is_empty() {
        return Err(Error::new(Kind::Invalid, "a pack of nothing"));
    }
    let mut writer = Writer::new(version);
    table.write(&mut writer);
    Ok(writer.seal(What::Pack, volume, 0))
}

/// How many bytes the header of the pack has that begins with these, as
/// [`Changes::header_bytes`] says.
///
/// # Errors
/// As there.
pub fn pack_header_bytes(first: &[u8]) -> Result<u64> {
    header_bytes(What::Pack, first)
}

/// Reads the header from the start of a pack; the units need not be there.
///
/// # Errors
/// As for [`Changes::decode`]; [`Kind::Corrupt`] for another pack.
pub fn decode_pack(volume: Uuid, version: Version, pack: &[u8]) -> Result<Table> {
    let (header, _) = split_header(What::Pack, pack)?;
    let (found, mut fields) = Fields::open(What::Pack, volume, 0, header)?;
    let table = Table::read(&mut fields)?;
    fields.end()?;
    match found == version {
        true => Ok(table),
        false => Err(corrupt(format!(
            "pack {found} lies in the place of {version}"
        ))),
    }
}

/// Reads a whole pack, and holds all units up against their checksums.
///
/// # Errors
/// As for [`decode_pack`], and [`Kind::Corrupt`] for units that are not what was written.
pub fn decode_whole_pack(volume: Uuid, version: Version, pack: &[u8]) -> Result<Table> {
    let table = decode_pack(volume, version, pack)?;
    let (_, data) = split_header(What::Pack, pack)?;
    if data.len() as u64 != table.data_bytes() {
        return Err(corrupt("a pack of units has a wrong length"));
    }
    table.verify(UnitSums::of(volume), data)?;
    Ok(table)
}

fn header_bytes(what: What, first: &[u8]) -> Result<u64> {
    let bytes = Frame::bytes(what, first)?;
    match bytes <= MAX_HEADER_BYTES {
        true => Ok(bytes),
        false => Err(corrupt(format!("the {} makes no sense", what.name()))),
    }
}

fn split_header(what: What, bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let header = header_bytes(what, bytes)?;
    let split = usize::try_from(header).ok();
    split
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(|| corrupt(format!("the {} is cut short", what.name())))
}

#[cfg(test)]
mod tests;
