//! Storing objects.

use std::future::Future;

use super::check::{body, bytes_of, ensure, fails, together, Checked, Doing};
use super::Subject;
use crate::{Body, Bytes, Condition, GetFlags, Kind, Range};

pub(super) async fn many_pieces(subject: &mut Subject<'_>) -> Checked {
    let mut noise = subject.noise(10);
    // More pieces than the kernel takes at once, empty ones among them.
    let pieces: Vec<Vec<u8>> = (0..3000)
        .map(|_| {
            let len = noise.below(300) as usize;
            noise.bytes(len)
        })
        .collect();
    let whole: Vec<u8> = pieces.concat();
    let key = subject.key("pieces");
    let body = Body::Many(pieces.into_iter().map(Bytes::from).collect());
    let put = subject.next.put(&key, body, Condition::Always).await;
    put.doing("put of 3000 pieces")?;
    subject.holds(&key, &whole).await?;
    let nothing = Body::Many(Vec::new().into());
    let put = subject.next.put(&key, nothing, Condition::Always).await;
    put.doing("put of no piece")?;
    subject.holds(&key, b"").await
}

pub(super) async fn names(subject: &mut Subject<'_>) -> Checked {
    let room = 1024 - subject.prefix.len();
    let mut longest = "l".repeat(room.min(200));
    while longest.len() < room {
        let part = (room - longest.len() - 1).min(200);
        longest.push('/');
        longest.push_str(&"l".repeat(part.max(1)));
    }
    longest.truncate(room);
    if longest.ends_with('/') {
        longest.pop();
    }
    let names = [
        "plain",
        "Plain",
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "q?x=1&y=2",
        "h#f",
        "~t",
        "...",
        "..x",
        ".x",
        "-",
        "é",
        "e\u{301}",
        "日本語/文書",
        "\u{1F600}",
        "'quoted\"",
        "a;b,c=d",
        "d/e/f/g",
        "star*",
        longest.as_str(),
    ];
    for (at, name) in names.iter().enumerate() {
        subject.put(&subject.key(name), &[at as u8; 10]).await?;
    }
    for (at, name) in names.iter().enumerate() {
        subject.holds(&subject.key(name), &[at as u8; 10]).await?;
    }
    let page = subject
        .next
        .list(&subject.prefix, None)
        .await
        .doing("list")?;
    let mut expected: Vec<String> = names.iter().map(|name| subject.key(name)).collect();
    expected.sort();
    let listed: Vec<&str> = page.items.iter().map(|item| item.key.as_str()).collect();
    ensure!(
        listed == expected,
        "listed {listed:?} instead of {expected:?}"
    );
    Ok(())
}

pub(super) async fn replaced_whole(subject: &mut Subject<'_>) -> Checked {
    const LEN: usize = 300_000;
    let key = subject.key("replaced");
    subject.put(&key, &[0; LEN]).await?;
    for round in 1_u8..15 {
        let writes = subject
            .next
            .put(&key, body(&[round; LEN]), Condition::Always);
        let reads = (0..8).map(|_| subject.next.get(&key, Range::ALL, GetFlags::NONE));
        let (put, got) = both(writes, together(reads)).await;
        put.doing("put")?;
        for got in got {
            let bytes = bytes_of(&got.doing("get during a put")?.data)?;
            ensure!(
                bytes.len() == LEN,
                "{} bytes of {LEN} were read",
                bytes.len()
            );
            let (first, last) = (bytes[0], bytes[LEN - 1]);
            let whole = bytes.iter().all(|byte| *byte == first);
            ensure!(whole, "a mixture was read: from {first} to {last}");
            ensure!(
                first == round || first == round - 1,
                "object {first} was read in round {round}"
            );
        }
    }
    Ok(())
}

