//! What most of these tests begin with: a folder, an image in it, and how clients call it.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::rng::Rng;
use crate::server::{Serve, Server};

/// A folder with an image, and its socket.
pub(crate) struct Stage {
    dir: TempDir,
}

impl Stage {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of noise in it; gives the place and the bytes.
    pub(crate) fn noise(&self, name: &str, length: usize) -> (PathBuf, Vec<u8>) {
        let bytes = Rng::for_test(name).bytes(length);
        let path = self.path(name);
        fs::write(&path, &bytes).expect("the file is written");
        (path, bytes)
    }

    /// A sparse image of zeros in it.
    pub(crate) fn empty(&self, name: &str, length: u64) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).expect("the image is made");
        file.set_len(length).expect("the image is sized");
        path
    }

    /// Serves this image as `disk` on TCP and on the unix socket.
    pub(crate) fn serve(&self, image: &std::path::Path) -> Server {
        Serve::raw("disk", image)
            .tcp()
            .unix(&self.path("sock"))
            .start()
    }
}

/// The URI of an export on the server's unix socket.
pub(crate) fn unix(server: &Server, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", server.unix().display())
}

/// The URI of an export on the server's TCP port.
pub(crate) fn tcp(server: &Server, export: &str) -> String {
    format!("nbd://{}/{export}", server.tcp())
}
