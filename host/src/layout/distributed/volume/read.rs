//! Reads: every unit from the newest place that has it, and held up against its checksum.

use std::ops::Range;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_plugin::{Bytes, Data, Piece as DataPiece, Range as Bounds, ReadFlags};

use super::super::format::image::Trailer;
use super::super::format::names::Object;
use super::super::format::{Named, UNIT_BYTES};
use super::super::state::{Origin, Piece, State};
use super::batch::{cover, Batch, Cell};
use super::replicas::Replicas;
use super::shared::Inner;
use crate::error::{Error, Result};
use crate::layout::frame::corrupt;

/// Pieces of one read that are fetched at the same time.
const AT_ONCE: usize = 16;
/// How often a read is planned.
const PLANS: u32 = 5;

/// What a read looks at.
#[derive(Clone, Copy)]
pub(super) enum Layers<'a> {
    /// All that was acknowledged.
    All,
    /// A batch, and what was there before it.
    Batch(&'a Batch),
    /// What is in records.
    Records,
}

/// Where units are.
#[derive(Debug, Clone)]
enum Source {
    Zeros,
    Held(Bytes),
    Stored(Piece),
}

/// Where units are, as of a record.
struct Plan {
    through: u64,
    sources: Vec<(Range<u64>, Source)>,
}

impl Plan {
    /// What has to be fetched.
    fn stored(&self) -> impl Iterator<Item = &Piece> {
        self.sources.iter().filter_map(|(_, source)| match source {
            Source::Stored(piece) => Some(piece),
            Source::Zeros | Source::Held(_) => None,
        })
    }
}

/// Units in order, without a gap; none where they are zeros.
pub(super) type Units = Vec<(Range<u64>, Option<Bytes>)>;

fn sources(state: &State, batches: &[&Batch], units: Range<u64>) -> Vec<(Range<u64>, Source)> {
    let mut sources = Vec::new();
    for (units, cell) in cover(batches, units) {
        match cell {
            Some(Cell::Data(bytes)) => sources.push((units, Source::Held(bytes))),
            Some(Cell::Empty(_)) => sources.push((units, Source::Zeros)),
            None => {
                let pieces = state.plan(units).into_iter();
                sources.extend(pieces.map(|piece| match piece.origin {
                    Origin::Zeros => (piece.units, Source::Zeros),
                    _ => (piece.units.clone(), Source::Stored(piece)),
                }));
            }
        }
    }
    sources
}

impl Inner {
    fn plan(&self, units: Range<u64>, layers: Layers<'_>) -> Plan {
        let core = self.core();
        let batches = match layers {
            Layers::All => core.batches(),
            Layers::Batch(batch) => vec![batch],
            Layers::Records => Vec::new(),
        };
        Plan {
            through: core.state.last().map_or(0, |last| last.seq),
            sources: sources(&core.state, &batches, units),
        }
    }

    /// Units, and the number of the record that they are as of.
    ///
    /// # Errors
    /// [`Corrupt`](crate::error::Kind::Corrupt) if a unit is damaged or missing wherever it should be; else that of a backend.
    pub(super) async fn units(
        &self,
        units: Range<u64>,
        layers: Layers<'_>,
    ) -> Result<(u64, Units)> {
        let mut plan = self.plan(units.clone(), layers);
        let mut plans = 1;
        loop {
            let error = match self.fetch_all(&plan).await {
                Ok(found) => return Ok((plan.through, found)),
                Err(error) => error,
            };
            // What was folded or packed meanwhile may be gone from where it was.
            let again = self.plan(units.clone(), layers);
            plans += 1;
            if plans > PLANS || again.stored().eq(plan.stored()) {
                return Err(match Replicas::is_lost(&error) {
                    true => corrupt(error.to_string()),
                    false => error,
                });
            }
            plan = again;
        }
    }

