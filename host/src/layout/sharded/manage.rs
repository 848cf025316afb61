//! Making, opening, growing and removing volumes.

use std::sync::Arc;
use std::time::Duration;

use nbd_rs_plugin::options::display_size;
use nbd_rs_plugin::{Capabilities, CapabilityFlags, ObjectFlags, ObjectMode};

use super::directory::Directory;
use super::lease::{Lease, Timing};
use super::names::{Names, VOLUME};
use super::owner::{OwnerRecord, Standing};
use super::pages::{Pages, Writer};
use super::reaper::Reaper;
use super::state::{State, StatePage, PAGE_SHARDS};
use super::store::{back_off, read_as, Store, Swapped, ATTEMPTS};
use super::uuid::Uuid;
use super::volume::{VolumeRecord, Way, MAX_SHARDS};
use super::{probe, process, ticket, Sharded};
use crate::backend::chain::Chain;
use crate::error::{Error, Kind, Result};
use crate::layout::geometry::Geometry;
use crate::layout::ledger::Entry;

/// Objects in one bulk delete.
const BULK: usize = 1000;
/// Between two looks at a record whose delete may come late.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How a volume is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Whether changes will come: then ownership is taken.
    pub writes: bool,
    /// It is only looked at: say what it could do if it were opened to write.
    pub looks: bool,
    /// Take ownership even from an owner that lives; it is shut out.
    pub takeover: bool,
    /// Something else keeps other servers out: conditions are not needed.
    pub fencing_is_external: bool,
    /// How its shards are said to be stored, if that is said.
    pub way: Option<Way>,
    /// How long things take.
    pub timing: Timing,
}

/// A volume to be made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The size of its shards.
    pub shard_bytes: u64,
    /// How shards are stored; by default as the chain can.
    pub way: Option<Way>,
    /// Start an empty volume where one exists.
    pub force: bool,
}

impl Plan {
    /// Whether there can be such a volume.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with what would do.
    pub fn check(&self) -> Result<()> {
        let geometry = Geometry {
            size_bytes: self.size_bytes,
            shard_bytes: self.shard_bytes,
        };
        geometry.check(MAX_SHARDS)
    }
}

/// What is known of a volume without opening it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What it is.
    pub record: VolumeRecord,
    /// Who has it, or had it last, and what can be said of that from here.
    pub owner: Option<(String, &'static str)>,
    /// Shards that are never, intended, written.
    pub shards: [u64; 3],
    /// Where acknowledged writes may wait that the store does not have.
    pub journal: Option<Entry>,
}

/// The volume record, or why there is none.
async fn read_record(store: &Store) -> Result<(VolumeRecord, String)> {
    if let Some((bytes, etag)) = store.read(VOLUME.to_owned()).await? {
        return Ok((read_as(VOLUME, VolumeRecord::decode(&bytes))?, etag));
    }
    match is_upstream(store).await? {
        true => Err(Error::new(Kind::Unsupported, UPSTREAM)),
        false => Err(Error::new(
            Kind::NotFound,
            "no sharded volume here: make one with nbd-rs init",
        )),
    }
}

/// The volume record.
pub(super) async fn record(store: &Store) -> Result<VolumeRecord> {
    Ok(read_record(store).await?.0)
}

const UPSTREAM: &str =
    "here lies a volume of rainlab-inc/nbd-rs (objects size and block-N), whose \
     format this program does not read: export it with that program, and import the bytes";

/// Whether a volume of the older program lies there: a size in text, and blocks by number.
async fn is_upstream(store: &Store) -> Result<bool> {
    if store.head("size".to_owned()).await?.is_none() {
        return Ok(false);
    }
    let mut found = false;
    let each = |_: &nbd_rs_plugin::Meta| {
        found = true;
        false
    };
    store.list("block-", None, each).await?;
    Ok(found)
}

