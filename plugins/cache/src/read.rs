//! A read: from memory, by joining a fetch, or by starting one.

use std::ops::Range as Span;
use std::sync::{Arc, MutexGuard, PoisonError};

use nbd_rs_plugin::abi_stable::std_types::ROption;
use nbd_rs_plugin::{Bytes, Data, GetFlags, Got, Kind, Meta, Piece, Range, Result};

use crate::fetch::Part;
use crate::index::{Object, Version};
use crate::memory::BlockKey;
use crate::pattern::Pattern;
use crate::shared::{answer, check, joined, Brought, Copies, Counters, Shared};

/// An object that keeps changing is read past the cache after so many attempts.
const ROUNDS: usize = 4;

/// What is known of one who waits for missing blocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader {
    /// It passes by: what it reads does not become more worth keeping.
    pub(crate) passes: bool,
    /// It goes through the object in order.
    pub(crate) streams: bool,
    /// How often the object was missed so far, this time included.
    pub(crate) misses: u32,
    /// This time was counted just now, and not on an earlier attempt of the same read.
    pub(crate) counted: bool,
}

impl Shared {
    /// Answers from memory, or not at all.
    pub(crate) fn hit(self: &Arc<Self>, key: &str, range: Range, flags: GetFlags) -> Option<Got> {
        let object = self.index.lookup(key)?;
        let version = object.version.get()?;
        let bytes = span(range, version)?;
        // Nobody waits here: a read that meets another one is not noted.
        let mut pattern = object.pattern.try_lock().ok();
        let passes = pattern.as_ref().is_some_and(|known| known.passes(&bytes));
        let blocks = self.grid.blocks(&bytes);
        let data = match blocks.end - blocks.start {
            1 => {
                let held = self.held(&object, blocks.start, passes)?;
                Data::One(self.part(held, blocks.start, &bytes))
            }
            _ => {
                let part =
                    |block| Some(self.part(self.held(&object, block, passes)?, block, &bytes));
                joined(blocks.map(part).collect::<Option<_>>()?)
            }
        };
        let window = self.config.window(version.size);
        let ahead = pattern.as_mut();
        let ahead = ahead.and_then(|known| known.note(&bytes, window));
        drop(pattern);
        Counters::add(&self.counters.hits);
        if let Some(ahead) = ahead {
            self.read_ahead(key, &object, version, ahead);
        }
        let meta = wanted(flags, version, key).into();
        Some(Got { data, meta })
    }

    /// Answers as [`Backend::get`](nbd_rs_plugin::Backend::get) does.
    pub(crate) async fn read(
        self: &Arc<Self>,
        key: &str,
        range: Range,
        flags: GetFlags,
    ) -> Result<Got> {
        if let Some(got) = self.hit(key, range, flags) {
            return Ok(got);
        }
        if self.versionless() {
            return self.inner.get(key, range, flags).await;
        }
        Counters::add(&self.counters.misses);
        for round in 0..ROUNDS {
            let Some(object) = self.index.current(key) else {
                break;
            };
            let counted = round == 0;
            let misses = object.missed(counted);
            if counted && misses == 2 {
                self.came_again(&object);
            }
            let got = match object.version.get() {
                None => self.open(key, &object, range, flags).await?,
                Some(version) => match span(range, version) {
                    Some(bytes) if bytes.end - bytes.start <= self.config.largest_fill() => {
                        let reader = Reader {
                            passes: object.pattern().passes(&bytes),
                            streams: false,
                            misses,
                            counted,
                        };
                        self.gather(key, &object, version, bytes, flags, reader)
                            .await?
                    }
                    _ => break,
                },
            };
            if let Some(got) = got {
                return Ok(got);
            }
            if self.versionless() {
                break;
            }
        }
        self.ask(key, range, flags).await
    }

    /// Asks the backend, whatever is held; what it answers is kept.
    pub(crate) async fn ask(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        Counters::add(&self.counters.passed);
        let Some(object) = self.index.current(key) else {
            return self.inner.get(key, range, flags).await;
        };
        let began = self.index.tick();
        let got = self.inner.get(key, range, flags | GetFlags::WANT_META);
        let mut got = self.noticed(key, &object, got.await)?;
        if let Some(version) = self.version_of(&got.meta) {
            check(range, &version, &got.data)?;
            let brought = Brought {
                began,
                start: range.offset,
                data: got.data.clone(),
            };
            self.keep(key, &object, version, brought, Copies::Renew);
        }
        if !flags.has(GetFlags::WANT_META) {
            got.meta = ROption::RNone;
        }
        Ok(got)
    }

