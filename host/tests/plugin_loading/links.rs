//! The project's own links, as the libraries that people load: before directories of files, before a
//! store that fails now and then, and between links that write down what reaches them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nbd_rs::backend::chain::Chain;
use nbd_rs::location::Location;
use nbd_rs::plugin::Registry;
use nbd_rs_plugin::conformance::{run, Options};
use nbd_rs_plugin::{
    Body, Bytes, CapabilityFlags, Condition, GetFlags, Kind, Next, OpenFlags, Piece, Range, Result,
};

use crate::chain::wait;
use crate::rng::Rng;
use crate::support::{build_dir, cargo_build, fixture, load, repository, Folder};

/// Links, outermost first.
const ORDERS: [&str; 2] = ["cache+retry", "retry+cache"];
/// Links that write down what they are asked.
const LOGGING: [&str; 3] = ["log-a", "log-b", "log-c"];

fn plugins() -> &'static (Folder, Registry) {
    static REGISTRY: OnceLock<(Folder, Registry)> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        nbd_rs::plugin::start(crate::chain::runtime().handle().clone());
        cargo_build(
            repository(),
            &[
                "nbd-rs-cache",
                "nbd-rs-fault",
                "nbd-rs-file",
                "nbd-rs-mem",
                "nbd-rs-retry",
            ],
        );
        let folder = Folder::new();
        for library in [
            "nbd_rs_cache",
            "nbd_rs_fault",
            "nbd_rs_file",
            "nbd_rs_mem",
            "nbd_rs_retry",
        ] {
            let file = format!("lib{library}.so");
            folder.copy(&build_dir().join(&file), &file);
        }
        for link in LOGGING {
            folder.copy(&fixture("logging"), &format!("{link}.so"));
        }
        let registry = load(&[&folder]);
        (folder, registry)
    })
}

fn open(text: &str) -> Chain {
    let (_, registry) = plugins();
    let lookup = |scheme: &str| Ok(&registry.get(scheme)?.description);
    let location = Location::parse(text, &lookup).unwrap();
    let flags = OpenFlags::WRITE | OpenFlags::CREATE;
    wait(Chain::open(registry, &location, flags)).unwrap()
}

/// What fails now and then. A delete does not, for no link may repeat one in doubt; nor does zeroing: where
/// a first attempt is in doubt, that fast zeroing is not supported is, too.
const OPERATIONS: &str = "get,head,list,put,size,read,write,extents,resize";

/// With a directory for copies, if one is given.
fn open_faulty(links: &str, percent: u64, seed: u64, dir: Option<&Path>) -> Chain {
    let dir = dir.map_or(String::new(), |dir| format!("&cache.dir={}", dir.display()));
    open(&format!(
        "{links}+fault+mem:?fault.rate={percent}&fault.seed={seed}&fault.ops={OPERATIONS}\
         &cache.block=4KiB&cache.size=256KiB&retry.base=1ms&retry.max=2ms&retry.attempts=100{dir}"
    ))
}

fn body(bytes: &[u8]) -> Body {
    Bytes::from(bytes.to_vec()).into()
}

async fn get(next: &Next, key: &str, range: Range, flags: GetFlags) -> Result<Vec<u8>> {
    let got = next.get(key, range, flags).await?;
    let mut bytes = Vec::new();
    for piece in got.data.pieces() {
        let Piece::Bytes(piece) = piece else {
            panic!("not asked for: {piece:?}");
        };
        bytes.extend_from_slice(piece);
    }
    Ok(bytes)
}

