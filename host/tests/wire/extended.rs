//! What only extended headers have: announced payloads, and lengths beyond 32 bits (w77, w53).

use crate::client::{
    request, Client, Framing, BLOCK_STATUS, CACHE, EINVAL, ENOSPC, FLUSH, FUA, HOLE, PAYLOAD_LEN,
    READ, REQ_ONE, TRIM, WRITE, WRITE_ZEROES, ZERO,
};
use crate::stage::{cases, Stage, SIZE};

const EXT: Framing = Framing::Extended;

/// A BLOCK_STATUS with a payload: effect length and ids.
fn filtered(
    client: &mut Client,
    flags: u16,
    effect: u64,
    ids: &[u32],
) -> Result<Vec<(u64, u64)>, u32> {
    let mut payload = effect.to_be_bytes().to_vec();
    payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
    let flags = flags | PAYLOAD_LEN;
    let reply = client.ask(BLOCK_STATUS, flags, 4096, payload.len(), &payload);
    match reply.error {
        0 => Ok(reply.extents),
        error => Err(error),
    }
}

#[test]
fn w77_a_payload_that_the_command_does_not_have_is_read_over_and_refused() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 8, 0x55] {
        for length in [0, 1, 32, 4096, 300_000, 1 << 20, 32 << 20] {
            table.push((
                format!("command {command} with {length} bytes"),
                (command, length),
            ));
        }
    }
    cases("w77", table, |(command, length): (u16, usize)| {
        let mut client = stage.client(EXT);
        let payload = vec![0x21; length];
        let reply = client.ask(command, PAYLOAD_LEN, 0, length, &payload);
        assert_eq!(reply.error, EINVAL);
        assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "in step");
    });
    stage.stop();
}

#[test]
fn w77_a_payload_beyond_the_largest_ends_the_connection() {
    let stage = Stage::new();
    let mut table = Vec::new();
    for command in [READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS, 0x55] {
        for length in [(32 << 20) + 1, 1 << 32, u64::MAX] {
            table.push((
                format!("command {command} with {length} bytes"),
                (command, length),
            ));
        }
    }
    let before = stage.status("VmRSS");
    cases("w77 beyond", table, |(command, length)| {
        let mut client = stage.client(EXT);
        let header = request(EXT, command, PAYLOAD_LEN, 1, 0, length);
        client.send_raw(&header).expect("sent");
        client.line.ends();
    });
    assert!(stage.status("VmRSS") < before + (8 << 10), "it took memory");
    stage.still_serves();
    stage.stop();
}

/// The extension wants PAYLOAD_LEN on every WRITE; qemu's client (8.2 to 10) leaves it out and
/// sends the payload all the same, so that is what a WRITE without it means.
#[test]
fn w77_a_write_has_a_payload_with_and_without_the_flag() {
    let stage = Stage::new();
    let mut client = stage.client(EXT);
    for (flags, byte) in [(0, 1), (PAYLOAD_LEN, 2), (FUA, 3), (FUA | PAYLOAD_LEN, 4)] {
        let payload = [byte; 4096];
        let header = request(EXT, WRITE, flags, 77, 8192, 4096);
        client
            .send_raw(&[&header[..], &payload].concat())
            .expect("sent");
        let chunk = {
            assert_eq!(client.line.u32().expect("a reply"), 0x6e8a_278c);
            crate::client::reply::Chunk::receive(&mut client.line, EXT).expect("a chunk")
        };
        assert_eq!((chunk.kind, chunk.done, chunk.cookie), (0, true, 77));
        assert!(
            client.read(8192, 4096) == Ok(vec![byte; 4096]),
            "flags {flags}"
        );
    }
    // Beyond the end the payload is read over, too.
    assert_eq!(client.write(0, SIZE, &[1; 100]), ENOSPC);
    assert_eq!(client.write(0, 0, &[]), 0);
    assert_eq!(client.ask(WRITE, PAYLOAD_LEN, 0, 0, &[]).error, 0);
    assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "in step");
    stage.stop();
}

