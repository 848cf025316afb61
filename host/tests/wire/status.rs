//! BLOCK_STATUS over data and holes, in both forms (w46, w54).

use crate::client::{
    Framing, BLOCK_STATUS, EINVAL, FUA, HOLE, NO_HOLE, READ, REQ_ONE, TRIM, WRITE_ZEROES, ZERO,
};
use crate::stage::{cases, Stage};

const CHUNKED: [Framing; 2] = [Framing::Structured, Framing::Extended];
const MIB: u64 = 1 << 20;

/// 16 MiB: data, hole, data, hole, of 1 MiB each, then nothing.
fn striped() -> Stage {
    let stage = Stage::with("16Mi", |serve| serve);
    let mut client = stage.client(Framing::Simple);
    for at in [0, 2 * MIB] {
        assert_eq!(client.write(0, at, &[7; 1 << 20]), 0);
    }
    assert_eq!(client.flush(), 0);
    stage
}

#[test]
fn w54_extents_are_exact_clipped_and_merged() {
    let stage = striped();
    let (data, hole) = (0, HOLE | ZERO);
    let table = [
        (
            "all",
            (
                0,
                0,
                16 * MIB,
                vec![(MIB, data), (MIB, hole), (MIB, data), (13 * MIB, hole)],
            ),
        ),
        ("the first one", (REQ_ONE, 0, 16 * MIB, vec![(MIB, data)])),
        (
            "one hole",
            (REQ_ONE, MIB, 16 * MIB - MIB, vec![(MIB, hole)]),
        ),
        (
            "the last one",
            (REQ_ONE, 3 * MIB, 13 * MIB, vec![(13 * MIB, hole)]),
        ),
        ("inside data", (0, 4096, 4096, vec![(4096, data)])),
        ("inside a hole", (0, 4 * MIB, 4096, vec![(4096, hole)])),
        (
            "across an edge",
            (0, MIB - 512, 1024, vec![(512, data), (512, hole)]),
        ),
        ("not aligned", (0, MIB - 3, 5, vec![(3, data), (2, hole)])),
        ("one byte", (0, MIB - 1, 1, vec![(1, data)])),
        ("the last byte", (0, 16 * MIB - 1, 1, vec![(1, hole)])),
        ("with FUA", (FUA, MIB, 4096, vec![(4096, hole)])),
        (
            "with FUA, one",
            (FUA | REQ_ONE, MIB, 4096, vec![(4096, hole)]),
        ),
    ];
    let twice = table.into_iter().flat_map(|(name, case)| {
        CHUNKED.map(|framing| (format!("{name}, {framing:?}"), (framing, case.clone())))
    });
    cases(
        "w54",
        twice,
        |(framing, (flags, offset, length, expected))| {
            let mut client = stage.client(framing);
            assert_eq!(client.extents(flags, offset, length as usize), Ok(expected));
        },
    );
    stage.stop();
}

#[test]
fn w46_block_status_of_no_length_and_beyond_the_end_is_refused() {
    let stage = striped();
    let table = [
        ("no length", (0, 0)),
        ("no length at the end", (16 * MIB, 0)),
        ("one byte beyond", (0, 16 * MIB + 1)),
        ("the byte behind the end", (16 * MIB, 1)),
        ("far away", (1 << 62, 4096)),
        ("wrapping", (u64::MAX, 4096)),
        ("4 GiB less one", (0, (4 << 30) - 1)),
    ];
    let twice = table.into_iter().flat_map(|(name, case)| {
        CHUNKED.map(|framing| (format!("{name}, {framing:?}"), (framing, case)))
    });
    cases("w46", twice, |(framing, (offset, length))| {
        let mut client = stage.client(framing);
        assert_eq!(client.extents(0, offset, length as usize), Err(EINVAL));
        assert!(client.extents(0, 0, 4096).is_ok(), "in step");
    });
    stage.stop();
}

#[test]
fn w54_huge_ranges_are_clamped_to_what_a_descriptor_can_say() {
    let stage = Stage::with("6Gi", |serve| serve);
    let (size, hole) = (6_u64 << 30, HOLE | ZERO);
    let largest = u64::from(u32::MAX);
    let mut client = stage.client(Framing::Structured);
    let got = client.extents(0, 0, largest as usize);
    assert_eq!(got, Ok(vec![(largest, hole)]));
    let got = client.extents(0, size - largest, largest as usize);
    assert_eq!(got, Ok(vec![(largest, hole)]));
    let mut client = stage.client(Framing::Extended);
    assert_eq!(client.extents(0, 0, size as usize), Ok(vec![(size, hole)]));
    assert_eq!(
        client.extents(REQ_ONE, 7, size as usize - 7),
        Ok(vec![(size - 7, hole)])
    );
    assert_eq!(client.extents(0, 0, size as usize + 1), Err(EINVAL));
    assert_eq!(client.write(0, 5 << 30, &[1; 4096]), 0);
    let all = client.extents(0, 0, size as usize).expect("extents");
    assert_eq!(all.iter().map(|(length, _)| length).sum::<u64>(), size);
    assert_eq!(all[0], (5 << 30, hole));
    assert_eq!(all[1].1, 0, "what was written");
    stage.stop();
}

#[test]
fn what_is_said_to_be_zero_reads_as_zeros_whatever_was_done_to_it() {
    let stage = Stage::new();
    for framing in CHUNKED {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, 0, &[9; 1 << 20]), 0);
        for (command, flags, offset, length) in [
            (TRIM, 0, 4096, 65536),
            (TRIM, 0, 200_001, 4095),
            (WRITE_ZEROES, 0, 300_000, 10_000),
            (WRITE_ZEROES, NO_HOLE, 500_000, 100_000),
        ] {
            assert_eq!(client.zero(command, flags, offset, length), 0);
        }
        let mut at = 0;
        for (length, status) in client.extents(0, 0, 1 << 20).expect("extents") {
            let read = client.read(at, length as usize).expect("bytes");
            if status & ZERO != 0 {
                assert!(read.iter().all(|byte| *byte == 0), "at {at}");
            }
            at += length;
        }
        assert_eq!(at, 1 << 20, "the extents cover it all");
    }
    stage.stop();
}

#[test]
fn w55_block_status_without_a_context_is_refused_and_the_stream_stays_in_step() {
    let stage = Stage::new();
    let mut client = stage.client(Framing::Simple);
    assert_eq!(client.ask(BLOCK_STATUS, 0, 0, 4096, &[]).error, EINVAL);
    assert_eq!(client.ask(READ, 0, 0, 16, &[]).data, [0; 16]);
    stage.stop();
}
