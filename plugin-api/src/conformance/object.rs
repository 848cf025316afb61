//! Objects that are read and written in place.

use super::check::{
    body, bytes_of, dropped_at_every_await, ensure, fails, same, together, Checked, Doing, Noise,
};
use super::Subject;
use crate::{
    Body, Bytes, CapabilityFlags, ExtentFlags, Kind, NextObject, ObjectFlags, ObjectMode,
    ReadFlags, Started, WriteFlags, ZeroFlags,
};

const NEW: ObjectFlags = ObjectFlags::WRITE
    .with(ObjectFlags::CREATE)
    .with(ObjectFlags::TRUNCATE);
/// The largest object of the script, in bytes.
const SCRIPT_BYTES: u64 = 1 << 20;

impl Subject<'_> {
    async fn open(&self, flags: ObjectFlags, size: u64) -> std::result::Result<NextObject, String> {
        let mode = ObjectMode::create(flags, size);
        let opened = self.next.open_object(&self.object_key(), mode).await;
        opened.doing(format_args!("open with {flags:?}"))
    }
}

async fn contents(object: &NextObject) -> std::result::Result<Vec<u8>, String> {
    let size = object.size().await.doing("size")?;
    if size == 0 {
        return Ok(Vec::new());
    }
    let data = object.read(0, size, ReadFlags::NONE).await;
    bytes_of(&data.doing("read all")?)
}

pub(super) async fn missing(subject: &mut Subject<'_>) -> Checked {
    for flags in [ObjectFlags::NONE, ObjectFlags::WRITE] {
        if flags.has(ObjectFlags::WRITE) && !subject.capabilities.has(CapabilityFlags::WRITABLE) {
            continue;
        }
        let key = subject.key("none");
        let opened = subject.next.open_object(&key, ObjectMode::new(flags));
        fails(
            opened.await,
            Kind::NotFound,
            format_args!("open with {flags:?}"),
        )?;
    }
    Ok(())
}

pub(super) async fn modes(subject: &mut Subject<'_>) -> Checked {
    let object = subject.open(NEW, 5000).await?;
    let size = object.size().await.doing("size")?;
    ensure!(size == 5000, "made with {size} bytes instead of 5000");
    same(&contents(&object).await?, &[0; 5000], "a new object")?;
    let written = object.write(100, body(b"text"), WriteFlags::NONE).await;
    written.doing("write")?;
    object.sync().await.doing("sync")?;
    object.close().await.doing("close")?;
    drop(object);

    let object = subject
        .open(ObjectFlags::WRITE | ObjectFlags::CREATE, 77)
        .await?;
    let size = object.size().await.doing("size")?;
    ensure!(
        size == 5000,
        "CREATE changed what was there to {size} bytes"
    );
    same(&contents(&object).await?[100..104], b"text", "after CREATE")?;
    drop(object);
    let flags = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::CREATE_NEW;
    let mode = ObjectMode::create(flags, 5000);
    let again = subject.next.open_object(&subject.object_key(), mode).await;
    fails(again, Kind::Exists, "CREATE_NEW of what is there")?;
    let object = subject
        .open(ObjectFlags::WRITE | ObjectFlags::TRUNCATE, 300)
        .await?;
    same(&contents(&object).await?, &[0; 300], "after TRUNCATE")
}

pub(super) async fn locks(subject: &mut Subject<'_>) -> Checked {
    let locked = NEW | ObjectFlags::LOCK;
    let object = subject.open(locked, 512).await?;
    let mode = ObjectMode::new(ObjectFlags::WRITE | ObjectFlags::LOCK);
    let second = subject.next.open_object(&subject.object_key(), mode).await;
    fails(second, Kind::Busy, "a second LOCK")?;
    object.close().await.doing("close")?;
    subject.open(locked, 512).await.map(drop)
}

