//! The task that makes the records, one after the other: nobody else appends.

use std::collections::VecDeque;
use std::sync::Arc;

use nbd_rs_plugin::{Body, Bytes};

use super::super::format::changes::{Changes, Part};
use super::super::format::names::Object;
use super::super::log::{Kind, Position};
use super::super::state::{pack_table, PageSnapshot, Piece};
use super::batch::Batch;
use super::record::{Record, PACK_TRIES};
use super::replicas::Replicas;
use super::shared::{Checkpoint, Counts, Inner};
use crate::error::Result;

/// What is to be done next.
enum Step {
    Batch(Arc<Batch>, u64),
    Checkpoint,
    Nothing,
}

/// Until the owner has ended.
pub(super) async fn run(inner: Arc<Inner>) {
    while inner.going_on().is_ok() {
        let step = inner.step();
        let done = match step {
            Step::Batch(batch, number) => inner.commit(&batch, number).await,
            Step::Checkpoint => inner.checkpoint().await,
            Step::Nothing => {
                inner.commit.notified().await;
                Ok(())
            }
        };
        if let Err(error) = done {
            inner.end(error);
        }
    }
}

impl Inner {
    fn step(&self) -> Step {
        let mut core = self.core();
        if matches!(core.checkpoint, Checkpoint::Wanted) {
            return Step::Checkpoint;
        }
        if core.wanted < core.opened || core.open.is_empty() {
            return Step::Nothing;
        }
        let batch = Arc::new(std::mem::take(&mut core.open));
        let number = core.opened;
        core.opened += 1;
        core.flight = Some(batch.clone());
        drop(core);
        // The open batch has room.
        self.changed.tell();
        Step::Batch(batch, number)
    }

    /// Makes a batch durable.
    ///
    /// # Errors
    /// The end of this owner.
    async fn commit(&self, batch: &Batch, number: u64) -> Result<()> {
        let record = self.record_of(batch).await?;
        let position = self.append(Kind::Data, &record).await?;
        {
            let mut core = self.core();
            core.state.apply(position, &record.changes)?;
            core.flight = None;
            core.done = number;
            core.trouble = None;
        }
        self.changed.tell();
        self.upkeep.notify_one();
        Ok(())
    }

    /// Appends a record and waits until it is acknowledged, however long that takes: nobody can
    /// withdraw it.
    async fn append(&self, kind: Kind, record: &Record) -> Result<Position> {
        self.log.append(kind, record.body(self)?).await
    }

    /// Makes a checkpoint: the log stands still meanwhile.
    ///
    /// # Errors
    /// The end of this owner. What else goes wrong is told to whoever wants it.
    async fn checkpoint(&self) -> Result<()> {
        let ended = match self.root().await {
            Err(error) => Err(error),
            Ok(changes) => {
                let units = Vec::new();
                let record = Record { changes, units };
                let position = self.append(Kind::Checkpoint, &record).await?;
                self.core().state.apply(position, &record.changes)?;
                Counts::add(&self.counts.checkpoints, 1);
                Ok(position)
            }
        };
        self.going_on()?;
        self.core().checkpoint = Checkpoint::Ended(ended);
        self.changed.tell();
        Ok(())
    }

    /// What a checkpoint's record says, when all that it names is on the backends. The checkpoint's
    /// own object is put by whoever gets the record.
    async fn root(&self) -> Result<Changes> {
        while self.pack().await? {}
        self.pages().await?;
        let (bytes, named) = {
            let version = self.version();
            self.core().state.root(self.volume, version)?
        };
        self.copies.offer(named, Bytes::from(bytes));
        let parts = vec![Part::Root(named)];
        Ok(Changes { parts })
    }

    /// Moves units into a pack that a checkpoint needs there; whether there were any.
    ///
    /// Units that are whole on no backend go into a pack that was never put: they are as unreadable
    /// there as they were, and keep nothing else from being done.
    pub(super) async fn pack(&self) -> Result<bool> {
        let pieces = self.core().state.unpacked(0);
        if pieces.is_empty() {
            return Ok(false);
        }
        let (whole, units, lost) = self.sorted(pieces).await?;
        if !whole.is_empty() {
            let table = pack_table(&whole);
            let pack = self.put_pack(&table, &units, PACK_TRIES).await?;
            self.core().state.packed(&whole, pack);
            Counts::add(&self.counts.packs, 1);
        }
        if !lost.is_empty() {
            let nowhere = self.version();
            self.core().state.packed(&lost, nowhere);
            Counts::add(&self.counts.lost_units, lost.len() as u64);
        }
        Ok(true)
    }

    /// Pieces that can be read, with their units, and single units that can't be read any more.
    ///
    /// # Errors
    /// That of a backend. While one is away nothing is lost: it may have what the others lack.
    async fn sorted(&self, pieces: Vec<Piece>) -> Result<(Vec<Piece>, Vec<Bytes>, Vec<Piece>)> {
        let (mut whole, mut units, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let mut left: VecDeque<Piece> = pieces.into();
        while let Some(piece) = left.pop_front() {
            match self.fetch(&piece).await {
                // What is in records and packs has bytes.
                Ok(bytes) => {
                    units.extend(bytes);
                    whole.push(piece);
                }
                Err(error) if !Replicas::is_lost(&error) => return Err(error),
                Err(error) if self.log.status().is_degraded() => return Err(error),
                Err(_) if piece.units.end - piece.units.start > 1 => {
                    piece
                        .singles()
                        .rev()
                        .for_each(|single| left.push_front(single));
                }
                Err(error) => {
                    let unit = piece.units.start;
                    tracing::error!("unit {unit} of the volume is whole on no backend: {error}");
                    lost.push(piece);
                }
            }
        }
        Ok((whole, units, lost))
    }

    /// Puts the map pages that changed.
    pub(super) async fn pages(&self) -> Result<()> {
        let numbers = self.core().state.unstored_pages();
        for number in numbers {
            let snapshot = self.core().state.page(number);
            self.put_page(&snapshot).await?;
        }
        Ok(())
    }

    async fn put_page(&self, snapshot: &PageSnapshot) -> Result<()> {
        let (page, version) = (snapshot.number, self.version());
        let (bytes, named) = snapshot.page.encode(self.volume, page, version);
        let object = Object::Map { page, version };
        let put = self.replicas.put(object, Body::One(Bytes::from(bytes)));
        let put = put.await;
        let mut core = self.core();
        match put {
            Ok(()) => core.state.page_stored(snapshot, named),
            Err(_) => core.state.give_up(object),
        }
        put
    }
}