/// One call, and what it must answer.
async fn step(next: &Next, model: &mut BTreeMap<String, (Vec<u8>, String)>, rng: &mut Rng) {
    let key = format!("k{}", rng.next() % 5);
    let known = model.get(&key).cloned();
    match rng.next() % 8 {
        0 => {
            let keys = vec![key.clone(), "nothing".to_owned()];
            let results = next.delete(keys).await.unwrap();
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            model.remove(&key);
        }
        1 | 2 => {
            let len = (rng.next() % 40_000) as usize + 1;
            let bytes = rng.bytes(len);
            let condition = match (rng.next() % 3, &known) {
                (0, Some((_, etag))) => Condition::IfMatch(etag.as_str().into()),
                (1, None) => Condition::IfAbsent,
                _ => Condition::Always,
            };
            let put = next.put(&key, body(&bytes), condition).await.unwrap();
            model.insert(key, (bytes, put.etag.into()));
        }
        3 => {
            let wrong = match known {
                Some(_) => Condition::IfAbsent,
                None => Condition::IfMatch("none".into()),
            };
            let refused = next.put(&key, body(b"refused"), wrong).await;
            let kind = refused.unwrap_err().kind;
            assert!(matches!(kind, Kind::Exists | Kind::Precondition), "{kind}");
        }
        other => {
            let flags = if other == 4 {
                GetFlags::FRESH
            } else {
                GetFlags::NONE
            };
            let Some((bytes, _)) = known else {
                let missing = get(next, &key, Range::ALL, flags).await;
                assert_eq!(missing.unwrap_err().kind, Kind::NotFound);
                return;
            };
            let from = rng.next() as usize % bytes.len();
            let len = rng.next() as usize % (bytes.len() - from) + 1;
            let range = Range::new(from as u64, len as u64);
            let read = get(next, &key, range, flags).await.unwrap();
            assert!(read == bytes[from..from + len], "{key} {range:?} {flags:?}");
        }
    }
}

#[test]
fn f72_in_either_order_links_keep_what_was_acknowledged() {
    let mut rng = Rng::for_test("f72");
    let copies = Folder::new();
    for (links, dir) in with_and_without(ORDERS, &copies.path()) {
        let chain = open_faulty(links, 15, rng.next(), dir.as_deref());
        let mut model = BTreeMap::new();
        wait(async {
            for _ in 0..1000 {
                step(chain.outermost(), &mut model, &mut rng).await;
            }
        });
        wait(chain.close()).unwrap();
    }
}

#[test]
fn f72_in_either_order_a_chain_before_a_failing_store_conforms() {
    let mut rng = Rng::for_test("f72 conformance");
    let copies = Folder::new();
    for (links, dir) in with_and_without(ORDERS, &copies.path()) {
        let chain = open_faulty(links, 5, rng.next(), dir.as_deref());
        conforms(&chain, links);
        wait(chain.close()).unwrap();
    }
}

#[test]
fn every_chain_before_a_directory_of_files_conforms() {
    let copies = Folder::new();
    let chains = ["file", "cache+file", "cache+retry+file", "retry+cache+file"];
    for (chain, dir) in with_and_without(chains, &copies.path()) {
        let volume = Folder::new();
        let mut text = format!("{chain}://{}/", volume.path().display());
        if let Some(dir) = dir.filter(|_| chain.contains("cache")) {
            text += &format!("?cache.dir={}", dir.display());
        }
        let opened = open(&text);
        conforms(&opened, &text);
        wait(opened.close()).unwrap();
    }
    let volume = Folder::new();
    let retry = open(&format!("retry+file://{}/", volume.path().display()));
    conforms(&retry, "retry+file");
}

/// Each of these, without a directory for copies, and with one.
fn with_and_without<'l, const N: usize>(
    all: [&'l str; N],
    dir: &Path,
) -> impl Iterator<Item = (&'l str, Option<PathBuf>)> {
    let dir = dir.to_owned();
    let each = all.into_iter().enumerate();
    each.flat_map(move |(at, one)| [(one, None), (one, Some(dir.join(at.to_string())))])
}

fn conforms(chain: &Chain, name: &str) {
    let options = Options::named("conformance/", 1);
    let report = wait(run(chain.outermost().clone(), &options));
    assert!(report.passed() && report.passes() > 20, "{name}: {report}");
}

/// A chain with links that write down what comes before, between and behind the real ones.
struct Watched {
    chain: Chain,
    log: PathBuf,
    _folders: [Folder; 2],
}

