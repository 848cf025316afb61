//! The tier that survives restarts: copies in a directory, verified whenever they are read.
//!
//! A full or failing disk turns the tier off, with one warning; readers never see its errors.

pub mod log;
pub mod places;
pub mod record;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_rs_plugin::{Bytes, Host, Result};

use crate::index::Version;
use log::Log;
use record::{object_number, Names};

/// Blocks that are written with one visit to a thread that may block.
const BATCH: usize = 64;
/// How long closing waits for copies that are not written yet.
const CLOSE_TRIES: u32 = 200;

/// The disk tier.
#[derive(Debug)]
pub struct Disk {
    host: Host,
    log: Arc<Log>,
    store: String,
    block_bytes: u64,
    /// Bytes that may wait to be written; what comes on top is not written.
    waiting_max: u64,
    queue: Mutex<Queue>,
    /// Not before the scan, not after a failure or the close.
    on: AtomicBool,
    /// Failed or closed: it stays off, and nothing more is said.
    failed: AtomicBool,
    /// Blocks answered.
    pub hits: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    blocks: VecDeque<Waiting>,
    bytes: u64,
    writing: bool,
}

#[derive(Debug)]
struct Waiting {
    names: Arc<Names>,
    block: u64,
    size: u64,
    bytes: Bytes,
}

impl Disk {
    /// Opens the directory, and begins to look at what is in it. `store` tells one store's objects
    /// from another's.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub async fn open(
        host: Host,
        dir: &Path,
        limit: u64,
        waiting_max: u64,
        store: &str,
        block_bytes: u64,
    ) -> Result<Arc<Self>> {
        let dir = dir.to_owned();
        let log = host.blocking(move || Log::open(&dir, limit)).await?;
        let disk = Arc::new(Self {
            host,
            log: Arc::new(log),
            store: store.to_owned(),
            block_bytes,
            waiting_max,
            queue: Mutex::default(),
            on: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            hits: AtomicU64::new(0),
        });
        let scanning = disk.clone();
        host.spawn(async move {
            let log = scanning.log.clone();
            let scanned = scanning.blocking(move || log.scan()).await;
            // Under the lock that `close` takes: what is closed does not come on again.
            let _queue = scanning.queue();
            if scanned.is_some() && !scanning.failed.load(Ordering::Relaxed) {
                scanning.on.store(true, Ordering::Release);
            }
        });
        Ok(disk)
    }

    /// Copies so far that were not as they were written, each of them fetched again.
    pub fn damaged(&self) -> u64 {
        self.log.damaged()
    }

    /// Whether it answers and keeps.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Does work on a thread that may block. Its failure is the end of the tier.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let done = self.host.blocking(move || Ok(work()?)).await;
        done.map_err(|error| {
            self.on.store(false, Ordering::Release);
            if !self.failed.swap(true, Ordering::Relaxed) {
                tracing::warn!("the cache's directory is not used any more: {error}");
            }
            self.queue().clear();
        })
        .ok()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this version of an object is called here.
    pub fn names(&self, key: &str, version: &Version) -> Arc<Names> {
        Arc::new(Names::new(
            &self.store,
            key,
            &version.etag,
            self.block_bytes,
        ))
    }

    /// Whether anything of an object is here: then it is worth asking which version is current.
    pub fn knows(&self, key: &str) -> bool {
        self.is_on() && self.log.knows(object_number(&self.store, key))
    }

    /// Whether a block of a version is here.
    pub fn holds(&self, key: &str, version: &Version, block: u64) -> bool {
        self.is_on() && self.log.holds(self.names(key, version).version, block)
    }

    /// Reads blocks of a version, each or not.
    pub async fn read(
        &self,
        names: Arc<Names>,
        blocks: std::ops::Range<u64>,
        size: u64,
    ) -> Vec<Option<Bytes>> {
        let count = (blocks.end - blocks.start) as usize;
        let is_here = |block| self.log.holds(names.version, block);
        if !self.is_on() || !blocks.clone().any(is_here) {
            return vec![None; count];
        }
        let log = self.log.clone();
        let read = move || {
            let one = |block| {
                let bytes = log.read(&names, block, size)?;
                Ok(bytes.map(|bytes| Bytes::from_owner(bytes.into_boxed_slice())))
            };
            blocks.map(one).collect()
        };
        let read: Vec<Option<Bytes>> = self.blocking(read).await.unwrap_or(vec![None; count]);
        let here = read.iter().flatten().count() as u64;
        self.hits.fetch_add(here, Ordering::Relaxed);
        read
    }

    /// Keeps a block, later, if there is room to wait.
    pub fn offer(self: &Arc<Self>, names: &Arc<Names>, block: u64, size: u64, bytes: &Bytes) {
        if !self.is_on() || self.log.holds(names.version, block) {
            return;
        }
        let mut queue = self.queue();
        let len = bytes.len() as u64;
        if queue.bytes + len > self.waiting_max {
            return;
        }
        queue.bytes += len;
        queue.blocks.push_back(Waiting {
            names: names.clone(),
            block,
            size,
            bytes: bytes.clone(),
        });
        if !std::mem::replace(&mut queue.writing, true) {
            drop(queue);
            let disk = self.clone();
            self.host.spawn(async move { disk.write().await });
        }
    }

    /// Writes what waits, until nothing does. One task at a time.
    async fn write(&self) {
        loop {
            let Some(batch) = self.queue().take() else {
                return;
            };
            let log = self.log.clone();
            let append = move || {
                batch.iter().try_for_each(|waiting| {
                    let Waiting {
                        names,
                        block,
                        size,
                        bytes,
                    } = waiting;
                    log.append(names, *block, *size, bytes)
                })
            };
            let _ = self.blocking(append).await;
        }
    }

    /// Writes what waits, if that is soon done, and lets other processes in.
    pub async fn close(&self) {
        for _ in 0..CLOSE_TRIES {
            if !self.queue().writing {
                break;
            }
            self.host.sleep(Duration::from_millis(10)).await;
        }
        let mut queue = self.queue();
        queue.clear();
        self.failed.store(true, Ordering::Relaxed);
        self.on.store(false, Ordering::Release);
        drop(queue);
        self.log.close();
    }
}

