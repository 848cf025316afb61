//! Trailers of shards that were read or put lately, with the ETags of their objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::trailer::Trailer;

/// A trailer and the ETag of the object that it came from, empty if the store has none.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) etag: Arc<str>,
    pub(super) trailer: Arc<Trailer>,
}

/// The last ones used, up to so many bytes.
#[derive(Debug)]
pub(super) struct Trailers {
    most_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_shard: HashMap<u64, (Known, u64)>,
    /// The same by when it was used.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
    bytes: usize,
}

fn bytes_of(known: &Known) -> usize {
    known.trailer.checksums.len() * 4 + known.etag.len() + 200
}

impl Inner {
    fn remove(&mut self, shard: u64) {
        if let Some((known, used)) = self.by_shard.remove(&shard) {
            self.bytes -= bytes_of(&known);
            self.by_use.remove(&used);
        }
    }
}

impl Trailers {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, shard: u64) -> Option<Known> {
        let mut guard = self.inner();
        let inner = &mut *guard;
        inner.uses += 1;
        let (known, used) = inner.by_shard.get_mut(&shard)?;
        inner.by_use.remove(used);
        *used = inner.uses;
        inner.by_use.insert(inner.uses, shard);
        Some(known.clone())
    }

    pub(super) fn insert(&self, shard: u64, known: Known) {
        let mut inner = self.inner();
        inner.remove(shard);
        inner.uses += 1;
        let used = inner.uses;
        inner.bytes += bytes_of(&known);
        inner.by_shard.insert(shard, (known, used));
        inner.by_use.insert(used, shard);
        // The newest stays, however large.
        while inner.bytes > self.most_bytes && inner.by_use.len() > 1 {
            let Some((_, oldest)) = inner.by_use.pop_first() else {
                break;
            };
            inner.remove(oldest);
        }
    }

    pub(super) fn remove(&self, shard: u64) {
        self.inner().remove(shard);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Stamp;
    use super::super::uuid::Uuid;
    use super::*;

    fn known(shard: u64) -> Known {
        Known {
            etag: "e".into(),
            trailer: Arc::new(Trailer {
                uuid: Uuid([0; 16]),
                shard,
                stamp: Stamp::default(),
                checksums: vec![0; 1024],
            }),
        }
    }

    #[test]
    fn the_ones_used_least_lately_go_first_and_memory_stays_bounded() {
        let each = bytes_of(&known(0));
        let trailers = Trailers::new(each * 3);
        for shard in 0..3 {
            trailers.insert(shard, known(shard));
        }
        assert!(trailers.get(0).is_some());
        trailers.insert(3, known(3));
        assert!(trailers.get(1).is_none());
        for shard in [0, 2, 3] {
            assert_eq!(trailers.get(shard).unwrap().trailer.shard, shard);
        }
        for shard in 0..1000 {
            trailers.insert(shard % 7, known(shard % 7));
            let inner = trailers.inner();
            assert!(inner.bytes <= each * 3 && inner.by_use.len() == inner.by_shard.len());
        }
        trailers.remove(5);
        assert!(trailers.get(5).is_none());
    }
}
