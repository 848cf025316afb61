//! What the fuzzer starts from, for each target: a few inputs that reach far. They lie in
//! `fuzz/seeds`; `cargo run -p session-check --example write-seeds` writes them there again.

use nbd_rs::layout::distributed::format::changes::{encode_pack, Changes, Part, Table};
use nbd_rs::layout::distributed::format::identity::Identity;
use nbd_rs::layout::distributed::format::image::Trailer;
use nbd_rs::layout::distributed::format::map::{Base, MapPage};
use nbd_rs::layout::distributed::format::names::{Names, Object};
use nbd_rs::layout::distributed::format::root::{Holds, PackUnits, Root, Run};
use nbd_rs::layout::distributed::format::{Named, Version};
use nbd_rs::layout::distributed::log::object::{encode_floor, encode_slot, Seal};
use nbd_rs::layout::uuid::Uuid as VolumeUuid;
use nbd_rs_commit_log::{Entry, Epoch, Floor, Kind, Position, Record};
use nbd_rs_journal::change::{Change, What};
use nbd_rs_journal::data::Data;
use nbd_rs_journal::format::record::{Contents, Header, RecordKind, Stamp};
use nbd_rs_journal::format::superblock::{Mark, Superblock, MIN_RING_BYTES};
use nbd_rs_journal::format::BLOCK_BYTES;
use nbd_rs_journal::uuid::Uuid;

use crate::decoders::{Decoder, DECODERS};
use crate::distributed::{Input as Of, FRAME_BYTES, GEOMETRY, VOLUME};
use crate::journal::{Input, BLOCK_START_BYTES};
use crate::program::{Opening, OptionStep, Program, RequestStep, Step};

/// A target of the fuzzer with its seeds, by name.
pub type Seeds = (&'static str, Vec<(String, Vec<u8>)>);

/// All seeds.
pub fn all() -> [Seeds; 4] {
    [
        ("session", sessions()),
        ("wire", decoders()),
        ("journal", journal()),
        ("distributed", distributed()),
    ]
}

const READ: u8 = 0;
const WRITE: u8 = 1;
const DISC: u8 = 2;
const FLUSH: u8 = 3;
const BLOCK_STATUS: u8 = 7;

/// A request in units of 512 bytes.
fn request(command: u8, flags: u8, offset: u16, length: u16) -> Step {
    Step::Request(RequestStep {
        command,
        flags,
        offset_kind: 0,
        offset,
        length_kind: 0,
        length,
        payload: 7,
    })
}

fn option(option: u8, name: u8, list: u8) -> Step {
    Step::Option(OptionStep {
        option,
        name,
        list,
        lie: 0,
        extra: 0,
    })
}

/// Each command, with and without flags, and a write that is longer than a connection's buffer.
fn every_command() -> Vec<Step> {
    let commands = (READ..=BLOCK_STATUS).filter(|command| *command != DISC);
    let twice = |command: u8| {
        let length = if command == FLUSH { 0 } else { 16 };
        let fua = request(command, 1, length, length);
        [request(command, 0, 0, length), fua]
    };
    let mut steps: Vec<Step> = commands.flat_map(twice).collect();
    steps.extend([
        request(WRITE, 0, 0, 600),
        request(READ, 0, 0, 640),
        request(READ, 4, 390, 200),
        request(6, 2 | 16, 4, 4),
        request(BLOCK_STATUS, 8, 0, 640),
        request(READ, 0, 10, 8),
        Step::Repeat(80),
        request(DISC, 0, 0, 0),
    ]);
    steps
}

/// At the end, beyond it, and round about 2^64, in bytes.
fn edges() -> Vec<Step> {
    let mut steps = Vec::new();
    for command in [READ, WRITE, 4, 6, BLOCK_STATUS] {
        for (offset_kind, offset, length) in [
            (2, 512, 512),
            (2, 511, 512),
            (3, 0, 1),
            (3, 511, 512),
            (2, 0, 0),
        ] {
            steps.push(Step::Request(RequestStep {
                command,
                flags: 0,
                offset_kind,
                offset,
                length_kind: 1,
                length,
                payload: 3,
            }));
        }
    }
    steps
}

fn program(opening: Opening, steps: Vec<Step>) -> Program {
    Program {
        opening,
        hangs_up: false,
        slow: false,
        failing_reads: false,
        failing_syncs: 0,
        steps,
    }
}

fn sessions() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, program: Program| seeds.push((name.to_owned(), program.encode()));
    let openings = [
        ("simple", Opening::Simple),
        ("structured", Opening::StructuredWithContext),
        ("extended", Opening::ExtendedWithContext),
        ("old", Opening::Old),
    ];
    for (name, opening) in openings {
        add(
            &format!("{name}-commands"),
            program(opening, every_command()),
        );
        let mut slow = program(opening, every_command());
        (slow.slow, slow.failing_syncs) = (true, 1);
        add(&format!("{name}-slow"), slow);
        add(&format!("{name}-edges"), program(opening, edges()));
    }
    let every_option = (0..12).filter(|index| !matches!(index, 0 | 1 | 5));
    let mut steps: Vec<Step> = every_option.map(|index| option(index, 1, 0xff)).collect();
    steps.extend([
        option(5, 2, 0x0f),
        request(READ, 0, 0, 8),
        request(WRITE, 0, 0, 8),
    ]);
    add("options-frozen", program(Opening::Flags, steps));
    add(
        "abort",
        program(
            Opening::FlagsWithZeroes,
            vec![option(5, 3, 0), option(1, 0, 0)],
        ),
    );
    add(
        "http",
        program(
            Opening::Bare,
            vec![Step::Raw(b"GET / HTTP/1.1\r\n\r\n".to_vec())],
        ),
    );
    let mut failing = program(Opening::Structured, every_command());
    (failing.failing_reads, failing.hangs_up) = (true, true);
    add("failing-reads-hang-up", failing);
    let contexts = vec![
        request(BLOCK_STATUS, 32, 0, 1),
        request(BLOCK_STATUS, 32 | 8, 8, 600),
    ];
    add(
        "extended-status-payload",
        program(Opening::ExtendedWithContext, contexts),
    );
    seeds
}

