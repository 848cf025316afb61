//! Ownership of a volume: taken with a conditional put, kept by heartbeats, lost once and for all
//! (contract C17).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{watch, Mutex};

use super::frame::Stamp;
use super::owner::{OwnerRecord, Standing};
use super::process;
use super::store::{read_as, Store, Swapped};
use super::uuid::Uuid;
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// So long without a heartbeat, and another may take over.
    pub lease: Duration,
    /// So long a change waits for a heartbeat that is late.
    pub patience: Duration,
    /// So long a delete whose answer nobody has may be on its way.
    pub late: Duration,
    /// So long a server that was shut out may write into shards in place, which have no condition:
    /// until its lease is over.
    pub shut_out: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(3),
            lease: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            late: Duration::from_secs(10),
            shut_out: Duration::from_secs(10),
        }
    }
}

/// Where the owner record is lost, later owners than the last one seen may have been; so many at
/// the most.
const EPOCHS_UNSEEN: u64 = 1 << 32;

/// The record as it was last put, and its ETag.
#[derive(Debug)]
struct Own {
    record: OwnerRecord,
    etag: String,
}

/// This process's ownership of one volume.
#[derive(Debug)]
pub(in crate::layout) struct Lease {
    store: Store,
    key: String,
    uuid: Uuid,
    timing: Timing,
    /// When it was taken, since the boot.
    taken: Duration,
    epoch: u64,
    /// The last epoch before that did not end in order, 0 if all did: late puts of that owner, and
    /// of those before it, may still arrive.
    pub(super) unclean: u64,
    /// Whether it was taken from somebody who may not know yet.
    pub(super) shuts_out: bool,
    sequence: AtomicU64,
    own: Mutex<Own>,
    /// Until when nobody else may take over, in milliseconds since the boot.
    valid_until_ms: AtomicU64,
    lost: OnceLock<Error>,
    /// Ticks whenever one of the two above changed.
    changed: watch::Sender<()>,
}

impl Lease {
    /// Takes the volume, or says who has it. A takeover does not ask whether the owner lives.
    ///
    /// `seen_epoch` is an epoch that the volume is known to have reached, 0 if nothing says so. It
    /// matters where no record says who the last one was; without it the answer is `None` then.
    ///
    /// # Errors
    /// [`Kind::Busy`] with host, process and epoch of an owner that lives; [`Kind::Corrupt`] if the
    /// record is lost and this is no takeover.
    pub(in crate::layout) async fn take(
        store: &Store,
        key: String,
        uuid: Uuid,
        takeover: bool,
        timing: Timing,
        seen_epoch: Option<u64>,
    ) -> Result<Option<Arc<Self>>> {
        let process = process::this()?;
        loop {
            let found = store.read(key.clone()).await?;
            let last = match &found {
                None => None,
                Some((bytes, _)) => match read_as(&key, OwnerRecord::decode(uuid, bytes)) {
                    Err(error) if error.kind == Kind::Corrupt && takeover => None,
                    Err(error) if error.kind == Kind::Corrupt => return Err(lost_record(&error)),
                    decoded => Some(decoded?),
                },
            };
            let (epoch, unclean) = match (&last, seen_epoch) {
                (Some(last), _) => (last.stamp.epoch.saturating_add(1), last.last_unclean()),
                (None, None) => return Ok(None),
                (None, Some(0)) if found.is_none() => (1, 0),
                (None, Some(_)) if !takeover => return Err(lost_record("it is gone")),
                (None, Some(seen)) => {
                    let epoch = seen.saturating_add(EPOCHS_UNSEEN);
                    (epoch, epoch - 1)
                }
            };
            let condition = match &found {
                None => store.if_absent(),
                Some((_, etag)) => store.if_match(etag),
            };
            if let (Some((_, etag)), Some(last), false) = (&found, &last, takeover) {
                match last.standing(&process, process::life) {
                    Standing::Released | Standing::Dead => {}
                    Standing::Alive => return Err(busy(last)),
                    Standing::Unknown => listen(store, &key, uuid, (etag, last), timing).await?,
                }
            }
            let record = OwnerRecord {
                stamp: Stamp { epoch, sequence: 0 },
                id: Uuid::random()?,
                process: process.clone(),
                released: false,
                unclean,
            };
            let began = process::since_boot();
            match store.swap(&key, record.encode(uuid), condition).await? {
                Swapped::Done(etag) => {
                    let own = Own { record, etag };
                    let shuts_out = match &last {
                        Some(last) => !matches!(
                            last.standing(&process, process::life),
                            Standing::Released | Standing::Dead
                        ),
                        // A record that is lost does not say who it was.
                        None => epoch > 1,
                    };
                    let lease =
                        Self::new(store.clone(), key, uuid, timing, own, takeover && shuts_out);
                    lease.confirmed(began);
                    runtime::handle().spawn(beat(Arc::downgrade(&lease), timing.heartbeat));
                    return Ok(Some(lease));
                }
                // Somebody else was quicker: look again, and most likely find an owner that lives.
                Swapped::Other(_) => {}
            }
        }
    }

