//! One at a time: whoever changes which file a name stands for holds the gate, in this process and
//! in others. It is held for a comparison and a rename, not while data goes to the disk; but for some
//! KiB where there is no space for a file of their own.
//!
//! Unconditional changes take it too, and not shared: a put that depends on an ETag must have
//! nobody between its look and its rename, and must not starve while others come and go.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbd_rs_plugin::{Error, Kind, Result};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;

use crate::root::failed;

/// How long others may hold the gate before a change gives up, with nothing changed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The gate of one opened root.
#[derive(Debug)]
pub struct Gate {
    /// An open file description of its own: the lock is the description's.
    dir: File,
    threads: Mutex<()>,
    /// Whether the file system has such locks.
    works: bool,
}

/// Holding the gate.
#[derive(Debug)]
pub struct Held<'a> {
    gate: &'a Gate,
    _threads: MutexGuard<'a, ()>,
}

impl Gate {
    /// The gate of a directory that nobody else uses this descriptor of.
    ///
    /// # Errors
    /// If the lock can't be asked for.
    pub fn new(dir: File) -> Result<Self> {
        let works = match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => flock(&dir, FlockOperation::Unlock).is_ok(),
            Err(Errno::WOULDBLOCK | Errno::INTR) => true,
            Err(error) => {
                tracing::warn!("no locks on this directory ({error}): no conditions on ETags");
                false
            }
        };
        Ok(Self {
            dir,
            threads: Mutex::new(()),
            works,
        })
    }

    /// Whether other processes are kept out too.
    pub fn works(&self) -> bool {
        self.works
    }

    /// Waits until nobody else holds it.
    ///
    /// # Errors
    /// [`Kind::Timeout`] after 30 seconds.
    pub fn enter(&self) -> Result<Held<'_>> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if self.works {
            self.wait()?;
        }
        Ok(Held {
            gate: self,
            _threads: threads,
        })
    }

    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            match flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(2));
                }
                Err(Errno::WOULDBLOCK) => {
                    let text = "another process has held the lock of the directory for 30 s";
                    return Err(Error::new(Kind::Timeout, text));
                }
                Err(error) => return Err(failed(error, "locking the directory")),
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.gate.works {
            // It goes with the process at the latest.
            let _ = flock(&self.gate.dir, FlockOperation::Unlock);
        }
    }
}