    async fn fetch_all(&self, plan: &Plan) -> Result<Units> {
        let fetches = plan.sources.iter().map(|(units, source)| async move {
            let bytes = match source {
                Source::Zeros => None,
                Source::Held(bytes) => Some(bytes.clone()),
                Source::Stored(piece) => self.fetch(piece).await?,
            };
            Ok::<_, Error>((units.clone(), bytes))
        });
        // Collected first: a stream over borrowed closures is not general enough for a task.
        let fetches: Vec<_> = fetches.collect();
        stream::iter(fetches).buffered(AT_ONCE).try_collect().await
    }

    /// The bytes of a piece, each unit as it was written.
    pub(super) async fn fetch(&self, piece: &Piece) -> Result<Option<Bytes>> {
        let first = piece.units.start;
        let len = (piece.units.end - first) * UNIT_BYTES;
        let damaged = |bytes: &[u8], sums: &[u32]| self.sums.first_damaged(first, bytes, sums);
        let bytes = match &piece.origin {
            Origin::Zeros => return Ok(None),
            Origin::Log {
                position,
                offset,
                sums,
            } => {
                let is_sound = |bytes: &[u8]| damaged(bytes, sums).is_none();
                let range = Bounds::new(*offset, len);
                self.log.read(*position, range, &is_sound).await?
            }
            Origin::Pack { pack, offset, sums } => {
                let decode = |bytes: Bytes| sound(damaged(&bytes, sums), bytes);
                let (object, range) = (Object::Pack(*pack), Bounds::new(*offset, len));
                self.replicas.read(&object, range, &decode).await?
            }
            Origin::Image {
                shard,
                image,
                first,
            } => {
                let trailer = self.trailer(*shard, *image).await?;
                let decode = |bytes: Bytes| {
                    let damaged = trailer.first_damaged(self.sums, *first as usize, &bytes);
                    sound(damaged, bytes)
                };
                let (shard, version) = (*shard, image.version);
                let object = Object::Image { shard, version };
                let range = Bounds::new(u64::from(*first) * UNIT_BYTES, len);
                self.replicas.read(&object, range, &decode).await?
            }
        };
        match bytes.len() as u64 == len {
            true => Ok(Some(bytes)),
            false => Err(corrupt("a backend answered with another length")),
        }
    }

    async fn trailer(&self, shard: u32, image: Named) -> Result<Arc<Trailer>> {
        if let Some(trailer) = self.trailers.get(image) {
            return Ok(trailer);
        }
        let shard_bytes = self.geometry.shard_bytes;
        let trailer = self
            .replicas
            .anywhere()
            .trailer(shard, shard_bytes, image)
            .await?;
        self.trailers.keep(image, trailer.clone());
        Ok(trailer)
    }

    /// What is asked for by a client. It begins and ends while nobody else can serve the volume.
    pub(super) async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        self.held().await?;
        let end = offset + len;
        let units = offset / UNIT_BYTES..end.div_ceil(UNIT_BYTES);
        let (_, found) = self.units(units, Layers::All).await?;
        self.held().await?;
        let mut pieces = Vec::with_capacity(found.len());
        for (units, bytes) in found {
            let start = units.start * UNIT_BYTES;
            let part = offset.max(start)..end.min(units.end * UNIT_BYTES);
            let len = part.end - part.start;
            pieces.push(match bytes {
                Some(bytes) => {
                    let inside = (part.start - start) as usize..(part.end - start) as usize;
                    DataPiece::Bytes(bytes.slice(inside))
                }
                None if flags.has(ReadFlags::LEND_HOLES) => DataPiece::Hole(len),
                None => DataPiece::Bytes(Bytes::from(vec![0; len as usize])),
            });
        }
        Ok(Data::Many(pieces.into()))
    }
}

fn sound(damaged: Option<u64>, bytes: Bytes) -> Result<Bytes> {
    match damaged {
        None => Ok(bytes),
        Some(unit) => Err(corrupt(format!("unit {unit} of the volume is damaged"))),
    }
}