pub(super) async fn read_only(subject: &mut Subject<'_>) -> Checked {
    let object = subject.open(NEW, 4096).await?;
    let written = object.write(0, body(&[7; 4096]), WriteFlags::NONE).await;
    written.doing("write")?;
    let reader = subject.open(ObjectFlags::NONE, 0).await?;
    let flags = reader.capabilities().flags;
    ensure!(
        !flags.has(CapabilityFlags::WRITABLE),
        "opened to read, it says {flags:?}"
    );
    let refused = [
        reader.write(0, body(b"x"), WriteFlags::NONE).await.is_err(),
        reader.zero(0, 512, ZeroFlags::NONE).await.is_err(),
        reader.resize(1).await.is_err(),
    ];
    ensure!(
        refused == [true; 3],
        "write, zero, resize were refused: {refused:?}"
    );
    same(&contents(&reader).await?, &[7; 4096], "afterwards")
}

/// A random script on the object and on plain memory.
pub(super) async fn script(subject: &mut Subject<'_>) -> Checked {
    let mut noise = subject.noise(30);
    let mut object = subject.open(NEW, SCRIPT_BYTES).await?;
    let mut model = vec![0_u8; SCRIPT_BYTES as usize];
    for step in 0..subject.options.script_steps {
        let done = one_step(&mut noise, &object, &mut model).await;
        done.map_err(|why| format!("step {step}: {why}"))?;
        if noise.below(50) == 0 {
            object.close().await.doing("close")?;
            object = subject.open(ObjectFlags::WRITE, 0).await?;
        }
    }
    same(&contents(&object).await?, &model, "at the end")?;
    object.sync().await.doing("sync")?;
    drop(object);
    let object = subject.open(ObjectFlags::NONE, 0).await?;
    same(&contents(&object).await?, &model, "opened again")
}

async fn one_step(noise: &mut Noise, object: &NextObject, model: &mut Vec<u8>) -> Checked {
    let size = model.len() as u64;
    let offset = noise.below(size);
    let most = match noise.below(3) {
        0 => 600,
        1 => 70_000,
        _ => size,
    };
    let len = 1 + noise.below((size - offset).min(most));
    let range = offset as usize..(offset + len) as usize;
    match noise.below(12) {
        0..=3 => {
            let bytes = noise.bytes(len as usize);
            let flags = [WriteFlags::NONE, WriteFlags::FUA][noise.below(2) as usize];
            let written = object.write(offset, split(noise, &bytes), flags).await;
            written.doing(format_args!("write {range:?} {flags:?}"))?;
            model[range].copy_from_slice(&bytes);
        }
        4..=6 => {
            let flags = [ReadFlags::NONE, ReadFlags::LEND_HOLES][noise.below(2) as usize];
            let data = object.read(offset, len, flags).await;
            let data = data.doing(format_args!("read {range:?}"))?;
            same(
                &bytes_of(&data)?,
                &model[range.clone()],
                format_args!("read {range:?}"),
            )?;
        }
        7..=8 => zero(noise, object, model, offset, len).await?,
        9 => extents(noise, object, model, offset, len).await?,
        10 => {
            let new = 1 + noise.below(SCRIPT_BYTES);
            match object.resize(new).await {
                Err(error) if error.kind == Kind::Unsupported => return Ok(()),
                resized => resized.doing(format_args!("resize to {new}"))?,
            }
            model.resize(new as usize, 0);
            let now = object.size().await.doing("size")?;
            ensure!(now == new, "resized to {new}, it has {now} bytes");
        }
        _ => {
            object.sync().await.doing("sync")?;
            object.prefetch(offset, len).await.doing("prefetch")?;
        }
    }
    Ok(())
}

/// A body of one to five pieces.
fn split(noise: &mut Noise, bytes: &[u8]) -> Body {
    let mut pieces = Vec::new();
    let mut left = bytes;
    for _ in 0..noise.below(5) {
        let (piece, rest) = left.split_at(noise.below(left.len() as u64 + 1) as usize);
        pieces.push(Bytes::from(piece.to_vec()));
        left = rest;
    }
    pieces.push(Bytes::from(left.to_vec()));
    Body::Many(pieces.into())
}

