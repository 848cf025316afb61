//! From the chunks of an answer to exactly the bytes that were asked for. Pure.

use http::header::HeaderMap;
use nbd_rs_plugin::{Bytes, Data, Error, Kind, Piece, Range, Result};

use crate::response::{check_is_object, content_length, text_of};

/// The largest object that is read as a whole, in bytes; larger ones are read by ranges.
pub(crate) const MAX_WHOLE_BYTES: u64 = 256 << 20;
/// The largest object that a range is cut out of where the store ignores ranges, in bytes.
const MAX_CUT_BYTES: u64 = 64 << 20;
/// Chunks below this are gathered: a slow sender must not cost more memory than its bytes.
const SMALL_BYTES: usize = 4096;

/// Which bytes of the answer's body are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Before those, in bytes.
    skip: u64,
    /// Those; nothing if only the end of the body tells.
    take: Option<u64>,
    /// The whole body, if it is known.
    body: Option<u64>,
    /// The object's size, if it is known before the end.
    size: Option<u64>,
    /// The CRC-32C of all the bytes taken.
    crc: Option<u32>,
}

fn damaged(text: impl AsRef<str>) -> Error {
    Error::new(Kind::Transient, text)
}

fn outside(range: Range, size: u64) -> Error {
    let text = format!("{range:?} is outside the object of {size} bytes");
    Error::new(Kind::Invalid, text)
}

impl Plan {
    /// How to read the answer to a get of `range`, which is not empty.
    ///
    /// # Errors
    /// If the answer is not about that range of an object.
    pub(crate) fn new(range: Range, status: u16, headers: &HeaderMap) -> Result<Self> {
        check_is_object(headers)?;
        let length = content_length(headers);
        if headers.contains_key("content-length") && length.is_none() {
            return Err(damaged("Content-Length is no number"));
        }
        let said = text_of(headers, "content-range");
        match (status, said) {
            // Some servers answer a range with 200; the header counts.
            (200 | 206, Some(said)) if range != Range::ALL => Self::part(range, said, length),
            (200, _) if range == Range::ALL => Self::whole(length, headers),
            (200, None) => Self::cut(range, length),
            _ => Err(damaged("206 without the range that was asked for")),
        }
    }

    fn part(range: Range, said: &str, length: Option<u64>) -> Result<Self> {
        let (first, last, size) =
            parse_content_range(said).ok_or_else(|| damaged("Content-Range can't be read"))?;
        let take = last - first + 1;
        let wanted_last = match range.len {
            Range::TO_END => size.map_or(last, |size| size - 1),
            len => range.offset + (len - 1),
        };
        if first == range.offset && last < wanted_last && size == Some(last + 1) {
            return Err(outside(range, last + 1));
        }
        if first != range.offset || last != wanted_last {
            return Err(damaged(format!(
                "asked for {range:?}, got bytes {first} to {last}"
            )));
        }
        if length.is_some_and(|length| length != take) {
            return Err(damaged("Content-Length and Content-Range differ"));
        }
        Ok(Self {
            skip: 0,
            take: Some(take),
            body: Some(take),
            size,
            crc: None,
        })
    }

    fn whole(length: Option<u64>, headers: &HeaderMap) -> Result<Self> {
        if length.is_some_and(|length| length > MAX_WHOLE_BYTES) {
            let text = format!("an object of over {MAX_WHOLE_BYTES} bytes is read by ranges");
            return Err(Error::new(Kind::Invalid, text));
        }
        Ok(Self {
            skip: 0,
            take: length,
            body: length,
            size: length,
            crc: text_of(headers, "x-amz-checksum-crc32c").and_then(parse_crc),
        })
    }

    /// The store ignores ranges: cut it out of the whole.
    fn cut(range: Range, length: Option<u64>) -> Result<Self> {
        let size = match length {
            Some(size) if size <= MAX_CUT_BYTES => size,
            _ => {
                let text = "the store does not know ranges, and the object is large";
                return Err(Error::new(Kind::Unsupported, text));
            }
        };
        let inside = range.within(size).map_err(|_| outside(range, size))?;
        Ok(Self {
            skip: inside.start as u64,
            take: Some(inside.len() as u64),
            body: Some(size),
            size: Some(size),
            crc: None,
        })
    }
}

/// `bytes 0-99/1000` or `bytes 0-99/*` (RFC 9110, 14.4): first, last, size.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse::<u64>().ok()?);
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    let sound = first <= last && last < u64::MAX && size.is_none_or(|size| last < size);
    sound.then_some((first, last, size))
}

/// `bytes */1000`, as a 416 has it.
pub(crate) fn unsatisfied_size(headers: &HeaderMap) -> Option<u64> {
    text_of(headers, "content-range")?
        .strip_prefix("bytes */")?
        .parse()
        .ok()
}