#[test]
fn w77_block_status_may_choose_its_context_in_a_payload() {
    let stage = Stage::new();
    let mut client = stage.client(EXT);
    assert_eq!(client.write(0, 0, &[1; 8192]), 0);
    let hole = HOLE | ZERO;
    let both = Ok(vec![(4096, 0), (8192, hole)]);
    assert_eq!(filtered(&mut client, 0, 12_288, &[1]), both);
    assert_eq!(filtered(&mut client, FUA, 12_288, &[1]), both);
    assert_eq!(
        filtered(&mut client, REQ_ONE, 12_288, &[1]),
        Ok(vec![(4096, 0)])
    );
    let all = filtered(&mut client, 0, SIZE - 4096, &[1]).expect("extents");
    assert_eq!(
        all.iter().map(|(length, _)| length).sum::<u64>(),
        SIZE - 4096
    );
    let table: Vec<(&str, (u64, Vec<u32>))> = vec![
        ("another id", (4096, vec![2])),
        ("id 0", (4096, vec![0])),
        ("no id", (4096, vec![])),
        ("the id twice", (4096, vec![1, 1])),
        ("the id and another", (4096, vec![1, 2])),
        ("another and the id", (4096, vec![2, 1])),
        ("100,000 ids", (4096, vec![1; 100_000])),
        ("no effect length", (0, vec![1])),
        ("beyond the end", (SIZE, vec![1])),
        ("wrapping", (u64::MAX, vec![1])),
    ];
    cases("w77 contexts", table, |(effect, ids)| {
        let mut client = stage.client(EXT);
        assert_eq!(filtered(&mut client, 0, effect, &ids), Err(EINVAL));
        assert!(client.extents(0, 0, 4096).is_ok(), "in step");
    });
    stage.stop();
}

#[test]
fn w77_block_status_payloads_that_are_not_8_and_4n_bytes_are_refused() {
    let stage = Stage::new();
    let table = [0, 1, 4, 7, 9, 11, 13, 15].map(|length| (format!("{length} bytes"), length));
    cases("w77 lengths", table, |length: usize| {
        let mut client = stage.client(EXT);
        let payload = vec![0; length];
        let reply = client.ask(BLOCK_STATUS, PAYLOAD_LEN, 0, length, &payload);
        assert_eq!(reply.error, EINVAL);
        assert!(client.extents(0, 0, 4096).is_ok(), "in step");
    });
    // Without a context nothing is to be chosen from.
    let mut handshake = stage.handshake();
    handshake.agree(11, b"").expect("agreed");
    let go = crate::client::handshake::info_query(b"disk", &[]);
    handshake.agree(7, &go).expect("transmission");
    let mut client = handshake.transmit(EXT);
    assert_eq!(filtered(&mut client, 0, 4096, &[1]), Err(EINVAL));
    assert!(client.read(0, 4096) == Ok(vec![0; 4096]), "in step");
    stage.stop();
}

#[test]
fn w53_commands_without_a_payload_take_lengths_beyond_32_bits() {
    let size = 6_usize << 30;
    let stage = Stage::with("6Gi", |serve| serve);
    let mut client = stage.client(EXT);
    let before = stage.status("VmRSS");
    for (command, flags) in [
        (TRIM, 0),
        (WRITE_ZEROES, 0),
        (WRITE_ZEROES, 1 << 4),
        (CACHE, 0),
    ] {
        assert_eq!(client.write(0, 5 << 30, &[1; 4096]), 0);
        let reply = client.ask(command, flags, 0, size, &[]);
        assert_eq!(reply.error, 0, "command {command}");
        let byte = u8::from(command == CACHE);
        assert!(
            client.read(5 << 30, 4096) == Ok(vec![byte; 4096]),
            "command {command}"
        );
        let error = if command == WRITE_ZEROES {
            ENOSPC
        } else {
            EINVAL
        };
        assert_eq!(client.ask(command, flags, 1, size, &[]).error, error);
    }
    assert_eq!(client.read(0, size), Err(75), "EOVERFLOW");
    assert!(stage.status("VmRSS") < before + (8 << 10), "it took memory");
    stage.stop();
}
