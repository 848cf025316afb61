//! What holds for every call: nothing starts before the first poll, reads may be dropped, many run
//! at once.

use super::check::{
    body, bytes_of, dropped_at_every_await, ensure, fails, same, together, Checked, Doing,
};
use super::Subject;
use crate::{Condition, GetFlags, Kind, Range, Started};

pub(super) async fn flush(subject: &mut Subject<'_>) -> Checked {
    subject.next.flush().await.doing("flush of nothing")?;
    let key = subject.key("flushed");
    subject.put(&key, b"kept").await?;
    subject.next.flush().await.doing("flush")?;
    subject.holds(&key, b"kept").await
}

pub(super) async fn not_polled(subject: &mut Subject<'_>) -> Checked {
    let (kept, never) = (subject.key("kept"), subject.key("never"));
    subject.put(&kept, b"kept").await?;
    let raw = subject.next.clone().into_raw();
    for condition in [Condition::Always, Condition::IfAbsent] {
        if subject.capabilities.has(crate::CapabilityFlags::IF_ABSENT)
            || condition == Condition::Always
        {
            drop(raw.put(never.as_str().into(), body(b"never"), condition));
        }
    }
    // An answer that is there at once was carried out; only a future was not.
    let deleted = raw.delete(vec![kept.as_str().into()].into());
    let pending = matches!(deleted, Started::Pending(_));
    drop(deleted);
    drop(raw.put(kept.as_str().into(), body(b"new"), Condition::Always));
    let head = subject.next.head(&never, GetFlags::NONE).await;
    fails(head, Kind::NotFound, "a put that was not polled")?;
    match pending {
        true => subject.holds(&kept, b"kept").await,
        false => Ok(()),
    }
}

pub(super) async fn dropped_reads(subject: &mut Subject<'_>) -> Checked {
    let bytes = subject.noise(20).bytes(3 << 20);
    let key = subject.key("dropped");
    subject.put(&key, &bytes).await?;
    let raw = subject.next.clone().into_raw();
    let (prefix, key) = (subject.prefix.as_str(), key.as_str());
    for flags in [GetFlags::NONE, GetFlags::FRESH, GetFlags::WANT_META] {
        dropped_at_every_await(|| raw.get(key.into(), Range::ALL, flags)).await?;
        dropped_at_every_await(|| raw.head(key.into(), flags)).await?;
        subject.holds(key, &bytes).await?;
    }
    dropped_at_every_await(|| raw.list(prefix.into(), None.into())).await?;
    subject.holds(key, &bytes).await
}

pub(super) async fn capabilities(subject: &mut Subject<'_>) -> Checked {
    let said = subject.capabilities;
    ensure!(
        subject.next.capabilities() == said,
        "first {said:?}, then {:?}",
        subject.next.capabilities()
    );
    let powers = [said.min_io_bytes, said.atomic_unit_bytes];
    ensure!(
        powers
            .iter()
            .all(|size| *size == 0 || size.is_power_of_two()),
        "no powers of two: {said:?}"
    );
    ensure!(
        said.preferred_io_bytes == 0 || said.preferred_io_bytes >= said.min_io_bytes,
        "less is preferred than may be: {said:?}"
    );
    Ok(())
}

pub(super) async fn at_once(subject: &mut Subject<'_>) -> Checked {
    let work = |n: u64| {
        let subject = &*subject;
        async move {
            let mut noise = subject.noise(100 + n);
            let key = subject.key(&format!("{}/{n}", n % 5));
            for _ in 0..4 {
                let len = noise.below(50_000) as usize;
                let bytes = noise.bytes(len);
                subject.put(&key, &bytes).await?;
                subject.holds(&key, &bytes).await?;
                let offset = noise.below(len as u64 + 1);
                let range = Range::new(offset, Range::TO_END);
                let got = subject.next.get(&key, range, GetFlags::NONE).await;
                let got = bytes_of(&got.doing(format_args!("{range:?}"))?.data)?;
                same(&got, &bytes[offset as usize..], format_args!("{range:?}"))?;
            }
            Ok(())
        }
    };
    together((0..32).map(work)).await.into_iter().collect()
}
