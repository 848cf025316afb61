//! Checksums of images that were read lately.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::format::image::Trailer;
use super::super::format::Named;

/// At most so many bytes of them, those first that came first.
#[derive(Debug)]
pub(super) struct Trailers {
    kept: Mutex<Kept>,
    most_bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    by_image: HashMap<Named, Arc<Trailer>>,
    order: VecDeque<Named>,
    bytes: usize,
}

fn bytes_of(trailer: &Trailer) -> usize {
    trailer.sums.len() * 4
}

impl Trailers {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self {
            kept: Mutex::default(),
            most_bytes,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, image: Named) -> Option<Arc<Trailer>> {
        self.kept().by_image.get(&image).cloned()
    }

    pub(super) fn keep(&self, image: Named, trailer: Arc<Trailer>) {
        let mut kept = self.kept();
        let bytes = bytes_of(&trailer);
        if kept.by_image.insert(image, trailer).is_some() {
            return;
        }
        kept.order.push_back(image);
        kept.bytes += bytes;
        while kept.bytes > self.most_bytes && kept.order.len() > 1 {
            let first = kept.order.pop_front();
            let gone = first.and_then(|first| kept.by_image.remove(&first));
            kept.bytes -= gone.map_or(0, |gone| bytes_of(&gone));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::format::Version;
    use super::*;

    #[test]
    fn trailers_that_are_kept_are_bounded_and_the_last_one_is_there() {
        let trailers = Trailers::new(100);
        for seq in 0..50 {
            let version = Version {
                seq,
                ..Version::default()
            };
            let image = Named {
                version,
                ..Named::default()
            };
            let trailer = Trailer {
                shard: 1,
                version,
                sums: vec![0; 10],
            };
            trailers.keep(image, Arc::new(trailer));
            assert_eq!(trailers.get(image).unwrap().version, version);
        }
        let kept = trailers.kept();
        assert_eq!(
            (kept.by_image.len(), kept.order.len(), kept.bytes),
            (2, 2, 80)
        );
    }
}
