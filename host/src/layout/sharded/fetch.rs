//! Shards and their trailers from the store, and what is wrong with them (contract C11, C25).

use std::ops::Range;
use std::sync::Arc;

use nbd_rs_plugin::{Buf, Bytes, Data, GetFlags, Got, Piece};

use super::frame::corrupt;
use super::lent;
use super::pages::Pages;
use super::store::{bytes_of, etag_of};
use super::trailer::{trailer_bytes, Trailer, UNIT_BYTES};
use super::trailers::Known;
use crate::error::{Error, Kind, Result};
use crate::layout::split::Part;
use crate::pool;

/// A shard as it lies on the store, in memory of its own.
pub(super) struct Loaded {
    pub(super) data: Buf,
    pub(super) known: Known,
    /// Units that are not as they were put.
    pub(super) damaged: Vec<u64>,
}

/// The units that a part touches.
pub(super) fn units_of(part: Part) -> Range<u64> {
    part.offset / UNIT_BYTES..(part.offset + part.len).div_ceil(UNIT_BYTES)
}

/// In one stretch, without a copy if it came so.
fn contiguous(data: &Data) -> Result<Bytes> {
    match data {
        Data::One(Piece::Bytes(bytes)) => Ok(bytes.clone()),
        data => Ok(Bytes::from(bytes_of(data)?)),
    }
}

/// The first unit of a part that is not as it was put.
fn first_damaged(known: &Known, part: Part, units: &[u8]) -> Option<u64> {
    let first = units_of(part).start;
    let units = units.chunks(UNIT_BYTES as usize);
    known.trailer.first_damaged(first, units)
}

/// The part that was asked for, out of its units, if they are those that the trailer speaks of.
/// Lent, as they came.
pub(super) fn verified(known: &Known, part: Part, got: &Got) -> Option<Data> {
    let is_same = etag_of(got) == &*known.etag;
    if !is_same || !lent::are_sound(&known.trailer, units_of(part), &got.data) {
        return None;
    }
    let start = part.offset % UNIT_BYTES;
    lent::cut(&got.data, start..start + part.len)
}

fn inside(part: Part, units: Bytes) -> Data {
    let start = (part.offset % UNIT_BYTES) as usize;
    units.slice(start..start + part.len as usize).into()
}

/// What an error of the store says of a shard; `None`: there is no object.
fn missing<T>(shard: u64, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) if error.kind == Kind::Invalid => {
            Err(corrupt(format!("shard {shard} has a wrong size ({error})")))
        }
        Err(error) => Err(error),
    }
}

async fn get(pages: &Pages, shard: u64, range: Range<u64>, flags: GetFlags) -> Result<Option<Got>> {
    let range = nbd_rs_plugin::Range::new(range.start, range.end - range.start);
    let flags = flags.with(GetFlags::WANT_META);
    let key = pages.names.shard(shard);
    missing(shard, pages.store.chain.get(key, range, flags).wait().await)
}

fn decode(pages: &Pages, shard: u64, bytes: &[u8], got: &Got) -> Result<Known> {
    let record = &pages.record;
    let trailer = Trailer::decode(record.uuid, shard, record.shard_bytes, bytes)?;
    Ok(Known {
        etag: etag_of(got).into(),
        trailer: Arc::new(trailer),
    })
}

/// The trailer of a shard.
pub(super) async fn trailer(pages: &Pages, shard: u64, flags: GetFlags) -> Result<Option<Known>> {
    let data = pages.record.shard_bytes;
    let range = data..data + trailer_bytes(data);
    let Some(got) = get(pages, shard, range, flags).await? else {
        return Ok(None);
    };
    let bytes = contiguous(&got.data)?;
    decode(pages, shard, &bytes, &got).map(Some)
}

