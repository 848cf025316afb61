//! Opening a store as a host does, and looking at what it gives.
#![allow(dead_code)]

pub(crate) mod exercise;

use std::future::Future;
use std::time::Duration;

use nbd_rs_plugin::{
    export_backend, Body, Bytes, Condition, GetFlags, Kind, Next, OpenFlags, OpenRequest,
    OptionValue, Piece, Put, Range, Result,
};
use nbd_rs_s3::backend::S3Backend;
use nbd_rs_s3_server::{Fault, Rule, Server};

/// Waits on this thread, for a minute at most.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    block_for(60, future)
}

fn block_for<F: Future>(seconds: u64, future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(async {
        let limit = Duration::from_secs(seconds);
        tokio::time::timeout(limit, future)
            .await
            .expect("an answer in a test's time")
    })
}

pub(crate) fn request(target: &str, options: &[(&str, &str)], flags: OpenFlags) -> OpenRequest {
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    OpenRequest {
        scheme: "s3".into(),
        target: target.into(),
        options: options.iter().map(option).collect(),
        flags,
        inner: None.into(),
        reserved: [0; 4],
    }
}

/// Opens for writing, across the plugin's border.
pub(crate) fn open(target: &str, options: &[(&str, &str)]) -> Result<Next> {
    let flags = OpenFlags::WRITE | OpenFlags::CREATE;
    let backend = block_on(S3Backend::open(request(target, options, flags)))?;
    Ok(export_backend(backend).into())
}

/// A server and a store on it, with short times and without the probe.
pub(crate) struct Bench {
    pub server: Server,
    pub store: Next,
}

pub(crate) const SHORT: [(&str, &str); 4] = [
    ("conditions", "yes"),
    ("connect_timeout", "2s"),
    ("read_timeout", "500ms"),
    ("timeout", "1s"),
];

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(options: &[(&str, &str)]) -> Self {
        let server = Server::start();
        let all: Vec<_> = SHORT.iter().chain(options).copied().collect();
        let store = open(&server.target("p/"), &all).expect("the store opens");
        Self { server, store }
    }

    /// The next request of that method meets a fault.
    pub(crate) fn next(&self, method: &'static str, fault: Fault) {
        self.server.script([Rule::next(method, fault)]);
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> Result<Put> {
        self.put_if(key, bytes, Condition::Always)
    }

    pub(crate) fn put_if(&self, key: &str, bytes: &[u8], condition: Condition) -> Result<Put> {
        block_on(self.store.put(key, body(bytes), condition))
    }

    pub(crate) fn get(&self, key: &str, range: Range) -> Result<Vec<u8>> {
        get(&self.store, key, range)
    }

    /// The kind of error that a get of bytes 2 to 6 of an object of ten ends with.
    pub(crate) fn kind_of_get(&self, fault: Fault) -> Kind {
        self.server.insert("p/k", b"0123456789");
        self.next("GET", fault);
        let error = self.get("k", Range::new(2, 5)).expect_err("an error");
        assert!(self.server.is_played(), "{error}");
        // And nothing of it is left behind.
        assert_eq!(self.get("k", Range::new(2, 5)).unwrap(), b"23456");
        error.kind
    }

    /// The kind of error that a put ends with.
    pub(crate) fn kind_of_put(&self, fault: Fault) -> Kind {
        self.next("PUT", fault);
        let error = self.put("k", b"0123456789").expect_err("an error");
        assert!(self.server.is_played(), "{error}");
        self.put("k", b"0123456789").expect("the next one succeeds");
        assert_eq!(self.server.object("p/k").unwrap(), b"0123456789");
        error.kind
    }
}

pub(crate) fn body(bytes: &[u8]) -> Body {
    Bytes::from(bytes.to_vec()).into()
}

pub(crate) fn get(store: &Next, key: &str, range: Range) -> Result<Vec<u8>> {
    let got = block_on(store.get(key, range, GetFlags::NONE))?;
    let bytes = |piece: &Piece| match piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    Ok(got.data.pieces().iter().flat_map(bytes).collect())
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("an error").kind
}

/// A store of others, or nothing, and why. Where `CI` is set a missing one fails the test.
pub(crate) fn installed(
    store: Option<real_stores::Store>,
    how: &str,
) -> Option<real_stores::Store> {
    if store.is_none() {
        let text = format!("cannot run here: not installed ({how})");
        assert!(std::env::var_os("CI").is_none(), "{text}");
        eprintln!("skipped: {text}");
    }
    store
}

/// What stands behind `s3:` to reach a prefix of it, with this secret.
pub(crate) fn target(store: &real_stores::Store, prefix: &str, secret: &str) -> String {
    let (key, bucket) = (real_stores::KEY, real_stores::BUCKET);
    format!(
        "http://{key}:{secret}@{}/{bucket}/{prefix}",
        store.address()
    )
}

/// The suite that every backend must pass, but for what this server is known not to do: names of
/// checks, or parts of what a failed one says.
pub(crate) fn conforms(store: &Next, race_rounds: u8, except: &[&str]) {
    use nbd_rs_plugin::conformance::{run, Options, Outcome};
    let options = Options {
        many_objects: 650,
        race_rounds,
        ..Options::named("conformance/", 7)
    };
    let report = block_for(300, run(store.clone(), &options));
    for check in &report.checks {
        let Outcome::Failed(why) = &check.outcome else {
            continue;
        };
        let known = |habit: &&str| check.name == *habit || why.contains(habit);
        assert!(except.iter().any(known), "{}: {report}", check.name);
    }
    assert!(report.passes() >= 12, "{report}");
}

/// All names that begin with `prefix`, page by page.
pub(crate) fn names(store: &Next, prefix: &str) -> Vec<String> {
    let (mut names, mut after) = (Vec::new(), None::<String>);
    for _ in 0..100 {
        let page = block_on(store.list(prefix, after.as_deref())).expect("a page");
        names.extend(page.items.iter().map(|meta| meta.key.to_string()));
        match page.next.into_option() {
            Some(next) => after = Some(next.into()),
            None => return names,
        }
    }
    panic!("a listing without an end");
}
