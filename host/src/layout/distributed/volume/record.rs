//! What one record says of a batch: images of shards that it changes much, packs of what is too much,
//! the rest with its bytes.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use nbd_rs_plugin::{Body, Bytes};

use super::super::format::changes::{encode_pack, Changes, Part, Table};
use super::super::format::image::Trailer;
use super::super::format::names::Object;
use super::super::format::{Named, Version, UNIT_BYTES};
use super::batch::Batch;
use super::read::Layers;
use super::shared::Inner;
use crate::error::Result;

/// Memory for images that are made at the same time, in bytes; one is made whatever its size.
const IMAGES_BYTES: u64 = 16 << 20;
/// Images and packs that are put at the same time, at the most.
const AT_ONCE: u64 = 4;

/// Names that are looked at for one pack.
const NAMES: usize = 64;
/// How often a pack is put that may wait.
pub(super) const PACK_TRIES: u32 = 3;

/// A record that is to be appended.
pub(super) struct Record {
    pub(super) changes: Changes,
    /// The units of its data parts.
    pub(super) units: Vec<Bytes>,
}

impl Record {
    /// As the log carries it.
    pub(super) fn body(&self, inner: &Inner) -> Result<Body> {
        let header = Bytes::from(self.changes.encode(inner.volume)?);
        let pieces = std::iter::once(header).chain(self.units.iter().cloned());
        Ok(Body::Many(pieces.collect()))
    }
}

/// Units behind one table.
#[derive(Default)]
struct Load {
    table: Table,
    units: Vec<Bytes>,
}

impl Inner {
    /// Puts what goes beside the record.
    ///
    /// # Errors
    /// Why nothing goes on any more. A backend that does not answer is waited for.
    pub(super) async fn record_of(&self, batch: &Batch) -> Result<Record> {
        let mut parts = batch.zeros();
        let images = self.images_of(batch).await;
        let shards: BTreeSet<u32> = images.iter().map(|(shard, _)| *shard).collect();
        parts.extend(images.into_iter().map(|(shard, image)| Part::Image {
            shard,
            image,
            through: None,
        }));
        let mut loads = self.loads(batch, &shards);
        let inline = loads.pop();
        let packs = loads.iter().map(|load| self.put_pack_of(load));
        let packs: Vec<_> = packs.collect();
        let packs: Vec<Version> = stream::iter(packs)
            .buffered(AT_ONCE as usize)
            .try_collect()
            .await?;
        let packs = packs.into_iter().zip(loads);
        parts.extend(packs.map(|(pack, Load { table, .. })| Part::Pack { pack, table }));
        let units = match inline {
            Some(Load { table, units }) => {
                parts.push(Part::Data(table));
                units
            }
            None => Vec::new(),
        };
        parts.extend(batch.others());
        let changes = Changes { parts };
        Ok(Record { changes, units })
    }

    /// Its units, but those of `shards`, in loads that each fit behind one header.
    fn loads(&self, batch: &Batch, shards: &BTreeSet<u32>) -> Vec<Load> {
        let shard_units = self.geometry.shard_units();
        let mut loads: Vec<Load> = Vec::new();
        for (unit, bytes) in batch.units() {
            if shards.contains(&((unit / shard_units) as u32)) {
                continue;
            }
            let fits = |load: &mut Load| load.table.push(self.sums, unit, bytes).is_some();
            if !loads.last_mut().is_some_and(fits) {
                let mut load = Load::default();
                // One unit always fits.
                let _ = load.table.push(self.sums, unit, bytes);
                loads.push(load);
            }
            if let Some(load) = loads.last_mut() {
                load.units.push(bytes.clone());
            }
        }
        loads
    }

    async fn put_pack_of(&self, load: &Load) -> Result<Version> {
        self.put_pack(&load.table, &load.units, u32::MAX).await
    }

