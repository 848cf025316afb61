//! Word that something changed, for all who wait for it, in the order in which they began to wait: tokio's
//! `watch` wakes them by chance, and then the same seed would not give the same simulated world.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Where word is given.
#[derive(Debug, Default)]
pub(super) struct News {
    told: AtomicU64,
    wake: Notify,
}

/// Who waits for word that comes after it began to listen.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    news: &'a News,
    heard: u64,
}

impl News {
    pub(super) fn tell(&self) {
        self.told.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_waiters();
    }

    pub(super) fn listen(&self) -> Listener<'_> {
        Listener {
            news: self,
            heard: self.told.load(Ordering::Acquire),
        }
    }
}

impl Listener<'_> {
    /// Waits until there was word since the last time.
    pub(super) async fn changed(&mut self) {
        loop {
            // From here on it is woken, so what is told after the look is not missed.
            let woken = self.news.wake.notified();
            let told = self.news.told.load(Ordering::Acquire);
            if told != self.heard {
                self.heard = told;
                return;
            }
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn word_wakes_in_order_and_is_not_missed() {
        let news = Arc::new(News::default());
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..20)
            .map(|number| {
                let (news, woken) = (news.clone(), woken.clone());
                tokio::spawn(async move {
                    news.listen().changed().await;
                    woken.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        news.tell();
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
        let mut listener = news.listen();
        assert!(listener.changed().now_or_never().is_none());
        news.tell();
        news.tell();
        assert!(
            listener.changed().now_or_never().is_some(),
            "told before it waited"
        );
        assert!(listener.changed().now_or_never().is_none(), "once for all");
    }
}