/// A CRC-32C over the whole object; those of multipart uploads (`...-3`) are over other things.
fn parse_crc(text: &str) -> Option<u32> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The chunks so far.
#[derive(Debug)]
pub(crate) struct Assembly {
    plan: Plan,
    seen: u64,
    taken: u64,
    pieces: Vec<Piece>,
    small: Vec<u8>,
    crc: u32,
}

impl Assembly {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            seen: 0,
            taken: 0,
            pieces: Vec::new(),
            small: Vec::new(),
            crc: 0,
        }
    }

    /// Takes a chunk: lent as it is, cut at the edges of what is wanted.
    ///
    /// # Errors
    /// If there is more than was announced.
    pub(crate) fn push(&mut self, chunk: bytes::Bytes) -> Result<()> {
        let (before, after) = (self.seen, self.seen + chunk.len() as u64);
        self.seen = after;
        if after > self.plan.body.unwrap_or(MAX_WHOLE_BYTES) {
            return Err(damaged("the answer is longer than it may be"));
        }
        let (skip, end) = (
            self.plan.skip,
            self.plan.take.map(|take| self.plan.skip + take),
        );
        let from = skip.clamp(before, after) - before;
        let to = end.unwrap_or(after).clamp(before, after) - before;
        self.take(chunk.slice(from as usize..to as usize));
        Ok(())
    }

    fn take(&mut self, part: bytes::Bytes) {
        self.taken += part.len() as u64;
        if self.plan.crc.is_some() {
            self.crc = crc32c::crc32c_append(self.crc, &part);
        }
        if part.len() < SMALL_BYTES {
            self.small.extend_from_slice(&part);
            return;
        }
        self.end_small();
        self.pieces.push(Piece::Bytes(part.into()));
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            let small = std::mem::take(&mut self.small);
            self.pieces.push(Piece::Bytes(Bytes::from(small)));
        }
    }

    /// The bytes, and the object's size, if it is known; the body has ended.
    ///
    /// # Errors
    /// If bytes are missing, or they are not those that were stored.
    pub(crate) fn finish(mut self) -> Result<(Data, Option<u64>)> {
        let plan = self.plan;
        if plan.body.is_some_and(|body| body != self.seen) {
            return Err(damaged(format!(
                "the answer was cut off after {} bytes",
                self.seen
            )));
        }
        if plan.crc.is_some_and(|crc| crc != self.crc) {
            let text = "the bytes do not match the checksum that they were stored with";
            return Err(Error::new(Kind::Corrupt, text));
        }
        self.end_small();
        let size = plan
            .size
            .or_else(|| plan.take.is_none().then_some(self.taken));
        let data = match self.pieces.pop() {
            Some(only) if self.pieces.is_empty() => Data::One(only),
            last => {
                self.pieces.extend(last);
                Data::Many(self.pieces.into())
            }
        };
        Ok((data, size))
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        pairs.iter().chain(&[("etag", "\"e\"")]).map(pair).collect()
    }

    fn bytes_of(data: &Data) -> Vec<u8> {
        let bytes = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => bytes.to_vec(),
            _ => panic!("only memory"),
        };
        data.pieces().iter().flat_map(bytes).collect()
    }

    fn read(range: Range, status: u16, headers: &HeaderMap, chunks: &[&[u8]]) -> Result<Vec<u8>> {
        let mut assembly = Assembly::new(Plan::new(range, status, headers)?);
        for chunk in chunks {
            assembly.push(bytes::Bytes::copy_from_slice(chunk))?;
        }
        Ok(bytes_of(&assembly.finish()?.0))
    }

    #[test]
    fn a_206_must_be_the_range_asked_for() {
        let range = Range::new(2, 3);
        for (said, length, kind) in [
            ("bytes 2-4/10", "3", None),
            ("bytes 2-4/*", "3", None),
            ("bytes 0-2/10", "3", Some(Kind::Transient)),
            ("bytes 2-3/10", "2", Some(Kind::Transient)),
            ("bytes 2-5/10", "4", Some(Kind::Transient)),
            ("bytes 2-3/4", "2", Some(Kind::Invalid)),
            ("bytes 2-4/10", "9", Some(Kind::Transient)),
            ("bytes 4-2/10", "3", Some(Kind::Transient)),
            ("bytes 2-4/4", "3", Some(Kind::Transient)),
            ("bytes 2-18446744073709551615/*", "3", Some(Kind::Transient)),
            ("items 2-4/10", "3", Some(Kind::Transient)),
        ] {
            let headers = headers(&[("content-range", said), ("content-length", length)]);
            for status in [200, 206] {
                let plan = Plan::new(range, status, &headers);
                assert_eq!(plan.err().map(|error| error.kind), kind, "{said} {length}");
            }
        }
        assert!(Plan::new(range, 206, &headers(&[("content-length", "3")])).is_err());
    }

    #[test]
    fn a_200_to_a_range_is_cut() {
        let ten = headers(&[("content-length", "10")]);
        let chunks: &[&[u8]] = &[b"01", b"234", b"56789"];
        let read = |range, chunks: &[&[u8]]| read(range, 200, &ten, chunks);
        assert_eq!(read(Range::new(1, 6), chunks).unwrap(), b"123456");
        assert_eq!(
            read(Range::new(4, Range::TO_END), chunks).unwrap(),
            b"456789"
        );
        assert_eq!(
            read(Range::new(8, 3), chunks).unwrap_err().kind,
            Kind::Invalid
        );
        // All that was wanted came, but the whole did not.
        assert_eq!(
            read(Range::new(0, 2), &chunks[..1]).unwrap_err().kind,
            Kind::Transient
        );
        let large = headers(&[("content-length", "99999999999")]);
        let refused = Plan::new(Range::new(0, 1), 200, &large).unwrap_err();
        assert_eq!(refused.kind, Kind::Unsupported);
        let endless = Plan::new(Range::new(0, 1), 200, &headers(&[])).unwrap_err();
        assert_eq!(endless.kind, Kind::Unsupported);
    }

    #[test]
    fn a_whole_object_may_be_checked_and_may_be_of_unknown_length() {
        let sum = |text| headers(&[("content-length", "9"), ("x-amz-checksum-crc32c", text)]);
        let read = |headers: &HeaderMap| read(Range::ALL, 200, headers, &[b"1234", b"56789"]);
        assert_eq!(read(&sum("4waSgw==")).unwrap(), b"123456789");
        assert_eq!(read(&sum("4waSgA==")).unwrap_err().kind, Kind::Corrupt);
        assert!(
            read(&sum("4waSgA==-3")).is_ok(),
            "a checksum of parts is none of the whole"
        );
        assert!(read(&headers(&[])).is_ok());
        let huge = headers(&[("content-length", "18446744073709551615")]);
        assert_eq!(
            Plan::new(Range::ALL, 200, &huge).unwrap_err().kind,
            Kind::Invalid
        );
    }

    #[test]
    fn pages_that_are_no_objects_are_not_read() {
        let mut page = HeaderMap::new();
        page.insert("content-length", HeaderValue::from_static("5"));
        assert!(Plan::new(Range::ALL, 200, &page).is_err());
        page.insert("last-modified", HeaderValue::from_static("x"));
        assert!(Plan::new(Range::ALL, 200, &page).is_ok());
        page.insert(
            "content-type",
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        assert!(Plan::new(Range::ALL, 200, &page).is_err());
        let gzip = headers(&[("content-encoding", "gzip")]);
        assert_eq!(
            Plan::new(Range::ALL, 200, &gzip).unwrap_err().kind,
            Kind::Io
        );
        assert!(Plan::new(
            Range::ALL,
            200,
            &headers(&[("content-encoding", "aws-chunked")])
        )
        .is_ok());
    }

    #[test]
    fn many_small_chunks_become_few_pieces_and_large_ones_are_lent() {
        let length = headers(&[("content-length", "30000")]);
        let mut assembly = Assembly::new(Plan::new(Range::ALL, 200, &length).unwrap());
        let chunk = bytes::Bytes::from(vec![7; 10_000]);
        for at in 0..10_000 {
            assembly.push(chunk.slice(at..at + 1)).unwrap();
        }
        assembly.push(chunk.clone()).unwrap();
        for at in 0..10_000 {
            assembly.push(chunk.slice(at..at + 1)).unwrap();
        }
        let (data, _) = assembly.finish().unwrap();
        assert_eq!(data.pieces().len(), 3);
        let Piece::Bytes(lent) = &data.pieces()[1] else {
            panic!()
        };
        assert_eq!(lent.as_ptr(), chunk.as_ptr());
    }

    proptest! {
        /// However an answer is cut into chunks and wherever it ends: the range, or an error.
        #[test]
        fn exactly_the_range_or_an_error(
            object in prop::collection::vec(any::<u8>(), 0..200),
            offset in 0u64..220, len in prop_oneof![1u64..220, Just(Range::TO_END)],
            cuts in prop::collection::vec(0usize..200, 0..6),
            sent in 0usize..240, honest in any::<bool>(),
        ) {
            let range = Range::new(offset, len);
            let length = object.len().to_string();
            let mut body = object.clone();
            body.resize(if honest { object.len() } else { sent }, 0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|two| &body[two[0]..two[1]]).collect();
            let headers = headers(&[("content-length", &length)]);
            match (read(range, 200, &headers, &chunks), range.within(object.len() as u64)) {
                (Ok(read), Ok(inside)) => prop_assert_eq!(read, &object[inside]),
                (Ok(_), Err(_)) => prop_assert!(false, "bytes from outside"),
                (Err(error), inside) => prop_assert!(
                    inside.is_err() || body.len() != object.len(), "{}", error),
            }
        }

        #[test]
        fn any_content_range_is_read_or_refused(text in "(bytes )?[0-9*/-]{0,40}") {
            let headers = headers(&[("content-range", &text)]);
            for range in [Range::new(0, 5), Range::new(3, Range::TO_END)] {
                let _ = Plan::new(range, 206, &headers);
            }
        }
    }
}
