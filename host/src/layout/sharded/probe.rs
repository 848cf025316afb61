//! Does the chain obey conditions? Asked, not believed (contract C22).

use nbd_rs_plugin::{Body, Bytes, CapabilityFlags, Condition};

use super::names::Names;
use super::store::Store;
use super::uuid::Uuid;
use crate::error::{Error, Kind, Result};

const WAY_OUT: &str = "; if something else makes sure that only one server has the volume open, say ?fencing=external";

/// Puts a probe object in all the ways that must succeed or fail.
///
/// # Errors
/// [`Kind::Unsupported`] for a chain that does not obey; whatever keeps it from answering.
pub(super) async fn conditions(store: &Store, names: &Names) -> Result<()> {
    if !store.conditions {
        return Ok(());
    }
    let wanted = CapabilityFlags::IF_ABSENT | CapabilityFlags::IF_MATCH;
    if !store.chain.capabilities().has(wanted) {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the store has no conditional puts, which keep two servers from serving one volume{WAY_OUT}"),
        ));
    }
    let key = names.probe(Uuid::random()?);
    let probed = probe(store, &key).await;
    let deleted = store.chain.delete(vec![key]).wait().await;
    if let Err(error) = deleted.and_then(|results| results.into_iter().collect::<Result<()>>()) {
        tracing::warn!("the probe object could not be deleted: {error}");
    }
    probed
}

async fn probe(store: &Store, key: &str) -> Result<()> {
    let put = |text: &str, condition| {
        let body = Body::One(Bytes::from(text.as_bytes().to_vec()));
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

fn expect<T>(result: Result<T>, kind: Kind, what: &str) -> Result<()> {
    match result {
        Ok(_) => Err(disobeys(what)),
        Err(error) if error.kind == kind => Ok(()),
        Err(error) => Err(error.context(format_args!("probing {what}"))),
    }
}

fn disobeys(what: &str) -> Error {
    let text = format!("the store says it has {what}, but does not obey{WAY_OUT}");
    Error::new(Kind::Unsupported, text)
}
