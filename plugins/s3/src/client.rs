//! The network: one pool of connections, one attempt at a time, bounded in number and in time.

use std::error::Error as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, ACCEPT_ENCODING, CONTENT_LENGTH};
use nbd_rs_plugin::{Body, Error, Kind, Result};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Response};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{timeout_at, Instant};

use crate::body::{Outgoing, Sent};
use crate::config::Config;
use crate::credentials::{Credentials, Keys};
use crate::endpoint::Scheme;
use crate::request::{self, Call, Site};
use crate::resolve::Resolver;
use crate::response::{self, failure, is_expected, Failure};
use crate::xml;

/// The most of an error's body that is read, in bytes.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Idle connections are given up before servers close them under a request.
const POOL_IDLE: Duration = Duration::from_secs(15);

/// A bucket's connections.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    site: Site,
    credentials: Arc<Credentials>,
    limit: Arc<Semaphore>,
    /// The store's clock less ours, in seconds, once it has complained.
    skew_s: AtomicI64,
    timeout: Duration,
    read_timeout: Duration,
}

impl Client {
    /// Nothing is connected yet. Reads certificates, so it may block.
    ///
    /// # Errors
    /// If the certificates can't be read.
    pub(crate) fn new(config: &Config, credentials: Arc<Credentials>) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .redirect(Policy::none())
            .referer(false)
            .https_only(config.endpoint.scheme == Scheme::Https)
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(config.connections)
            .tcp_nodelay(true)
            .user_agent(concat!("nbd-rs-s3/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Resolver {
                allow_link_local: config.allow_link_local,
            }));
        if config.endpoint.is_loopback() {
            builder = builder.no_proxy();
        }
        for certificate in certificates(config)? {
            builder = builder.add_root_certificate(certificate);
        }
        let failed = |error| Error::new(Kind::Invalid, format!("TLS: {}", causes(error)));
        Ok(Self {
            http: builder.build().map_err(failed)?,
            site: Site::new(config),
            credentials,
            limit: Arc::new(Semaphore::new(config.connections)),
            skew_s: AtomicI64::new(0),
            timeout: config.timeout,
            read_timeout: config.read_timeout,
        })
    }

    /// Sends a request; once more if the keys had expired or the clocks differ, which the store
    /// sees before it does anything.
    ///
    /// # Errors
    /// Any answer but the expected ones; what became of a request without one.
    pub(crate) async fn send(&self, call: &Call, body: &Body) -> Result<Answer, Failure> {
        let keys = self.credentials.keys().await?;
        let first = match self.attempt(call, body, &keys).await {
            Err(failure) => failure,
            answer => return answer,
        };
        if !self.mend(&first, &keys).await {
            return Err(masked(first, &keys));
        }
        let keys = self.credentials.keys().await?;
        let second = self.attempt(call, body, &keys).await;
        second.map_err(|failure| masked(failure, &keys))
    }

    async fn attempt(&self, call: &Call, body: &Body, keys: &Keys) -> Result<Answer, Failure> {
        let permit = self.limit.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Error::new(Kind::Io, "the store is closed"))?;
        let deadline = Instant::now() + self.timeout;
        let skew = time::Duration::seconds(self.skew_s.load(Ordering::Relaxed));
        let now = OffsetDateTime::now_utc() + skew;
        let (url, headers) = request::sign(&self.site, call, keys, now)?;
        let sent = Sent::default();
        let mut request = self.http.request(call.method.clone(), url).headers(headers);
        request = request.header(ACCEPT_ENCODING, "identity");
        if call.has_body() {
            let outgoing = reqwest::Body::wrap(Outgoing::new(body, &sent));
            request = request.header(CONTENT_LENGTH, body.len()).body(outgoing);
        }
        // A large body takes its time; without one the answer is all there is to wait for.
        let until = match call.has_body() {
            true => deadline,
            false => deadline.min(Instant::now() + self.read_timeout),
        };
        let response = match timeout_at(until, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(lost(call, &self.site, error, &sent).into()),
            Err(_) => return Err(late(call, &self.site, &sent).into()),
        };
        let answer = Answer {
            response,
            deadline,
            read_timeout: self.read_timeout,
            changes: call.changes(),
            _permit: permit,
        };
        match is_expected(call, answer.status()) {
            true => Ok(answer),
            false => Err(answer.into_failure(call).await),
        }
    }

    /// Whether the next attempt will be another one.
    async fn mend(&self, failure: &Failure, used: &Arc<Keys>) -> bool {
        match failure.code.as_str() {
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                self.credentials.renew(used).await.is_ok()
            }
            "RequestTimeTooSkewed" => {
                let Some(theirs) = response::date(&failure.headers) else {
                    return false;
                };
                let skew_s = (theirs - OffsetDateTime::now_utc()).whole_seconds();
                tracing::warn!("this machine's clock is {skew_s} s behind the store's: set it");
                self.skew_s.store(skew_s, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }
}

fn masked(mut failure: Failure, keys: &Keys) -> Failure {
    failure.error.message = keys.mask(&failure.error.message).into();
    failure
}

fn certificates(config: &Config) -> Result<Vec<Certificate>> {
    let Some(path) = &config.ca else {
        return Ok(Vec::new());
    };
    let pem = std::fs::read(path).map_err(|error| Error {
        // What is missing is not the store.
        kind: Kind::Io,
        ..Error::os(&error, format_args!("ca {}", path.display()))
    })?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::new(
            Kind::Invalid,
            format!("ca {}: holds no certificate in PEM form", path.display()),
        )),
    }
}