async fn zero(
    noise: &mut Noise,
    object: &NextObject,
    model: &mut [u8],
    offset: u64,
    len: u64,
) -> Checked {
    let choices = [
        ZeroFlags::NONE,
        ZeroFlags::TRIM,
        ZeroFlags::FUA,
        ZeroFlags::NO_HOLE,
        ZeroFlags::FAST,
        ZeroFlags::FAST | ZeroFlags::NO_HOLE,
    ];
    let flags = choices[noise.below(choices.len() as u64) as usize];
    let offers = |flags| object.capabilities().has(flags);
    if flags.has(ZeroFlags::NO_HOLE) && !offers(CapabilityFlags::ALLOCATE) {
        return Ok(());
    }
    let range = offset as usize..(offset + len) as usize;
    match object.zero(offset, len, flags).await {
        // With nothing changed: the script goes on to compare.
        Err(error) if flags.has(ZeroFlags::FAST) && error.kind == Kind::Unsupported => {}
        done => {
            done.doing(format_args!("zero {range:?} {flags:?}"))?;
            model[range.clone()].fill(0);
        }
    }
    let data = object.read(offset, len, ReadFlags::NONE).await;
    let data = bytes_of(&data.doing("read")?)?;
    same(
        &data,
        &model[range.clone()],
        format_args!("after zero {range:?} {flags:?}"),
    )
}

async fn extents(
    noise: &mut Noise,
    object: &NextObject,
    model: &[u8],
    offset: u64,
    len: u64,
) -> Checked {
    let limit = 1 + noise.below(8) as u32;
    let extents = object.extents(offset, len, limit).await.doing("extents")?;
    ensure!(!extents.is_empty(), "no extent for {len} bytes at {offset}");
    ensure!(
        extents.len() <= limit as usize,
        "{} extents of {limit}",
        extents.len()
    );
    let mut at = offset;
    for extent in &extents {
        ensure!(extent.len > 0, "an empty extent at {at}");
        let end = at + extent.len;
        ensure!(
            end <= offset + len,
            "an extent up to {end}, behind {offset}+{len}"
        );
        if extent.flags.has(ExtentFlags::ZERO) {
            let zeros = model[at as usize..end as usize]
                .iter()
                .all(|byte| *byte == 0);
            ensure!(zeros, "data in {at}..{end}, which is said to be zeros");
        }
        at = end;
    }
    Ok(())
}

pub(super) async fn writes_at_once(subject: &mut Subject<'_>) -> Checked {
    const PART: usize = 40_000;
    const PARTS: usize = 16;
    let object = subject.open(NEW, (PART * PARTS) as u64).await?;
    let mut expected = Vec::new();
    let mut writes = Vec::new();
    for part in 0..PARTS {
        let bytes = subject.noise(40 + part as u64).bytes(PART);
        expected.extend_from_slice(&bytes);
        let flags = [WriteFlags::NONE, WriteFlags::FUA][part % 2];
        writes.push(object.write((part * PART) as u64, body(&bytes), flags));
    }
    for written in together(writes).await {
        written.doing("write")?;
    }
    let read = |part: usize| object.read((part * PART) as u64, PART as u64, ReadFlags::NONE);
    let parts = together((0..PARTS).map(read)).await;
    for (data, expected) in parts.into_iter().zip(expected.chunks(PART)) {
        same(&bytes_of(&data.doing("read")?)?, expected, "read")?;
    }
    object.sync().await.doing("sync")
}

pub(super) async fn write_not_polled(subject: &mut Subject<'_>) -> Checked {
    let object = subject.open(NEW, 1 << 16).await?;
    let written = object.write(0, body(&[1; 1 << 16]), WriteFlags::FUA).await;
    written.doing("write")?;
    let write = object.start_write(0, body(&[2; 4096]), WriteFlags::FUA);
    let write_pending = matches!(write, Started::Pending(_));
    drop(write);
    let zero = object.start_zero(8192, 4096, ZeroFlags::FUA);
    let zero_pending = matches!(zero, Started::Pending(_));
    drop(zero);
    let seen = contents(&object).await?;
    let first = if write_pending { 1 } else { 2 };
    let second = if zero_pending { 1 } else { 0 };
    same(&seen[..4096], &[first; 4096], "a write that was not polled")?;
    same(
        &seen[8192..12288],
        &[second; 4096],
        "a zeroing that was not polled",
    )
}

