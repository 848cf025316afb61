//! Chains of links, each a library of its own: every operation passes every link in order, and the
//! guard before each of them sees what goes in and what comes out.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::OnceLock;

use nbd_rs::backend::chain::Chain;
use nbd_rs::location::Location;
use nbd_rs::plugin::Registry;
use nbd_rs_plugin::{
    Body, Bytes, CapabilityFlags, Condition, Error, GetFlags, Kind, NextObject, ObjectFlags,
    ObjectMode, OpenFlags, Range, ReadFlags, WriteFlags, ZeroFlags,
};

use crate::support::{fixture, load, Folder};

/// From the outermost in; each is a library of that name.
const HOPS: [&str; 4] = ["log-a", "log-b", "log-c", "log-store"];

/// The calls on a backend, but the last one.
const BACKEND_CALLS: [&str; 7] = [
    "get",
    "put",
    "head",
    "delete",
    "list",
    "flush",
    "open_object",
];
/// The calls on an opened object.
const OBJECT_CALLS: [&str; 8] = [
    "read", "write", "zero", "extents", "prefetch", "resize", "sync", "close",
];

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<(Folder, Registry)> = OnceLock::new();
    let (_, registry) = REGISTRY.get_or_init(|| {
        nbd_rs::plugin::start(runtime().handle().clone());
        let folder = Folder::new();
        for hop in HOPS {
            folder.copy(&fixture("logging"), &format!("{hop}.so"));
        }
        let registry = load(&[&folder]);
        (folder, registry)
    });
    registry
}

pub(crate) fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap())
}

pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// An opened chain, and the file that its links write to.
struct Stage {
    chain: Chain,
    /// What the hops said they offer, from the store out.
    offers: Vec<CapabilityFlags>,
    log: PathBuf,
    _folder: Folder,
}

impl Stage {
    /// With one more option, such as `log-b.lie=read`.
    fn new(option: &str) -> Self {
        let folder = Folder::new();
        let log = folder.write("log", "");
        let logs: Vec<String> = HOPS
            .iter()
            .map(|hop| format!("{hop}.log={}", log.display()))
            .collect();
        let text = format!("{}:?{option}&{}", HOPS.join("+"), logs.join("&"));
        let lookup = |scheme: &str| Ok(&registry().get(scheme)?.description);
        let location = Location::parse(&text, &lookup).unwrap();
        let chain = wait(Chain::open(registry(), &location, OpenFlags::WRITE)).unwrap();
        let mut stage = Self {
            chain,
            offers: Vec::new(),
            log,
            _folder: folder,
        };
        let said = stage.logged().into_iter();
        let bits = |line: String| line.rsplit(' ').next().unwrap().parse().unwrap();
        stage.offers = said.map(|line| CapabilityFlags(bits(line))).collect();
        stage
    }

