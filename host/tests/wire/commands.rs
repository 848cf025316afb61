//! What every command does when all is well: in each framing, with every flag that goes with it,
//! at the first byte, the last one, and over nothing.

use std::fs;

use crate::client::{
    Client, Framing, CACHE, DF, FAST_ZERO, FLUSH, FRAMINGS, FUA, NO_HOLE, READ, TRIM, WRITE,
    WRITE_ZEROES,
};
use crate::stage::{cases, Stage, SIZE};

/// Bytes that are nowhere zero.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8 + 1).collect()
}

/// Every set of these flags.
fn sets(flags: &[u16]) -> Vec<u16> {
    let all = 0..1_u32 << flags.len();
    let set = |bits: u32| {
        let chosen = flags.iter().enumerate();
        chosen.fold(0, |set, (n, flag)| {
            if bits & (1 << n) != 0 {
                set | flag
            } else {
                set
            }
        })
    };
    all.map(set).collect()
}

#[test]
fn every_command_works_with_every_flag_that_goes_with_it() {
    let stage = Stage::new();
    let commands: [(&str, u16, &[u16]); 6] = [
        ("READ", READ, &[FUA, DF]),
        ("WRITE", WRITE, &[FUA]),
        ("FLUSH", FLUSH, &[FUA]),
        ("TRIM", TRIM, &[FUA]),
        ("CACHE", CACHE, &[FUA]),
        ("WRITE_ZEROES", WRITE_ZEROES, &[FUA, NO_HOLE, FAST_ZERO]),
    ];
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for (name, command, flags) in commands {
            for flags in sets(flags) {
                // DF needs chunks.
                if framing != Framing::Simple || flags & DF == 0 || command != READ {
                    let name = format!("{name} with flags {flags:#x}, {framing:?}");
                    table.push((name, (framing, command, flags)));
                }
            }
        }
    }
    cases("commands and flags", table, |(framing, command, flags)| {
        let mut client = stage.client(framing);
        let old = pattern(8192);
        assert_eq!(client.write(0, 4096, &old), 0);
        let new = vec![0xee; 4096];
        let (offset, length, payload) = match command {
            FLUSH => (0, 0, &[][..]),
            WRITE => (6144, 4096, &new[..]),
            _ => (6144, 4096, &[][..]),
        };
        let reply = client.ask(command, flags, offset, length, payload);
        assert_eq!(reply.error, 0, "{}", reply.text);
        let mut expected = old.clone();
        match command {
            READ => assert!(reply.data == old[2048..6144], "other bytes"),
            WRITE => expected[2048..6144].fill(0xee),
            TRIM | WRITE_ZEROES => expected[2048..6144].fill(0),
            _ => {}
        }
        assert!(client.read(4096, 8192) == Ok(expected), "what it left");
        client.disconnect();
    });
    stage.stop();
}

#[test]
fn w45_w46_the_edges_of_the_export_and_lengths_of_0() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for (where_, offset, length) in [
            ("the first byte", 0, 1),
            ("the last byte", SIZE - 1, 1),
            ("the last two", SIZE - 2, 2),
            ("an odd range", 4097, 8191),
            ("nothing at the start", 0, 0),
            ("nothing inside", 12345, 0),
            ("nothing at the end", SIZE, 0),
        ] {
            for (name, command) in [
                ("READ", READ),
                ("WRITE", WRITE),
                ("TRIM", TRIM),
                ("CACHE", CACHE),
                ("WRITE_ZEROES", WRITE_ZEROES),
            ] {
                let name = format!("{name} of {where_}, {framing:?}");
                table.push((name, (framing, command, offset, length)));
            }
        }
    }
    cases(
        "w45",
        table,
        |(framing, command, offset, length): (_, _, u64, usize)| {
            let mut client = stage.client(framing);
            let image = pattern(SIZE as usize);
            fs::write(stage.image(), &image).expect("an image");
            let payload = vec![0xee; if command == WRITE { length } else { 0 }];
            let reply = client.ask(command, 0, offset, length, &payload);
            assert_eq!(reply.error, 0, "{}", reply.text);
            let mut expected = image;
            let range = &mut expected[offset as usize..][..length];
            match command {
                READ => assert!(reply.data == range, "other bytes"),
                WRITE => range.fill(0xee),
                TRIM | WRITE_ZEROES => range.fill(0),
                _ => {}
            }
            if length == 0 && framing != Framing::Simple {
                assert_eq!((reply.chunks, reply.contents), (1, 0), "one NONE chunk");
            }
            client.disconnect();
            assert!(
                fs::read(stage.image()).expect("an image") == expected,
                "what it left"
            );
        },
    );
    stage.stop();
}

