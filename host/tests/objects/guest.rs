//! The Linux kernel's own client on a sharded volume over a real object store.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::client::Client;
use crate::places::Place;
use crate::tools::{present, run};
use crate::virtual_machine::{keeps_ext4, pieces};

const SIZE: usize = 192 << 20;

/// The volume, copied into a file of its own.
pub(crate) fn copied(client: &mut Client, place: &Place, size: usize) -> PathBuf {
    let image = place.dir().join("image");
    let file = File::create(&image).expect("an image");
    file.set_len(size as u64).expect("sized");
    for at in (0..size).step_by(16 << 20) {
        let bytes = client.read(at as u64, 16 << 20).expect("a READ");
        file.write_all_at(&bytes, at as u64).expect("written");
    }
    image
}

#[test]
fn the_linux_kernel_keeps_an_ext4_file_system_on_seaweedfs() {
    if !present(&["e2fsck"]) {
        return;
    }
    let (Some(pieces), Some(place)) = (pieces(), Place::seaweedfs("cache+retry+s3:", "guest"))
    else {
        return;
    };
    place.init(SIZE, "1Mi");
    let server = place.serve().tcp().start();
    keeps_ext4(&pieces, place.dir(), server.tcp().port(), &[("disk", 2)]);
    server.stop();
    // What the store has, through another server.
    let server = place.serve().start();
    let mut client = Client::unix(&server);
    let image = copied(&mut client, &place, SIZE);
    server.stop();
    run("e2fsck", &["-f".as_ref(), "-n".as_ref(), image.as_os_str()]);
    // fstrim has told which of the 192 shards are free.
    let written = place.info()["shards"]["written"].as_u64();
    println!("shards of 192 that are written: {written:?}");
    assert!(written.is_some_and(|written| written < 150));
    place.is_clean();
}