    /// Puts a pack, under one name after the other until its homes take it: each name has homes of its
    /// own.
    ///
    /// # Errors
    /// Why nothing goes on any more; that of a backend after so many tries.
    pub(super) async fn put_pack(
        &self,
        table: &Table,
        units: &[Bytes],
        tries: u32,
    ) -> Result<Version> {
        let mut tried = 0;
        loop {
            let pack = self.pack_name();
            let header = Bytes::from(encode_pack(self.volume, pack, table)?);
            let pieces = std::iter::once(header).chain(units.iter().cloned());
            let body = Body::Many(pieces.collect());
            match self.replicas.put(Object::Pack(pack), body).await {
                Ok(()) => return Ok(pack),
                Err(error) => {
                    let mut core = self.core();
                    core.state.give_up(Object::Pack(pack));
                    core.trouble = Some(error.clone());
                    tried += 1;
                    if tried == tries {
                        return Err(error);
                    }
                }
            }
            self.going_on()?;
            self.replicas.pause().await;
        }
    }

    /// A name whose homes seem to be there, if there is one.
    fn pack_name(&self) -> Version {
        let mut pack = self.version();
        for _ in 0..NAMES {
            if self.replicas.can_take(&Object::Pack(pack)) {
                break;
            }
            pack = self.version();
        }
        pack
    }

    /// Images of shards that the batch changes so much that it is worth it. Where one can't be made the
    /// units go into the record.
    async fn images_of(&self, batch: &Batch) -> Vec<(u32, Named)> {
        let worth: Vec<u32> = {
            let core = self.core();
            let policy = &self.tuning.policy;
            let shards = batch.shards(self.geometry.shard_units()).into_iter();
            let can_be = |shard| {
                let version = Version::default();
                self.replicas.can_take(&Object::Image { shard, version })
            };
            let worth = shards.filter(|&(shard, units)| {
                policy.is_image_worth(&core.state, shard, units) && can_be(shard)
            });
            worth.map(|(shard, _)| shard).collect()
        };
        let at_once = (IMAGES_BYTES / self.geometry.shard_bytes).clamp(1, AT_ONCE);
        let images = worth.into_iter().map(|shard| async move {
            let made = self.put_image(shard, Layers::Batch(batch)).await;
            made.map(|(_, image)| (shard, image))
        });
        let images: Vec<_> = images.collect();
        let made: Vec<Result<(u32, Named)>> = stream::iter(images)
            .buffered(at_once as usize)
            .collect()
            .await;
        let failed = made.iter().find_map(|made| made.as_ref().err());
        if let Some(error) = failed {
            tracing::debug!("an image was not made: {error}");
        }
        made.into_iter().flatten().collect()
    }

    /// Puts an image of a shard as it is with these layers, and says as of which record.
    ///
    /// # Errors
    /// If a unit can't be read, or too few of its homes took it.
    pub(super) async fn put_image(&self, shard: u32, layers: Layers<'_>) -> Result<(u64, Named)> {
        let units = self.geometry.units_of(u64::from(shard));
        let first = units.start;
        let (through, found) = self.units(units, layers).await?;
        let mut data = vec![0; self.geometry.shard_bytes as usize];
        for (units, bytes) in found {
            if let Some(bytes) = bytes {
                let start = ((units.start - first) * UNIT_BYTES) as usize;
                data[start..start + bytes.len()].copy_from_slice(&bytes);
            }
        }
        let version = self.version();
        let trailer = Trailer {
            shard,
            version,
            sums: self.sums.sums(first, [&data[..]]),
        };
        let (bytes, image) = trailer.encode(self.volume);
        let pieces = [data, bytes].map(Bytes::from);
        let object = Object::Image { shard, version };
        let body = Body::Many(pieces.into_iter().collect());
        if let Err(error) = self.replicas.put(object, body).await {
            self.core().state.give_up(object);
            return Err(error);
        }
        self.trailers.keep(image, Arc::new(trailer));
        Ok((through, image))
    }
}