    fn new(
        store: Store,
        key: String,
        uuid: Uuid,
        timing: Timing,
        own: Own,
        shuts_out: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            epoch: own.record.stamp.epoch,
            unclean: own.record.unclean,
            shuts_out,
            store,
            key,
            uuid,
            timing,
            taken: process::since_boot(),
            sequence: AtomicU64::new(0),
            own: Mutex::new(own),
            valid_until_ms: AtomicU64::new(0),
            lost: OnceLock::new(),
            changed: watch::Sender::new(()),
        })
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Until when a delete that was sent by now, and whose answer nobody has, may still arrive; in
    /// time since the boot.
    pub(super) fn late_deletes_end(&self) -> Duration {
        process::since_boot() + self.timing.late
    }

    /// The same for deletes of earlier owners: since the volume was taken they sent none.
    pub(super) fn earlier_deletes_end(&self) -> Duration {
        self.taken + self.timing.late
    }

    /// A stamp that no put had before.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.epoch,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// The owner knew at `began` that it was the owner.
    fn confirmed(&self, began: Duration) {
        let until = began + self.timing.lease;
        self.valid_until_ms
            .fetch_max(until.as_millis() as u64, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Whether nobody else can have taken over by the clock.
    pub(super) fn is_valid(&self) -> bool {
        let now = process::since_boot().as_millis() as u64;
        self.lost.get().is_none() && now < self.valid_until_ms.load(Ordering::Acquire)
    }

    /// A newer owner was seen: from now on nothing succeeds.
    pub(super) fn lose(&self, text: impl std::fmt::Display) -> Error {
        let error = Error::new(Kind::Fenced, format!("no longer the owner: {text}"));
        if self.lost.set(error.clone()).is_ok() {
            tracing::error!("{error}");
        }
        self.changed.send_replace(());
        self.lost.get().cloned().unwrap_or(error)
    }

    /// Waits until the volume is lost.
    pub(super) async fn until_lost(&self) -> Error {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(error) = self.lost.get() {
                return error.clone();
            }
            // The sender is `self`, so it is there.
            let _ = changed.changed().await;
        }
    }

    /// Goes on while the lease lasts; waits for a late heartbeat, not for ever.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when another took over; [`Kind::Io`] when the store can't be asked.
    pub(super) async fn held(&self) -> Result<()> {
        if self.is_valid() {
            return Ok(());
        }
        let mut changed = self.changed.subscribe();
        let deadline = process::since_boot() + self.timing.patience;
        while process::since_boot() < deadline {
            if let Some(error) = self.lost.get() {
                return Err(error.clone());
            }
            if self.is_valid() {
                return Ok(());
            }
            let left = deadline.saturating_sub(process::since_boot());
            let _ = runtime::timeout(left, changed.changed()).await;
        }
        Err(Error::new(
            Kind::Io,
            "for too long the store did not confirm that this server owns the volume",
        ))
    }

    /// Asks the store whether this is still the owner. That is no heartbeat: others do not hear it,
    /// so the lease does not last longer for it.
    ///
    /// # Errors
    /// As [`held`](Self::held), or what keeps the store from answering.
    pub(super) async fn confirm(&self) -> Result<()> {
        if let Some(error) = self.lost.get() {
            return Err(error.clone());
        }
        let mut own = self.own.lock().await;
        let meta = self.store.head(self.key.clone()).await?;
        let known = meta.as_ref().map(|meta| meta.etag.as_str()) == Some(&own.etag);
        match known && !own.etag.is_empty() {
            true => Ok(()),
            false => self.look(&mut own).await,
        }
    }

    /// Reads the record: it is ours, perhaps with an ETag that we did not know, or we are out.
    async fn look(&self, own: &mut Own) -> Result<()> {
        let Some((bytes, etag)) = self.store.read(self.key.clone()).await? else {
            return Err(self.lose("the owner record is gone"));
        };
        let found = read_as(&self.key, OwnerRecord::decode(self.uuid, &bytes))?;
        if found.id != own.record.id {
            return Err(self.lose(format_args!("{found} took over")));
        }
        own.etag = etag;
        Ok(())
    }

    /// Puts the record again with one heartbeat more.
    async fn put(&self, released: bool) -> Result<()> {
        let mut own = self.own.lock().await;
        for _ in 0..3 {
            if let Some(error) = self.lost.get() {
                return Err(error.clone());
            }
            if !self.store.conditions {
                self.look(&mut own).await?;
            }
            own.record.stamp.sequence += 1;
            own.record.released = released;
            let began = process::since_boot();
            let record = own.record.encode(self.uuid);
            let condition = self.store.if_match(&own.etag);
            match self.store.swap(&self.key, record, condition).await? {
                Swapped::Done(etag) => {
                    own.etag = etag;
                    self.confirmed(began);
                    if released {
                        // Before the next heartbeat, which waits for `own`, says otherwise.
                        let closed = Error::new(Kind::Fenced, "the volume was closed");
                        let _ = self.lost.set(closed);
                    }
                    return Ok(());
                }
                // Another's, or an earlier heartbeat of ours whose outcome was not known.
                Swapped::Other(_) => self.look(&mut own).await?,
            }
        }
        Err(Error::new(
            Kind::Transient,
            "the owner record keeps changing",
        ))
    }

    /// Gives the volume back, for anybody to take at once.
    ///
    /// # Errors
    /// If the store did not take it; then the next one has to find out by itself.
    pub(in crate::layout) async fn release(&self) -> Result<()> {
        self.put(true).await
    }
}

