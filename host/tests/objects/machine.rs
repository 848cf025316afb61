//! F7, F16, F26, F28: the machine under a server of objects: no memory, a disk whose calls fail or
//! take long, clocks that jump.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{prlimit, Resource, Rlimit};

use crate::client::handshake::Handshake;
use crate::client::line::Line;
use crate::client::{Client, Framing, EIO, ENOSPC, EPERM, FLUSH, WRITE};
use crate::model::{Model, UNIT};
use crate::places::{kill, one_line, Place};
use crate::rng::Rng;
use crate::server::Server;
use crate::tools::{present, skip};
use crate::trace::{Trace, SYNC};

const SHARD: usize = 64 << 10;
const READS: &str = "pread64,preadv,preadv2";
/// What a change of a shard in place needs, and not those calls that also bring replies to clients.
const WRITES: &str = "pwrite64,pwritev,pwritev2,process_vm_writev,fallocate";
/// What a shard that is put as a whole needs first.
const OPENS: &str = "openat,openat2";
const EDQUOT: &str = "EDQUOT";

/// In files: shards that are written inside, and shards that are put whole; without mappings, so
/// that every byte goes through a call that can fail.
fn directories() -> [Place; 2] {
    [
        Place::directory("file:", "?lend=false"),
        Place::directory("file:", "?lend=false&way=whole"),
    ]
}

/// A volume of 16 shards, the first four written and flushed.
fn served(place: &Place) -> (Server, Client) {
    place.init(16 * SHARD, "64Ki");
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    client.line.receive_within(Duration::from_secs(100));
    assert_eq!(client.write(0, 0, &[1; 4 * SHARD]), 0);
    assert_eq!(client.flush(), 0);
    (server, client)
}

fn attach(place: &Place, server: &Server, calls: &str, how: &str) -> Trace {
    Trace::attach(server, &place.dir().join("strace"), calls, how)
}

#[test]
fn f16_c10_a_quota_a_read_only_and_a_stale_directory_are_told_and_spoil_nothing() {
    if !present(&["strace"]) {
        return;
    }
    for place in directories() {
        let (mut server, mut client) = served(&place);
        let calls = match place.location.contains("way=whole") {
            true => OPENS,
            false => WRITES,
        };
        for (error, expected) in [(EDQUOT, ENOSPC), ("EROFS", EPERM), ("ESTALE", EIO)] {
            let name = format!("{} {error}", place.location);
            let how = format!("error={error}");
            let trace = attach(&place, &server, calls, &how);
            let refused = client.write(0, 2 * SHARD as u64 + 4096, &[2; 8192]);
            assert_eq!(refused, expected, "{name}: a WRITE");
            trace.detach();
            let known = client.read(0, 2 * SHARD);
            assert_eq!(known, Ok(vec![1; 2 * SHARD]), "{name}");
            assert_eq!(
                client.flush(),
                0,
                "{name}: C10: refused, it spoils no FLUSH"
            );
            let written = client.write(0, 2 * SHARD as u64, &[3; SHARD]);
            assert_eq!(written, 0, "{name}: all is well again");
            assert_eq!(client.flush(), 0, "{name}");
            assert_eq!(client.read(2 * SHARD as u64, SHARD), Ok(vec![3; SHARD]));
            server.assert_alive();
        }
        drop(client);
        kill(&mut server);
        let server = place.serve().start();
        let mut client = Client::unix(&server);
        client.line.receive_within(Duration::from_secs(100));
        let trace = attach(&place, &server, READS, "error=ESTALE");
        assert_eq!(client.read(3 * SHARD as u64, 4096), Err(EIO));
        trace.detach();
        assert_eq!(client.read(2 * SHARD as u64, SHARD), Ok(vec![3; SHARD]));
        assert_eq!(client.read(3 * SHARD as u64, SHARD), Ok(vec![1; SHARD]));
        server.stop();
        place.is_clean();
    }
}

