//! Whole objects, held up against what names them.

use std::sync::Arc;

use nbd_rs_plugin::{Bytes, Range};

use super::super::format::changes::decode_whole_pack;
use super::super::format::image::{image_bytes, trailer_bytes, Trailer};
use super::super::format::map::MapPage;
use super::super::format::names::Object;
use super::super::format::root::{PackUnits, Root};
use super::super::format::{Named, UnitSums, UNIT_BYTES};
use super::replicas::Replicas;
use crate::error::{Kind, Result};
use crate::layout::frame::{corrupt, Frame, What, HEADER_BYTES};

/// The largest checkpoint that is read, in bytes. One of 16 GiB of single units in packs takes as much.
const MAX_ROOT_BYTES: u64 = 256 << 20;
/// No map page is longer.
const MAX_PAGE_BYTES: u64 = 1 << 20;

/// Reads whole objects: from one backend, or from wherever there is a copy.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    replicas: &'a Replicas,
    only: Option<usize>,
}

impl Replicas {
    /// From any of its homes.
    pub(super) fn anywhere(&self) -> Reader<'_> {
        Reader {
            replicas: self,
            only: None,
        }
    }

    /// From one backend.
    pub(super) fn on(&self, backend: usize) -> Reader<'_> {
        Reader {
            replicas: self,
            only: Some(backend),
        }
    }

    /// Whether no copy of an object can ever be read again, by this error of a read.
    pub(super) fn is_lost(error: &crate::error::Error) -> bool {
        matches!(error.kind, Kind::NotFound | Kind::Corrupt)
    }
}

impl Reader<'_> {
    async fn read<T: Send>(
        &self,
        object: &Object,
        range: Range,
        decode: &(dyn Fn(Bytes) -> Result<T> + Sync),
    ) -> Result<T> {
        let replicas = self.replicas;
        match self.only {
            Some(backend) => replicas.read_from(backend, object, range, decode).await,
            None => replicas.read(object, range, decode).await,
        }
    }

    /// An object that is one frame, whose length stands at its start.
    async fn framed<T: Send>(
        &self,
        object: &Object,
        (what, most_bytes): (What, u64),
        decode: &(dyn Fn(Bytes) -> Result<T> + Sync),
    ) -> Result<T> {
        let header = Range::new(0, HEADER_BYTES as u64);
        let length = |bytes: Bytes| match Frame::bytes(what, &bytes)? {
            bytes if bytes <= most_bytes => Ok(bytes),
            _ => Err(corrupt("an object is longer than it can be")),
        };
        let bytes = self.read(object, header, &length).await?;
        self.read(object, Range::new(0, bytes), decode).await
    }

    /// A checkpoint, and its bytes.
    pub(super) async fn root(&self, named: Named) -> Result<(Bytes, Root)> {
        let object = Object::Root(named.version);
        let decode = |bytes: Bytes| {
            let root = Root::decode(self.replicas.volume, &named, &bytes)?;
            Ok((bytes, root))
        };
        let what = (What::Root, MAX_ROOT_BYTES);
        self.framed(&object, what, &decode).await
    }

    /// A map page, and its bytes.
    pub(super) async fn page(&self, page: u32, named: Named) -> Result<(Bytes, MapPage)> {
        let version = named.version;
        let object = Object::Map { page, version };
        let decode = |bytes: Bytes| {
            let decoded = MapPage::decode(self.replicas.volume, page, &named, &bytes)?;
            Ok((bytes, decoded))
        };
        let what = (What::Map, MAX_PAGE_BYTES);
        self.framed(&object, what, &decode).await
    }

    /// The trailer of an image.
    pub(super) async fn trailer(
        &self,
        shard: u32,
        shard_bytes: u64,
        image: Named,
    ) -> Result<Arc<Trailer>> {
        let version = image.version;
        let object = Object::Image { shard, version };
        let range = Range::new(shard_bytes, trailer_bytes(shard_bytes));
        let decode = |bytes: Bytes| {
            let trailer =
                Trailer::decode(self.replicas.volume, shard, shard_bytes, &image, &bytes)?;
            Ok(Arc::new(trailer))
        };
        self.read(&object, range, &decode).await
    }

    /// A whole image, every unit of which is as it was put.
    pub(super) async fn image(&self, shard: u32, shard_bytes: u64, image: Named) -> Result<Bytes> {
        let version = image.version;
        let object = Object::Image { shard, version };
        let sums = UnitSums::of(self.replicas.volume);
        let decode = |bytes: Bytes| {
            let split = bytes.split_at_checked(shard_bytes as usize);
            let (data, trailer) = split.ok_or_else(|| corrupt("an image is cut short"))?;
            let trailer =
                Trailer::decode(self.replicas.volume, shard, shard_bytes, &image, trailer)?;
            match trailer.first_damaged(sums, 0, data) {
                None => Ok(bytes),
                Some(unit) => Err(corrupt(format!("unit {unit} of the volume is damaged"))),
            }
        };
        let range = Range::new(0, image_bytes(shard_bytes));
        self.read(&object, range, &decode).await
    }

    /// A whole pack that a checkpoint names.
    pub(super) async fn pack(&self, pack: &PackUnits) -> Result<Bytes> {
        let bytes = u64::from(pack.data_at) + pack.sums.len() as u64 * UNIT_BYTES;
        let decode = |bytes: Bytes| {
            let table = decode_whole_pack(self.replicas.volume, pack.version, &bytes)?;
            match table.sums() == pack.sums {
                true => Ok(bytes),
                false => Err(corrupt("a pack is not the one that the checkpoint names")),
            }
        };
        let object = Object::Pack(pack.version);
        self.read(&object, Range::new(0, bytes), &decode).await
    }
}
