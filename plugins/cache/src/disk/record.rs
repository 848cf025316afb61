//! A block on disk: a header, the names it belongs to, its bytes. Pure.
//!
//! ```text
//!   0  magic            8  CRC32C of 12..80       12 CRC32C of names and bytes
//!  16  length of names 20  length of bytes        24 segment   32 version   40 object
//!  48  block           56  bytes in a block       64 size of the object     72 zero
//!  80  names (store, object, ETag, each behind its length), then the bytes
//! ```
//!
//! All numbers are little endian. A record is believed if both sums and the names are right; it says
//! in which segment it was written, so one in another file is not ours.

/// Bytes of a header.
pub const HEADER: usize = 80;
const MAGIC: [u8; 8] = *b"nbdrsC1\n";
/// Names longer than this are not kept on disk.
pub const NAMES_MAX: usize = 8 << 10;
/// The largest block.
pub const BYTES_MAX: usize = 4 << 20;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// CRC32C of names and bytes together.
    pub body_crc: u32,
    /// Bytes of the names.
    pub names_len: u32,
    /// Bytes of the block.
    pub bytes_len: u32,
    /// The number of the file it was written to.
    pub segment: u64,
    /// [`Names::version`].
    pub version: u64,
    /// [`Names::object`].
    pub object: u64,
    /// Which block.
    pub block: u64,
    /// Bytes in a whole block.
    pub block_bytes: u64,
    /// The size of the object.
    pub size: u64,
}

impl Header {
    /// As it is stored.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let numbers = [
            self.segment,
            self.version,
            self.object,
            self.block,
            self.block_bytes,
            self.size,
        ];
        out[..8].copy_from_slice(&MAGIC);
        out[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        out[16..20].copy_from_slice(&self.names_len.to_le_bytes());
        out[20..24].copy_from_slice(&self.bytes_len.to_le_bytes());
        for (at, number) in numbers.into_iter().enumerate() {
            out[24 + at * 8..32 + at * 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header; nothing if it is none, or says what can't be.
    pub fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes[..8] != MAGIC || short(8) != crc32c::crc32c(&bytes[12..]) {
            return None;
        }
        let header = Self {
            body_crc: short(12),
            names_len: short(16),
            bytes_len: short(20),
            segment: long(24),
            version: long(32),
            object: long(40),
            block: long(48),
            block_bytes: long(56),
            size: long(64),
        };
        let fits = header.names_len as usize <= NAMES_MAX && header.bytes_len as usize <= BYTES_MAX;
        (fits && long(72) == 0).then_some(header)
    }

    /// Bytes of the whole record.
    pub fn record_len(&self) -> u64 {
        HEADER as u64 + u64::from(self.names_len) + u64::from(self.bytes_len)
    }
}

/// What a block belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Store, object and ETag, as they are stored.
    pub encoded: Vec<u8>,
    /// A number for the version of the object. Others may have the same: the names decide.
    pub version: u64,
    /// A number for the object. Others may have the same.
    pub object: u64,
    /// Bytes in a whole block: blocks of another length are other blocks.
    pub block_bytes: u64,
}

impl Names {
    /// Of the version `etag` of the object `key` at the store `store`.
    pub fn new(store: &str, key: &str, etag: &str, block_bytes: u64) -> Self {
        let mut encoded = Vec::with_capacity(12 + store.len() + key.len() + etag.len());
        for name in [store, key] {
            push(&mut encoded, name);
        }
        let object = fnv(&encoded);
        push(&mut encoded, etag);
        let version = fnv_on(fnv(&encoded), &block_bytes.to_le_bytes());
        Self {
            encoded,
            version,
            object,
            block_bytes,
        }
    }
}

/// The number of an object, whatever its version.
pub fn object_number(store: &str, key: &str) -> u64 {
    Names::new(store, key, "", 0).object
}

fn push(encoded: &mut Vec<u8>, name: &str) {
    encoded.extend_from_slice(&(name.len() as u32).to_le_bytes());
    encoded.extend_from_slice(name.as_bytes());
}

/// FNV-1a, 64 bits: the same in every release, which no hasher of the standard library promises.
fn fnv(bytes: &[u8]) -> u64 {
    fnv_on(0xcbf2_9ce4_8422_2325, bytes)
}