    /// What was written since the last look.
    fn logged(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap();
        fs::write(&self.log, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn object(&self) -> Result<NextObject, Error> {
        let mode = ObjectMode::new(ObjectFlags::WRITE);
        wait(self.chain.outermost().open_object("", mode))
    }

    /// Makes the call on the outermost backend.
    fn backend_call(&self, call: &str) -> Result<(), Error> {
        let next = self.chain.outermost();
        let range = Range::new(0, 4096);
        wait(async {
            match call {
                "get" => next.get("", range, GetFlags::NONE).await.map(drop),
                "put" => next.put("fresh", body(), Condition::Always).await.map(drop),
                "head" => next.head("", GetFlags::NONE).await.map(drop),
                "delete" => next.delete(vec!["fresh".to_owned()]).await.map(drop),
                "list" => next.list("", None).await.map(drop),
                "flush" => next.flush().await,
                "open_object" => {
                    let mode = ObjectMode::new(ObjectFlags::WRITE);
                    next.open_object("", mode).await.map(drop)
                }
                _ => panic!("which call? {call}"),
            }
        })
    }
}

fn body() -> Body {
    Bytes::from(vec![7; 4096]).into()
}

/// Makes the call on an opened object.
fn object_call(object: &NextObject, call: &str) -> Result<(), Error> {
    wait(async {
        match call {
            "read" => object.read(0, 4096, ReadFlags::NONE).await.map(drop),
            "write" => object.write(0, body(), WriteFlags::NONE).await,
            "zero" => object.zero(0, 4096, ZeroFlags::NONE).await,
            "extents" => object.extents(0, 4096, 8).await.map(drop),
            "prefetch" => object.prefetch(0, 4096).await,
            "resize" => object.resize(1 << 20).await,
            "sync" => object.sync().await,
            "close" => object.close().await,
            _ => panic!("which call? {call}"),
        }
    })
}

/// In through every link, and out again.
fn there_and_back(call: &str) -> Vec<String> {
    let there = HOPS.iter().map(|hop| format!("{hop} > {call}"));
    let back = HOPS.iter().rev().map(|hop| format!("{hop} < {call}"));
    there.chain(back).collect()
}

#[test]
fn every_operation_passes_every_link_in_order() {
    let stage = Stage::new("");
    for call in BACKEND_CALLS {
        stage.backend_call(call).unwrap();
        let seen = stage.logged().into_iter();
        let seen: Vec<_> = seen.filter(|line| !line.ends_with(" size")).collect();
        assert_eq!(seen, there_and_back(call));
    }
    let object = stage.object().unwrap();
    stage.logged();
    for call in OBJECT_CALLS {
        object_call(&object, call).unwrap();
        assert_eq!(stage.logged(), there_and_back(call));
    }
    wait(stage.chain.close()).unwrap();
    assert_eq!(stage.logged(), there_and_back("close backend"));
}

#[test]
fn the_data_passes_every_link_unchanged() {
    let stage = Stage::new("");
    let object = stage.object().unwrap();
    let bytes: Vec<u8> = (0..4096u32).map(|at| at as u8).collect();
    let write = object.write(512, Bytes::from(bytes.clone()).into(), WriteFlags::NONE);
    wait(write).unwrap();
    let data = wait(object.read(512, 4096, ReadFlags::NONE)).unwrap();
    let read = data.pieces().iter().flat_map(|piece| match piece {
        nbd_rs_plugin::Piece::Bytes(bytes) => bytes.to_vec(),
        other => panic!("not asked for: {other:?}"),
    });
    assert_eq!(read.collect::<Vec<u8>>(), bytes);
}

/// The error of a call that one hop does wrongly, and what was logged.
fn with_a_fault(option: &str, call: &str) -> (Error, Vec<String>) {
    let stage = Stage::new(option);
    let result = match BACKEND_CALLS.contains(&call) {
        true => stage.backend_call(call),
        false => {
            let object = stage.object().unwrap();
            stage.logged();
            object_call(&object, call)
        }
    };
    let error = result.expect_err(option);
    (error, stage.logged())
}

#[test]
fn the_guard_before_every_link_judges_its_answers() {
    for hop in HOPS {
        for (call, kind) in [
            ("get", Kind::Corrupt),
            ("read", Kind::Corrupt),
            ("extents", Kind::Corrupt),
            ("delete", Kind::Ambiguous),
        ] {
            let (error, _) = with_a_fault(&format!("{hop}.lie={call}"), call);
            assert_eq!(error.kind, kind, "{hop} {call}: {error}");
            assert!(error.message.starts_with(&format!("{hop}: ")), "{error}");
        }
    }
}

#[test]
fn the_guard_before_every_link_judges_what_it_is_asked() {
    let calls = ["get", "put", "head", "delete", "list", "open_object"];
    let calls = calls
        .iter()
        .chain(&["read", "write", "zero", "extents", "prefetch"]);
    for call in calls {
        for two in HOPS.windows(2) {
            let [asks, asked] = two else { continue };
            let (error, logged) = with_a_fault(&format!("{asks}.ask={call}"), call);
            assert_eq!(error.kind, Kind::Invalid, "{asks} {call}: {error}");
            assert!(error.message.starts_with(&format!("{asked}: ")), "{error}");
            let reached = logged.iter().any(|line| line.starts_with(asked));
            assert!(!reached, "{asked} was asked: {logged:?}");
        }
    }
}

#[test]
fn c22_what_one_link_drops_is_gone_outside_of_it_and_there_inside() {
    let all = Stage::new("").chain.capabilities().flags;
    let dropped = CapabilityFlags::IN_PLACE;
    assert!(all.has(dropped));
    for (at, hop) in HOPS.iter().rev().enumerate() {
        let stage = Stage::new(&format!("{hop}.without={}", dropped.0));
        assert_eq!(stage.chain.capabilities().flags, all.without(dropped));
        for (other, offers) in stage.offers.iter().enumerate() {
            let expected = if other < at {
                all
            } else {
                all.without(dropped)
            };
            assert_eq!(
                *offers, expected,
                "{hop} drops it, {other} hops from the store"
            );
        }
        // Nobody is asked for what the outermost does not offer.
        let error = stage.backend_call("open_object").unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported, "{error}");
        assert!(error.message.starts_with("log-a: "), "{error}");
        assert!(stage.logged().is_empty());
    }
}
