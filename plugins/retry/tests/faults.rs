//! The link before a store that fails by script, on paused time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nbd_rs_fake::{body, bytes_of, host, logged, Fake, Fault, Rng, STORE};
use nbd_rs_plugin::{
    Backend, Capabilities, CapabilityFlags, Condition, Error, GetFlags, Kind, Object, ObjectFlags,
    ObjectMode, OptionValue, Range, ReadFlags, Result, WriteFlags, ZeroFlags,
};
use nbd_rs_retry::backend::Retry;
use nbd_rs_retry::config;
use nbd_rs_retry::link::Link;

fn paused_now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn retry_with(fake: &Fake, options: &[(&str, &str)]) -> Retry {
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    let options: Vec<OptionValue> = options.iter().map(option).collect();
    let policy = config::policy(&options).unwrap();
    Retry::new(Link::with_clock(host(), policy, paused_now), fake.next())
}

fn retry(fake: &Fake) -> Retry {
    retry_with(fake, &[])
}

const NONE: GetFlags = GetFlags::NONE;
const LOST: Fault = Fault::After(Kind::Ambiguous, "connection reset");
const UNSENT: Fault = Fault::Before(Kind::Ambiguous, "connection reset");
const BUSY_503: Fault = Fault::Before(Kind::Transient, "503 SlowDown");

async fn get(link: &Retry, key: &str) -> Result<Vec<u8>> {
    let got = link.get(key, Range::ALL, NONE).await?;
    Ok(bytes_of(&got.data))
}

fn if_match(etag: &str) -> Condition {
    Condition::IfMatch(etag.into())
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind
}

