//! Making, opening, growing, looking at and removing volumes.
//!
//! - `identities`: which backend is which; `seat`: a backend that may be away;
//! - `owners`: who has the volume, for people: what keeps two servers apart is the log;
//! - `create`, `remove`, `facts`, `status`, `repair`.

mod create;
mod facts;
mod identities;
mod owners;
mod remove;
mod repair;
mod seat;
mod status;

use std::sync::Arc;

use futures_util::future::join_all;
use nbd_rs_plugin::OpenFlags;

use super::environment::Host;
use super::format::identity::Identity;
use super::log::{LogStore, Timing};
use super::roster::{Found, Roster};
use super::volume::{self, Released, Setup, Tuning, Volume};
use crate::backend::chain::{Chain, Opener};
use crate::error::{Error, Kind, Result};
use crate::layout::sharded::store::Store;
use crate::layout::uuid::Uuid;
use owners::Owners;
use seat::{Away, Lobby, Opened, Seat};

pub use create::{create, Plan};
pub use facts::{facts, BackendFacts, Facts};
pub use remove::{destroy, grow};
pub use repair::{replace, resync, scrub};
pub use status::{status, BackendStatus, Status};

/// A backend as it was typed.
#[derive(Debug, Clone)]
pub struct Typed {
    /// Without secrets.
    pub name: String,
    /// How it is opened.
    pub opener: Opener,
}

/// How a volume is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Also from an owner that lives.
    pub takeover: bool,
    /// How it is served.
    pub tuning: Tuning,
}

/// A backend that answered.
struct Reached {
    chain: Chain,
    store: Store,
}

impl Typed {
    async fn reach(&self, flags: OpenFlags) -> Result<Reached> {
        let opener = self.opener.clone();
        // In a task of the runtime, which has timers: whoever waits may have none.
        let opening = crate::runtime::handle().spawn(async move { opener.open(flags).await });
        let lost = |_| Error::new(Kind::Io, "opening a backend was given up");
        let chain = opening.await.map_err(lost)??;
        let store = Store::new(chain.clone(), false);
        Ok(Reached { chain, store })
    }
}

/// Backends that answered, in the order of the list, and who is who.
struct Gathered {
    reached: Vec<Option<Reached>>,
    identities: Vec<Result<Option<Identity>>>,
    roster: Roster,
}

async fn gather(typed: &[Typed], flags: OpenFlags) -> Result<Gathered> {
    let looks = typed.iter().map(|typed| async move {
        let reached = typed.reach(flags).await?;
        let identity = identities::read(&reached.store).await?;
        Ok::<_, Error>((reached, identity))
    });
    let (mut reached, mut list) = (Vec::new(), Vec::new());
    for (typed, look) in typed.iter().zip(join_all(looks).await) {
        let identity = match look {
            Ok((there, identity)) => {
                reached.push(Some(there));
                Ok(identity)
            }
            Err(error) => {
                reached.push(None);
                Err(error)
            }
        };
        let name = typed.name.clone();
        list.push(Found { name, identity });
    }
    // What is there and is no backend of this volume is no backend that is away; one whose identity is
    // damaged is.
    let wrong = |found: &&Found| {
        let kind = found.identity.as_ref().err().map(|error| error.kind);
        matches!(kind, Some(Kind::Unsupported | Kind::Invalid))
    };
    if let Some(found) = list.iter().find(wrong) {
        if let Err(error) = &found.identity {
            return Err(error.clone().context(&found.name));
        }
    }
    let roster = Roster::of(&list)?;
    let identities = list.into_iter().map(|found| found.identity).collect();
    Ok(Gathered {
        reached,
        identities,
        roster,
    })
}

/// Takes a volume and opens it. What that costs depends on the log behind its last checkpoint, not on
/// its size.
///
/// # Errors
/// [`Kind::Busy`] with the owner's name; what [`Roster::of`] says of the list; what keeps the log from
/// being taken.
pub async fn open(typed: Vec<Typed>, how: How) -> Result<Volume> {
    Ok(open_all(typed, how).await?.0)
}

/// The same; for each backend of the volume, its place in the list comes along.
async fn open_all(typed: Vec<Typed>, how: How) -> Result<(Volume, Vec<Option<usize>>)> {
    let (volume, places, _) = open_with(typed, how, false).await?;
    Ok((volume, places))
}

/// The same, and others stay out when it is closed, until these are released.
async fn open_kept(
    typed: Vec<Typed>,
    how: How,
) -> Result<(Volume, Vec<Option<usize>>, Arc<Owners>)> {
    open_with(typed, how, true).await
}

async fn open_with(
    typed: Vec<Typed>,
    how: How,
    is_kept: bool,
) -> Result<(Volume, Vec<Option<usize>>, Arc<Owners>)> {
    let Gathered {
        reached, roster, ..
    } = gather(&typed, OpenFlags::WRITE).await?;
    for warning in &roster.warnings {
        tracing::warn!("{warning}");
    }
    let seats = seats(typed, reached, &roster)?;
    let probes = seats.iter().map(|seat| seat.probe());
    join_all(probes).await.into_iter().collect::<Result<()>>()?;
    let owners = Owners::take(roster.identity.volume, seats.clone(), how.takeover).await?;
    let released: Released = match is_kept {
        true => Arc::new(|| Box::pin(async { Ok(()) })),
        false => {
            let owners = owners.clone();
            Arc::new(move || {
                let owners = owners.clone();
                Box::pin(async move {
                    owners.release().await;
                    Ok(())
                })
            })
        }
    };
    match open_owned(&roster, &seats, released, how).await {
        Ok(volume) => Ok((volume, roster.places, owners)),
        Err(error) => {
            owners.release().await;
            Err(error)
        }
    }
}

async fn open_owned(
    roster: &Roster,
    seats: &[Arc<Seat>],
    released: Released,
    how: How,
) -> Result<Volume> {
    let identity = &roster.identity;
    let owner = Uuid::random()?.0;
    let store = |seat: &Arc<Seat>| -> Arc<dyn LogStore> { Arc::new(Away(seat.clone())) };
    let setup = Setup {
        volume: identity.volume,
        geometry: identity.geometry,
        backends: identity.backends.clone(),
        copies: identity.copies(),
        quorum: roster.quorum()?,
        owner: u64::from_le_bytes([
            owner[0], owner[1], owner[2], owner[3], owner[4], owner[5], owner[6], owner[7],
        ]),
        counter_seen: 0,
        timing: Timing::default(),
        tuning: how.tuning,
        environment: Arc::new(Host),
        released,
    };
    volume::open(setup, seats.iter().map(store).collect()).await
}

/// Each backend of the volume, in its order.
fn seats(
    typed: Vec<Typed>,
    mut reached: Vec<Option<Reached>>,
    roster: &Roster,
) -> Result<Vec<Arc<Seat>>> {
    let identity = &roster.identity;
    let unknown = roster.unknown.iter().map(|&at| typed[at].clone());
    let lobby = Lobby::new(identity.volume, unknown.collect());
    let places = identity.backends.iter().zip(&roster.places);
    let seats = places.map(|(&backend, place)| {
        let found = place.and_then(|at| Some((at, reached[at].take()?)));
        let seat = match found {
            Some((at, there)) => {
                let name = typed[at].name.clone();
                let opened = Opened::new(&name, there, identity.volume);
                Seat::taken(backend, name, lobby.clone(), opened)
            }
            None => Seat::empty(backend, lobby.clone()),
        };
        Ok(Arc::new(seat))
    });
    seats.collect()
}
