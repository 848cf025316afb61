//! The objects of one backend, as the log asks for them: put once, read, deleted.

use nbd_rs_plugin::{Body, Bytes, GetFlags, Kind, Range};

use crate::backend::chain::Chain;
use crate::backend::Later;
use crate::layout::frame::corrupt;
use crate::layout::sharded::store::{bytes_of, Store};

/// What became of a put that was to happen only if there is no such object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is stored, durably.
    Stored,
    /// There is one, durably; maybe of an earlier attempt.
    Exists,
}

/// A part of a list of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// In order.
    pub keys: Vec<String>,
    /// What the next part comes after, if there is one.
    pub next: Option<String>,
}

/// One backend. Names are those of `object`. Nothing starts before the first poll.
pub trait LogStore: Send + Sync {
    /// For people.
    fn name(&self) -> String;

    /// These bytes of an object; none if there is no such object. With `fresh` no copy on the way may
    /// answer.
    ///
    /// An error if the object is shorter, or when nothing is known. May be dropped at any time.
    fn read(&self, key: String, range: Range, fresh: bool) -> Later<Option<Bytes>>;

    /// Puts an object if there is none of the name. Never dropped once it was polled.
    ///
    /// With any error it may have happened, or happen yet.
    fn put(&self, key: String, body: Body) -> Later<Created>;

    /// Deletes objects; one that is missing counts as deleted. Never dropped once it was polled.
    fn delete(&self, keys: Vec<String>) -> Later<()>;

    /// Some of the names that begin with `prefix` and come after `after`. It may lack some that are
    /// there, and have some that are not. May be dropped at any time.
    fn list(&self, prefix: String, after: Option<String>) -> Later<Listed>;
}

/// Objects of a chain behind a prefix.
#[derive(Debug, Clone)]
pub struct Remote {
    name: String,
    store: Store,
    prefix: String,
}

impl Remote {
    /// `name` is what people are told, without secrets; `prefix` stands before the name of every object.
    pub fn new(name: String, chain: Chain, prefix: String) -> Self {
        // The log rests on conditional puts: nothing else can stand in for them.
        let store = Store::new(chain, false);
        Self {
            name,
            store,
            prefix,
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl LogStore for Remote {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn read(&self, key: String, range: Range, fresh: bool) -> Later<Option<Bytes>> {
        let (store, key) = (self.store.clone(), self.key(&key));
        let flags = match fresh {
            true => GetFlags::FRESH,
            false => GetFlags::NONE,
        };
        Box::pin(async move {
            match store.chain.get(key, range, flags).wait().await {
                Ok(got) => Ok(Some(Bytes::from(bytes_of(&got.data)?))),
                Err(error) if error.kind == Kind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn put(&self, key: String, body: Body) -> Later<Created> {
        let (store, key) = (self.store.clone(), self.key(&key));
        Box::pin(async move {
            let created = match store.put(&key, body, store.if_absent()).await {
                Ok(_) => Created::Stored,
                Err(error) if error.kind == Kind::Exists => Created::Exists,
                Err(error) => return Err(error),
            };
            // What an earlier attempt left may have been acknowledged without being durable yet.
            store.settle().await?;
            Ok(created)
        })
    }

    fn delete(&self, keys: Vec<String>) -> Later<()> {
        let keys = keys.iter().map(|key| self.key(key)).collect();
        let chain = self.store.chain.clone();
        Box::pin(async move {
            let results = chain.delete(keys).wait().await?;
            results.into_iter().collect()
        })
    }

    fn list(&self, prefix: String, after: Option<String>) -> Later<Listed> {
        let (store, own) = (self.store.clone(), self.prefix.clone());
        let (prefix, after) = (self.key(&prefix), after.map(|after| self.key(&after)));
        Box::pin(async move {
            let (items, next) = store.page(&prefix, after).await?;
            let behind = |key: &str| key.strip_prefix(&own).map(str::to_owned);
            let keys = items.iter().filter_map(|meta| behind(&meta.key)).collect();
            let wrong = || corrupt("the store's list goes on somewhere else");
            let next = next
                .map(|next| behind(&next).ok_or_else(wrong))
                .transpose()?;
            Ok(Listed { keys, next })
        })
    }
}
