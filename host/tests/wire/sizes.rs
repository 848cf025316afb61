//! Payloads up to the largest and beyond (w51, w52, w53), and what they cost.

use crate::client::{
    header, Framing, DF, EINVAL, ENOSPC, EOVERFLOW, EPERM, FAST_ZERO, FRAMINGS, READ, TRIM, WRITE,
    WRITE_ZEROES,
};
use crate::stage::{cases, Stage};

const MAX: usize = 32 << 20;
const SIZE: u64 = 6 << 30;

fn stage() -> Stage {
    Stage::with(&SIZE.to_string(), |serve| serve)
}

#[test]
fn w51_reads_beyond_the_largest_payload_are_refused_without_memory_for_them() {
    let stage = stage();
    let before = stage.status("VmRSS");
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for length in [MAX + 1, 33 << 20, 1 << 31, u32::MAX as usize] {
            for flags in [0, DF] {
                if flags == 0 || framing != Framing::Simple {
                    let name = format!("{length}, flags {flags}, {framing:?}");
                    table.push((name, (framing, flags, length)));
                }
            }
        }
    }
    cases("w51", table, |(framing, flags, length)| {
        let error = match framing {
            Framing::Simple => EINVAL,
            Framing::Structured | Framing::Extended => EOVERFLOW,
        };
        let mut client = stage.client(framing);
        let reply = client.ask(READ, flags, 4096, length, &[]);
        assert_eq!((reply.error, reply.contents), (error, 0));
        assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "in step");
    });
    assert!(stage.status("VmRSS") < before + (8 << 10), "it took memory");
    stage.stop();
}

#[test]
fn the_largest_payload_is_taken_and_given() {
    let stage = Stage::with("64Mi", |serve| serve);
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("largest payload", table, |framing| {
        let mut client = stage.client(framing);
        let data: Vec<u8> = (0..MAX).map(|n| (n % 253) as u8 ^ framing as u8).collect();
        assert_eq!(client.write(0, 4097, &data), 0);
        assert!(client.read(4097, MAX) == Ok(data), "other bytes");
    });
    stage.stop();
}

#[test]
fn w52_payloads_beyond_the_largest_are_read_over_up_to_64_mebibytes() {
    let stage = stage();
    let before = stage.status("VmRSS");
    let mut table = Vec::new();
    for framing in [Framing::Simple, Framing::Structured] {
        for (length, offset, error) in [
            (MAX + 1, 0, EINVAL),
            (40 << 20, 0, EINVAL),
            (64 << 20, 0, EINVAL),
            (MAX + 1, SIZE, ENOSPC),
        ] {
            let name = format!("{length} at {offset}, {framing:?}");
            table.push((name, (framing, length, offset, error)));
        }
    }
    cases("w52", table, |(framing, length, offset, error)| {
        let mut client = stage.client(framing);
        assert_eq!(client.write(0, offset, &vec![1; length]), error);
        assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "in step");
    });
    assert!(stage.status("VmRSS") < before + (8 << 10), "it took memory");
    stage.stop();
}

#[test]
fn w52_payloads_that_nobody_would_send_end_the_connection() {
    let stage = stage();
    let mut table = Vec::new();
    for framing in [Framing::Simple, Framing::Structured] {
        for length in [(64 << 20) + 1, 1 << 31, u32::MAX as usize] {
            table.push((format!("{length}, {framing:?}"), (framing, length)));
        }
    }
    cases("w52 beyond", table, |(framing, length)| {
        let mut client = stage.client(framing);
        client
            .send_raw(&header(WRITE, 0, 1, 0, length))
            .expect("sent");
        client.line.ends();
    });
    stage.still_serves();
    stage.stop();
}

#[test]
fn w53_trim_and_write_zeroes_of_4_gib_are_done_without_a_buffer() {
    let stage = stage();
    let before = stage.status("VmRSS");
    let length = u32::MAX as usize;
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for (name, command, flags) in [
            ("TRIM", TRIM, 0),
            ("WRITE_ZEROES", WRITE_ZEROES, 0),
            ("fast WRITE_ZEROES", WRITE_ZEROES, FAST_ZERO),
        ] {
            table.push((format!("{name}, {framing:?}"), (framing, command, flags)));
        }
    }
    cases("w53", table, |(framing, command, flags)| {
        let mut client = stage.client(framing);
        for at in [0, 1 << 30, length as u64] {
            assert_eq!(client.write(0, at, &[1; 4096]), 0);
        }
        assert_eq!(client.zero(command, flags, 0, length), 0);
        assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "the first");
        assert!(
            client.read(1 << 30, 4096) == Ok(vec![0; 4096]),
            "the middle"
        );
        assert!(
            client.read(length as u64, 4096) == Ok(vec![1; 4096]),
            "behind"
        );
    });
    assert!(stage.status("VmRSS") < before + (8 << 10), "it took memory");
    stage.stop();
}

#[test]
fn w52_w59_a_refused_payload_is_read_over_on_a_read_only_export_too() {
    let stage = Stage::with("64Mi", |serve| serve.words(["--read-only"]));
    for framing in FRAMINGS {
        let mut client = stage.client(framing);
        for length in [1, 300_000, 5 << 20, MAX] {
            assert_eq!(client.write(0, 0, &vec![1; length]), EPERM);
            assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "in step");
        }
    }
    stage.stop();
}
