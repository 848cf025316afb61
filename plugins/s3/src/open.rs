//! The first contact: keys, the bucket and its region, whether conditions are obeyed.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use nbd_rs_plugin::{Body, Bytes, Condition, Error, Kind, OpenRequest, Result};

use crate::client::Client;
use crate::config::{Checksum, Conditions, Config};
use crate::credentials::{self, Credentials};
use crate::request;
use crate::response::{etag, is_elsewhere, Failure};

/// An opened bucket.
#[derive(Debug)]
pub(crate) struct Opened {
    pub config: Config,
    pub client: Client,
    pub if_absent: bool,
    pub if_match: bool,
}

/// Opens what the request names.
///
/// # Errors
/// What is wrong with it, or with the answers of the store.
pub(crate) async fn open(request: &OpenRequest) -> Result<Opened> {
    let config = configure(request).await?;
    advise(&config);
    let source = credentials::source(
        config.keys.clone(),
        config.profile.clone(),
        credentials::environment,
    );
    let credentials = Credentials::new(source).await?;
    let (config, client) = contact(config, credentials).await?;
    let (if_absent, if_match) = conditions(&config, &client).await?;
    Ok(Opened {
        config,
        client,
        if_absent,
        if_match,
    })
}

async fn configure(request: &OpenRequest) -> Result<Config> {
    use nbd_rs_plugin::options::Options;
    let profile = Options(&request.options).text("profile").map(str::to_owned);
    let env = credentials::environment;
    let surroundings = blocking(move || credentials::surroundings(profile.as_deref(), env)).await?;
    Config::new(request, &surroundings)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::new(Kind::Panic, "opening the store panicked")))
}

fn advise(config: &Config) {
    if config.is_in_clear() && is_news(&config.endpoint.to_string()) {
        let server = &config.endpoint;
        tracing::warn!(
            "{server} is spoken to in clear: others on the way can read and change data"
        );
    }
}

/// Whether nothing was said of this server before: a location is opened again and again while its
/// store is away.
fn is_news(server: &str) -> bool {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.insert(server.to_owned())
}

async fn client(config: &Config, credentials: &Arc<Credentials>) -> Result<Client> {
    let (config, credentials) = (config.clone(), credentials.clone());
    blocking(move || Client::new(&config, credentials)).await
}

/// Asks the bucket for one name, which finds out nearly everything that can be wrong.
async fn contact(mut config: Config, credentials: Arc<Credentials>) -> Result<(Config, Client)> {
    let mut found = client(&config, &credentials).await?;
    let mut created = !config.create_bucket || !config.writable();
    loop {
        let Err(failure) = look(&config, &found).await else {
            return Ok((config, found));
        };
        if let Some(region) = other_region(&config, &failure) {
            tracing::info!("the bucket {} is in region {region}", config.bucket);
            config = config.in_region(&region)?;
            // Once: the store contradicts itself otherwise.
            config.region_is_said = true;
            found = client(&config, &credentials).await?;
        } else if failure.code == "NoSuchBucket" && !created {
            created = true;
            create(&config, &found).await?;
        } else if failure.code == "AccessDenied" {
            tracing::warn!("names can't be listed: {}", failure.error);
            return Ok((config, found));
        } else {
            return Err(failure.error);
        }
    }
}

async fn look(config: &Config, client: &Client) -> Result<(), Failure> {
    let call = request::list(&config.prefix, request::From::Start, 1);
    client.send(&call, &empty()).await?.xml(&call).await?;
    Ok(())
}

/// Only the name of the region is taken from the answer, never a host: keys go where the user said,
/// or to AWS.
fn other_region(config: &Config, failure: &Failure) -> Option<String> {
    let moved = is_elsewhere(failure.status, &failure.code) && !config.region_is_said;
    let region = failure
        .region
        .clone()
        .filter(|region| *region != config.region);
    region.filter(|_| moved)
}

async fn create(config: &Config, client: &Client) -> Result<()> {
    let region = (config.aws && config.region != "us-east-1").then_some(config.region.as_str());
    let (call, body) = request::create_bucket(region);
    match client.send(&call, &body).await {
        // Some answer with a description of it.
        Ok(_) => Ok(()),
        Err(failure) if failure.code == "BucketAlreadyOwnedByYou" => Ok(()),
        Err(failure) => Err(failure.error),
    }
}

pub(crate) fn empty() -> Body {
    Bytes::from(Vec::new()).into()
}

/// Whether If-None-Match and If-Match are obeyed; some servers ignore them without a word, and two
/// writers would both believe to be the first.
async fn conditions(config: &Config, client: &Client) -> Result<(bool, bool)> {
    match config.conditions {
        Conditions::Yes => return Ok((true, true)),
        Conditions::No => return Ok((false, false)),
        Conditions::Probe if !config.writable() => return Ok((false, false)),
        Conditions::Probe => {}
    }
    let nonce = std::hash::RandomState::new().build_hasher().finish();
    let key = format!("{}.nbd-rs-probe-{nonce:016x}", config.prefix);
    let probed = probe(client, &key).await;
    let call = request::delete(&key);
    if let Err(failure) = client.send(&call, &empty()).await {
        tracing::warn!("the probe {key} is left behind: {}", failure.error);
    }
    let found = probed.map_err(|error| error.context("trying to write"))?;
    if found != (true, true) {
        tracing::warn!("the store ignores conditions: it can't keep a second server out");
    }
    Ok(found)
}

async fn probe(client: &Client, key: &str) -> Result<(bool, bool)> {
    let body = Body::from(Bytes::from(b"probe".to_vec()));
    let put = async |condition: Condition| -> Result<String> {
        // The checksum is signed here, so that a store without the header is told from one
        // without conditions.
        let mut call = request::put(key, &body, &condition, Checksum::Signed, None)?;
        call.payload = request::Payload::hashed(&body);
        let headers = client.send(&call, &body).await?.end(&call).await?;
        Ok(etag(&headers).to_owned())
    };
    let etag = match put(Condition::IfAbsent).await {
        Err(error) if error.kind == Kind::Unsupported => return Ok((false, false)),
        etag => etag?,
    };
    let refused = |result: Result<String>, kind: Kind| match result {
        Ok(_) => Ok(false),
        Err(error) if error.kind == kind => Ok(true),
        Err(error) if error.kind == Kind::Unsupported => Ok(false),
        Err(error) => Err(error),
    };
    let if_absent = refused(put(Condition::IfAbsent).await, Kind::Exists)?;
    if etag.is_empty() {
        return Ok((if_absent, false));
    }
    let other = Condition::IfMatch("00000000000000000000000000000000".into());
    let refuses = refused(put(other).await, Kind::Precondition)?;
    let accepts = put(Condition::IfMatch(etag.as_str().into())).await.is_ok();
    Ok((if_absent, refuses && accepts))
}