/// A whole shard, copied out of what the chain lends, which is given back.
pub(super) async fn load(pages: &Pages, shard: u64, flags: GetFlags) -> Result<Option<Loaded>> {
    let shard_bytes = pages.record.shard_bytes;
    let range = 0..shard_bytes + trailer_bytes(shard_bytes);
    let Some(got) = get(pages, shard, range, flags).await? else {
        return Ok(None);
    };
    let mut data = pool::buf(shard_bytes as usize);
    let mut trailer = vec![0; trailer_bytes(shard_bytes) as usize];
    copy_into([&mut data[..], &mut trailer[..]], &got.data)?;
    let known = decode(pages, shard, &trailer, &got)?;
    let damaged = known.trailer.damaged(&data);
    Ok(Some(Loaded {
        data,
        known,
        damaged,
    }))
}

/// Fills the places one after another; the data must have just as many bytes.
fn copy_into(places: [&mut [u8]; 2], data: &Data) -> Result<()> {
    let wrong = || corrupt("an object was not answered in its bytes");
    let mut places = places.into_iter();
    let mut place = places.next().unwrap_or_default();
    for piece in data.pieces() {
        let Piece::Bytes(bytes) = piece else {
            return Err(wrong());
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            if place.is_empty() {
                place = places.next().ok_or_else(wrong)?;
                continue;
            }
            let len = rest.len().min(place.len());
            let (filled, left) = place.split_at_mut(len);
            filled.copy_from_slice(&rest[..len]);
            (place, rest) = (left, &rest[len..]);
        }
    }
    match place.is_empty() && places.all(|place| place.is_empty()) {
        true => Ok(()),
        false => Err(wrong()),
    }
}

/// A part of a shard that is most of it, out of all of it: so the checksums come along. Lent, as it
/// came; nothing if it is not as it was put.
pub(super) async fn most(pages: &Pages, part: Part) -> Result<Option<(Data, Known)>> {
    let end = pages.record.shard_bytes;
    let trailer = end..end + trailer_bytes(end);
    let Some(got) = get(pages, part.shard, 0..trailer.end, GetFlags::NONE).await? else {
        return Ok(None);
    };
    let units = units_of(part);
    let range = units.start * UNIT_BYTES..units.end * UNIT_BYTES;
    let found = lent::cut(&got.data, range).zip(lent::cut(&got.data, trailer));
    let Some((data, trailer)) = found else {
        return Ok(None);
    };
    let known = decode(pages, part.shard, &contiguous(&trailer)?, &got)?;
    let got = Got { data, ..got };
    Ok(verified(&known, part, &got).map(|data| (data, known)))
}

/// A part of a shard, from the store itself. Nobody may be putting the shard meanwhile: then what
/// is wrong is wrong on the store.
pub(super) async fn part(pages: &Pages, part: Part) -> Result<Option<(Data, Known)>> {
    let mut changed = false;
    loop {
        let Some(known) = trailer(pages, part.shard, GetFlags::FRESH).await? else {
            return Ok(None);
        };
        let units = units_of(part);
        let range = units.start * UNIT_BYTES..units.end * UNIT_BYTES;
        let Some(got) = get(pages, part.shard, range, GetFlags::FRESH).await? else {
            return Ok(None);
        };
        if etag_of(&got) != &*known.etag {
            // A late put of an earlier owner came between.
            if std::mem::replace(&mut changed, true) {
                return Err(corrupt(format!("shard {} keeps changing", part.shard)));
            }
            continue;
        }
        let bytes = contiguous(&got.data)?;
        return match first_damaged(&known, part, &bytes) {
            None => Ok(Some((inside(part, bytes), known))),
            Some(unit) => Err(damaged(pages, part.shard, unit)),
        };
    }
}

/// A unit does not have its checksum.
pub(super) fn damaged(pages: &Pages, shard: u64, unit: u64) -> Error {
    let offset = shard * pages.record.shard_bytes + unit * UNIT_BYTES;
    corrupt(format!(
        "the 4 KiB at offset {offset} (shard {shard}) are damaged: their checksum is wrong"
    ))
}

/// A shard that was written has no object.
pub(super) fn gone(shard: u64) -> Error {
    corrupt(format!("shard {shard} was written and its object is gone"))
}