/// An error and what caused it, in one line, without the URL.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    xml::excerpt(text.as_bytes())
}

/// A request without an answer.
fn lost(call: &Call, site: &Site, error: reqwest::Error, sent: &Sent) -> Error {
    let (unconnected, late) = (error.is_connect(), error.is_timeout());
    let origin = site.origin();
    let text = format!("{} at {origin}: {}", call.what(), causes(error));
    match unconnected {
        true if text.contains("certificate") => {
            Error::new(Kind::Io, format!("{text}; for a private CA say ca=FILE"))
        }
        true if text.contains("InvalidContentType") => {
            let advice = "it does not speak https: for http write s3:http://... or \
                          endpoint=http://...";
            Error::new(Kind::Io, format!("{text}; {advice}"))
        }
        true if late => Error::new(Kind::Timeout, text),
        true => Error::new(Kind::Transient, text),
        false => Error::new(unfinished(call, sent), text),
    }
}

fn late(call: &Call, site: &Site, sent: &Sent) -> Error {
    let text = format!("{} at {}: no answer in time", call.what(), site.origin());
    Error::new(unfinished(call, sent), text)
}

/// What is known of a request that was under way. One whose body did not begin can't have changed
/// anything.
fn unfinished(call: &Call, sent: &Sent) -> Kind {
    match call.changes() && (sent.anything() || !call.has_body()) {
        true => Kind::Ambiguous,
        false => Kind::Transient,
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    response: Response,
    deadline: Instant,
    read_timeout: Duration,
    changes: bool,
    /// Given back when the answer was read, or is dropped.
    _permit: OwnedSemaphorePermit,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next bytes, or the end.
    ///
    /// # Errors
    /// If the answer is cut off, garbled or late.
    pub(crate) async fn chunk(&mut self) -> Result<Option<bytes::Bytes>> {
        let until = self.deadline.min(Instant::now() + self.read_timeout);
        let kind = match self.changes {
            true => Kind::Ambiguous,
            false => Kind::Transient,
        };
        match timeout_at(until, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Error::new(kind, format!("the answer: {}", causes(error)))),
            Err(_) => Err(Error::new(
                kind,
                "the rest of the answer did not come in time",
            )),
        }
    }

    /// The body, up to `most` bytes; whether that is all of it.
    async fn read(&mut self, most: usize) -> Result<(Vec<u8>, bool)> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            let room = most - body.len();
            if chunk.len() > room {
                body.extend_from_slice(&chunk[..room]);
                return Ok((body, false));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, true))
    }

    /// The XML of the answer.
    ///
    /// # Errors
    /// If it is cut off, late or too long.
    pub(crate) async fn xml(mut self, call: &Call) -> Result<Vec<u8>, Failure> {
        let (body, whole) = self.read(xml::MAX_BYTES).await?;
        if !whole {
            let text = format!("{}: an answer of over a mebibyte", call.what());
            return Err(Error::new(Kind::Transient, text).into());
        }
        // An error may come after the status was sent.
        match xml::error(&body) {
            Some(_) => Err(failure(call, self.status(), self.headers(), &body)),
            None => Ok(body),
        }
    }

    /// The end of an answer that has no body; its headers.
    ///
    /// # Errors
    /// If it has one: that is an error in disguise, or not the store's answer.
    pub(crate) async fn end(mut self, call: &Call) -> Result<HeaderMap, Failure> {
        let (body, _) = self.read(MAX_ERROR_BYTES).await?;
        match body.is_empty() {
            true => Ok(self.headers().clone()),
            false => Err(failure(call, self.status(), self.headers(), &body)),
        }
    }

    async fn into_failure(mut self, call: &Call) -> Failure {
        // What could be read of the reason is enough: the status alone decides most.
        let body = self.read(MAX_ERROR_BYTES).await.unwrap_or_default().0;
        failure(call, self.status(), self.headers(), &body)
    }
}
