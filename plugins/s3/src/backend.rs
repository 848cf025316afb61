//! The store: one short method per operation.

use nbd_rs_plugin::runtime::{self, within};
use nbd_rs_plugin::{
    Backend, Body, Capabilities, CapabilityFlags, Condition, Data, Error, GetFlags, Got, Kind,
    Meta, NoObject, ObjectMode, OpenRequest, Page, Put, Range, Result,
};

use crate::assemble::{unsatisfied_size, Assembly, Plan};
use crate::client::Answer;
use crate::config::{self, Checksum};
use crate::listing::{self, Order};
use crate::location;
use crate::open::{empty, open, Opened};
use crate::request::{self, Call, From, Payload, DELETE_KEYS, PAGE_KEYS};
use crate::response::{self, Failure};
use crate::xml;

/// The largest object that one put can store (S3 API, PutObject), in bytes.
const MAX_OBJECT_BYTES: u64 = 5 << 30;
/// What S3 serves best, in bytes: large enough for its latency, small enough to wait for.
const PREFERRED_BYTES: u32 = 4 << 20;
/// Names that are gathered where a server's order is its own; about 200 bytes each.
const MAX_LISTED: usize = 4 << 20;
/// Checksums of bodies above this are computed where it may take a while, in bytes.
const INLINE_SUM_BYTES: u64 = 8 << 20;

/// Objects in a bucket.
#[derive(Debug)]
pub struct S3Backend {
    store: Opened,
    order: Order,
}

impl S3Backend {
    /// Opens the store: finds keys, asks the bucket, and tries conditional puts if writes will come.
    ///
    /// # Errors
    /// What is wrong with the location, the keys or the bucket.
    pub async fn open(request: OpenRequest) -> Result<Self> {
        runtime::start(config::threads(&request)?)
            .map_err(|error| Error::os(&error, "starting the network threads"))?;
        within(async move {
            let store = open(&request).await?;
            let order = Order::new(store.config.aws);
            Ok(Self { store, order })
        })
        .await
    }

    fn key(&self, name: &str) -> Result<String> {
        location::key(&self.store.config.prefix, name)
    }

    async fn send(&self, call: &Call, body: &Body) -> Result<Answer, Failure> {
        self.store.client.send(call, body).await
    }

    async fn read(&self, name: &str, range: Range, flags: GetFlags) -> Result<Got> {
        if range.len == 0 {
            return self.nothing(name, range.offset, flags).await;
        }
        let call = request::get(&self.key(name)?, range)?;
        match self.send(&call, &empty()).await {
            Ok(answer) => {
                let (data, size, headers) = assemble(answer, range)
                    .await
                    .map_err(|error| error.context(call.what()))?;
                self.got(name, data, size, &headers, flags).await
            }
            Err(failure) if failure.status == 416 && range.len == Range::TO_END => {
                // To the end, from the end: a range that HTTP has no words for.
                match unsatisfied_size(&failure.headers) {
                    Some(size) if size < range.offset => Err(failure.error),
                    _ => self.nothing(name, range.offset, flags).await,
                }
            }
            Err(failure) => Err(failure.error),
        }
    }

    async fn got(
        &self,
        name: &str,
        data: Data,
        size: Option<u64>,
        headers: &http::HeaderMap,
        flags: GetFlags,
    ) -> Result<Got> {
        let mut got = Got::new(data);
        if flags.has(GetFlags::WANT_META) {
            let meta = match size {
                Some(size) => response::meta(name, size, headers),
                None => self.meta(name).await?,
            };
            got.meta = Some(meta).into();
        }
        Ok(got)
    }

    /// No bytes, of an object that must reach so far.
    async fn nothing(&self, name: &str, offset: u64, flags: GetFlags) -> Result<Got> {
        let meta = self.meta(name).await?;
        Range::new(offset, 0).within(meta.size)?;
        let mut got = Got::new(Data::Many(Vec::new().into()));
        if flags.has(GetFlags::WANT_META) {
            got.meta = Some(meta).into();
        }
        Ok(got)
    }

