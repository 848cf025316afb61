//! What must hold on every server, whatever its habits.

use std::collections::BTreeMap;

use nbd_rs_plugin::{CapabilityFlags, Condition, GetFlags, Kind, Next, Range};

use super::{block_on, body, get, kind, names};

/// Objects of many sizes and names, ranges, conditions, listings and deletes.
pub(crate) fn exercise(store: &Next) {
    let mut expected = BTreeMap::new();
    for (at, size) in [0usize, 1, 511, 4096, 65_536, 1_000_003, 4 << 20]
        .into_iter()
        .enumerate()
    {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + at + (i >> 9)) as u8).collect();
        expected.insert(format!("e/size-{size}"), bytes);
    }
    for name in [
        "e/a b",
        "e/a+b",
        "e/%41",
        "e/ä€",
        "e/a&b=c?d#e",
        "e/deep/er/and/deeper",
        "e/~'()*!",
    ] {
        expected.insert(name.to_owned(), name.as_bytes().to_vec());
    }
    for (name, bytes) in &expected {
        block_on(store.put(name, body(bytes), Condition::Always)).unwrap();
    }
    for (name, bytes) in &expected {
        read(store, name, bytes);
    }
    assert_eq!(
        names(store, "e/"),
        expected.keys().cloned().collect::<Vec<_>>()
    );
    replace(store);
    conditions(store);
    absent(store);
    delete(store, expected.into_keys().collect());
    pages(store);
    let left = block_on(store.delete(names(store, "e2/"))).unwrap();
    assert!(left.iter().all(Result::is_ok), "{left:?}");
}

fn read(store: &Next, name: &str, bytes: &[u8]) {
    let size = bytes.len() as u64;
    let meta = block_on(store.head(name, GetFlags::FRESH)).unwrap();
    assert_eq!(meta.size, size, "{name}");
    assert_eq!(get(store, name, Range::ALL).unwrap(), bytes, "{name}");
    for (offset, len) in [
        (0, 1),
        (0, size),
        (size / 2, size / 3),
        (size.saturating_sub(1), 1),
    ] {
        let range = Range::new(offset, len);
        match range.within(size) {
            Ok(inside) => assert_eq!(
                get(store, name, range).unwrap(),
                bytes[inside],
                "{name} {range:?}"
            ),
            Err(_) => assert_eq!(
                kind(get(store, name, range)),
                Kind::Invalid,
                "{name} {range:?}"
            ),
        }
    }
    let end = Range::new(size / 2, Range::TO_END);
    assert_eq!(
        get(store, name, end).unwrap(),
        bytes[bytes.len() / 2..],
        "{name}"
    );
    for (offset, len) in [(0, size + 1), (size + 1, 1), (size, 1)] {
        let range = Range::new(offset, len);
        assert_eq!(
            kind(get(store, name, range)),
            Kind::Invalid,
            "{name} {range:?}"
        );
    }
}

fn replace(store: &Next) {
    for at in 0..20u8 {
        let bytes = vec![at; 1000 + at as usize];
        block_on(store.put("e2/again", body(&bytes), Condition::Always)).unwrap();
        assert_eq!(get(store, "e2/again", Range::ALL).unwrap(), bytes);
    }
}

fn conditions(store: &Next) {
    let capabilities = store.capabilities();
    if capabilities.has(CapabilityFlags::IF_ABSENT) {
        for at in 0..2u8 {
            let key = format!("e2/race-{at}");
            let put = |who: u8| store.put(&key, body(&[who]), Condition::IfAbsent);
            let results = block_on(async {
                let (a, b, c, d) = tokio::join!(put(1), put(2), put(3), put(4));
                [a, b, c, d]
            });
            let won = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(
                won, 1,
                "C22: of those who create at once exactly one succeeds: {results:?}"
            );
            let late = block_on(put(5));
            assert_eq!(kind(late), Kind::Exists);
        }
    }
    if capabilities.has(CapabilityFlags::IF_MATCH) {
        let put = |bytes: &[u8], condition| block_on(store.put("e2/match", body(bytes), condition));
        let first = put(b"1", Condition::Always).unwrap();
        let second = put(b"2", Condition::IfMatch(first.etag.clone())).unwrap();
        assert_eq!(
            kind(put(b"3", Condition::IfMatch(first.etag))),
            Kind::Precondition
        );
        let head = block_on(store.head("e2/match", GetFlags::FRESH)).unwrap();
        assert_eq!(head.etag, second.etag);
        put(b"4", Condition::IfMatch(head.etag)).unwrap();
    }
}

fn absent(store: &Next) {
    assert_eq!(kind(get(store, "e2/none", Range::ALL)), Kind::NotFound);
    assert_eq!(
        kind(get(store, "e2/none", Range::new(5, 10))),
        Kind::NotFound
    );
    assert_eq!(
        kind(block_on(store.head("e2/none", GetFlags::FRESH))),
        Kind::NotFound
    );
    assert!(names(store, "e2/none").is_empty());
}

fn delete(store: &Next, mut all: Vec<String>) {
    all.push("e/never/there".into());
    let one = block_on(store.delete(vec![all.pop().unwrap()])).unwrap();
    assert!(one[0].is_ok(), "{one:?}");
    all.push("e/never".into());
    let results = block_on(store.delete(all.clone())).unwrap();
    assert_eq!(results.len(), all.len());
    for (name, result) in all.iter().zip(results) {
        assert!(result.is_ok(), "{name}: {result:?}");
        assert_eq!(kind(get(store, name, Range::ALL)), Kind::NotFound, "{name}");
    }
    assert!(names(store, "e/").is_empty());
}

fn pages(store: &Next) {
    let keys: Vec<String> = (0..650).map(|at| format!("e3/{at:04}")).collect();
    // rclone answers 500 to puts that make one folder at once: the first makes it alone.
    block_on(store.put(&keys[0], body(b"x"), Condition::Always)).unwrap();
    block_on(async {
        for some in keys.chunks(16) {
            let mut puts = tokio::task::JoinSet::new();
            for key in some {
                let (store, key) = (store.clone(), key.clone());
                puts.spawn(async move { store.put(&key, body(b"x"), Condition::Always).await });
            }
            while let Some(put) = puts.join_next().await {
                put.expect("the task ends").expect("the put succeeds");
            }
        }
    });
    assert_eq!(names(store, "e3/"), keys);
    let results = block_on(store.delete(keys)).unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert!(names(store, "e3/").is_empty());
}
