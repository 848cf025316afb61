//! What every backend must show: by the objects in memory that other tests stand on, and by the
//! file store as the server loads it. Both behind the guard.

use std::path::Path;
use std::sync::atomic::Ordering;

use nbd_rs::backend::guard::guard;
use nbd_rs::backend::memory::Store;
use nbd_rs::plugin::{start, Places, Registry, SearchPath};
use nbd_rs_plugin::conformance::{run, Check, Options, Outcome, Report};
use nbd_rs_plugin::{
    export_backend, Backend, Body, Capabilities, CapabilityFlags, Condition, Error, GetFlags, Got,
    Kind, Meta, Next, NoObject, ObjectMode, OpenFlags, OpenRequest, Page, Put, Range, Result,
};
use tokio::runtime::Handle;

fn seed() -> u64 {
    let given = std::env::var("NBD_RS_TEST_SEED");
    given.map_or(1, |text| text.parse().expect("a number"))
}

/// Checks for stores that are one object.
const OF_ONE_OBJECT: usize = 1;

/// Whether the check of fast zeroing is skipped: not every file system has it.
fn fast_zero(next: &Next) -> usize {
    usize::from(!next.capabilities().has(CapabilityFlags::FAST_ZERO))
}

fn assert_conforms(report: &Report, skipped: usize) {
    assert!(report.passed(), "{report}");
    let skips = report.checks.len() - report.passes();
    assert_eq!(skips, skipped, "{report}");
}

#[tokio::test]
async fn objects_in_memory_conform_also_when_they_are_slow() {
    for slow in [false, true] {
        let store = Store::default();
        store.faults().slow.store(slow, Ordering::Relaxed);
        let report = run(store.backend().into(), &Options::named("c/", seed())).await;
        assert_conforms(&report, OF_ONE_OBJECT);
        assert_eq!(store.keys(), Vec::<String>::new(), "left behind");
    }
}

#[tokio::test]
async fn one_object_in_memory_conforms() {
    let store = Store::default();
    let report = run(store.backend().into(), &Options::single(seed())).await;
    assert_eq!(report.passes(), 10, "{report}");
    assert!(report.passed(), "{report}");
}

#[tokio::test]
async fn a_store_like_s3_conforms() {
    use CapabilityFlags as C;
    let flags = C::WRITABLE | C::IF_ABSENT | C::IF_MATCH | C::RANGED_GET;
    let store = Store::with(flags | C::STRONG_READ_AFTER_WRITE);
    let report = run(store.backend().into(), &Options::named("c/", seed())).await;
    // All that opens objects.
    assert_conforms(&report, 10 + OF_ONE_OBJECT);
}

/// What a broken store does wrong.
#[derive(Clone, Copy)]
enum Mistake {
    IgnoresConditions,
    ReadsFromTheStart,
    ListsBackwards,
    ListsForever,
    DeletesTheFirstOnly,
    SaysNotFoundForARange,
}

struct Broken(Next, Mistake);

impl Backend for Broken {
    type Object = NoObject;

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.0.capabilities();
        Capabilities::new(capabilities.flags.without(CapabilityFlags::IN_PLACE))
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        let range = match self.1 {
            Mistake::ReadsFromTheStart if range.len != Range::TO_END => Range::new(0, range.len),
            _ => range,
        };
        let got = self.0.try_get(key, range, flags)?;
        Some(got.map_err(|mut error| {
            if matches!(self.1, Mistake::SaysNotFoundForARange) {
                error.kind = Kind::NotFound;
            }
            error
        }))
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        self.0.get(key, range, flags).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        let condition = match self.1 {
            Mistake::IgnoresConditions => Condition::Always,
            _ => condition,
        };
        self.0.put(key, body, condition).await
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        self.0.head(key, flags).await
    }

    async fn delete(&self, mut keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let asked = keys.len();
        if matches!(self.1, Mistake::DeletesTheFirstOnly) {
            keys.truncate(1);
        }
        self.0.delete(keys).await?;
        Ok(vec![Ok(()); asked])
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let after = after.filter(|_| !matches!(self.1, Mistake::ListsForever));
        let mut page = self.0.list(prefix, after).await?;
        if matches!(self.1, Mistake::ListsBackwards) {
            let items: Vec<Meta> = page.items.into_iter().collect();
            page.items = items.into_iter().rev().collect();
        }
        Ok(page)
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    async fn open_object(&self, _: &str, _: ObjectMode) -> Result<NoObject> {
        Err(Error::unsupported("open_object"))
    }
}

#[tokio::test]
async fn what_does_not_conform_is_found_out() {
    for (mistake, found_by) in [
        (Mistake::IgnoresConditions, "one_creator_wins"),
        (Mistake::ReadsFromTheStart, "ranges"),
        (Mistake::ListsBackwards, "order"),
        (Mistake::ListsForever, "pages"),
        (Mistake::DeletesTheFirstOnly, "deletes"),
        (Mistake::SaysNotFoundForARange, "ranges"),
    ] {
        let broken = Broken(Store::default().backend().into(), mistake);
        let next = Next::from(export_backend(broken));
        let report = run(next, &Options::named("c/", seed())).await;
        let failed = |check: &&Check| matches!(check.outcome, Outcome::Failed(_));
        let failed: Vec<_> = report.checks.iter().filter(failed).collect();
        let found = failed.iter().any(|check| check.name == found_by);
        assert!(found, "{found_by} does not see it: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_store_conforms_as_a_library() {
    let beside = Path::new(env!("CARGO_BIN_EXE_nbd-rs"));
    let plugin = beside.with_file_name("libnbd_rs_file.so");
    assert!(plugin.is_file(), "run cargo build first: no {plugin:?}");
    start(Handle::current());
    let plugins = tempfile::tempdir().expect("a directory");
    std::fs::copy(&plugin, plugins.path().join("libnbd_rs_file.so")).expect("a copy");
    let search = SearchPath::new(&Places {
        explicit: vec![plugins.path().into()],
        ..Places::default()
    });
    let registry = Registry::load(&search, false);
    let dir = tempfile::tempdir().expect("a directory");
    let request = OpenRequest {
        scheme: "file".into(),
        target: dir.path().to_str().expect("UTF-8").into(),
        options: Vec::new().into(),
        flags: OpenFlags::WRITE,
        inner: None.into(),
        reserved: [0; 4],
    };
    let opened = registry
        .get("file")
        .expect("the plugin")
        .open(request)
        .await;
    let next = Next::from(guard(opened.expect("the store opens"), "file"));
    let report = run(next.clone(), &Options::named("c/", seed())).await;
    assert_conforms(&report, fast_zero(&next) + OF_ONE_OBJECT);
    next.close().await.expect("close");
}