#[test]
fn w41_fua_goes_with_every_command() {
    let stage = Stage::new();
    let table = FRAMINGS.map(|framing| (format!("{framing:?}"), framing));
    cases("w41", table, |framing| {
        let mut client = stage.client(framing);
        for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES] {
            let length = if command == FLUSH { 0 } else { 4096 };
            let reply = client.ask(command, FUA, 0, length, &[]);
            assert_eq!(reply.error, 0, "command {command}");
        }
        assert_eq!(client.write(FUA, 0, &[1; 4096]), 0);
        if framing != Framing::Simple {
            assert!(client.extents(FUA, 0, 4096).is_ok());
        }
    });
    stage.stop();
}

#[test]
fn reads_of_every_kind_of_memory_give_the_same_bytes_in_every_framing() {
    // Small reads are copied, large ones lent from a mapping, holes told of.
    let stage = Stage::with("64Mi", |serve| serve);
    let mut image = vec![0; 64 << 20];
    for (from, to) in [
        (1 << 20, 9 << 20),
        (20 << 20, (20 << 20) + 5),
        (40 << 20, 63 << 20),
    ] {
        let data = pattern(to - from);
        image[from..to].copy_from_slice(&data);
        let mut client = stage.client(Framing::Simple);
        assert_eq!(client.write(0, from as u64, &data), 0);
    }
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for flags in [0, DF] {
            for (offset, length) in [
                (0, 4096),
                ((1 << 20) - 3, 6),
                ((1 << 20) + 1, 65_535),
                (1 << 20, 65_536),
                ((1 << 20) + 7, 65_537),
                (0, 4 << 20),
                (8 << 20, 2 << 20),
                (12 << 20, 4 << 20),
                ((20 << 20) - 4096, 8192),
                (39 << 20, 25 << 20),
                (32 << 20, 32 << 20),
                (0, 32 << 20),
            ] {
                if flags == 0 || framing != Framing::Simple {
                    let name = format!("{length} at {offset}, flags {flags}, {framing:?}");
                    table.push((name, (framing, flags, offset, length)));
                }
            }
        }
    }
    cases(
        "reads",
        table,
        |(framing, flags, offset, length): (_, _, usize, usize)| {
            let mut client = stage.client(framing);
            let reply = client.ask(READ, flags, offset as u64, length, &[]);
            assert_eq!(reply.error, 0, "{}", reply.text);
            assert!(reply.data == image[offset..offset + length], "other bytes");
        },
    );
    stage.stop();
}

#[test]
fn what_one_connection_wrote_all_others_read() {
    let stage = Stage::new();
    let mut clients: Vec<Client> = FRAMINGS.iter().map(|f| stage.client(*f)).collect();
    clients.push(Client::tcp(&stage.server).expect("a handshake"));
    let count = clients.len();
    for round in 0..40 {
        let data = vec![round as u8 + 1; 4096];
        assert_eq!(clients[round % count].write(0, 8192, &data), 0);
        for client in &mut clients {
            assert!(
                client.read(8192, 4096).as_ref() == Ok(&data),
                "round {round}"
            );
        }
        let other = &mut clients[(round + 1) % count];
        assert_eq!(other.zero(WRITE_ZEROES, 0, 8192, 2048), 0);
        let mut expected = data;
        expected[..2048].fill(0);
        for client in &mut clients {
            assert!(
                client.read(8192, 4096).as_ref() == Ok(&expected),
                "round {round}"
            );
        }
    }
    stage.stop();
}
