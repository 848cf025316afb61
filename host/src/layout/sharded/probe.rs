//! Does the chain obey conditions? Asked, not believed (contract C22).

use futures_util::future::join_all;
use nbd_rs_plugin::{Body, Bytes, CapabilityFlags, Condition};

use super::names::Names;
use super::store::{may_pass, Store};
use super::uuid::Uuid;
use crate::error::{Error, Kind, Result};

/// Puts of one object at once (contract C22).
const AT_ONCE: u32 = 8;
/// How often that is tried where no answer tells anything.
const TRIES: u32 = 3;
const WAY_OUT: &str =
    "; if something else makes sure that only one server has the volume open, say ?fencing=external";

/// Puts a probe object in all the ways that must succeed or fail.
///
/// # Errors
/// [`Kind::Unsupported`] for a chain that does not obey; whatever keeps it from answering.
pub(super) async fn conditions(store: &Store, names: &Names) -> Result<()> {
    if !store.conditions {
        return Ok(());
    }
    obeys(store, names).await.map_err(with_a_way_out)
}

/// The same, where nothing else can keep other servers out.
///
/// # Errors
/// As for [`conditions`].
pub(in crate::layout) async fn obeys(store: &Store, names: &Names) -> Result<()> {
    let wanted = CapabilityFlags::IF_ABSENT | CapabilityFlags::IF_MATCH;
    if !store.chain.capabilities().has(wanted) {
        return Err(Error::new(
            Kind::Unsupported,
            "the store has no conditional puts, which keep two servers from serving one volume",
        ));
    }
    let key = names.probe(Uuid::random()?);
    let probed = probe(store, &key).await;
    remove(store, key).await;
    match probed {
        Err(full) if full.kind == Kind::NoSpace => refusals(store, names, full).await,
        probed => probed,
    }
}

/// The same where there is no room for a probe object: the puts that must fail, of the owner record.
/// A store that lets them through has the same bytes there. That it can be put where it must be
/// possible is seen when the volume is taken.
async fn refusals(store: &Store, names: &Names, full: Error) -> Result<()> {
    let (owner, index) = (store.read(names.owner()).await?, store.head(names.index()));
    let (Some((record, etag)), Some(other)) = (owner, index.await?) else {
        return Err(full);
    };
    let key = names.owner();
    let put = |condition| store.put(&key, body(&record), condition);
    let absent = put(Condition::IfAbsent).await;
    expect(absent, Kind::Exists, "put if absent")?;
    if etag.is_empty() || etag == other.etag.as_str() {
        return Err(disobeys("an ETag for each object"));
    }
    let stale = put(Condition::IfMatch(other.etag)).await;
    expect(stale, Kind::Precondition, "put if the ETag matches")
}

fn body(bytes: &[u8]) -> Body {
    Body::One(Bytes::from(bytes.to_vec()))
}

async fn probe(store: &Store, key: &str) -> Result<()> {
    let put = |text: &str, condition| {
        let body = body(text.as_bytes());
        store.chain.put(key.to_owned(), body, condition).wait()
    };
    let first = put("probe 1", Condition::IfAbsent).await?.etag;
    expect(
        put("probe 2", Condition::IfAbsent).await,
        Kind::Exists,
        "put if absent",
    )?;
    let second = put("probe 3", Condition::IfMatch(first.clone()))
        .await?
        .etag;
    if first.is_empty() || first == second {
        return Err(disobeys("an ETag that says whether an object changed"));
    }
    let stale = put("probe 4", Condition::IfMatch(first)).await;
    expect(stale, Kind::Precondition, "put if the ETag matches")
}

/// Puts one object from several sides at once: one of them must come first.
///
/// # Errors
/// [`Kind::Unsupported`] for a store where several do; whatever keeps it from answering.
pub(super) async fn creates_at_once(store: &Store, names: &Names) -> Result<()> {
    if !store.conditions {
        return Ok(());
    }
    one_creates(store, names).await.map_err(with_a_way_out)
}

/// The same, where nothing else can keep other servers out.
///
/// # Errors
/// As for [`creates_at_once`].
pub(in crate::layout) async fn one_creates(store: &Store, names: &Names) -> Result<()> {
    for _ in 0..TRIES {
        let key = names.probe(Uuid::random()?);
        let put = |number: u32| {
            let body = Body::One(Bytes::from(format!("probe of {number}").into_bytes()));
            store
                .chain
                .put(key.clone(), body, Condition::IfAbsent)
                .wait()
        };
        let answers = join_all((0..AT_ONCE).map(put)).await;
        remove(store, key).await;
        let first = answers.iter().filter(|answer| answer.is_ok()).count();
        let failed = |error: &Error| error.kind != Kind::Exists && !may_pass(error);
        let errors = answers.into_iter().filter_map(Result::err);
        match (first, errors.into_iter().find(failed)) {
            (2.., _) => return Err(disobeys("put if absent, where several come at once")),
            (_, Some(error)) => return Err(error.context("probing puts at once")),
            (1, None) => return Ok(()),
            // Those who were told nothing tell nothing.
            (0, None) => {}
        }
    }
    let text = "the store answered none of several puts at once";
    Err(Error::new(Kind::Transient, text))
}

async fn remove(store: &Store, key: String) {
    let deleted = store.chain.delete(vec![key]).wait().await;
    if let Err(error) = deleted.and_then(|results| results.into_iter().collect::<Result<()>>()) {
        tracing::warn!("the probe object could not be deleted: {error}");
    }
}

fn expect<T>(result: Result<T>, kind: Kind, what: &str) -> Result<()> {
    match result {
        Ok(_) => Err(disobeys(what)),
        Err(error) if error.kind == kind => Ok(()),
        Err(error) => Err(error.context(format_args!("probing {what}"))),
    }
}

fn disobeys(what: &str) -> Error {
    let text = format!("the store says it has {what}, but does not obey");
    Error::new(Kind::Unsupported, text)
}

/// Sharded volumes can do without.
fn with_a_way_out(error: Error) -> Error {
    match error.kind {
        Kind::Unsupported => Error::new(Kind::Unsupported, format!("{error}{WAY_OUT}")),
        _ => error,
    }
}