fn decoders() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, decoder: Decoder, bytes: &[u8]| {
        let index = DECODERS.iter().position(|known| *known == decoder);
        seeds.push((
            name.to_owned(),
            [&[index.unwrap_or(0) as u8], bytes].concat(),
        ));
    };
    let compact = *b"\x25\x60\x95\x13\0\x01\0\x01cookie..\0\0\0\0\0\0\x10\0\0\0\x02\0";
    add("compact-request", Decoder::Headers, &compact);
    let extended = *b"\x21\xe4\x1c\x71\0\x21\0\x01cookie..\0\0\0\0\0\0\x10\0\0\0\0\x01\0\0\0\0";
    add("extended-request", Decoder::Headers, &extended);
    add("option", Decoder::Headers, b"IHAVEOPT\0\0\0\x07\0\0\0\x06");
    add("go", Decoder::Info, b"\0\0\0\x04disk\0\x02\0\x03\0\x01");
    let contexts = b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x05base:";
    add("contexts", Decoder::MetaContext, contexts);
    add(
        "status",
        Decoder::BlockStatus,
        b"\0\0\0\0\0\x10\0\0\0\0\0\x01",
    );
    let url =
        b"cache+retry+s3://k:s%2Fecret@h:9000/bucket/p/?cache.size=1GiB&secret_key=0123456789";
    add("chain", Decoder::Location, url);
    add(
        "colons",
        Decoder::Location,
        b"cache:retry:file:/a%20b?retry.token=abcdefghij",
    );
    add("size", Decoder::Values, b"1.5Ti");
    add("duration", Decoder::Values, b"250ms");
    // x86_64; on other machines it stops at the second look.
    add("library", Decoder::Library, &crate::elf::library(62));
    let (slot, floor) = log();
    add("log-slot", Decoder::Log, &slot);
    add("log-floor", Decoder::Log, &floor);
    seeds
}

/// The second record of an owner, copied by the next one, and a floor.
fn log() -> (Vec<u8>, Vec<u8>) {
    let epoch = |counter| Epoch { counter, owner: 9 };
    let at = |seq| Position {
        epoch: epoch(1),
        seq,
    };
    let record = Record {
        position: at(2),
        prev: Some(at(1)),
        kind: Kind::Data,
    };
    let entry = Entry::Record {
        writer: epoch(2),
        record,
    };
    let floor = Floor {
        slot: 5,
        fence: epoch(2),
    };
    let volume = VolumeUuid([7; 16]);
    let slot = encode_slot(volume, 6, &entry, Seal::of(&[b"payload"]));
    (slot, encode_floor(volume, 1, &floor))
}

/// Records of a journal with one write each, and a trim.
fn record(seq: u64, data: &'static [u8]) -> (Header, Vec<u8>) {
    let trim = Change {
        offset: 1 << 20,
        len: 1 << 30,
        what: What::Trim,
    };
    let changes = [Change::write(4096 * seq, Data::new(data)), trim];
    let header = Header {
        kind: RecordKind::WRITE,
        stamp: Stamp {
            volume: Uuid([1; 16]),
            writer: Uuid([2; 16]),
            epoch: 1,
            seq,
            durable_seq: seq - 1,
            previous: [0; 16],
        },
        contents: Contents::of(&changes).unwrap_or_default(),
    };
    (header, data.to_vec())
}