    async fn meta(&self, name: &str) -> Result<Meta> {
        let key = self.key(name)?;
        match self.head_once(name, &key).await {
            // The answer to HEAD has no body, so it can't say what is missing: object or bucket.
            Err(failure) if (400..500).contains(&failure.status) => {
                let call = request::get(&key, Range::new(0, 1))?;
                match self.send(&call, &empty()).await {
                    Err(failure) if failure.status != 416 => return Err(failure.error),
                    _ => {}
                }
                Ok(self.head_once(name, &key).await?)
            }
            meta => Ok(meta?),
        }
    }

    async fn head_once(&self, name: &str, key: &str) -> Result<Meta, Failure> {
        let call = request::head(key);
        let answer = self.send(&call, &empty()).await?;
        let headers = answer.headers();
        response::check_is_object(headers).map_err(|error| error.context(call.what()))?;
        let size = response::content_length(headers).ok_or_else(|| {
            Error::new(
                Kind::Transient,
                format!("{}: no Content-Length", call.what()),
            )
        })?;
        Ok(response::meta(name, size, headers))
    }

    async fn store(&self, name: &str, body: Body, condition: Condition) -> Result<Put> {
        let (key, config) = (self.key(name)?, &self.store.config);
        if body.len() > MAX_OBJECT_BYTES {
            let text = format!(
                "PUT {key}: {} bytes; one put stores up to 5 GiB",
                body.len()
            );
            return Err(Error::new(Kind::Invalid, text));
        }
        let (checksum, class) = (config.checksum, config.storage_class.clone());
        let slow = checksum == Checksum::Signed || body.len() > INLINE_SUM_BYTES;
        let prepare = move || {
            let mut call = request::put(&key, &body, &condition, checksum, class.as_deref())?;
            if checksum == Checksum::Signed {
                call.payload = Payload::hashed(&body);
            }
            Ok::<_, Error>((call, body))
        };
        let (call, body) = match slow {
            true => tokio::task::spawn_blocking(prepare)
                .await
                .map_err(|_| Error::new(Kind::Panic, "summing up a body panicked"))??,
            false => prepare()?,
        };
        let headers = self.send(&call, &body).await?.end(&call).await?;
        Ok(Put::new(response::etag(&headers)))
    }

    async fn delete_one(&self, name: &str) -> Result<()> {
        let call = request::delete(&self.key(name)?);
        match self.send(&call, &empty()).await {
            Err(failure) if failure.error.kind == Kind::NotFound => Ok(()),
            Err(failure) => Err(failure.error),
            Ok(answer) => answer
                .end(&call)
                .await
                .map(drop)
                .map_err(|failure| failure.error),
        }
    }

    async fn delete_each(&self, names: &[String]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(names.len());
        for name in names {
            results.push(self.delete_one(name).await);
        }
        results
    }

    /// Up to [`DELETE_KEYS`] at once; one result per name.
    async fn delete_some(&self, names: &[String]) -> Vec<Result<()>> {
        if let [name] = names {
            return vec![self.delete_one(name).await];
        }
        let keys: Vec<Result<String>> = names.iter().map(|name| self.key(name)).collect();
        let sound: Vec<String> = keys.iter().flatten().cloned().collect();
        match self.delete_bulk(&sound).await {
            Err(error) if error.kind == Kind::Unsupported => self.delete_each(names).await,
            Err(error) => keys
                .into_iter()
                .map(|key| key.and(Err(error.clone())))
                .collect(),
            Ok(answer) => {
                let judge = |key: Result<String>| key.and_then(|key| answer.judge(&key));
                keys.into_iter().map(judge).collect()
            }
        }
    }

    async fn delete_bulk(&self, keys: &[String]) -> Result<xml::Deleted> {
        let (call, body) = request::delete_many(keys)?;
        let answer = self.send(&call, &body).await?.xml(&call).await?;
        xml::Deleted::read(&answer)
    }