async fn take(
    store: &Store,
    names: &Names,
    record: &VolumeRecord,
    takeover: bool,
    timing: Timing,
) -> Result<Arc<Lease>> {
    let take = |seen| Lease::take(store, names.owner(), record.uuid, takeover, timing, seen);
    if let Some(lease) = take(None).await? {
        return Ok(lease);
    }
    // A new volume, or one whose owner record is lost: who put the index tells how far the owners
    // had come. Without an index the volume can only be removed.
    let seen = match Directory::open(store, names, *record).await {
        Ok(directory) => directory.epoch(),
        Err(error) if error.kind == Kind::Corrupt => 0,
        Err(error) => return Err(error),
    };
    let lease = take(Some(seen)).await?;
    lease.ok_or_else(|| Error::new(Kind::Io, "the volume could not be taken"))
}

/// Opens a volume. What that costs does not depend on its size.
///
/// # Errors
/// What keeps it from being served; [`Kind::Busy`] with the owner's name.
pub async fn open(chain: Chain, how: How) -> Result<Sharded> {
    let store = Store::new(chain, how.fencing_is_external);
    let (record, _) = read_record(&store).await?;
    let names = Names::of(record.uuid);
    check_said(how.way, record.way)?;
    check_way(&store, record.way)?;
    let shard = opened(&store, record.way, how.writes || how.looks).await?;
    if !how.writes {
        let directory = Directory::open(&store, &names, record).await?;
        if !how.looks {
            warn_of_writer(&store, &names, record.uuid).await?;
        }
        let pages = Pages::new(store, names, record, directory, None);
        return Ok(Sharded::new(pages, shard, how.looks));
    }
    probe::conditions(&store, &names).await?;
    let lease = take(&store, &names, &record, how.takeover, how.timing).await?;
    if record.way == Way::InPlace && lease.shuts_out {
        let seconds = how.timing.shut_out.as_secs();
        tracing::info!("waiting {seconds} s: until then the server that had the volume may write");
        tokio::time::sleep(how.timing.shut_out).await;
    }
    match open_owned(&store, &names, &lease).await {
        Ok(pages) => Ok(Sharded::new(pages, shard, false)),
        Err(error) => {
            // Nothing was changed: the next one need not wait.
            if let Err(error) = lease.release().await {
                tracing::warn!("the volume could not be given back: {error}");
            }
            Err(error)
        }
    }
}

async fn open_owned(store: &Store, names: &Names, lease: &Arc<Lease>) -> Result<Arc<Pages>> {
    // Once more, now that nobody else can resize it.
    let (record, _) = read_record(store).await?;
    if Names::of(record.uuid).all() != names.all() {
        let text = "the volume was replaced by another a moment ago";
        return Err(Error::new(Kind::Busy, text));
    }
    let directory = Directory::open(store, names, record).await?;
    directory.take_over(lease).await?;
    let reaper = Reaper::new(store.clone(), names.clone(), lease.clone());
    let writer = Writer {
        lease: lease.clone(),
        reaper,
        changes: Arc::default(),
    };
    let (store, names) = (store.clone(), names.clone());
    Ok(Pages::new(store, names, record, directory, Some(writer)))
}

/// Who only reads does not see what a writer changes meanwhile.
async fn warn_of_writer(store: &Store, names: &Names, uuid: Uuid) -> Result<()> {
    if let Some((who, standing)) = owner(store, names, uuid).await? {
        if standing == SERVES || standing == ELSEWHERE {
            tracing::warn!(
                "the volume may be open for writing ({who}): what is read here may be a mixture of \
                 old and new data"
            );
        }
    }
    match ticket::read(store, names.journal(), uuid).await?.0 {
        Some(entry) if !entry.ticket.passed_by => tracing::warn!(
            "acknowledged writes may wait in {entry}: what is read here may be older"
        ),
        _ => {}
    }
    Ok(())
}

/// What an opened object can do, where shards are opened: asked of the volume record, which lies
/// where they do. It is not changed.
async fn opened(store: &Store, way: Way, writes: bool) -> Result<Option<Capabilities>> {
    if way == Way::Whole {
        return Ok(None);
    }
    let flags = match writes {
        true => ObjectFlags::WRITE,
        false => ObjectFlags::NONE,
    };
    let object = store
        .chain
        .open_object(VOLUME, ObjectMode::new(flags))
        .await?;
    let capabilities = object.capabilities();
    object.close().await?;
    Ok(Some(capabilities))
}