#[test]
fn f16_c05_a_sync_that_fails_for_any_reason_is_no_flush_until_all_was_written_again() {
    if !present(&["strace"]) {
        return;
    }
    for place in directories() {
        let whole = place.location.contains("way=whole");
        let (mut server, mut client) = served(&place);
        for (round, error) in [EDQUOT, "EROFS", "ESTALE"].into_iter().enumerate() {
            let name = format!("{} {error}", place.location);
            let byte = 10 + round as u8;
            let trace = attach(&place, &server, SYNC, &format!("error={error}"));
            let written = client.write(0, SHARD as u64, &[byte; 8192]);
            let flushed = client.flush();
            match whole {
                true => assert_ne!(written, 0, "{name}: the put was not durable"),
                false => assert!(written == 0 && flushed != 0, "{name}: {written} {flushed}"),
            }
            trace.detach();
            if !whole {
                for turn in 0..2 {
                    assert_ne!(
                        client.flush(),
                        0,
                        "{name}: FLUSH {turn}: the bytes are lost"
                    );
                }
            }
            let written = client.write(0, SHARD as u64, &[byte; 8192]);
            assert_eq!(written, 0, "{name}: written again");
            assert_eq!(client.flush(), 0, "{name}");
        }
        server.assert_alive();
        drop(client);
        kill(&mut server);
        let server = place.serve().start();
        let mut client = Client::unix(&server);
        let found = client.read(SHARD as u64, 8192);
        assert_eq!(found, Ok(vec![12; 8192]), "{}", place.location);
        server.stop();
        place.is_clean();
    }
}

/// The disk is the journal's; the store is another machine, and an export beside it a third thing.
#[test]
fn f26_c04_flushes_wait_for_a_slow_disk_and_other_exports_do_not() {
    if !present(&["strace"]) {
        return;
    }
    let place = Place::own("cache+retry+s3:", "").journaled("--journal-size 8Mi --flush local");
    place.init(16 * SHARD, "64Ki");
    let image = place.dir().join("disk.img");
    crate::server::init_raw(&image, "8Mi");
    let mut server = place.serve().and_raw("raw", &image).start();
    let mut client = Client::unix(&server);
    client.line.receive_within(Duration::from_secs(100));
    let line = Line::unix(&server).expect("the server accepts");
    let handshake = Handshake::begin(line).expect("a greeting");
    let other = handshake.go(Framing::Simple, b"raw");
    let mut other = other.expect("a handshake");
    // Longer than the lease of the volume, and than any pause of this program.
    let trace = attach(&place, &server, SYNC, "delay_enter=15000000");
    let written = client.write(0, 0, &[5; 3 * SHARD]);
    assert_eq!(written, 0);
    client.send(FLUSH, 0, 0, 0, &[]).expect("sent");
    for round in 0..50u8 {
        assert_eq!(other.write(0, 0, &[round; 4096]), 0);
        assert_eq!(other.read(0, 4096), Ok(vec![round; 4096]));
        let mut third = Client::unix(&server);
        assert_eq!(third.read(0, 4096), Ok(vec![5; 4096]));
    }
    // Nobody has told the client meanwhile that it is durable, which it is not.
    client.line.stays_silent(Duration::from_millis(100));
    let flushed = client.receive().expect("a reply");
    assert_eq!(flushed.error, 0, "{}", flushed.text);
    trace.detach();
    server.assert_alive();
    kill(&mut server);
    let server = place.serve().start();
    let found = Client::unix(&server).read(0, 3 * SHARD);
    assert_eq!(found, Ok(vec![5; 3 * SHARD]));
    server.stop();
    place.is_clean();
}