#[tokio::test(start_paused = true)]
async fn f38_slow_down_bursts_are_waited_out_and_retry_after_is_obeyed() {
    let fake = Fake::new();
    fake.replace("k", *b"data");
    let link = retry(&fake);
    let asked = Fault::Before(Kind::Transient, "503 SlowDown, retry-after=7s");
    fake.faults().script("get", [BUSY_503, asked, BUSY_503]);
    let started = paused_now();
    assert_eq!(get(&link, "k").await.unwrap(), b"data");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(paused_now() - started >= Duration::from_secs(7));
    assert_eq!(fake.take_calls().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_last_error_says_how_often_and_how_long() {
    let fake = Fake::new();
    let link = retry_with(&fake, &[("attempts", "3")]);
    fake.faults().script("head", [BUSY_503, BUSY_503, BUSY_503]);
    let error = link.head("k", NONE).await.unwrap_err();
    assert_eq!(error.kind, Kind::Transient);
    let text = error.message.as_str();
    assert!(
        text.starts_with("head \"k\": gave up after 3 attempts in "),
        "{text}"
    );
    assert!(text.ends_with("503 SlowDown"), "{text}");
    assert_eq!(fake.take_calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_time_is_up() {
    let fake = Fake::new();
    let link = retry_with(&fake, &[("attempts", "1000"), ("time", "20s")]);
    fake.faults().script("list", vec![BUSY_503; 1000]);
    let started = paused_now();
    assert_eq!(kind(link.list("", None).await), Kind::Transient);
    assert!(paused_now() - started <= Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_are_told_at_once_and_unchanged() {
    let fake = Fake::new();
    let link = retry(&fake);
    for kind in [
        Kind::Denied,
        Kind::NoSpace,
        Kind::Busy,
        Kind::Fenced,
        Kind::Panic,
        Kind::Io,
    ] {
        fake.faults().script("put", [Fault::Before(kind, "no")]);
        let error = link.put("k", body(*b"x"), Condition::Always).await;
        assert_eq!(error.unwrap_err(), Error::new(kind, "no"));
        assert_eq!(fake.take_calls().len(), 1);
    }
    assert_eq!(kind(get(&link, "k").await), Kind::NotFound);
    assert_eq!(fake.take_calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn f40_a_put_that_was_applied_and_lost_its_answer_is_put_again() {
    let fake = Fake::new();
    let link = retry(&fake);
    fake.faults().script("put", [LOST, UNSENT, BUSY_503]);
    link.put("k", body(*b"data"), Condition::Always)
        .await
        .unwrap();
    // F52: the whole body, every time.
    assert_eq!(fake.take_calls(), ["put k 4"; 4]);
    assert_eq!(fake.contents("k").unwrap(), b"data");
}

#[tokio::test(start_paused = true)]
async fn f41_a_conditional_put_finds_its_own_record() {
    let fake = Fake::new();
    let link = retry(&fake);
    fake.faults().script("put", [LOST]);
    let put = link
        .put("k", body(*b"mine"), Condition::IfAbsent)
        .await
        .unwrap();
    assert_eq!(
        fake.take_calls(),
        ["put k 4", "head k fresh", "get k 0.. fresh"]
    );
    let current = link.head("k", NONE).await.unwrap();
    assert_eq!(put.etag, current.etag);

    fake.faults().script("put", [LOST]);
    let put = link
        .put("k", body(*b"next"), if_match(&put.etag))
        .await
        .unwrap();
    assert_eq!(link.head("k", NONE).await.unwrap().etag, put.etag);
    assert_eq!(fake.contents("k").unwrap(), b"next");
}

#[tokio::test(start_paused = true)]
async fn c20_a_conditional_put_that_was_not_applied_is_made_again() {
    let fake = Fake::new();
    let link = retry(&fake);
    fake.faults().script("put", [UNSENT, UNSENT]);
    let put = link
        .put("k", body(*b"mine"), Condition::IfAbsent)
        .await
        .unwrap();
    fake.faults().script("put", [UNSENT]);
    link.put("k", body(*b"next"), if_match(&put.etag))
        .await
        .unwrap();
    assert_eq!(fake.contents("k").unwrap(), b"next");
}

#[tokio::test(start_paused = true)]
async fn c20_somebody_elses_object_is_a_refusal() {
    let fake = Fake::new();
    let link = retry(&fake);
    for theirs in [&b"other"[..], b"them"] {
        fake.replace("k", theirs);
        fake.faults().script("put", [UNSENT]);
        let put = link.put("k", body(*b"mine"), Condition::IfAbsent).await;
        assert_eq!(kind(put), Kind::Exists);
        fake.faults().script("put", [UNSENT]);
        let put = link.put("k", body(*b"mine"), if_match("old")).await;
        assert_eq!(kind(put), Kind::Precondition);
        assert_eq!(fake.contents("k").unwrap(), theirs);
    }
    fake.remove("k");
    fake.faults().script("put", [UNSENT]);
    let put = link.put("k", body(*b"mine"), if_match("old")).await;
    assert_eq!(kind(put), Kind::Precondition);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_without_doubt_is_told_at_once() {
    let fake = Fake::new();
    let link = retry(&fake);
    // Even if the bytes are the same: this one was not stored by us.
    fake.replace("k", *b"mine");
    let put = link.put("k", body(*b"mine"), Condition::IfAbsent).await;
    assert_eq!(kind(put), Kind::Exists);
    assert_eq!(fake.take_calls(), ["put k 4"]);
}

#[tokio::test(start_paused = true)]
async fn c20_what_cannot_be_decided_stays_ambiguous() {
    let fake = Fake::new();
    let link = retry_with(&fake, &[("attempts", "4")]);
    // The look itself fails for good.
    fake.faults().script("put", [LOST]);
    fake.faults()
        .script("head", [Fault::Before(Kind::Denied, "403")]);
    let put = link.put("k", body(*b"mine"), Condition::IfAbsent).await;
    assert_eq!(kind(put), Kind::Ambiguous);
    // The look fails as long as it is tried.
    fake.faults().heal();
    fake.faults().script("put", [LOST]);
    fake.faults().script("head", vec![BUSY_503; 10]);
    let put = link.put("j", body(*b"mine"), Condition::IfAbsent).await;
    assert_eq!(kind(put), Kind::Ambiguous);
    // Nothing in the object could tell whose it is.
    fake.faults().heal();
    fake.faults().script("put", [LOST]);
    let put = link.put("empty", body(*b""), Condition::IfAbsent).await;
    assert_eq!(kind(put), Kind::Ambiguous);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_not_forgotten_over_a_later_error() {
    let fake = Fake::new();
    let link = retry(&fake);
    fake.faults()
        .script("put", [LOST, Fault::Before(Kind::Denied, "403")]);
    let error = link
        .put("k", body(*b"x"), Condition::Always)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Ambiguous);
    assert!(error.message.contains("403"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn f42_a_wrong_read_is_made_again_but_not_for_ever() {
    let fake = Fake::new();
    fake.replace("k", *b"data");
    let link = retry(&fake);
    let wrong = Fault::Before(Kind::Corrupt, "4 bytes were announced, 3 came");
    fake.faults().script("get", [wrong.clone(), wrong.clone()]);
    assert_eq!(get(&link, "k").await.unwrap(), b"data");
    fake.take_calls();
    fake.faults().script("get", vec![wrong; 10]);
    assert_eq!(kind(get(&link, "k").await), Kind::Corrupt);
    assert_eq!(fake.take_calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn only_the_keys_that_failed_are_deleted_again() {
    let fake = Fake::new();
    for key in ["a", "b", "c"] {
        fake.replace(key, *b"x");
    }
    let link = retry(&fake);
    fake.faults().script(
        "delete key",
        [Fault::None, BUSY_503, Fault::Before(Kind::Denied, "403")],
    );
    let keys = ["a", "b", "c"].map(str::to_owned).to_vec();
    let results = link.delete(keys).await.unwrap();
    assert!(results[0].is_ok() && results[1].is_ok());
    assert_eq!(results[2].as_ref().unwrap_err().kind, Kind::Denied);
    assert_eq!(fake.take_calls(), ["delete a b c", "delete b"]);
}

/// It was made again, and answered for by the second: nobody knew that the first could still come.
#[tokio::test(start_paused = true)]
async fn c21_f53_a_delete_in_doubt_is_told_and_not_made_again() {
    for fault in [LOST, UNSENT] {
        let fake = Fake::new();
        let link = retry(&fake);
        let keys = ["a", "b"].map(str::to_owned).to_vec();
        let script = [Fault::None, fault.clone()];
        fake.faults().script("delete key", script);
        let results = link.delete(keys.clone()).await.unwrap();
        assert!(results[0].is_ok());
        assert_eq!(results[1].as_ref().unwrap_err().kind, Kind::Ambiguous);
        assert_eq!(fake.take_calls(), ["delete a b"]);
        fake.faults().script("delete", [BUSY_503, fault]);
        assert_eq!(kind(link.delete(keys).await), Kind::Ambiguous);
        assert_eq!(fake.take_calls().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn deletes_that_never_succeed_keep_the_results_of_those_that_did() {
    let fake = Fake::new();
    let link = retry_with(&fake, &[("attempts", "2")]);
    fake.faults()
        .script("delete key", [Fault::None, BUSY_503, BUSY_503]);
    let keys = ["a", "b"].map(str::to_owned).to_vec();
    let results = link.delete(keys.clone()).await.unwrap();
    assert!(results[0].is_ok());
    assert!(results[1]
        .as_ref()
        .unwrap_err()
        .message
        .contains("2 attempts"));
    fake.faults().script("delete", [BUSY_503, BUSY_503]);
    assert_eq!(kind(link.delete(keys).await), Kind::Transient);
}

async fn open(link: &Retry, flags: ObjectFlags) -> Result<nbd_rs_retry::object::RetryObject> {
    let flags = flags | ObjectFlags::WRITE | ObjectFlags::CREATE;
    link.open_object("o", ObjectMode::create(flags, 16)).await
}

#[tokio::test(start_paused = true)]
async fn c05_a_failed_sync_or_flush_is_told_once() {
    let fake = Fake::new();
    let link = retry(&fake);
    let object = open(&link, ObjectFlags::NONE).await.unwrap();
    fake.take_calls();
    for kind in [Kind::Transient, Kind::Timeout, Kind::Ambiguous, Kind::Io] {
        fake.faults().script("sync", [Fault::Before(kind, "lost")]);
        assert!(object.sync().await.is_err());
        fake.faults().script("flush", [Fault::Before(kind, "lost")]);
        assert!(link.flush().await.is_err());
    }
    assert_eq!(fake.take_calls(), ["sync", "flush"].repeat(4));
}

#[tokio::test(start_paused = true)]
async fn writes_inside_an_object_are_made_again_with_the_same_bytes() {
    let fake = Fake::new();
    let link = retry(&fake);
    let object = open(&link, ObjectFlags::NONE).await.unwrap();
    fake.take_calls();
    fake.faults().script("write", [LOST, BUSY_503]);
    object
        .write(4, body(*b"abcd"), WriteFlags::FUA)
        .await
        .unwrap();
    assert_eq!(fake.take_calls(), ["write 4+4"; 3]);
    fake.faults().script("zero", [UNSENT, LOST]);
    object.zero(5, 2, ZeroFlags::NONE).await.unwrap();
    fake.faults().script("resize", [LOST]);
    object.resize(8).await.unwrap();
    fake.faults().script("read", [BUSY_503]);
    let read = object.read(4, 4, ReadFlags::NONE).await.unwrap();
    assert_eq!(bytes_of(&read), b"a\0\0d");
}

#[tokio::test(start_paused = true)]
async fn an_open_that_may_hold_a_lock_is_not_repeated_in_doubt() {
    let fake = Fake::new();
    let link = retry(&fake);
    for flags in [ObjectFlags::CREATE_NEW, ObjectFlags::LOCK] {
        fake.faults().script("open", [LOST]);
        assert_eq!(
            open(&link, flags).await.map(drop).unwrap_err().kind,
            Kind::Ambiguous
        );
    }
    fake.faults().script("open", [LOST, BUSY_503]);
    open(&link, ObjectFlags::NONE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_at_hand_passes_through_without_a_future() {
    let fake = Fake::new();
    fake.replace("k", *b"data");
    fake.answer_at_once(true);
    let link = retry(&fake);
    let got = link.try_get("k", Range::new(1, 2), NONE).unwrap().unwrap();
    assert_eq!(bytes_of(&got.data), b"at");
    let object = open(&link, ObjectFlags::NONE).await.unwrap();
    assert!(object
        .try_write(0, &body(*b"ab"), WriteFlags::NONE)
        .unwrap()
        .is_ok());
    let read = object.try_read(0, 2, ReadFlags::NONE).unwrap().unwrap();
    assert_eq!(bytes_of(&read), b"ab");
    // A passing failure is for the form that may wait.
    fake.faults().script("try_get", [BUSY_503]);
    assert!(link.try_get("k", Range::ALL, NONE).is_none());
    fake.faults().script("try_write", [BUSY_503]);
    assert!(object
        .try_write(0, &body(*b"x"), WriteFlags::NONE)
        .is_none());
    // Something may have happened: "nothing was changed" would be a lie.
    fake.faults().script("try_write", [LOST]);
    let written = object.try_write(0, &body(*b"x"), WriteFlags::NONE);
    assert_eq!(kind(written.unwrap()), Kind::Ambiguous);
}

#[tokio::test(start_paused = true)]
async fn c22_capabilities_are_those_behind_less_what_is_not_known() {
    let fake = Fake::new();
    fake.claim(CapabilityFlags(1 << 40));
    let link = retry(&fake);
    assert_eq!(link.capabilities(), Capabilities::new(STORE));
    let object = open(&link, ObjectFlags::NONE).await.unwrap();
    assert_eq!(object.capabilities(), Capabilities::new(STORE));
    // And what later versions ask for is refused, not passed around the link.
    assert_eq!(
        kind(link.get("k", Range::ALL, GetFlags(1 << 9)).await),
        Kind::Unsupported
    );
    let write = object.write(0, body(*b"x"), WriteFlags(1 << 9)).await;
    assert_eq!(kind(write), Kind::Unsupported);
    assert_eq!(fake.contents("o").unwrap(), vec![0; 16]);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_failures_is_a_few_warnings() {
    let fake = Fake::new();
    let link = retry_with(&fake, &[("time", "1h"), ("attempts", "1000")]);
    fake.replace("storm-key", *b"x");
    let failures = Fault::Before(Kind::Transient, "503 storm");
    fake.faults().script("get", vec![failures; 500]);
    let started = paused_now();
    for _ in 0..50 {
        get(&link, "storm-key").await.unwrap();
    }
    let seconds = (paused_now() - started).as_secs();
    let lines = logged("storm-key");
    let warnings = lines.iter().filter(|line| line.starts_with("2 ")).count();
    assert!(
        warnings >= 1 && warnings as u64 <= seconds / 5 + 1,
        "{warnings} in {seconds} s"
    );
    assert!(
        lines.iter().any(|line| line.contains("more repeats since")),
        "{lines:?}"
    );
    link.close().await.unwrap();
    let told = logged("500 repeats");
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn what_happened_is_counted_by_the_kind_of_error() {
    let fake = Fake::new();
    let link = retry_with(&fake, &[("attempts", "3")]);
    fake.replace("k", *b"x");
    assert_eq!(link.link().counters().summary(), None);
    let before = |kind| Fault::Before(kind, "no");
    let script = [before(Kind::Timeout), before(Kind::Ambiguous)];
    fake.faults().script("get", script);
    get(&link, "k").await.unwrap();
    fake.faults().script("get", [before(Kind::Corrupt)]);
    get(&link, "k").await.unwrap();
    fake.faults().script("head", [BUSY_503, BUSY_503, BUSY_503]);
    link.head("k", NONE).await.unwrap_err();
    // What is not repeated is not counted.
    fake.faults().script("get", [before(Kind::Denied)]);
    get(&link, "k").await.unwrap_err();
    let summary = link.link().counters().summary().unwrap();
    let kinds = "retry: 5 repeats (2 transient, 1 timeout, 1 ambiguous, 1 corrupt) with ";
    assert!(summary.starts_with(kinds), "{summary}");
    assert!(summary.ends_with(" 2 calls saved, 1 given up"), "{summary}");
}

/// F72: whatever fails, before or after it was carried out, each call that succeeded happened as
/// if once, and in order.
#[tokio::test(start_paused = true)]
async fn f72_random_faults_change_nothing_that_was_acknowledged() {
    let mut rng = Rng::of_test();
    let fake = Fake::new();
    let link = retry_with(&fake, &[("attempts", "40"), ("time", "1h")]);
    fake.faults().random(Rng::new(rng.next()), 30);
    let mut model: BTreeMap<String, (Vec<u8>, String)> = BTreeMap::new();
    for step in 0..1000u32 {
        let key = format!("k{}", rng.below(8));
        let bytes = format!("{step} {}", rng.next()).into_bytes();
        let known = model.get(&key).cloned();
        match rng.below(5) {
            0 => {
                let put = link.put(&key, body(bytes.clone()), Condition::Always).await;
                model.insert(key, (bytes, put.unwrap().etag.into()));
            }
            1 => {
                let put = link
                    .put(&key, body(bytes.clone()), Condition::IfAbsent)
                    .await;
                match known {
                    Some(_) => assert_eq!(kind(put), Kind::Exists),
                    None => drop(model.insert(key, (bytes, put.unwrap().etag.into()))),
                }
            }
            2 => {
                let etag = known.as_ref().map_or("none", |(_, etag)| etag);
                let put = link.put(&key, body(bytes.clone()), if_match(etag)).await;
                match known {
                    Some(_) => drop(model.insert(key, (bytes, put.unwrap().etag.into()))),
                    None => assert_eq!(kind(put), Kind::Precondition),
                }
            }
            3 => {
                let mut keys = vec![key.clone(), "no".to_owned()];
                while !keys.is_empty() {
                    let results = link.delete(keys.clone()).await;
                    let results = results.unwrap_or_else(|error| vec![Err(error); keys.len()]);
                    let doubt = results.into_iter().map(Result::err);
                    let doubt = keys
                        .into_iter()
                        .zip(doubt)
                        .filter_map(|(key, error)| error.map(|error| (key, error.kind)));
                    let doubt: Vec<_> = doubt.collect();
                    assert!(doubt.iter().all(|(_, kind)| *kind == Kind::Ambiguous));
                    keys = doubt.into_iter().map(|(key, _)| key).collect();
                }
                model.remove(&key);
            }
            _ => match known {
                Some((bytes, _)) => assert_eq!(get(&link, &key).await.unwrap(), bytes),
                None => assert_eq!(kind(get(&link, &key).await), Kind::NotFound),
            },
        }
    }
    fake.faults().heal();
    for (key, (bytes, etag)) in model {
        assert_eq!(fake.contents(&key).unwrap(), bytes);
        assert_eq!(link.head(&key, NONE).await.unwrap().etag, etag);
    }
}
