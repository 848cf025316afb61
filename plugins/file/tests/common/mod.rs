//! A directory of objects to try things on.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use nbd_rs_file::backend::FileBackend;
use nbd_rs_plugin::conformance::host::{block_on, host};
use nbd_rs_plugin::{
    export_backend, Body, Bytes, Condition, Data, Error, GetFlags, Next, OpenFlags, OpenRequest,
    Piece, Put, Range, Result,
};

fn request(path: &Path, flags: OpenFlags) -> OpenRequest {
    OpenRequest {
        scheme: "file".into(),
        target: path.to_str().expect("a path in UTF-8").into(),
        options: Vec::new().into(),
        flags,
        inner: None.into(),
        reserved: [0; 4],
    }
}

pub(crate) fn open(path: &Path, flags: OpenFlags) -> Next {
    let opened = block_on(FileBackend::open(host(), request(path, flags)));
    Next::from(export_backend(opened.expect("the store opens")))
}

pub(crate) fn open_error(path: &Path, flags: OpenFlags) -> Error {
    block_on(FileBackend::open(host(), request(path, flags))).expect_err("it opens")
}

pub(crate) fn body(text: &str) -> Body {
    Bytes::from(text.as_bytes().to_vec()).into()
}

pub(crate) fn bytes_of(data: &Data) -> Vec<u8> {
    let part = |piece: &Piece| match piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        other => panic!("not bytes: {other:?}"),
    };
    data.pieces().iter().flat_map(part).collect()
}

/// An opened directory below one that goes away with it.
pub(crate) struct Store {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) next: Next,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        let next = open(&root, OpenFlags::WRITE | OpenFlags::CREATE);
        Self { dir, root, next }
    }

    pub(crate) fn put(&self, key: &str, text: &str) -> Result<Put> {
        block_on(self.next.put(key, body(text), Condition::Always))
    }

    pub(crate) fn get(&self, key: &str) -> Result<Vec<u8>> {
        let got = block_on(self.next.get(key, Range::ALL, GetFlags::NONE))?;
        Ok(bytes_of(&got.data))
    }

    /// What there is below the root that is not a directory, or an empty one.
    pub(crate) fn tree(&self) -> Vec<String> {
        tree(&self.root)
    }
}

/// What there is below a directory that is not a directory itself, or an empty one; without the room
/// that is kept for small objects.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(dir) = left.pop() {
        let entries = std::fs::read_dir(&dir).expect("a directory");
        let entries: Vec<_> = entries.map(|entry| entry.expect("an entry")).collect();
        if entries.is_empty() && dir != root {
            found.push(dir.clone());
        }
        for entry in entries {
            match entry.file_type().expect("its kind").is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    let name = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
    let names = found.into_iter().map(name);
    names
        .filter(|name| !name.starts_with(".nbd-rs-tmp/room-"))
        .collect()
}
