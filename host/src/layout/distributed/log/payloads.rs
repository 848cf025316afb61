//! Payloads in memory, for backends that are behind. Bounded: what is put off is read again from a
//! backend that has it.

use std::collections::BTreeMap;

use nbd_rs_plugin::{Body, Bytes, Range};

use super::object::Seal;
use crate::layout::split::cut;

/// What a record carries.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) body: Body,
    pub(super) seal: Seal,
}

impl Payload {
    pub(super) fn new(body: Body) -> Self {
        let seal = Seal::of(body.pieces());
        Self { body, seal }
    }

    pub(super) fn empty() -> Self {
        Self::new(Body::One(Bytes::from(Vec::new())))
    }

    /// In one stretch.
    pub(super) fn bytes(&self) -> Bytes {
        match &self.body {
            Body::One(bytes) => bytes.clone(),
            Body::Many(pieces) => {
                let pieces: Vec<&[u8]> = pieces.iter().map(AsRef::as_ref).collect();
                Bytes::from(pieces.concat())
            }
        }
    }

    /// A part of it, in one stretch; none if it is not all there.
    pub(super) fn part(&self, range: Range) -> Option<Bytes> {
        let end = range.offset.checked_add(range.len)?;
        if end > self.seal.len {
            return None;
        }
        let body = cut(&self.body, range.offset, range.len);
        Some(Self { body, ..*self }.bytes())
    }

    /// The object that carries it behind a header.
    pub(super) fn behind(&self, header: Vec<u8>) -> Body {
        let header = Bytes::from(header);
        if self.seal.len == 0 {
            return Body::One(header);
        }
        let pieces = self.body.pieces().iter().cloned();
        Body::Many(std::iter::once(header).chain(pieces).collect())
    }
}

/// By number of the record.
#[derive(Debug)]
pub(super) struct Payloads {
    kept: BTreeMap<u64, Payload>,
    bytes: u64,
    most: u64,
}

impl Payloads {
    pub(super) fn new(most: u64) -> Self {
        Self {
            kept: BTreeMap::new(),
            bytes: 0,
            most,
        }
    }

    /// Keeps it, and drops the oldest that are too many. The newest is kept in any case.
    pub(super) fn keep(&mut self, seq: u64, payload: Payload) {
        self.bytes += payload.seal.len;
        if let Some(old) = self.kept.insert(seq, payload) {
            self.bytes -= old.seal.len;
        }
        while self.bytes > self.most && self.kept.len() > 1 {
            self.drop_first();
        }
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Payload> {
        self.kept.get(&seq)
    }

    /// Nobody needs those up to `seq` any more.
    pub(super) fn forget_through(&mut self, seq: u64) {
        while self
            .kept
            .first_key_value()
            .is_some_and(|(first, _)| *first <= seq)
        {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, payload)) = self.kept.pop_first() {
            self.bytes -= payload.seal.len;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(len: usize) -> Payload {
        Payload::new(Body::One(Bytes::from(vec![7; len])))
    }

    proptest! {
        #[test]
        fn f63_what_waits_for_a_slow_backend_is_bounded(
            lens in prop::collection::vec(0_usize..100, 1..50),
            forget in 0_u64..50,
        ) {
            let mut payloads = Payloads::new(200);
            for (seq, len) in lens.iter().enumerate() {
                payloads.keep(seq as u64, payload(*len));
                prop_assert!(payloads.bytes <= 200 || payloads.kept.len() == 1);
                prop_assert!(payloads.get(seq as u64).is_some());
            }
            payloads.forget_through(forget);
            let sum: u64 = payloads.kept.values().map(|payload| payload.seal.len).sum();
            prop_assert_eq!(sum, payloads.bytes);
            prop_assert!(payloads.kept.keys().all(|seq| *seq > forget));
        }
    }

    #[test]
    fn a_payload_in_pieces_is_put_in_pieces() {
        let pieces = [&b"ab"[..], b"c"].map(|piece| Bytes::from(piece.to_vec()));
        let payload = Payload::new(Body::Many(pieces.into_iter().collect()));
        assert_eq!(&payload.bytes()[..], b"abc");
        let object = payload.behind(b"h".to_vec());
        let pieces: Vec<&[u8]> = object.pieces().iter().map(AsRef::as_ref).collect();
        assert_eq!(pieces, [&b"h"[..], b"ab", b"c"]);
        assert_eq!(Payload::empty().behind(b"h".to_vec()).len(), 1);
    }
}