fn fnv_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The whole record of block `block` of an object of `size` bytes, to be appended to `segment`.
/// Nothing if it is too long.
pub fn encode(
    names: &Names,
    segment: u64,
    block: u64,
    size: u64,
    bytes: &[u8],
) -> Option<(Header, Vec<u8>)> {
    if names.encoded.len() > NAMES_MAX || bytes.len() > BYTES_MAX {
        return None;
    }
    let header = Header {
        body_crc: crc32c::crc32c_append(crc32c::crc32c(&names.encoded), bytes),
        names_len: names.encoded.len() as u32,
        bytes_len: bytes.len() as u32,
        segment,
        version: names.version,
        object: names.object,
        block,
        block_bytes: names.block_bytes,
        size,
    };
    let mut record = Vec::with_capacity(header.record_len() as usize);
    record.extend_from_slice(&header.encode());
    record.extend_from_slice(&names.encoded);
    record.extend_from_slice(bytes);
    Some((header, record))
}

/// The bytes in a record that was read, if it is the one that was meant and undamaged.
pub fn verify<'r>(
    record: &'r [u8],
    names: &Names,
    segment: u64,
    block: u64,
    size: u64,
) -> Option<&'r [u8]> {
    let (head, body) = record.split_first_chunk::<HEADER>()?;
    let header = Header::decode(head)?;
    let (stored_names, bytes) = body.split_at_checked(header.names_len as usize)?;
    let right = (header.segment, header.block, header.size) == (segment, block, size)
        && header.block_bytes == names.block_bytes
        && stored_names == names.encoded
        && bytes.len() == header.bytes_len as usize
        && crc32c::crc32c(body) == header.body_crc;
    right.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_went(
            names in prop::array::uniform3("[a-z/]{0,50}"), bytes: Vec<u8>,
            numbers in prop::array::uniform4(any::<u64>()),
        ) {
            let [segment, block, block_bytes, size] = numbers;
            let names = Names::new(&names[0], &names[1], &names[2], block_bytes);
            let (header, record) = encode(&names, segment, block, size, &bytes).unwrap();
            prop_assert_eq!(record.len() as u64, header.record_len());
            let head = record.first_chunk().unwrap();
            prop_assert_eq!(Header::decode(head), Some(header));
            prop_assert_eq!(verify(&record, &names, segment, block, size), Some(&bytes[..]));
            let other = segment.wrapping_add(1);
            prop_assert_eq!(verify(&record, &names, other, block, size), None);
            prop_assert_eq!(verify(&record, &names, segment, block ^ 1, size), None);
            prop_assert_eq!(verify(&record, &names, segment, block, size ^ 1), None);
        }

        #[test]
        fn a_record_with_any_bit_flipped_or_cut_short_is_not_believed(
            bytes in prop::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let names = Names::new("s3://b", "key", "etag", 4096);
            let (_, record) = encode(&names, 1, 2, 5000, &bytes).unwrap();
            let mut flipped = record.clone();
            flipped[at.index(record.len())] ^= 1 << bit;
            prop_assert_eq!(verify(&flipped, &names, 1, 2, 5000), None);
            prop_assert_eq!(verify(&record[..at.index(record.len())], &names, 1, 2, 5000), None);
            for other in [
                Names::new("s3://c", "key", "etag", 4096),
                Names::new("s3://b", "kex", "etag", 4096),
                Names::new("s3://b", "key", "etah", 4096),
                Names::new("s3://b", "key", "etag", 8192),
            ] {
                prop_assert_ne!(other.version, names.version);
                prop_assert_eq!(verify(&record, &other, 1, 2, 5000), None);
            }
        }

        #[test]
        fn no_bytes_upset_the_reader(bytes: [u8; HEADER], fix: bool) {
            let mut bytes = bytes;
            if fix {
                bytes[..8].copy_from_slice(&MAGIC);
                let crc = crc32c::crc32c(&bytes[12..]);
                bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            }
            if let Some(header) = Header::decode(&bytes) {
                prop_assert!(header.record_len() <= (HEADER + NAMES_MAX + BYTES_MAX) as u64);
            }
        }
    }

    #[test]
    fn names_do_not_run_into_each_other() {
        let numbers = [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd")]
            .map(|(store, key, etag)| Names::new(store, key, etag, 1).encoded);
        assert_ne!(numbers[0], numbers[1]);
        assert_ne!(numbers[0], numbers[2]);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
