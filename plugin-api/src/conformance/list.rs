//! Deleting and listing.

use super::check::{body, ensure, fails, together, Checked, Doing};
use super::Subject;
use crate::{Condition, GetFlags, Kind};

pub(super) async fn deletes(subject: &mut Subject<'_>) -> Checked {
    let keys: Vec<String> = (0..5)
        .map(|n| subject.key(&format!("d{}/{n}", n % 2)))
        .collect();
    for key in &keys[..3] {
        subject.put(key, b"x").await?;
    }
    let keep = subject.key("d0/keep");
    subject.put(&keep, b"kept").await?;
    // Two that are missing, one that is named twice.
    let mut asked = keys.clone();
    asked.push(keys[0].clone());
    let results = subject.next.delete(asked.clone()).await.doing("delete")?;
    ensure!(
        results.len() == asked.len(),
        "{} results for {}",
        results.len(),
        asked.len()
    );
    for (key, result) in asked.iter().zip(results) {
        result.doing(format_args!("delete {key:?}"))?;
    }
    for key in &keys {
        let head = subject.next.head(key, GetFlags::NONE).await;
        fails(
            head,
            Kind::NotFound,
            format_args!("head of {key:?}, deleted"),
        )?;
    }
    subject.holds(&keep, b"kept").await?;
    let page = subject
        .next
        .list(&subject.prefix, None)
        .await
        .doing("list")?;
    ensure!(
        page.items.len() == 1,
        "{} are listed instead of one",
        page.items.len()
    );
    let none = subject
        .next
        .delete(Vec::new())
        .await
        .doing("delete of none")?;
    ensure!(none.is_empty(), "{} results for no key", none.len());
    Ok(())
}

pub(super) async fn deletes_beside_puts(subject: &mut Subject<'_>) -> Checked {
    let (old, new) = (subject.key("dir/below/old"), subject.key("dir/below/new"));
    for round in 0_u8..30 {
        subject.put(&old, b"old").await?;
        let change = |delete: bool| {
            let (next, old, new) = (subject.next.clone(), old.clone(), new.clone());
            async move {
                match delete {
                    true => next.delete(vec![old]).await.map(drop),
                    false => next
                        .put(&new, body(&[round]), Condition::Always)
                        .await
                        .map(drop),
                }
            }
        };
        for result in together([change(true), change(false)]).await {
            result.doing(format_args!("round {round}: put beside delete"))?;
        }
        subject.holds(&new, &[round]).await?;
        let deleted = subject.next.delete(vec![new.clone()]).await;
        deleted.doing("delete")?;
    }
    Ok(())
}

pub(super) async fn order(subject: &mut Subject<'_>) -> Checked {
    // '-' and '.' sort before '/', '0' behind it.
    let names = ["d-x", "d.x", "d/a/z", "d/a0", "d/é", "d0", "dd", "e", "é"];
    for name in names {
        subject.put(&subject.key(name), name.as_bytes()).await?;
    }
    let all: Vec<String> = names.iter().map(|name| subject.key(name)).collect();
    for (prefix, after) in [
        ("", None),
        ("d", None),
        ("d/", None),
        ("d/a", None),
        ("d/a/", None),
        ("d", Some("d.x")),
        ("d", Some("d/")),
        ("d", Some("d/a/z")),
        ("d", Some("d/b")),
        ("d/", Some("a")),
        ("d/", Some("e")),
        ("", Some("d0")),
        ("", Some("é")),
        ("dx", None),
    ] {
        let (prefix, after) = (subject.key(prefix), after.map(|after| subject.key(after)));
        let page = subject.next.list(&prefix, after.as_deref()).await;
        let page = page.doing(format_args!("list {prefix:?} behind {after:?}"))?;
        let listed: Vec<&str> = page.items.iter().map(|item| item.key.as_str()).collect();
        let wanted = |key: &&String| key.starts_with(&prefix) && Some(*key) > after.as_ref();
        let expected: Vec<&String> = all.iter().filter(wanted).collect();
        ensure!(
            listed == expected,
            "list {prefix:?} behind {after:?}: {listed:?} instead of {expected:?}"
        );
        for item in &page.items {
            let len = (item.key.len() - subject.prefix.len()) as u64;
            ensure!(
                item.size == len,
                "{:?} is listed with {} bytes",
                item.key,
                item.size
            );
        }
    }
    Ok(())
}

pub(super) async fn pages(subject: &mut Subject<'_>) -> Checked {
    let many = subject.options.many_objects;
    let name = |n: usize| subject.key(&format!("{}/{n:06}", n % 3));
    let mut expected: Vec<String> = (0..many).map(name).collect();
    for keys in expected.chunks(16) {
        for put in together(keys.iter().map(|key| subject.put(key, b"many"))).await {
            put?;
        }
    }
    expected.sort();
    let mut listed: Vec<String> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = subject.next.list(&subject.prefix, after.as_deref()).await;
        let page = page.doing(format_args!("the page behind {after:?}"))?;
        listed.extend(page.items.iter().map(|item| item.key.to_string()));
        ensure!(
            listed.len() <= many,
            "{} names of {many} objects",
            listed.len()
        );
        let next = page.next.map(String::from).into_option();
        ensure!(
            next.is_none() || next > after,
            "the page behind {after:?} leads to {next:?}"
        );
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let differs = listed.iter().zip(&expected).find(|(a, b)| a != b);
    ensure!(differs.is_none(), "listed, expected: {differs:?}");
    ensure!(
        listed.len() == many,
        "{} names of {many} objects",
        listed.len()
    );
    for keys in expected.chunks(700) {
        let results = subject.next.delete(keys.to_vec()).await.doing("delete")?;
        for result in results {
            result.doing("delete of many")?;
        }
    }
    nothing(subject).await
}

pub(super) async fn nothing(subject: &mut Subject<'_>) -> Checked {
    for prefix in ["", "no/such/", "no/such/name"] {
        let page = subject.next.list(&subject.key(prefix), None).await;
        let page = page.doing(format_args!("list {prefix:?}"))?;
        ensure!(page.items.is_empty(), "{:?} is listed", page.items[0].key);
        ensure!(page.next.is_none(), "a page behind nothing");
    }
    Ok(())
}