    /// The first read of an object: what comes tells its version too.
    async fn open(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        range: Range,
        flags: GetFlags,
    ) -> Result<Option<Got>> {
        let (flight, is_ours) = self.join_opening(key, object, range);
        let fetched = match flight.wait().await {
            // What lies outside of the object is another reader's range.
            Err(error) if error.kind == Kind::Invalid && !is_ours => return Ok(None),
            fetched => fetched?,
        };
        let Some(version) = &fetched.version else {
            return Ok(None);
        };
        let bytes = match span(range, version) {
            Some(bytes) if bytes.start >= fetched.start && bytes.end <= fetched.end() => bytes,
            _ => return Ok(None),
        };
        let mut pieces = Vec::new();
        fetched.append(&bytes, &mut pieces);
        Ok(Some(answer(pieces, wanted(flags, version, key))))
    }

    /// Puts an answer together from blocks. Nothing if the object is not of that version any more,
    /// or if more was being fetched than this reader wants, and that failed.
    async fn gather(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        bytes: Span<u64>,
        flags: GetFlags,
        mut reader: Reader,
    ) -> Result<Option<Got>> {
        let window = self.config.window(version.size);
        let ahead = match reader.counted {
            true => object.pattern().note(&bytes, window),
            false => None,
        };
        reader.streams = window.most > 0 && object.pattern().is_stream();
        let blocks = self.grid.blocks(&bytes);
        let reach = match self.ranged || version.size > self.config.largest_fill() {
            true => blocks.clone(),
            // The backend fetches it all anyway.
            false => self.grid.blocks(&(0..version.size)),
        };
        let parts = self.parts(key, object, version, reach, reader);
        let mut pieces = Vec::with_capacity(parts.len());
        let wanted_parts = parts
            .into_iter()
            .filter(|(block, _)| blocks.contains(block));
        for (block, part) in wanted_parts {
            match part {
                Part::Here(held) => pieces.push(self.part(held, block, &bytes)),
                Part::Coming(flight) => {
                    let is_wide = flight.is_wide();
                    let fetched = match flight.wait().await {
                        // The object became shorter: the caller's own range may still be inside.
                        Err(error) if error.kind == Kind::Invalid => return Ok(None),
                        // What failed was more than this reader asks for.
                        Err(error) if is_wide && error.kind != Kind::NotFound => return Ok(None),
                        fetched => fetched?,
                    };
                    let all = self.grid.bytes(&(block..block + 1), version.size);
                    let wanted = all.start.max(bytes.start)..all.end.min(bytes.end);
                    let other = fetched.version.as_ref() != Some(version);
                    if other || wanted.start < fetched.start || wanted.end > fetched.end() {
                        return Ok(None);
                    }
                    fetched.append(&wanted, &mut pieces);
                }
            }
        }
        // Not earlier: what comes too early is pushed out before it is read.
        if let Some(ahead) = ahead {
            self.read_ahead(key, object, version, ahead);
        }
        Ok(Some(answer(pieces, wanted(flags, version, key))))
    }

    pub(crate) fn held(&self, object: &Object, block: u64, passes: bool) -> Option<Bytes> {
        let key = BlockKey {
            object: object.id,
            block,
        };
        match passes {
            true => self.memory.pass(key),
            false => self.memory.get(key),
        }
    }

    /// What `bytes` wants of a held block: lent, not copied.
    fn part(&self, held: Bytes, block: u64, bytes: &Span<u64>) -> Piece {
        let start = block * self.grid.block_bytes();
        let from = bytes.start.saturating_sub(start) as usize;
        let to = (bytes.end - start).min(held.len() as u64) as usize;
        Piece::Bytes(held.slice(from..to))
    }
}

impl Object {
    fn pattern(&self) -> MutexGuard<'_, Pattern> {
        self.pattern.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that `range` means in that version, if they are inside.
fn span(range: Range, version: &Version) -> Option<Span<u64>> {
    let inside = range.within(version.size).ok()?;
    Some(inside.start as u64..inside.end as u64)
}

fn wanted(flags: GetFlags, version: &Version, key: &str) -> Option<Meta> {
    flags.has(GetFlags::WANT_META).then(|| version.meta(key))
}
