//! Plugins that panic, wherever they can: an error comes back, and the process lives on.

use std::future::Future;
use std::sync::OnceLock;

use nbd_rs::plugin::{Plugin, Registry};
use nbd_rs_plugin::{
    Body, Bytes, CapabilityFlags, Condition, Error, GetFlags, Kind, Next, ObjectFlags, ObjectMode,
    OpenFlags, OpenRequest, Range, ReadFlags, WriteFlags, ZeroFlags,
};

use crate::support::{fixture, refusal, search, Folder};

#[test]
fn a_panic_in_the_first_function_is_a_line() {
    let folder = Folder::new();
    let path = folder.copy(&fixture("panics_in_root"), "x.so");
    assert!(refusal(&folder, &path).contains("failed while it was loaded: it panicked"));
}

#[test]
fn a_panic_in_describe_is_a_line() {
    let folder = Folder::new();
    let path = folder.copy(&fixture("panics_in_describe"), "x.so");
    let reason = refusal(&folder, &path);
    assert!(
        reason.contains("could not describe itself") && reason.contains("expected: describe"),
        "{reason}"
    );
}

/// The fixture, loaded once, with a runtime behind the host's table.
fn plugin() -> &'static Plugin {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    let registry = REGISTRY.get_or_init(|| {
        nbd_rs::plugin::start(runtime().handle().clone());
        Registry::load_with(&fixture("panics"), &search(&[]), true).unwrap()
    });
    registry.get("panic").unwrap()
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap())
}

fn wait<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

fn open(call: &str) -> Result<Next, Error> {
    let request = OpenRequest {
        scheme: "panic".into(),
        target: call.into(),
        options: Vec::new().into(),
        flags: OpenFlags::WRITE,
        inner: None.into(),
        reserved: [0; 4],
    };
    wait(plugin().open(request)).map(Next::from)
}

/// The error of the one call that was told to panic.
fn panicked<T>(call: &str, result: Result<T, Error>) {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("{call} did not fail"));
    assert_eq!(error.kind, Kind::Panic, "{call}: {error}");
    assert!(
        error.message.contains(&format!("expected: {call}")),
        "{call}: {error}"
    );
}

#[test]
fn the_fixture_works_when_it_is_not_told_to_panic() {
    let backend = open("never").unwrap();
    let object = wait(backend.open_object("x", ObjectMode::new(ObjectFlags::WRITE))).unwrap();
    let body = Body::from(Bytes::from(b"hello".to_vec()));
    wait(object.write(4096, body, WriteFlags::NONE)).unwrap();
    let data = wait(object.read(4096, 5, ReadFlags::NONE)).unwrap();
    assert_eq!(data.len(), 5);
    assert!(object.capabilities().has(CapabilityFlags::IN_PLACE));
}

#[test]
fn a_panic_in_open_or_in_its_poll_is_an_error() {
    panicked("open", open("open"));
    panicked("open_poll", open("open_poll"));
}

#[test]
fn a_panic_in_a_call_or_in_its_poll_is_an_error() {
    let none = GetFlags::NONE;
    let at = |call: &str| open(call).unwrap();
    panicked("try_get", wait(at("try_get").get("x", Range::ALL, none)));
    panicked("get", wait(at("get").get("x", Range::ALL, none)));
    let body = || Body::from(Bytes::from(vec![1]));
    panicked("put", wait(at("put").put("x", body(), Condition::Always)));
    panicked("head", wait(at("head").head("x", none)));
    panicked("delete", wait(at("delete").delete(vec!["x".to_owned()])));
    panicked("list", wait(at("list").list("", None)));
    panicked("flush", wait(at("flush").flush()));
    panicked("close", wait(at("close").close()));
    let mode = ObjectMode::new(ObjectFlags::NONE);
    panicked(
        "open_object",
        wait(at("open_object").open_object("x", mode)),
    );
}

#[test]
fn a_panic_in_an_opened_object_is_an_error() {
    let at = |call: &str| {
        let mode = ObjectMode::new(ObjectFlags::WRITE);
        wait(open(call).unwrap().open_object("x", mode)).unwrap()
    };
    let body = || Body::from(Bytes::from(vec![1]));
    panicked("try_read", wait(at("try_read").read(0, 1, ReadFlags::NONE)));
    panicked("read", wait(at("read").read(0, 1, ReadFlags::NONE)));
    panicked(
        "try_write",
        wait(at("try_write").write(0, body(), WriteFlags::NONE)),
    );
    panicked(
        "write",
        wait(at("write").write(0, body(), WriteFlags::NONE)),
    );
    panicked("try_zero", wait(at("try_zero").zero(0, 1, ZeroFlags::NONE)));
    panicked("zero", wait(at("zero").zero(0, 1, ZeroFlags::NONE)));
    panicked("size", wait(at("size").size()));
    panicked("extents", wait(at("extents").extents(0, 1, 1)));
    panicked("prefetch", wait(at("prefetch").prefetch(0, 1)));
    panicked("resize", wait(at("resize").resize(0)));
    panicked("sync", wait(at("sync").sync()));
}

#[test]
fn a_backend_that_panics_about_its_capabilities_has_none() {
    let capabilities = open("capabilities").unwrap().capabilities();
    assert!(capabilities.flags.is_empty());
}