    /// A page, or all that there is where the server's order forbids less.
    async fn page(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let ours = self.store.config.prefix.as_str();
        let (full, start) = (
            format!("{ours}{prefix}"),
            after.map(|name| format!("{ours}{name}")),
        );
        let mut from = match &start {
            Some(key) if self.order.can_start(&full, key) => From::After(key),
            _ => From::Start,
        };
        let (mut items, mut token);
        let first = self.listed(&full, from).await?;
        let shown: Vec<&str> = first.keys.iter().map(String::as_str).collect();
        let asked = start.is_none() || from != From::Start;
        if let (Some(_), true, Some(last)) = (&first.more, asked, shown.iter().max()) {
            // What a page passes on must lie behind what the one before did.
            let goes_on = start.as_deref().is_none_or(|start| *last > start);
            if goes_on && self.order.can_cut(&full, &shown) {
                let next = last.strip_prefix(ours);
                return Ok(listing::page(first.items, after, next));
            }
        }
        (items, token) = (first.items, first.more);
        while let Some(more) = token {
            if more.is_empty() || items.len() > MAX_LISTED {
                return Err(Error::new(
                    Kind::Io,
                    format!("listing {full}: it does not end"),
                ));
            }
            from = From::Token(&more);
            let next = self.listed(&full, from).await?;
            items.extend(next.items);
            token = next.more.filter(|token| *token != more);
        }
        Ok(listing::page(items, after, None))
    }

    async fn listed(&self, prefix: &str, from: From<'_>) -> Result<xml::Listed> {
        let call = request::list(prefix, from, PAGE_KEYS);
        let answer = self.send(&call, &empty()).await?.xml(&call).await?;
        let mut found = xml::listing(&answer, &self.store.config.prefix)?;
        found.keys.retain(|key| key.starts_with(prefix));
        let shown: Vec<&str> = found.keys.iter().map(String::as_str).collect();
        self.order.learn(&shown);
        let names = &prefix[self.store.config.prefix.len()..];
        found.items.retain(|meta| meta.key.starts_with(names));
        Ok(found)
    }
}

/// The bytes of the range, the object's size if it is known, and the headers.
async fn assemble(
    mut answer: Answer,
    range: Range,
) -> Result<(Data, Option<u64>, http::HeaderMap)> {
    let mut assembly = Assembly::new(Plan::new(range, answer.status(), answer.headers())?);
    while let Some(chunk) = answer.chunk().await? {
        assembly.push(chunk)?;
    }
    let (data, size) = assembly.finish()?;
    Ok((data, size, answer.headers().clone()))
}

impl Backend for S3Backend {
    type Object = NoObject;

    fn capabilities(&self) -> Capabilities {
        use CapabilityFlags as Flags;
        let mut flags = Flags::DURABLE_ON_ACK | Flags::STRONG_READ_AFTER_WRITE | Flags::RANGED_GET;
        let mut when = |condition: bool, bit: Flags| {
            if condition {
                flags = flags | bit;
            }
        };
        when(self.store.config.writable(), Flags::WRITABLE);
        when(self.store.if_absent, Flags::IF_ABSENT);
        when(self.store.if_match, Flags::IF_MATCH);
        Capabilities {
            max_object_bytes: MAX_OBJECT_BYTES,
            preferred_io_bytes: PREFERRED_BYTES,
            ..Capabilities::new(flags)
        }
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        within(self.read(key, range, flags)).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        self.check_writable("put")?;
        within(self.store(key, body, condition)).await
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        within(self.meta(key)).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.check_writable("delete")?;
        within(async {
            let mut results = Vec::with_capacity(keys.len());
            for some in keys.chunks(DELETE_KEYS) {
                results.extend(self.delete_some(some).await);
            }
            Ok(results)
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        within(self.page(prefix, after)).await
    }

    async fn flush(&self) -> Result<()> {
        // What a store acknowledged, it keeps.
        Ok(())
    }

    async fn open_object(&self, _: &str, _: ObjectMode) -> Result<NoObject> {
        Err(Error::unsupported("writing inside an object"))
    }
}

impl S3Backend {
    fn check_writable(&self, operation: &str) -> Result<()> {
        match self.store.config.writable() {
            true => Ok(()),
            false => Err(Error::read_only(operation)),
        }
    }
}