fn lost_record(what: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("nobody can tell who has the volume, for its owner record is lost ({what}): make sure that no server has it, then say serve --takeover"),
    )
}

fn busy(owner: &OwnerRecord) -> Error {
    Error::new(
        Kind::Busy,
        format!("the volume is served by another ({owner}); stop that server first, or shut it out with serve --takeover"),
    )
}

/// Listens for the heart of an owner of whom nothing else can be known.
async fn listen(
    store: &Store,
    key: &str,
    uuid: Uuid,
    (etag, owner): (&str, &OwnerRecord),
    timing: Timing,
) -> Result<()> {
    tracing::info!("the volume had an owner ({owner}): listening for its heartbeat");
    let end = process::since_boot() + timing.lease;
    while process::since_boot() < end {
        tokio::time::sleep(timing.heartbeat.min(Duration::from_secs(1))).await;
        let meta = store.head(key.to_owned()).await?;
        if !etag.is_empty() && meta.is_some_and(|meta| meta.etag.as_str() == etag) {
            continue;
        }
        let Some((bytes, _)) = store.read(key.to_owned()).await? else {
            return Ok(());
        };
        match read_as(key, OwnerRecord::decode(uuid, &bytes))? {
            now if now.released => return Ok(()),
            now if now != *owner => return Err(busy(&now)),
            _ => {}
        }
    }
    Ok(())
}

/// Beats until the lease is gone or lost.
async fn beat(lease: std::sync::Weak<Lease>, every: Duration) {
    let mut is_failing = false;
    loop {
        tokio::time::sleep(every).await;
        let Some(lease) = lease.upgrade() else {
            return;
        };
        if lease.lost.get().is_some() {
            return;
        }
        match lease.put(false).await {
            Ok(()) => is_failing = false,
            Err(error) if error.kind == Kind::Fenced => return,
            // Once is enough where a store is away for long.
            Err(_) if is_failing => {}
            Err(error) => {
                is_failing = true;
                tracing::warn!("the heartbeat of the volume's owner failed: {error}");
            }
        }
    }
}
