//! What every backend must show, shown through this link while it does nothing; and each fault, as it
//! is described.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use nbd_rs_fake::{body, bytes_of, capability_sets, Fake};
use nbd_rs_fault::backend::FaultLink;
use nbd_rs_fault::config::Config;
use nbd_rs_plugin::conformance::host::{block_on, host};
use nbd_rs_plugin::conformance::{run, Options};
use nbd_rs_plugin::{
    export_backend, Condition, Error, GetFlags, Kind, Next, ObjectFlags, ObjectMode, OptionValue,
    Range, ReadFlags, Result, WriteFlags,
};

/// A link that harms every call of `ops` with `kind`, and what else is asked for.
fn link(fake: &Fake, ops: &str, kind: &str, more: &[(&str, &str)]) -> Next {
    let mut options = vec![("seed", "7"), ("rate", "100"), ("ops", ops), ("kind", kind)];
    options.extend(more);
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    let options: Vec<OptionValue> = options.iter().map(option).collect();
    let mut config = Config::new(&options).unwrap();
    config.plan.seed = config.seed.unwrap();
    export_backend(FaultLink::new(host(), config, fake.next())).into()
}

fn with_object(bytes: &[u8]) -> Fake {
    let fake = Fake::new();
    fake.replace("k", bytes);
    fake
}

fn get(next: &Next) -> Result<Vec<u8>> {
    let got = block_on(next.get("k", Range::ALL, GetFlags::NONE))?;
    Ok(bytes_of(&got.data))
}

fn put(next: &Next, text: &str) -> Result<()> {
    block_on(next.put("k", body(text), Condition::Always)).map(drop)
}

fn kind<T>(result: Result<T>) -> Kind {
    result.map(drop).unwrap_err().kind
}

#[test]
fn a_store_conforms_through_fault_while_it_does_nothing() {
    for at_once in [false, true] {
        let fake = Fake::new();
        fake.answer_at_once(at_once);
        let next = link(&fake, "all", "before", &[("rate", "0")]);
        let report = block_on(run(next, &Options::named("conformance/", 1)));
        assert!(report.passed() && report.passes() > 20, "{report}");
    }
}

#[test]
fn c22_every_set_of_capabilities_passes_through() {
    for (name, fake) in capability_sets() {
        let next = link(&fake, "all", "lost", &[]);
        assert_eq!(next.capabilities(), fake.next().capabilities(), "{name}");
    }
}

#[test]
fn before_changes_nothing_and_after_changes_all() {
    let fake = with_object(b"old");
    assert_eq!(
        kind(put(&link(&fake, "put", "before", &[]), "new")),
        Kind::Transient
    );
    assert_eq!(
        kind(put(&link(&fake, "put", "unsure", &[]), "new")),
        Kind::Ambiguous
    );
    let full =
        block_on(link(&fake, "put", "nospace", &[]).put("k", body("new"), Condition::Always));
    assert_eq!(
        full.map_err(|Error { kind, errno, .. }| (kind, errno))
            .unwrap_err(),
        (Kind::NoSpace, 28)
    );
    assert_eq!(fake.contents("k").unwrap(), b"old");
    assert_eq!(
        kind(put(&link(&fake, "put", "after", &[]), "new")),
        Kind::Ambiguous
    );
    assert_eq!(fake.contents("k").unwrap(), b"new");
    // Nobody need be unsure of a read.
    assert_eq!(
        kind(get(&link(&fake, "get", "after", &[]))),
        Kind::Transient
    );
    let denied = link(&fake, "get", "before", &[("error", "denied")]);
    assert_eq!(kind(get(&denied)), Kind::Denied);
}

#[test]
fn lost_is_acknowledged_and_not_there() {
    let fake = with_object(b"old");
    put(&link(&fake, "put", "lost", &[]), "new").unwrap();
    let deleted = block_on(link(&fake, "delete", "lost", &[]).delete(vec!["k".into()])).unwrap();
    assert!(deleted[0].is_ok());
    assert_eq!(fake.contents("k").unwrap(), b"old");
    fake.take_calls();
    block_on(link(&fake, "flush", "lost", &[]).flush()).unwrap();
    assert_eq!(fake.take_calls(), Vec::<String>::new());
}

#[test]
fn short_and_flipped_reads_are_wrong_by_name_and_in_place() {
    let fake = with_object(&[0; 100]);
    assert_eq!(get(&link(&fake, "get", "short", &[])).unwrap().len(), 99);
    let flipped = get(&link(&fake, "get", "flip", &[])).unwrap();
    let bits: u32 = flipped.iter().map(|byte| byte.count_ones()).sum();
    assert_eq!((flipped.len(), bits), (100, 1));
    let next = link(&fake, "read", "short", &[]);
    let object = block_on(next.open_object("k", ObjectMode::new(ObjectFlags::NONE))).unwrap();
    let data = block_on(object.read(10, 50, ReadFlags::NONE)).unwrap();
    assert_eq!(data.len(), 49);
}

#[test]
fn stale_answers_are_of_the_version_before() {
    let fake = Fake::new();
    let next = link(&fake, "get,head", "stale", &[]);
    put(&next, "one").unwrap();
    assert_eq!(kind(get(&next)), Kind::NotFound);
    put(&next, "two!").unwrap();
    assert_eq!(get(&next).unwrap(), b"one");
    let head = block_on(next.head("k", GetFlags::FRESH)).unwrap();
    assert_eq!(head.size, 3);
}

#[test]
fn a_write_in_place_can_be_lost() {
    let fake = with_object(&[0; 100]);
    let next = link(&fake, "write", "lost", &[("skip", "1"), ("most", "1")]);
    let object = block_on(next.open_object("k", ObjectMode::new(ObjectFlags::WRITE))).unwrap();
    for at in 0..3 {
        block_on(object.write(at, body([7]), WriteFlags::NONE)).unwrap();
    }
    // The first is skipped, the second is the only fault.
    assert_eq!(&fake.contents("k").unwrap()[..3], [7, 0, 7]);
}

#[test]
fn a_call_that_hangs_is_never_answered_and_a_delayed_one_is() {
    let fake = with_object(b"x");
    let hanging = link(&fake, "get", "hang", &[]);
    let mut get_k = pin!(hanging.get("k", Range::ALL, GetFlags::NONE));
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        assert!(get_k.as_mut().poll(&mut cx).is_pending());
    }
    assert_eq!(
        get(&link(&fake, "get", "delay", &[("delay", "3ms")])).unwrap(),
        b"x"
    );
}

#[test]
fn the_same_seed_is_the_same_faults_again() {
    let run = |seed: &str| -> Vec<bool> {
        let fake = with_object(b"x");
        let next = link(&fake, "get", "before", &[("rate", "30"), ("seed", seed)]);
        (0..200).map(|_| get(&next).is_ok()).collect()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn a_store_that_loses_what_it_acknowledged_is_found_out() {
    let next = link(&Fake::new(), "put,write", "lost", &[("rate", "10")]);
    let report = block_on(run(next, &Options::named("conformance/", 1)));
    assert!(!report.passed(), "{report}");
}