impl Watched {
    fn new(links: [&str; 2]) -> Self {
        let (volume, folder) = (Folder::new(), Folder::new());
        let log = folder.write("log", "");
        let logs = LOGGING.map(|link| format!("{link}.log={}", log.display()));
        let (target, [outer, inner]) = (volume.path(), links);
        let chain = open(&format!(
            "log-a+{outer}+log-b+{inner}+log-c+file://{}/?{}",
            target.display(),
            logs.join("&")
        ));
        let watched = Self {
            chain,
            log,
            _folders: [volume, folder],
        };
        watched.seen();
        watched
    }

    /// Who was asked for what since the last look, such as `a put, b put`.
    fn seen(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap();
        std::fs::write(&self.log, "").unwrap();
        let calls = text.lines().filter_map(|line| {
            let (link, call) = line.strip_prefix("log-")?.split_once(" > ")?;
            Some(format!("{link} {call}"))
        });
        calls.collect::<Vec<_>>().join(", ")
    }

    /// What a call of these reaches.
    fn reaches(&self, call: &str) -> String {
        let next = self.chain.outermost();
        let all = Range::ALL;
        wait(async {
            match call {
                "put" => next
                    .put("k", body(&[7; 9000]), Condition::Always)
                    .await
                    .map(drop),
                "get" => next.get("k", all, GetFlags::NONE).await.map(drop),
                "fresh get" => next.get("k", all, GetFlags::FRESH).await.map(drop),
                "missing" => match next.get("missing", all, GetFlags::NONE).await {
                    Err(error) if error.kind == Kind::NotFound => Ok(()),
                    other => panic!("{other:?}"),
                },
                "head" => next.head("k", GetFlags::NONE).await.map(drop),
                "delete" => next.delete(vec!["k".to_owned()]).await.map(drop),
                "list" => next.list("", None).await.map(drop),
                "flush" => next.flush().await,
                _ => panic!("which call? {call}"),
            }
        })
        .unwrap();
        self.seen()
    }
}

#[test]
fn every_call_passes_cache_and_retry_but_what_the_cache_has() {
    for links in [["cache", "retry"], ["retry", "cache"]] {
        let watched = Watched::new(links);
        let inside = watched.chain.capabilities();
        for call in ["put", "list", "flush", "delete"] {
            let seen = format!("a {call}, b {call}, c {call}");
            assert_eq!(watched.reaches(call), seen, "{links:?}");
        }
        watched.reaches("put");
        // What was put is a copy; only what the cache stands behind is asked.
        let hit = match links[0] {
            "cache" => ["a get", "a head"],
            _ => ["a get, b get", "a head, b head"],
        };
        assert_eq!([watched.reaches("get"), watched.reaches("head")], hit);
        assert_eq!(watched.reaches("fresh get"), "a get, b get, c get");
        // Absence is never cached.
        for _ in 0..2 {
            assert_eq!(watched.reaches("missing"), "a get, b get, c get");
        }
        watched.reaches("delete");
        assert!(inside.has(CapabilityFlags::IF_ABSENT | CapabilityFlags::DURABLE_ON_ACK));
        wait(watched.chain.close()).unwrap();
        assert_eq!(
            watched.seen(),
            "a close backend, b close backend, c close backend"
        );
    }
}

#[test]
fn c22_cache_and_retry_offer_what_the_store_offers() {
    let volume = Folder::new();
    let offers = |links: &str| {
        let chain = open(&format!("{links}file://{}/", volume.path().display()));
        let offers = chain.capabilities();
        wait(chain.close()).unwrap();
        offers
    };
    let file = offers("");
    for links in ["cache+", "retry+", "cache+retry+", "retry+cache+"] {
        assert_eq!(offers(links), file, "{links}");
    }
}

#[test]
fn links_the_wrong_way_round_are_told_at_the_start() {
    let volume = Folder::new();
    let (plugins, _) = plugins();
    for (links, is_told) in [("cache+retry", false), ("retry+cache", true)] {
        let image = volume.path().join(links);
        let mut init = Command::new(env!("CARGO_BIN_EXE_nbd-rs"));
        init.args(["init", "--size", "1M", "raw"]);
        init.arg(format!("{links}+file:{}", image.display()));
        let output = init.arg("--plugin-dir").arg(plugins.path()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(
            said.contains("write cache+retry"),
            is_told,
            "{links}: {said}"
        );
    }
}
