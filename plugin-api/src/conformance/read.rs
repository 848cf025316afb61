//! Reading objects by name.

use super::check::{bytes_of, ensure, fails, same, Checked, Doing};
use super::Subject;
use crate::{GetFlags, Kind, Range};

pub(super) async fn what_was_put_is_read(subject: &mut Subject<'_>) -> Checked {
    let mut noise = subject.noise(1);
    for len in [0, 1, 511, 4096, 4097, 100_000, (1 << 20) + 1, 5 << 20] {
        let key = subject.key(&format!("{len}"));
        let bytes = noise.bytes(len);
        subject.put(&key, &bytes).await?;
        // Twice: a second one may be answered by a copy.
        subject.holds(&key, &bytes).await?;
        subject.holds(&key, &bytes).await?;
        let head = subject.next.head(&key, GetFlags::NONE).await;
        let head = head.doing(format_args!("head {key:?}"))?;
        ensure!(
            head.size == len as u64,
            "head: {} bytes instead of {len}",
            head.size
        );
        ensure!(
            head.key == key,
            "head: the name is {:?} instead of {key:?}",
            head.key
        );
    }
    Ok(())
}

pub(super) async fn ranges(subject: &mut Subject<'_>) -> Checked {
    const SIZE: u64 = 10_000;
    let bytes = subject.noise(2).bytes(SIZE as usize);
    let key = subject.key("ten");
    subject.put(&key, &bytes).await?;
    let get = |range| subject.next.get(&key, range, GetFlags::NONE);
    for (offset, len) in [
        (0, 1),
        (0, SIZE),
        (1, 4096),
        (4095, 2),
        (SIZE - 1, 1),
        (SIZE, 0),
        (5, 0),
        (0, Range::TO_END),
        (SIZE - 7, Range::TO_END),
        (SIZE, Range::TO_END),
    ] {
        let range = Range::new(offset, len);
        let got = get(range).await.doing(format_args!("{range:?}"))?;
        let expected = match len {
            Range::TO_END => &bytes[offset as usize..],
            len => &bytes[offset as usize..(offset + len) as usize],
        };
        same(&bytes_of(&got.data)?, expected, format_args!("{range:?}"))?;
    }
    for (offset, len) in [
        (0, SIZE + 1),
        (SIZE - 1, 2),
        (SIZE, 1),
        (SIZE + 1, 0),
        (SIZE + 1, Range::TO_END),
        (u64::MAX - 1, 10),
        (1, u64::MAX - 1),
    ] {
        let range = Range::new(offset, len);
        fails(
            get(range).await,
            Kind::Invalid,
            format_args!("{range:?} of {SIZE}"),
        )?;
    }
    let empty = subject.key("empty");
    subject.put(&empty, b"").await?;
    let got = subject.next.get(&empty, Range::new(0, 0), GetFlags::NONE);
    let got = got.await.doing("nothing of an empty object")?;
    ensure!(
        got.data.is_empty(),
        "an empty object has {} bytes",
        got.data.len()
    );
    Ok(())
}

pub(super) async fn missing_objects(subject: &mut Subject<'_>) -> Checked {
    for name in ["missing", "deep/er/missing"] {
        let key = subject.key(name);
        for flags in [GetFlags::NONE, GetFlags::WANT_META, GetFlags::FRESH] {
            let got = subject.next.get(&key, Range::ALL, flags).await;
            fails(got, Kind::NotFound, format_args!("get {key:?}"))?;
            let got = subject.next.get(&key, Range::new(0, 1), flags).await;
            fails(got, Kind::NotFound, format_args!("get a byte of {key:?}"))?;
        }
        let head = subject.next.head(&key, GetFlags::NONE).await;
        fails(head, Kind::NotFound, format_args!("head {key:?}"))?;
    }
    Ok(())
}

pub(super) async fn meta_goes_with_the_data(subject: &mut Subject<'_>) -> Checked {
    let bytes = subject.noise(3).bytes(5000);
    let key = subject.key("meta");
    let put = subject.put(&key, &bytes).await?;
    let head = subject
        .next
        .head(&key, GetFlags::NONE)
        .await
        .doing("head")?;
    for range in [Range::ALL, Range::new(4999, 1), Range::new(0, 0)] {
        let got = subject.next.get(&key, range, GetFlags::WANT_META).await;
        let got = got.doing("get with meta")?;
        let meta = got.meta.into_option().ok_or("no meta was given")?;
        ensure!(meta.size == 5000, "size {} instead of 5000", meta.size);
        ensure!(meta.key == key, "name {:?} instead of {key:?}", meta.key);
        ensure!(
            meta.etag == put.etag,
            "ETag {} of get, {} of put",
            meta.etag,
            put.etag
        );
        ensure!(
            meta.etag == head.etag,
            "ETag {} of get, {} of head",
            meta.etag,
            head.etag
        );
    }
    let page = subject
        .next
        .list(&subject.prefix, None)
        .await
        .doing("list")?;
    let listed = page.items.first().ok_or("it is not listed")?;
    ensure!(listed.size == 5000, "listed with {} bytes", listed.size);
    let known = listed.etag.is_empty() || listed.etag == put.etag;
    ensure!(known, "ETag {} of list, {} of put", listed.etag, put.etag);
    Ok(())
}

pub(super) async fn etags_change(subject: &mut Subject<'_>) -> Checked {
    let key = subject.key("etag");
    let mut seen = std::collections::HashSet::new();
    for round in 0_u8..30 {
        let etag = subject.put(&key, &[round; 64]).await?.etag;
        ensure!(
            etag.is_empty() || seen.insert(etag.clone()),
            "put {round} has the ETag {etag} of an earlier one"
        );
    }
    Ok(())
}

pub(super) async fn overwrites_are_seen_at_once(subject: &mut Subject<'_>) -> Checked {
    let key = subject.key("overwritten");
    let mut noise = subject.noise(4);
    for _ in 0..20 {
        let len = noise.below(20_000) as usize;
        let bytes = noise.bytes(len);
        subject.put(&key, &bytes).await?;
        subject.holds(&key, &bytes).await?;
        let head = subject
            .next
            .head(&key, GetFlags::NONE)
            .await
            .doing("head")?;
        ensure!(
            head.size == len as u64,
            "head says {} bytes of {len}",
            head.size
        );
    }
    let deleted = subject.next.delete(vec![key.clone()]).await;
    deleted.doing("delete")?;
    let got = subject.next.get(&key, Range::ALL, GetFlags::NONE).await;
    fails(got, Kind::NotFound, "get after delete")?;
    subject.put(&key, b"back").await?;
    subject.holds(&key, b"back").await
}

pub(super) async fn fresh_is_obeyed(subject: &mut Subject<'_>) -> Checked {
    let key = subject.key("fresh");
    for round in 0_u8..5 {
        subject.put(&key, &[round; 1000]).await?;
        let got = subject.next.get(&key, Range::ALL, GetFlags::FRESH).await;
        let got = got.doing("get, FRESH")?;
        same(&bytes_of(&got.data)?, &[round; 1000], "get, FRESH")?;
        let head = subject.next.head(&key, GetFlags::FRESH).await;
        ensure!(
            head.doing("head, FRESH")?.size == 1000,
            "head, FRESH: another size"
        );
    }
    Ok(())
}
