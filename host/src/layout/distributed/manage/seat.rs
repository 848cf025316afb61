//! A backend of the volume, which may be away: then it is looked for among those of the list that did
//! not say who they are, each time somebody asks for it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nbd_rs_plugin::{Body, Bytes, OpenFlags, Range};
use tokio::sync::Mutex;

use super::super::format::names::Names;
use super::super::log::{Created, Listed, LogStore, Remote};
use super::{identities, Reached, Typed};
use crate::backend::Later;
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::names::Names as RecordNames;
use crate::layout::sharded::probe;
use crate::layout::sharded::store::Store;
use crate::layout::uuid::Uuid;

/// Nobody is asked more often.
const PAUSE: Duration = Duration::from_secs(2);

/// A backend that is there.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) store: Store,
    remote: Remote,
}

impl Opened {
    pub(super) fn new(name: &str, reached: Reached, volume: Uuid) -> Self {
        let prefix = Names::of(volume).all().to_owned();
        Self {
            remote: Remote::new(name.to_owned(), reached.chain, prefix),
            store: reached.store,
        }
    }
}

/// Those of the list that did not say who they are.
#[derive(Debug)]
pub(super) struct Lobby {
    volume: Uuid,
    names: String,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    typed: Vec<Typed>,
    asked: Option<Instant>,
    error: Error,
}

impl Lobby {
    pub(super) fn new(volume: Uuid, typed: Vec<Typed>) -> Arc<Self> {
        let names: Vec<&str> = typed.iter().map(|typed| typed.name.as_str()).collect();
        let error = Error::new(Kind::Transient, "it was not there at the start");
        Arc::new(Self {
            volume,
            names: names.join(" or "),
            waiting: Mutex::new(Waiting {
                typed,
                asked: None,
                error,
            }),
        })
    }
}

/// One backend.
#[derive(Debug)]
pub(super) struct Seat {
    backend: Uuid,
    name: OnceLock<String>,
    lobby: Arc<Lobby>,
    opened: OnceLock<Opened>,
}

impl Seat {
    pub(super) fn taken(backend: Uuid, name: String, lobby: Arc<Lobby>, opened: Opened) -> Self {
        Self {
            backend,
            name: name.into(),
            lobby,
            opened: opened.into(),
        }
    }

    pub(super) fn empty(backend: Uuid, lobby: Arc<Lobby>) -> Self {
        Self {
            backend,
            name: OnceLock::new(),
            lobby,
            opened: OnceLock::new(),
        }
    }

    pub(super) fn name(&self) -> String {
        self.name.get().unwrap_or(&self.lobby.names).clone()
    }

    /// What lies there, if it is there.
    pub(super) fn store(&self) -> Option<&Store> {
        self.opened.get().map(|opened| &opened.store)
    }

    /// Does it obey conditions? One that is away is asked when it comes back.
    pub(super) async fn probe(&self) -> Result<()> {
        let Some(store) = self.store() else {
            return Ok(());
        };
        probed(store, self.lobby.volume)
            .await
            .map_err(|error| error.context(self.name()))
    }

    async fn remote(&self) -> Result<&Remote> {
        if let Some(opened) = self.opened.get() {
            return Ok(&opened.remote);
        }
        let mut waiting = self.lobby.waiting.lock().await;
        let is_due = waiting.asked.is_none_or(|asked| asked.elapsed() >= PAUSE);
        if self.opened.get().is_none() && is_due {
            self.look(&mut waiting).await;
            waiting.asked = Some(Instant::now());
        }
        match self.opened.get() {
            Some(opened) => Ok(&opened.remote),
            None => Err(waiting.error.clone()),
        }
    }

    /// Asks all who did not say yet who they are.
    async fn look(&self, waiting: &mut Waiting) {
        for at in 0..waiting.typed.len() {
            match self.is_it(&waiting.typed[at]).await {
                Ok(Some(opened)) => {
                    let typed = waiting.typed.remove(at);
                    tracing::info!("{} is there again", typed.name);
                    // Nobody else looks while the lobby is locked.
                    let _ = self.name.set(typed.name);
                    let _ = self.opened.set(opened);
                    return;
                }
                Ok(None) => {}
                Err(error) => waiting.error = error,
            }
        }
    }

    async fn is_it(&self, typed: &Typed) -> Result<Option<Opened>> {
        let reached = typed.reach(OpenFlags::WRITE).await?;
        let volume = self.lobby.volume;
        let identity = identities::read(&reached.store).await?;
        match identity.filter(|it| it.volume == volume && it.backend == self.backend) {
            Some(_) => {
                probed(&reached.store, volume).await?;
                Ok(Some(Opened::new(&typed.name, reached, volume)))
            }
            None => {
                let text = format!("{} is not the backend that is missing", typed.name);
                // It may be another one that is.
                tracing::debug!("{text}");
                Err(Error::new(Kind::Transient, text))
            }
        }
    }
}

async fn probed(store: &Store, volume: Uuid) -> Result<()> {
    probe::obeys(store, &RecordNames::of(volume)).await
}

/// What the log holds of a seat.
pub(super) struct Away(pub(super) Arc<Seat>);

impl LogStore for Away {
    fn name(&self) -> String {
        self.0.name()
    }

    fn read(&self, key: String, range: Range, fresh: bool) -> Later<Option<Bytes>> {
        let seat = self.0.clone();
        Box::pin(async move { seat.remote().await?.read(key, range, fresh).await })
    }

    fn put(&self, key: String, body: Body) -> Later<Created> {
        let seat = self.0.clone();
        Box::pin(async move { seat.remote().await?.put(key, body).await })
    }

    fn delete(&self, keys: Vec<String>) -> Later<()> {
        let seat = self.0.clone();
        Box::pin(async move { seat.remote().await?.delete(keys).await })
    }

    fn list(&self, prefix: String, after: Option<String>) -> Later<Listed> {
        let seat = self.0.clone();
        Box::pin(async move { seat.remote().await?.list(prefix, after).await })
    }
}