impl Queue {
    fn take(&mut self) -> Option<Vec<Waiting>> {
        let count = self.blocks.len().min(BATCH);
        let batch: Vec<Waiting> = self.blocks.drain(..count).collect();
        let bytes: u64 = batch.iter().map(|waiting| waiting.bytes.len() as u64).sum();
        self.bytes -= bytes;
        self.writing = !batch.is_empty();
        self.writing.then_some(batch)
    }

    fn clear(&mut self) {
        self.blocks.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_rs_fake::{host, logged};

    fn version() -> Version {
        Version {
            etag: "1".into(),
            size: 4096,
            modified_ms: 0,
        }
    }

    async fn disk(dir: &Path) -> Arc<Disk> {
        let disk = Disk::open(host(), dir, 16 << 20, 1 << 20, "fake://", 4096);
        let disk = disk.await.unwrap();
        while !disk.is_on() {
            disk.host.sleep(Duration::from_millis(1)).await;
        }
        disk
    }

    async fn keep(disk: &Arc<Disk>, key: &str) {
        let names = disk.names(key, &version());
        disk.offer(&names, 0, 4096, &Bytes::from(vec![7; 4096]));
        while disk.queue().writing {
            disk.host.sleep(Duration::from_millis(1)).await;
        }
    }

    async fn is_there(disk: &Disk, key: &str) -> bool {
        let names = disk.names(key, &version());
        disk.read(names, 0..1, 4096).await[0].is_some()
    }

    #[tokio::test]
    async fn a_full_disk_and_one_that_fails_are_misses_and_one_warning_each() {
        let dir = tempfile::tempdir().unwrap();
        // Writing to the first is ENOSPC, reading the second EIO.
        for (device, at) in [("/dev/full", "full"), ("/proc/self/mem", "broken")] {
            let disk = disk(&dir.path().join(at)).await;
            keep(&disk, "kept").await;
            assert!(is_there(&disk, "kept").await);
            disk.log.swap_files(Path::new(device));
            let warned = logged("directory is not used any more").len();
            match at {
                "full" => keep(&disk, "more").await,
                _ => assert!(!is_there(&disk, "kept").await),
            }
            assert!(!disk.is_on(), "{device}");
            keep(&disk, "later").await;
            assert!(!is_there(&disk, "kept").await && !is_there(&disk, "later").await);
            assert_eq!(logged("directory is not used any more").len(), warned + 1);
            disk.close().await;
        }
    }
}