pub(super) async fn seen_by_name(subject: &mut Subject<'_>) -> Checked {
    let object = subject.open(NEW, 10_000).await?;
    let written = object
        .write(5000, body(b"in place"), WriteFlags::NONE)
        .await;
    written.doing("write")?;
    object.sync().await.doing("sync")?;
    let mut expected = vec![0; 10_000];
    expected[5000..5008].copy_from_slice(b"in place");
    subject.holds(&subject.object_key(), &expected).await?;
    let page = subject
        .next
        .list(&subject.prefix, None)
        .await
        .doing("list")?;
    ensure!(
        page.items.len() == 1,
        "{} objects are listed",
        page.items.len()
    );
    Ok(())
}

pub(super) async fn dropped_object_reads(subject: &mut Subject<'_>) -> Checked {
    const SIZE: usize = 1 << 20;
    let bytes = subject.noise(50).bytes(SIZE);
    let object = subject.open(NEW, SIZE as u64).await?;
    let written = object.write(0, body(&bytes), WriteFlags::NONE).await;
    written.doing("write")?;
    for flags in [ReadFlags::NONE, ReadFlags::FRESH, ReadFlags::LEND_HOLES] {
        dropped_at_every_await(|| object.start_read(0, SIZE as u64, flags)).await?;
        same(&contents(&object).await?, &bytes, "after dropped reads")?;
    }
    Ok(())
}

pub(super) async fn fast_zero(subject: &mut Subject<'_>) -> Checked {
    const SIZE: usize = 1 << 20;
    let object = subject.open(NEW, SIZE as u64).await?;
    let written = object.write(0, body(&[7; SIZE]), WriteFlags::NONE).await;
    written.doing("write")?;
    if !object.capabilities().has(CapabilityFlags::FAST_ZERO) {
        return Ok(());
    }
    let zeroed = object.zero(1 << 18, 1 << 18, ZeroFlags::FAST).await;
    zeroed.doing("zero, FAST, of 256 KiB")?;
    let mut expected = vec![7; SIZE];
    expected[1 << 18..1 << 19].fill(0);
    same(&contents(&object).await?, &expected, "after zero, FAST")
}

/// For stores that can't be written, too.
pub(super) async fn reads_agree(subject: &mut Subject<'_>) -> Checked {
    const MOST: u64 = 1 << 20;
    let object = subject.open(ObjectFlags::NONE, 0).await?;
    let size = object.size().await.doing("size")?;
    let head = size.min(MOST);
    if head == 0 {
        return Ok(());
    }
    let whole = bytes_of(&object.read(0, head, ReadFlags::NONE).await.doing("read")?)?;
    let mut noise = subject.noise(60);
    for _ in 0..50 {
        let offset = noise.below(head);
        let len = 1 + noise.below(head - offset);
        let flags = [ReadFlags::NONE, ReadFlags::FRESH][noise.below(2) as usize];
        let part = object.read(offset, len, flags).await.doing("read")?;
        let range = offset as usize..(offset + len) as usize;
        same(
            &bytes_of(&part)?,
            &whole[range.clone()],
            format_args!("read {range:?} {flags:?}"),
        )?;
    }
    extents(&mut noise, &object, &whole, 0, head).await?;
    // The last byte is there, however large it is.
    let last = object.read(size - 1, 1, ReadFlags::NONE).await;
    let last = bytes_of(&last.doing("read of the last byte")?)?;
    ensure!(last.len() == 1, "{} bytes for the last one", last.len());
    Ok(())
}
