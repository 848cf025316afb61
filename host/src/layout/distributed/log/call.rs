//! Calls that end in time. One that changes something goes on by itself all the same: it is never
//! dropped half-way.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_plugin::{Body, Bytes, Range};
use tokio::sync::{oneshot, Semaphore};

use super::store::{Created, Listed, LogStore};
use crate::backend::Later;
use crate::error::{Error, Kind, Result};
use crate::layout::distributed::environment::{within, Environment};

/// Changes of one backend that may be under way, those included that nobody waits for any more.
const CHANGES: usize = 4;

/// One backend, and how long it may take.
pub(in crate::layout::distributed) struct Caller {
    store: Arc<dyn LogStore>,
    environment: Arc<dyn Environment>,
    changes: Arc<Semaphore>,
    most: Duration,
}

impl Caller {
    pub(in crate::layout::distributed) fn new(
        store: Arc<dyn LogStore>,
        environment: Arc<dyn Environment>,
        most: Duration,
    ) -> Self {
        Self {
            store,
            environment,
            changes: Arc::new(Semaphore::new(CHANGES)),
            most,
        }
    }

    pub(in crate::layout::distributed) fn name(&self) -> String {
        self.store.name()
    }

    /// The first `len` bytes, from the store itself.
    pub(super) async fn read_fresh(&self, key: String, len: u64) -> Result<Option<Bytes>> {
        self.range(key, Range::new(0, len), true).await
    }

    /// The same, or from a copy.
    pub(super) async fn read(&self, key: String, len: u64) -> Result<Option<Bytes>> {
        self.range(key, Range::new(0, len), false).await
    }

    /// A part of an object.
    pub(in crate::layout::distributed) async fn range(
        &self,
        key: String,
        range: Range,
        fresh: bool,
    ) -> Result<Option<Bytes>> {
        let read = self.ends(self.store.read(key, range, fresh)).await;
        read.map_err(|error| match error.kind {
            // Only whole objects are put, and nobody asks for more than there was.
            Kind::Invalid => Error::new(Kind::Corrupt, "an object is cut short"),
            _ => error,
        })
    }

    pub(in crate::layout::distributed) async fn put(
        &self,
        key: String,
        body: Body,
    ) -> Result<Created> {
        self.change(self.store.put(key, body)).await
    }

    pub(in crate::layout::distributed) async fn delete(&self, keys: Vec<String>) -> Result<()> {
        self.change(self.store.delete(keys)).await
    }

    /// Names in order, a part of them.
    pub(in crate::layout::distributed) async fn list(
        &self,
        prefix: String,
        after: Option<String>,
    ) -> Result<Listed> {
        self.ends(self.store.list(prefix, after)).await
    }

    async fn ends<T>(&self, call: impl std::future::Future<Output = Result<T>>) -> Result<T> {
        match within(&*self.environment, self.most, call).await {
            Some(answer) => answer,
            None => Err(self.late()),
        }
    }

    async fn change<T: Send + 'static>(&self, call: Later<T>) -> Result<T> {
        self.ends(async {
            let permit = self.changes.clone().acquire_owned().await;
            let (tell, told) = oneshot::channel();
            self.environment.spawn(Box::pin(async move {
                let _permit = permit;
                let _ = tell.send(call.await);
            }));
            told.await.unwrap_or_else(|_| Err(self.late()))
        })
        .await
    }

    fn late(&self) -> Error {
        let text = format!("no answer in {} s", self.most.as_secs_f32());
        Error::new(Kind::Ambiguous, text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::layout::distributed::log::tests::rig::World;

    /// Counts puts that have begun, and those that have ended after a minute.
    #[derive(Default)]
    struct Slow {
        begun: Arc<AtomicU32>,
        ended: Arc<AtomicU32>,
    }

    impl LogStore for Slow {
        fn name(&self) -> String {
            "slow".to_owned()
        }

        fn read(&self, _: String, _: Range, _: bool) -> Later<Option<Bytes>> {
            Box::pin(std::future::pending())
        }

        fn put(&self, _: String, _: Body) -> Later<Created> {
            let (begun, ended) = (self.begun.clone(), self.ended.clone());
            Box::pin(async move {
                begun.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(60)).await;
                ended.fetch_add(1, Ordering::Relaxed);
                Ok(Created::Stored)
            })
        }

        fn delete(&self, _: Vec<String>) -> Later<()> {
            Box::pin(std::future::pending())
        }

        fn list(&self, _: String, _: Option<String>) -> Later<Listed> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn f53_f74_a_put_that_is_given_up_goes_on_and_few_do_so_at_once() {
        let store = Arc::new(Slow::default());
        let most = Duration::from_secs(5);
        let caller = Caller::new(store.clone(), World::new(1), most);
        for _ in 0..10 {
            let body = Body::One(Bytes::from(vec![1]));
            let error = caller.put("a".to_owned(), body).await.unwrap_err();
            assert_eq!(error.kind, Kind::Ambiguous);
        }
        assert_eq!(store.begun.load(Ordering::Relaxed), CHANGES as u32);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(store.ended.load(Ordering::Relaxed), CHANGES as u32);
        let error = caller.read("a".to_owned(), 1).await.unwrap_err();
        assert_eq!(error.kind, Kind::Ambiguous);
    }
}