/// What is said of a volume that is there must be so: nothing of it is changed by saying it.
fn check_said(said: Option<Way>, is: Way) -> Result<()> {
    match said {
        Some(said) if said != is => Err(Error::new(
            Kind::Invalid,
            format!("option way: the volume was made with way={is}, which can't be changed"),
        )),
        _ => Ok(()),
    }
}

fn check_way(store: &Store, way: Way) -> Result<()> {
    let in_place = store.chain.capabilities().has(CapabilityFlags::IN_PLACE);
    if way == Way::InPlace && !in_place {
        return Err(Error::new(
            Kind::Unsupported,
            "shards written in place need a chain that can write inside an object",
        ));
    }
    let strong = CapabilityFlags::STRONG_READ_AFTER_WRITE;
    if !store.chain.capabilities().has(strong) {
        return Err(Error::new(
            Kind::Unsupported,
            "the store may show old data after a write, which no sharded volume can bear",
        ));
    }
    Ok(())
}

/// Makes a volume of zeros.
///
/// # Errors
/// [`Kind::Exists`] without `force`; [`Kind::Busy`] while the one that is replaced is served.
pub async fn create(
    chain: Chain,
    plan: Plan,
    fencing_is_external: bool,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<VolumeRecord> {
    let store = Store::new(chain, fencing_is_external);
    let in_place = store.chain.capabilities().has(CapabilityFlags::IN_PLACE);
    let record = VolumeRecord {
        uuid: Uuid::random()?,
        size_bytes: plan.size_bytes,
        shard_bytes: plan.shard_bytes,
        way: plan.way.unwrap_or(match in_place {
            true => Way::InPlace,
            false => Way::Whole,
        }),
        created_s: process::now_s()?,
        revision: 1,
    };
    record.check()?;
    check_way(&store, record.way)?;
    let old = existing(&store, plan.force).await?;
    let names = Names::of(record.uuid);
    probe::conditions(&store, &names).await?;
    probe::creates_at_once(&store, &names).await?;
    let owned = match &old {
        Some(Existing::Volume(old, _)) => {
            let names = Names::of(old.uuid);
            Some((
                take(&store, &names, old, false, Timing::default()).await?,
                names,
            ))
        }
        _ => None,
    };
    Directory::create(&store, &names, &record).await?;
    let condition = match &old {
        Some(Existing::Volume(_, etag) | Existing::Damaged(etag)) => store.if_match(etag),
        None => store.if_absent(),
    };
    match store.swap(VOLUME, record.encode(), condition).await? {
        Swapped::Done(_) => {}
        Swapped::Other(_) => {
            return Err(Error::new(
                Kind::Exists,
                "another volume was made a moment ago",
            ));
        }
    }
    if let Some((lease, names)) = owned {
        remove_objects(&store, &names, &lease, progress).await?;
    }
    store.chain.close().await?;
    Ok(record)
}

/// What lies there already.
enum Existing {
    Volume(VolumeRecord, String),
    /// A record that can't be read: what belonged to it can't be told.
    Damaged(String),
}

async fn existing(store: &Store, force: bool) -> Result<Option<Existing>> {
    let Some((bytes, etag)) = store.read(VOLUME.to_owned()).await? else {
        return match is_upstream(store).await? {
            true => Err(Error::new(Kind::Exists, UPSTREAM)),
            false => Ok(None),
        };
    };
    match read_as(VOLUME, VolumeRecord::decode(&bytes)) {
        Ok(record) if force => Ok(Some(Existing::Volume(record, etag))),
        Ok(record) => Err(Error::new(
            Kind::Exists,
            format!(
                "a volume of {} exists already ({}); --force starts an empty one in its place",
                display_size(record.size_bytes),
                record.uuid
            ),
        )),
        // A newer program's volume is not thrown away by an older one.
        Err(error) if force && error.kind == Kind::Corrupt => Ok(Some(Existing::Damaged(etag))),
        Err(error) => Err(error),
    }
}

/// The first objects with this prefix, without the owner record.
async fn some_objects(store: &Store, names: &Names, prefix: &str) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    let each = |meta: &nbd_rs_plugin::Meta| {
        if meta.key != names.owner() {
            keys.push(meta.key.to_string());
        }
        keys.len() < BULK
    };
    store.list(prefix, None, each).await?;
    Ok(keys)
}

