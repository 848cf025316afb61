//! Conditional puts. One whose outcome is unknown is looked up before it is made again: if the
//! object holds just what was to be stored, the put came through.
//!
//! That needs contents that nobody else would store: whoever elects an owner with `IfAbsent` puts
//! something of its own into the object (a nonce). Empty bodies can't have that and are not looked up.

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{Body, Condition, Data, Error, GetFlags, Kind, Piece, Put, Range, Result};

use super::{call, Retry};
use crate::policy::Class;

/// What became of a put whose outcome was unknown.
enum Fate {
    /// It was stored, under this ETag.
    Stored(Put),
    /// It was not, or not yet; its condition still holds.
    NotYet,
    /// It was not, and its condition does not hold any more.
    Refused(Error),
}

impl Retry {
    pub(super) async fn put_conditional(
        &self,
        key: &str,
        body: Body,
        condition: Condition,
    ) -> Result<Put> {
        let class = match body.is_empty() {
            true => Class::Once,
            false => Class::Idempotent,
        };
        let mut run = self.link.run(call("put", key, class));
        loop {
            let attempt = self.put_or_find(run.in_doubt(), key, &body, &condition);
            match attempt.await {
                Ok(put) => return Ok(run.succeeded(put)),
                Err(error) if is_refusal(&error) => return Err(error),
                Err(error) => run.failed(error).await?,
            }
        }
    }

    /// One attempt. In doubt, the store is asked first what became of the attempts before.
    async fn put_or_find(
        &self,
        in_doubt: bool,
        key: &str,
        body: &Body,
        condition: &Condition,
    ) -> Result<Put> {
        if in_doubt {
            match self.fate(key, body, condition).await? {
                Fate::Stored(put) => return Ok(put),
                Fate::Refused(error) => return Err(error),
                Fate::NotYet => {}
            }
        }
        let put = self.inner.put(key, body.clone(), condition.clone()).await;
        match put {
            // Either somebody else's, or an earlier attempt that arrived in between.
            Err(error) if in_doubt && is_refusal(&error) => {
                match self.fate(key, body, condition).await? {
                    Fate::Stored(put) => Ok(put),
                    Fate::Refused(_) => Err(error),
                    Fate::NotYet => Err(Error::new(
                        Kind::Ambiguous,
                        format!("{error}, though its condition holds"),
                    )),
                }
            }
            put => put,
        }
    }

    async fn fate(&self, key: &str, body: &Body, condition: &Condition) -> Result<Fate> {
        let meta = match self.inner.head(key, GetFlags::FRESH).await {
            Err(error) if error.kind == Kind::NotFound => return Ok(gone(key, condition)),
            meta => meta.map_err(unseen)?,
        };
        if meta.size != body.len() {
            return Ok(other(key, condition, &meta.etag));
        }
        let flags = GetFlags::FRESH | GetFlags::WANT_META;
        let got = match self.inner.get(key, Range::ALL, flags).await {
            Err(error) if error.kind == Kind::NotFound => return Ok(gone(key, condition)),
            got => got.map_err(unseen)?,
        };
        let ROption::RSome(meta) = got.meta else {
            return Err(Error::new(
                Kind::Unsupported,
                "may have been stored, and the store does not say which version it answered",
            ));
        };
        Ok(match same_bytes(&got.data, body) {
            true => Fate::Stored(Put::new(&meta.etag)),
            false => other(key, condition, &meta.etag),
        })
    }
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind, Kind::Exists | Kind::Precondition)
}

/// A look that failed says nothing about the put. Its own kind decides whether to look again; the
/// caller is told that the outcome is unknown.
fn unseen(error: Error) -> Error {
    error.context("may have been stored, and looking failed")
}

fn gone(key: &str, condition: &Condition) -> Fate {
    match condition {
        Condition::IfMatch(_) => Fate::Refused(Error::new(
            Kind::Precondition,
            format!("{key}: the object to be replaced is gone"),
        )),
        Condition::IfAbsent | Condition::Always => Fate::NotYet,
    }
}

/// The object is there with other contents.
fn other(key: &str, condition: &Condition, etag: &str) -> Fate {
    match condition {
        Condition::IfAbsent => Fate::Refused(Error::new(
            Kind::Exists,
            format!("{key} exists with other contents"),
        )),
        Condition::IfMatch(expected) if expected != etag => Fate::Refused(Error::new(
            Kind::Precondition,
            format!("{key} has the ETag {etag}, not {expected}"),
        )),
        Condition::IfMatch(_) | Condition::Always => Fate::NotYet,
    }
}

/// Whether both hold the same bytes, however they are cut.
fn same_bytes(data: &Data, body: &Body) -> bool {
    let mut ours = body.pieces().iter().map(|piece| &piece[..]);
    let mut our: &[u8] = &[];
    for piece in data.pieces() {
        let Piece::Bytes(piece) = piece else {
            return false;
        };
        let mut their = &piece[..];
        while !their.is_empty() {
            if our.is_empty() {
                match ours.next() {
                    Some(next) => our = next,
                    None => return false,
                }
            }
            let len = our.len().min(their.len());
            if our[..len] != their[..len] {
                return false;
            }
            (our, their) = (&our[len..], &their[len..]);
        }
    }
    our.is_empty() && ours.all(<[u8]>::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_rs_plugin::Bytes;
    use proptest::prelude::*;

    fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Bytes> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let piece = |pair: &[usize]| Bytes::from(bytes[pair[0]..pair[1]].to_vec());
        at.windows(2).map(piece).collect()
    }

    proptest! {
        #[test]
        fn bytes_are_compared_however_they_are_cut(
            ours: Vec<u8>, flip in prop::option::of(any::<prop::sample::Index>()), shorter: bool,
            cuts: Vec<usize>, their_cuts: Vec<usize>,
        ) {
            let mut theirs = ours.clone();
            if let (Some(flip), false) = (flip, ours.is_empty()) {
                theirs[flip.index(ours.len())] ^= 1;
            }
            if shorter {
                theirs.pop();
            }
            let body = Body::Many(cut(&ours, &cuts).into());
            let pieces = cut(&theirs, &their_cuts).into_iter().map(Piece::Bytes);
            prop_assert_eq!(same_bytes(&Data::Many(pieces.collect()), &body), ours == theirs);
        }
    }
}
