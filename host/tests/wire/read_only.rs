//! w59: exports that nothing may change.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::client::handshake::info_query;
use crate::client::{
    Client, Framing, CACHE, EPERM, FRAMINGS, FUA, NO_HOLE, READ_ONLY, SEND_FAST_ZERO, SEND_TRIM,
    SEND_WRITE_ZEROES, TRIM, WRITE, WRITE_ZEROES,
};
use crate::server::{init_raw, Serve, Server};
use crate::stage::{cases, Stage, SIZE};
use crate::tools::{skip, tool};

/// Every change is refused, everything else is served, and the stream stays in step.
fn refuses_changes(test: &str, server: &Server, image: &Path) {
    let before = fs::read(image).expect("an image");
    let mut table = Vec::new();
    for framing in FRAMINGS {
        for (name, command, flags) in [
            ("WRITE", WRITE, 0),
            ("WRITE with FUA", WRITE, FUA),
            ("TRIM", TRIM, 0),
            ("WRITE_ZEROES", WRITE_ZEROES, 0),
            ("WRITE_ZEROES without holes", WRITE_ZEROES, NO_HOLE | FUA),
        ] {
            for (offset, length) in [(0, 4096), (0, 0), (512, 1 << 20), (SIZE, 512)] {
                let name = format!("{name} of {length} at {offset}, {framing:?}");
                table.push((name, (framing, command, flags, offset, length)));
            }
        }
    }
    cases(test, table, |(framing, command, flags, offset, length)| {
        let mut client = Client::over_unix(server, framing);
        let payload = vec![0xee; if command == WRITE { length } else { 0 }];
        let reply = client.ask(command, flags, offset, length, &payload);
        assert_eq!(reply.error, EPERM);
        assert!(client.read(0, 4096) == Ok(vec![1; 4096]), "in step");
        assert_eq!(client.flush(), 0, "a FLUSH is no change");
        assert_eq!(client.zero(CACHE, 0, 0, 4096), 0);
        if framing != Framing::Simple {
            let extents = client.extents(0, 0, SIZE as usize).expect("extents");
            assert_eq!(extents[0], (65536, 0));
        }
    });
    assert!(fs::read(image).expect("an image") == before, "it changed");
}

fn flags(server: &Server) -> u16 {
    let line = crate::client::line::Line::unix(server).expect("accepted");
    let mut handshake = crate::client::handshake::Handshake::begin(line).expect("a greeting");
    let infos = handshake
        .agree(6, &info_query(b"disk", &[]))
        .expect("infos");
    u16::from_be_bytes([infos[0].data[10], infos[0].data[11]])
}

fn image_of_ones(image: &Path) {
    init_raw(image, &SIZE.to_string());
    let stage = tempdir().expect("a directory");
    let server = Serve::raw("disk", image)
        .unix(&stage.path().join("sock"))
        .start();
    assert_eq!(Client::unix(&server).write(0, 0, &[1; 65536]), 0);
    server.stop();
}

#[test]
fn w59_read_only_exports_refuse_every_change() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("disk.img");
    image_of_ones(&image);
    let serve = Serve::raw("disk", &image).unix(&dir.path().join("sock"));
    let server = serve.words(["--read-only"]).start();
    let changes = SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    assert_eq!(flags(&server) & (READ_ONLY | changes), READ_ONLY);
    refuses_changes("w59", &server, &image);
    server.stop();
}

/// A file that even root can't write, until it goes.
struct Immutable<'f>(&'f Path);

impl<'f> Immutable<'f> {
    fn new(file: &'f Path) -> Option<Self> {
        let made = tool("chattr", &["+i".as_ref(), file.as_os_str()]);
        made.status.success().then_some(Self(file))
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        tool("chattr", &["-i".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn w59_an_image_that_cannot_be_written_is_served_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("disk.img");
    image_of_ones(&image);
    let root = rustix::process::geteuid().is_root();
    let locked = if root { Immutable::new(&image) } else { None };
    if root && locked.is_none() {
        skip("this file system has no immutable files");
        return;
    }
    if !root {
        let mode = fs::Permissions::from_mode(0o400);
        fs::set_permissions(&image, mode).expect("our own file");
    }
    let serve = Serve::raw("disk", &image).unix(&dir.path().join("sock"));
    let server = serve.start();
    assert_eq!(flags(&server) & READ_ONLY, READ_ONLY);
    refuses_changes("w59 of a file", &server, &image);
    server.stop();
    drop(locked);
}

#[test]
fn a_writable_export_does_not_say_read_only() {
    let stage = Stage::new();
    assert_eq!(flags(&stage.server) & READ_ONLY, 0);
    stage.stop();
}
