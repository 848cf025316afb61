//! Units: the bytes that one checksum covers. Pure.

/// Bytes of a unit.
pub(super) const UNIT_BYTES: u64 = 4096;

/// The checksum of one unit.
pub(super) fn checksum(unit: &[u8]) -> u32 {
    crc32c::crc32c(unit)
}

/// The checksums of all units of pieces that stand one behind the other. Each continues the one that
/// `seed` gives for its number.
pub(super) fn checksums<'d>(
    pieces: impl IntoIterator<Item = &'d [u8]>,
    seed: impl Fn(usize) -> u32,
) -> Vec<u32> {
    let (mut sums, mut sum, mut have) = (Vec::new(), seed(0), 0);
    for mut piece in pieces {
        while !piece.is_empty() {
            let (part, rest) = piece.split_at(piece.len().min(UNIT_BYTES as usize - have));
            sum = crc32c::crc32c_append(sum, part);
            have += part.len();
            piece = rest;
            if have == UNIT_BYTES as usize {
                sums.push(sum);
                (sum, have) = (seed(sums.len()), 0);
            }
        }
    }
    sums
}
