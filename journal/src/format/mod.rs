//! Bytes to values and back, nothing else. `docs/journal-format.md` shows the bytes.

pub mod record;
pub mod superblock;

/// Everything starts at a multiple of this, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// First bytes of everything.
const MAGIC: &[u8; 6] = b"nbd-rs";
/// The version of the format that is written here, and the newest that is read.
pub const VERSION: u8 = 1;
/// Where the checksum of a header stands; it covers the header with zeros here.
const CHECKSUM_AT: usize = 8;

/// Why bytes are not what was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// Something else altogether.
    Alien,
    /// Of a newer version.
    Newer(u8),
    /// Not what was written.
    Checksum,
    /// The checksum holds, and yet no writer of this version makes such a thing.
    Senseless,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Alien => f.write_str("it is something else"),
            Bad::Newer(version) => write!(
                f,
                "it is of format version {version} and this program knows {VERSION}: use a newer nbd-rs"
            ),
            Bad::Checksum => f.write_str("its checksum is wrong"),
            Bad::Senseless => f.write_str("it makes no sense"),
        }
    }
}

/// Begins a header of `what`: all zeros behind the version.
fn begin(what: u8, bytes: usize) -> Vec<u8> {
    let mut header = vec![0; bytes];
    header[..6].copy_from_slice(MAGIC);
    header[6] = what;
    header[7] = VERSION;
    header
}

/// Puts the checksum of a header that is otherwise finished into its place.
fn seal(header: &mut [u8]) {
    let checksum = checksum(header);
    put(header, CHECKSUM_AT, &checksum.to_le_bytes());
}

/// Whether the header starts as a `what` of this version.
fn check_start(what: u8, header: &[u8]) -> Result<(), Bad> {
    if header.len() < CHECKSUM_AT + 4 || !header.starts_with(MAGIC) || header[6] != what {
        return Err(Bad::Alien);
    }
    match header[7] {
        VERSION => Ok(()),
        0 => Err(Bad::Alien),
        newer => Err(Bad::Newer(newer)),
    }
}

fn check_sum(header: &[u8]) -> Result<(), Bad> {
    match u32_at(header, CHECKSUM_AT) == checksum(header) {
        true => Ok(()),
        false => Err(Bad::Checksum),
    }
}

fn checksum(header: &[u8]) -> u32 {
    let before = crc32c::crc32c(&header[..CHECKSUM_AT]);
    let gap = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(gap, &header[CHECKSUM_AT + 4..])
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_u64(header: &mut [u8], at: usize, number: u64) {
    put(header, at, &number.to_le_bytes());
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
