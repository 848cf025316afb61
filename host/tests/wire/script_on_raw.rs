//! The random script on a raw image, which has to hold the same bytes in the end.

use tempfile::tempdir;

use crate::script::{play, Terms};
use crate::server::{init_raw, Serve};
use crate::stage::count;

const SIZE: usize = (3 << 20) + 12_800;
const REQUESTS: usize = 6000;

#[test]
fn a_random_script_does_what_a_plain_vector_of_bytes_does() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("disk.img");
    init_raw(&image, &SIZE.to_string());
    let start = || {
        let serve = Serve::raw("disk", &image);
        serve.unix(&dir.path().join("sock")).start()
    };
    let volume = play("script", Terms::exact(SIZE, REQUESTS), &start);
    count("script", REQUESTS);
    let image = std::fs::read(&image).expect("an image");
    assert!(image == volume, "the image at the end");
}