/// A directory on a slow disk has the owner's heartbeat on it, too.
#[test]
fn f26_a_slow_directory_is_waited_for_and_a_hopeless_one_is_an_error_that_passes() {
    if !present(&["strace"]) {
        return;
    }
    for place in directories() {
        let (mut server, mut client) = served(&place);
        let name = &place.location;
        let trace = attach(&place, &server, SYNC, "delay_enter=2000000");
        assert_eq!(client.write(0, 5 * SHARD as u64, &[5; 4096]), 0, "{name}");
        assert_eq!(client.flush(), 0, "{name}");
        trace.detach();
        let trace = attach(&place, &server, SYNC, "delay_enter=15000000");
        let written = client.write(0, 6 * SHARD as u64, &[6; 4096]);
        let flushed = client.flush();
        println!("f26: {name}: WRITE {written}, FLUSH {flushed}");
        trace.kill();
        server.assert_alive();
        // What still waits in a call of the kernel ends first.
        let mut tries = 0;
        while client.write(0, 6 * SHARD as u64, &[7; SHARD]) != 0 || client.flush() != 0 {
            tries += 1;
            assert!(tries < 20, "{name}: it does not come back");
            thread::sleep(Duration::from_secs(1));
        }
        kill(&mut server);
        let server = place.serve().start();
        let mut client = Client::unix(&server);
        assert_eq!(client.read(5 * SHARD as u64, 4096), Ok(vec![5; 4096]));
        assert_eq!(client.read(6 * SHARD as u64, SHARD), Ok(vec![7; SHARD]));
        server.stop();
        place.is_clean();
    }
}

/// The size of its address space, in bytes.
fn address_space(server: &Server) -> u64 {
    let pid = server.pid().as_raw_nonzero();
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("it runs");
    let pages = pages
        .split(' ')
        .next()
        .and_then(|text| text.parse::<u64>().ok());
    pages.expect("a number") * 4096
}

/// A connection, if the server has what it takes.
fn connect(server: &Server) -> io::Result<Client> {
    let client = Handshake::begin(Line::unix(server)?)?.go(Framing::Simple, b"disk")?;
    client.line.receive_within(Duration::from_secs(60));
    client.send_within(Duration::from_secs(60));
    Ok(client)
}

/// Large writes on several connections at once; how often one was refused or a connection lost.
fn large_writes(server: &Server, model: &mut Model, rng: &mut Rng) -> usize {
    let mut troubles = 0;
    let mut sent = Vec::new();
    for _ in 0..CLIENTS {
        let first = rng.next() as usize % (UNITS - UNITS_AT_ONCE);
        let (at, payload) = model.send(first, UNITS_AT_ONCE, false);
        let offset = (first * UNIT) as u64;
        let asked = connect(server).and_then(|mut client| {
            client.send(WRITE, 0, offset, payload.len(), &payload)?;
            Ok(client)
        });
        match asked {
            Ok(client) => sent.push((client, first, at)),
            Err(_) => troubles += 1,
        }
    }
    for (mut client, first, at) in sent {
        match client.receive() {
            Ok(reply) if reply.error == 0 => model.answer(first, UNITS_AT_ONCE, at),
            _ => troubles += 1,
        }
    }
    troubles
}

const CLIENTS: usize = 6;
/// 8 MiB.
const UNITS_AT_ONCE: usize = 2048;
/// 16 MiB.
const UNITS: usize = 4096;

fn is_legal(place: &Place, model: &mut Model) {
    let server = place.serve().start();
    let found = Client::unix(&server).read(0, UNITS * UNIT);
    model.check_after_crash(&found.expect("the volume"));
    server.stop();
}