/// Two futures at once.
async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        if first.is_none() {
            if let Poll::Ready(ready) = a.as_mut().poll(cx) {
                first = Some(ready);
            }
        }
        if second.is_none() {
            if let Poll::Ready(ready) = b.as_mut().poll(cx) {
                second = Some(ready);
            }
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

pub(super) async fn if_absent(subject: &mut Subject<'_>) -> Checked {
    let key = subject.key("once/only");
    let put = |text: &str| {
        subject
            .next
            .put(&key, body(text.as_bytes()), Condition::IfAbsent)
    };
    put("first").await.doing("the first put")?;
    fails(put("second").await, Kind::Exists, "the second put")?;
    subject.holds(&key, b"first").await?;
    let deleted = subject.next.delete(vec![key.clone()]).await;
    deleted.doing("delete")?;
    put("third").await.doing("a put after the delete")?;
    subject.holds(&key, b"third").await
}

pub(super) async fn one_creator_wins(subject: &mut Subject<'_>) -> Checked {
    for round in 0..subject.options.race_rounds {
        let key = subject.key(&format!("race/{round}/object"));
        let creators = (0_u8..8).map(|who| {
            subject
                .next
                .put(&key, body(&[who; 5000]), Condition::IfAbsent)
        });
        let results = together(creators).await;
        let winners: Vec<usize> = (0..8).filter(|who| results[*who].is_ok()).collect();
        ensure!(winners.len() == 1, "round {round}: winners {winners:?}");
        for result in results {
            if result.is_err() {
                fails(result, Kind::Exists, "a creator who came late")?;
            }
        }
        subject.holds(&key, &[winners[0] as u8; 5000]).await?;
    }
    Ok(())
}

pub(super) async fn if_match(subject: &mut Subject<'_>) -> Checked {
    let key = subject.key("matched");
    let put = |text: &str, etag: &str| {
        let condition = Condition::IfMatch(etag.into());
        subject.next.put(&key, body(text.as_bytes()), condition)
    };
    fails(
        put("none", "x").await,
        Kind::Precondition,
        "a match of what is not there",
    )?;
    let missing = subject.next.head(&key, GetFlags::NONE).await;
    fails(missing, Kind::NotFound, "head after a put that was refused")?;
    let first = subject.put(&key, b"first").await?.etag;
    ensure!(
        !first.is_empty(),
        "IF_MATCH is offered, but put gives no ETag"
    );
    let second = put("second", &first)
        .await
        .doing("a match of put's ETag")?
        .etag;
    ensure!(first != second, "both puts have the ETag {first}");
    fails(
        put("stale", &first).await,
        Kind::Precondition,
        "a stale match",
    )?;
    fails(
        put("bogus", "bogus").await,
        Kind::Precondition,
        "a bogus match",
    )?;
    subject.holds(&key, b"second").await?;
    let head = subject
        .next
        .head(&key, GetFlags::FRESH)
        .await
        .doing("head")?;
    put("third", &head.etag)
        .await
        .doing("a match of head's ETag")?;
    subject.holds(&key, b"third").await?;
    // The same contents again are still another put.
    fails(
        put("late", &second).await,
        Kind::Precondition,
        "a stale match",
    )?;
    subject
        .next
        .delete(vec![key.clone()])
        .await
        .doing("delete")?;
    fails(
        put("gone", &head.etag).await,
        Kind::Precondition,
        "a match of what was deleted",
    )
}

pub(super) async fn one_updater_wins(subject: &mut Subject<'_>) -> Checked {
    let key = subject.key("contended");
    let mut etag = subject.put(&key, b"start").await?.etag;
    for round in 0..subject.options.race_rounds {
        // Never the same bytes again: where an ETag is a hash of them, it would be the old one.
        let bytes = |who: u8| [round.wrapping_mul(8).wrapping_add(who); 3000];
        let updaters = (0_u8..8).map(|who| {
            let condition = Condition::IfMatch(etag.clone());
            subject.next.put(&key, body(&bytes(who)), condition)
        });
        let results = together(updaters).await;
        let winners: Vec<usize> = (0..8).filter(|who| results[*who].is_ok()).collect();
        ensure!(winners.len() == 1, "round {round}: winners {winners:?}");
        let winner = winners[0];
        for (who, result) in results.into_iter().enumerate() {
            match who == winner {
                true => etag = result.doing("the winner's put")?.etag,
                false => fails(result, Kind::Precondition, "an updater who came late")?,
            }
        }
        subject.holds(&key, &bytes(winner as u8)).await?;
    }
    Ok(())
}
