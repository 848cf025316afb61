//! What objects were before their last change, for answers that are out of date.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{Error, GetFlags, Got, Kind, Meta, Next, Range, Result};

/// More than this is not kept, in bytes: all is forgotten then.
const MOST_BYTES: u64 = 64 << 20;

/// The version before the current one, of each object that was changed through this link.
#[derive(Debug, Default)]
pub struct Versions(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Nothing, where there was no object before.
    objects: HashMap<String, Option<Got>>,
    bytes: u64,
}

impl Versions {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what an object is now, before it is changed.
    pub async fn remember(&self, inner: &Next, key: &str) {
        let now = inner.get(key, Range::ALL, GetFlags::WANT_META).await;
        let version = match now {
            Ok(got) => Some(got),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(_) => return,
        };
        let mut kept = self.lock();
        kept.bytes += version.as_ref().map_or(0, |got| got.data.len());
        if kept.bytes > MOST_BYTES {
            *kept = Kept::default();
            return;
        }
        kept.objects.insert(key.to_owned(), version);
    }

    /// What an object was before; nothing if it is not known.
    pub fn get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        let version = self.lock().objects.get(key).cloned()?;
        Some(match version {
            Some(got) => cut(got, range, flags),
            None => Err(Error::new(Kind::NotFound, key)),
        })
    }

    /// The same for `head`.
    pub fn head(&self, key: &str) -> Option<Result<Meta>> {
        let got = self.get(key, Range::ALL, GetFlags::WANT_META)?;
        let meta = got.and_then(|got| {
            let meta = got.meta.into_option();
            meta.ok_or_else(|| Error::new(Kind::NotFound, key))
        });
        Some(meta)
    }
}

fn cut(got: Got, range: Range, flags: GetFlags) -> Result<Got> {
    let within = range.within(got.data.len())?;
    let mut bytes = Vec::with_capacity(within.len());
    for piece in got.data.pieces() {
        if let nbd_rs_plugin::Piece::Bytes(piece) = piece {
            bytes.extend_from_slice(piece);
        }
    }
    let part = nbd_rs_plugin::Bytes::from(bytes).slice(within);
    Ok(Got {
        data: part.into(),
        meta: match flags.has(GetFlags::WANT_META) {
            true => got.meta,
            false => ROption::RNone,
        },
    })
}