/// Deletes all that carries a volume's name, the owner record last.
async fn remove_objects(
    store: &Store,
    names: &Names,
    lease: &Arc<Lease>,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<u64> {
    let mut removed = 0;
    loop {
        let keys = some_objects(store, names, names.all()).await?;
        if keys.is_empty() {
            break;
        }
        lease.confirm().await?;
        removed += keys.len() as u64;
        delete(store, keys).await?;
        progress(removed);
    }
    // From here on the heart need not beat.
    match lease.release().await {
        // The record goes all the same, and with it the heart finds that the volume is lost.
        Err(error) if error.kind == Kind::NoSpace => {}
        released => released?,
    }
    delete(store, vec![names.owner()]).await?;
    Ok(removed)
}

/// Deletes objects whose names nobody gives again: where the outcome is unknown, once more.
pub(in crate::layout) async fn delete(store: &Store, mut keys: Vec<String>) -> Result<()> {
    let mut attempt = 0;
    while !keys.is_empty() {
        let results = store.chain.delete(keys.clone()).wait().await;
        let results = results.unwrap_or_else(|error| vec![Err(error); keys.len()]);
        let mut unknown = Vec::new();
        for (key, result) in keys.into_iter().zip(results) {
            match result {
                Ok(()) => {}
                Err(error) if error.kind == Kind::Ambiguous && attempt + 1 < ATTEMPTS => {
                    unknown.push(key);
                }
                Err(error) => return Err(error),
            }
        }
        if !unknown.is_empty() {
            back_off(attempt).await;
            attempt += 1;
        }
        keys = unknown;
    }
    store.settle().await
}

/// Deletes the volume record. Where the outcome is unknown it is waited for: late, it would hit the
/// record of the next volume there.
async fn delete_record(store: &Store, late: Duration) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let deleted = store.chain.delete(vec![VOLUME.to_owned()]).wait().await;
        match deleted.and_then(|results| results.into_iter().collect::<Result<()>>()) {
            Err(error) if error.kind == Kind::Ambiguous => {}
            deleted => {
                deleted?;
                return store.settle().await;
            }
        }
        let end = process::since_boot() + late;
        while process::since_boot() < end {
            // A store that does not tell is no reason to give up.
            if let Ok(None) = store.head(VOLUME.to_owned()).await {
                return store.settle().await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    let text = "whether the volume record was deleted is not known: do it again";
    Err(Error::new(Kind::Ambiguous, text))
}

/// Removes a volume: its objects, then its record. How many objects there were. It needs no room.
///
/// # Errors
/// [`Kind::NotFound`] if there is none; [`Kind::Busy`] while it is served.
pub async fn destroy(
    chain: Chain,
    fencing_is_external: bool,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<u64> {
    let store = Store::new(chain, fencing_is_external);
    let (record, _) = read_record(&store).await?;
    let names = Names::of(record.uuid);
    let mut removed = 0;
    loop {
        let taken = take(&store, &names, &record, false, Timing::default()).await;
        match taken {
            Ok(lease) => {
                let mut show = |more| progress(removed + more);
                removed += remove_objects(&store, &names, &lease, &mut show).await?;
                break;
            }
            // Nobody serves it, and there is no room to say that it is ours: to make some is what
            // this is for.
            Err(full) if full.kind == Kind::NoSpace => {
                let gone = remove_some(&store, &names).await?;
                removed += gone;
                progress(removed);
                if gone == 0 {
                    delete(&store, vec![names.owner()]).await?;
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    delete_record(&store, Timing::default().late).await?;
    store.chain.close().await?;
    Ok(removed)
}

/// Deletes some objects of a volume that nobody serves, shards before records; how many.
async fn remove_some(store: &Store, names: &Names) -> Result<u64> {
    for prefix in [names.shards().as_str(), names.all()] {
        let keys = some_objects(store, names, prefix).await?;
        if !keys.is_empty() {
            let removed = keys.len() as u64;
            return delete(store, keys).await.map(|()| removed);
        }
    }
    Ok(0)
}

/// Grows a volume that is not served.
///
/// # Errors
/// [`Kind::Invalid`] for a size that is not larger; [`Kind::Busy`] while it is served.
pub async fn grow(
    chain: Chain,
    size_bytes: u64,
    fencing_is_external: bool,
) -> Result<VolumeRecord> {
    let store = Store::new(chain, fencing_is_external);
    let (record, _) = read_record(&store).await?;
    let names = Names::of(record.uuid);
    let lease = take(&store, &names, &record, false, Timing::default()).await?;
    let grown = grow_owned(&store, size_bytes).await;
    lease.release().await?;
    store.chain.close().await?;
    grown
}

async fn grow_owned(store: &Store, size_bytes: u64) -> Result<VolumeRecord> {
    let (old, etag) = read_record(store).await?;
    if size_bytes <= old.size_bytes {
        let text = format!(
            "the volume has {} already: it can only grow, since a smaller one would lose data",
            display_size(old.size_bytes)
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    let record = VolumeRecord {
        size_bytes,
        revision: old.revision + 1,
        ..old
    };
    record.check()?;
    match store
        .swap(VOLUME, record.encode(), store.if_match(&etag))
        .await?
    {
        Swapped::Done(_) => Ok(record),
        Swapped::Other(_) => Err(Error::new(
            Kind::Busy,
            "the volume record was changed a moment ago",
        )),
    }
}

/// Looks at a volume, also while it is served.
///
/// # Errors
/// If it can't be read.
pub async fn facts(chain: &Chain) -> Result<Facts> {
    let store = Store::new(chain.clone(), false);
    let (record, _) = read_record(&store).await?;
    let names = Names::of(record.uuid);
    let directory = Directory::open(&store, &names, record).await?;
    let mut shards = [record.shards(), 0, 0];
    for page in directory.pages() {
        let Some((bytes, _)) = store.read(names.page(page)).await? else {
            let text = format!("{}: the state page is gone", names.page(page));
            return Err(super::frame::corrupt(text));
        };
        let decoded = StatePage::decode(record.uuid, page, &bytes);
        let (states, ..) = read_as(&names.page(page), decoded)?;
        let counts = states.counts((record.shards() - page * PAGE_SHARDS).min(PAGE_SHARDS));
        for state in [State::Intended, State::Written] {
            shards[state as usize] += counts[state as usize];
            shards[State::Never as usize] -= counts[state as usize];
        }
    }
    Ok(Facts {
        record,
        owner: owner(&store, &names, record.uuid).await?,
        shards,
        journal: ticket::read(&store, names.journal(), record.uuid).await?.0,
    })
}

const SERVES: &str = "serves it";
const ELSEWHERE: &str = "can't be seen from here";

/// Who has a volume, or had it last, and what can be said of that from here.
pub(in crate::layout) async fn owner(
    store: &Store,
    names: &Names,
    uuid: Uuid,
) -> Result<Option<(String, &'static str)>> {
    let Some((bytes, _)) = store.read(names.owner()).await? else {
        return Ok(None);
    };
    let record = read_as(&names.owner(), OwnerRecord::decode(uuid, &bytes))?;
    let here = process::this()?;
    let standing = match record.standing(&here, process::life) {
        Standing::Released => "gave it back",
        Standing::Dead => "died",
        Standing::Alive => SERVES,
        Standing::Unknown => ELSEWHERE,
    };
    Ok(Some((record.to_string(), standing)))
}