fn journal() -> Vec<(String, Vec<u8>)> {
    let superblock = Superblock {
        counter: 1,
        volume: Uuid([1; 16]),
        journal: Uuid([2; 16]),
        generation: 1,
        first_seq: 1,
        epoch: 1,
        epoch_seq: 1,
        // Two blocks before the end: the second record begins anew.
        head: MIN_RING_BYTES - 2 * BLOCK_BYTES as u64,
        ring_bytes: MIN_RING_BYTES,
        open: true,
        ..Superblock::default()
    };
    let mark = Mark {
        journal: Uuid([2; 16]),
        durable_seq: 3,
    };
    let mut ring = vec![vec![0; BLOCK_START_BYTES]; 8];
    for (seq, block) in [(1, 6), (2, 0), (3, 2)] {
        let (header, mut data) = record(seq, b"some data");
        ring[block] = header.encode();
        ring[block].truncate(BLOCK_START_BYTES);
        data.resize(BLOCK_START_BYTES, 0);
        ring[block + 1] = data;
    }
    let (mut header, _) = record(9, b"some data");
    let header_bytes = header.encode();
    header.kind = RecordKind(RecordKind::OTHERS);
    let mut other = header.encode();
    other.truncate(BLOCK_START_BYTES);
    let seed = |name: &str, input: Input, bytes: &[u8]| {
        (name.to_owned(), [&[input as u8], bytes].concat())
    };
    vec![
        seed("header", Input::Header, &header_bytes),
        seed("other-kind", Input::SealedHeader, &other),
        seed("superblock", Input::Superblock, &superblock.encode()),
        seed("mark", Input::Mark, &mark.encode()),
        seed(
            "ring",
            Input::Ring,
            &[superblock.encode(), ring.concat()].concat(),
        ),
    ]
}

/// A table of units that follow one another.
fn table(unit: u64, units: usize) -> Table {
    let mut table = Table::default();
    // A few have room.
    let _ = table.push_summed(unit, &vec![7; units]);
    table
}

/// Something of each kind.
fn changes() -> Changes {
    let parts = vec![
        Part::Data(table(3, 2)),
        Part::Pack {
            pack: Version::default(),
            table: table(14, 4),
        },
        Part::Trim(0..20),
        Part::Image {
            shard: 1,
            image: Named::default(),
            through: None,
        },
        Part::Zero(17..40),
        Part::Ledger(b"note".to_vec()),
    ];
    Changes { parts }
}

fn checkpoint() -> Root {
    let run = |unit, units, holds| Run { unit, units, holds };
    Root {
        through: Position {
            epoch: Version::default().epoch,
            seq: 9,
        },
        previous: Some(Named::default()),
        ledger: b"note".to_vec(),
        pages: vec![(0, Named::default())],
        packs: vec![PackUnits {
            version: Version::default(),
            data_at: 100,
            sums: vec![1, 2, 3],
        }],
        runs: vec![
            run(
                4,
                2,
                Holds::Pack {
                    pack: 0,
                    ordinal: 1,
                },
            ),
            run(6, 1, Holds::Zero),
            run(16, 8, Holds::Trim),
        ],
    }
}

fn identity() -> Identity {
    let backends: Vec<VolumeUuid> = (2..5).map(|byte| VolumeUuid([byte; 16])).collect();
    Identity {
        volume: VOLUME,
        revision: 0,
        geometry: GEOMETRY,
        created_s: 1_700_000_000,
        write_quorum: 2,
        replicas: 2,
        backend: backends[0],
        backends,
    }
}

fn distributed() -> Vec<(String, Vec<u8>)> {
    let (before, behind) = FRAME_BYTES;
    let payload = |bytes: Vec<u8>| bytes[before..bytes.len() - behind].to_vec();
    let version = Version::default();
    let mut page = MapPage::default();
    page.set(1, Base::Zero);
    page.set(2, Base::Image(Named::default()));
    let trailer = Trailer {
        shard: 0,
        version,
        sums: vec![7; GEOMETRY.shard_units() as usize],
    };
    let record = payload(changes().encode(VOLUME).unwrap_or_default());
    let later = Changes {
        parts: vec![Part::Trim(1..40)],
    };
    let later = payload(later.encode(VOLUME).unwrap_or_default());
    let records = [&record, &later].into_iter();
    let log = records.flat_map(|it| [&(it.len() as u16).to_le_bytes(), &it[..]].concat());
    let log: Vec<u8> = log.collect();
    let image = Object::Image { shard: 1, version };
    let pack = encode_pack(VOLUME, version, &table(5, 3)).unwrap_or_default();
    let seed = |name: &str, of: Of, bytes: &[u8]| (name.to_owned(), [&[of as u8], bytes].concat());
    vec![
        seed(
            "identity",
            Of::Identity,
            &payload(identity().encode().unwrap_or_default()),
        ),
        seed("changes", Of::Changes, &record),
        seed("pack", Of::Pack, &payload(pack)),
        seed("trailer", Of::Trailer, &payload(trailer.encode(VOLUME).0)),
        seed("map", Of::Map, &payload(page.encode(VOLUME, 0, version).0)),
        seed(
            "root",
            Of::Root,
            &payload(checkpoint().encode(VOLUME, version).0),
        ),
        seed("name", Of::Name, Names::of(VOLUME).name(&image).as_bytes()),
        seed("log", Of::Log, &log),
    ]
}