#[test]
fn f07_c12_a_server_without_memory_refuses_or_dies_and_loses_nothing() {
    let mut rng = Rng::for_test("f07");
    let s3 = || Place::own("cache+retry+s3:", "?cache.size=8Mi");
    for (place, name) in [
        (s3(), "s3"),
        (s3().journaled("--journal-size 32Mi"), "journal"),
        (Place::directory("file:", ""), "directory"),
    ] {
        place.init(UNITS * UNIT, "1Mi");
        let mut model = Model::zeros(rng.next(), UNITS);
        let mut troubles = 0;
        for spare_mib in [0, 4, 16, 48, 96] {
            let mut server = place.serve().start();
            let limit = Some(address_space(&server) + (spare_mib << 20));
            let limits = Rlimit {
                current: limit,
                maximum: None,
            };
            prlimit(Some(server.pid()), Resource::As, limits).expect("our own child");
            troubles += large_writes(&server, &mut model, &mut rng);
            kill(&mut server);
            is_legal(&place, &mut model);
        }
        println!("f07: {name}: {troubles} times it died or refused");
        assert!(troubles > 0, "{name}: no limit was met");
        place.is_clean();
    }
}

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[test]
fn f28_c17_a_clock_that_jumps_by_an_hour_changes_nothing() {
    if !Path::new(FAKETIME).exists() {
        skip("not installed: faketime");
        return;
    }
    for (name, place) in [
        (
            "journal",
            Place::own("cache+retry+s3:", "").journaled("--journal-size 8Mi"),
        ),
        ("directory", Place::directory("file:", "?way=whole")),
    ] {
        place.init(16 * SHARD, "64Ki");
        let clock = place.dir().join("clock");
        let set = |jump: &str| std::fs::write(&clock, jump).expect("a file");
        set("+0");
        let mut serve = place.serve();
        // Its time of the day; what has passed since the boot is what it is.
        let words = [
            "env".to_owned(),
            format!("LD_PRELOAD={FAKETIME}"),
            format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ];
        serve.before = words.map(Into::into).to_vec();
        let mut first = serve.start();
        let mut client = Client::unix(&first);
        client.line.receive_within(Duration::from_secs(60));
        for (round, jump) in ["+3600", "-3600", "+0"].into_iter().enumerate() {
            set(jump);
            let byte = round as u8 + 1;
            for shard in 0..4 {
                let at = (shard * SHARD) as u64;
                assert_eq!(client.write(0, at, &[byte; SHARD]), 0, "{name} {jump}");
            }
            assert_eq!(client.flush(), 0, "{name} {jump}");
            // Past a heartbeat, and past the time of one at the old clock.
            thread::sleep(Duration::from_secs(4));
            assert_eq!(
                client.read(SHARD as u64, 4096),
                Ok(vec![byte; 4096]),
                "{name} {jump}"
            );
            let said = place.serve_at("second").refused();
            one_line(&said, &["epoch 1"]);
        }
        drop(client);
        kill(&mut first);
        // On a clock that never jumped.
        let second = place.serve_at("second").start();
        let found = Client::unix(&second).read(0, 4 * SHARD);
        assert_eq!(found, Ok(vec![3; 4 * SHARD]), "{name}");
        second.stop();
        place.is_clean();
    }
}

/// In another time name space /proc told other starting times of the same processes: a living owner
/// was taken for a dead one whose number is used again.
#[test]
fn f28_c17_an_owner_on_another_boot_clock_lives() {
    let other_clock = [
        "unshare",
        "--time",
        "--boottime",
        "3600",
        "--monotonic",
        "3600",
    ];
    let tried = std::process::Command::new("unshare")
        .args(&other_clock[1..])
        .args(["--fork", "true"])
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        skip("needs root and time name spaces");
        return;
    }
    let place = Place::directory("file:", "");
    place.init(16 * SHARD, "64Ki");
    // The one who unshares stays in the old name space; what it runs is in the new one.
    let elsewhere = |socket: &str| {
        let mut serve = place.serve_at(socket);
        serve.before = other_clock.map(Into::into).to_vec();
        serve
            .before
            .extend(["--fork", "--kill-child"].map(Into::into));
        serve
    };
    let first = place.serve().start();
    let mut client = Client::unix(&first);
    assert_eq!(client.write(0, 0, &[1; 4096]), 0);
    assert_eq!(client.flush(), 0);
    one_line(&elsewhere("second").refused(), &["epoch 1"]);
    assert_eq!(client.write(0, 0, &[2; 4096]), 0);
    assert_eq!(client.flush(), 0);
    drop(client);
    first.stop();
    let mut second = elsewhere("second").start();
    one_line(&place.serve().refused(), &["epoch 2"]);
    kill(&mut second);
    // Its parent is gone, and it with that.
    thread::sleep(Duration::from_millis(500));
    let third = place.serve().start();
    assert_eq!(Client::unix(&third).read(0, 4096), Ok(vec![2; 4096]));
    third.stop();
    place.is_clean();
}
