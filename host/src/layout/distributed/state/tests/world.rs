//! A volume with a log and objects that are bytes, and what it should read as.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::format::changes::{
    decode_whole_pack, encode_pack, pack_data_at, MAX_UNITS,
};
use super::super::super::format::image::{image_bytes, Trailer};
use super::super::super::format::map::MapPage;
use super::super::super::format::names::Names;
use super::super::super::format::root::{Holds, Root};
use super::super::super::format::UnitSums;
use super::*;
use crate::layout::uuid::Uuid;

pub(super) const VOLUME: Uuid = Uuid([5; 16]);
pub(super) const SHARDS: u32 = 6;
/// The last shard has three units, of which the last one is cut by the volume's end.
pub(super) const UNITS: u64 = 5 * 16 + 3;
const SHARD_BYTES: u64 = 16 * UNIT_BYTES;
const GEOMETRY: Geometry = Geometry {
    size_bytes: UNITS * UNIT_BYTES - 1000,
    shard_bytes: SHARD_BYTES,
};

/// A record that is being made.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) parts: Vec<Part>,
    data: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) state: State,
    /// What each unit was written with; 0 for zeros.
    model: Vec<u64>,
    note: Vec<u8>,
    log: BTreeMap<u64, (Position, Vec<u8>)>,
    objects: BTreeMap<String, Vec<u8>>,
    /// Names are used once.
    used: BTreeSet<String>,
    epoch: Epoch,
    made: u64,
    own_checkpoints: u64,
    /// Images, packs and pages that were put, and that the state does not know yet.
    folds: Vec<(u32, Named, u64)>,
    packs: Vec<(Vec<Piece>, Version)>,
    pages: Vec<(PageSnapshot, Named)>,
}

fn fill(token: u64) -> Vec<u8> {
    token.to_le_bytes().repeat(UNIT_BYTES as usize / 8)
}

impl Record {
    fn units(&mut self, world: &mut World, units: Range<u64>) -> (Table, Vec<u8>) {
        let (mut table, mut data) = (Table::default(), Vec::new());
        for unit in units {
            world.made += 1;
            world.model[unit as usize] = world.made;
            let bytes = fill(world.made);
            table.push(UnitSums::of(VOLUME), unit, &bytes).unwrap();
            data.extend(bytes);
        }
        (table, data)
    }

    pub(super) fn write(&mut self, world: &mut World, units: Range<u64>) {
        let (table, data) = self.units(world, units);
        self.parts.push(Part::Data(table));
        self.data.extend(data);
    }

    pub(super) fn pack(&mut self, world: &mut World, units: Range<u64>) {
        let (table, data) = self.units(world, units);
        let pack = world.version();
        world.put_pack(pack, &table, &data);
        self.parts.push(Part::Pack { pack, table });
    }

    pub(super) fn zero(
        &mut self,
        world: &mut World,
        units: Range<u64>,
        part: fn(Range<u64>) -> Part,
    ) {
        world.model[units.start as usize..units.end as usize].fill(0);
        self.parts.push(part(units));
    }
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            state: State::new(GEOMETRY),
            model: vec![0; UNITS as usize],
            note: Vec::new(),
            log: BTreeMap::new(),
            objects: BTreeMap::new(),
            used: BTreeSet::new(),
            epoch: Epoch::default(),
            made: 0,
            own_checkpoints: 0,
            folds: Vec::new(),
            packs: Vec::new(),
            pages: Vec::new(),
        };
        world.start();
        world
    }

    /// Another owner, with its first record.
    fn start(&mut self) {
        self.epoch.counter += 1;
        self.own_checkpoints = 0;
        self.append(Record::default());
    }

    pub(super) fn record(&self) -> Record {
        Record::default()
    }

    fn version(&mut self) -> Version {
        self.made += 1;
        let (epoch, seq) = (self.epoch, self.made);
        Version { epoch, seq }
    }

    fn put(&mut self, object: Object, bytes: Vec<u8>) {
        let name = Names::of(VOLUME).name(&object);
        assert!(self.used.insert(name.clone()), "{name} is used twice");
        self.objects.insert(name, bytes);
    }

    fn get(&self, object: &Object) -> &[u8] {
        let name = Names::of(VOLUME).name(object);
        let bytes = self.objects.get(&name);
        bytes.unwrap_or_else(|| panic!("{name} is gone"))
    }

    fn put_pack(&mut self, pack: Version, table: &Table, data: &[u8]) {
        let mut bytes = encode_pack(VOLUME, pack, table).unwrap();
        assert_eq!(bytes.len() as u64, pack_data_at(table));
        bytes.extend(data);
        assert_eq!(&decode_whole_pack(VOLUME, pack, &bytes).unwrap(), table);
        self.put(Object::Pack(pack), bytes);
    }

    pub(super) fn append(&mut self, record: Record) {
        let changes = Changes {
            parts: record.parts,
        };
        let mut payload = changes.encode(VOLUME).unwrap();
        payload.extend(record.data);
        let changes = Changes::decode_whole(VOLUME, &payload).unwrap();
        let position = Position {
            epoch: self.epoch,
            seq: self.state.last().map_or(0, |last| last.seq) + 1,
        };
        self.log.insert(position.seq, (position, payload));
        self.state.apply(position, &changes).unwrap();
        for part in changes.parts {
            if let Part::Ledger(note) = part {
                self.note = note;
            }
        }
    }

    /// The bytes of a piece, held up against their checksums.
    fn read(&self, piece: &Piece) -> Vec<u8> {
        let count = (piece.units.end - piece.units.start) as usize;
        let cut = |bytes: &[u8], at: u64| {
            let start = at as usize;
            bytes[start..start + count * UNIT_BYTES as usize].to_vec()
        };
        let sound = |bytes: Vec<u8>, sums: &[u32]| {
            let damaged = UnitSums::of(VOLUME).first_damaged(piece.units.start, &bytes, sums);
            assert_eq!(damaged, None);
            assert_eq!(sums.len(), count);
            bytes
        };
        match &piece.origin {
            Origin::Zeros => vec![0; count * UNIT_BYTES as usize],
            Origin::Log {
                position,
                offset,
                sums,
            } => {
                let (found, payload) = &self.log[&position.seq];
                assert_eq!(found, position);
                sound(cut(payload, *offset), sums)
            }
            Origin::Pack { pack, offset, sums } => {
                assert!(self.state.needs(&Object::Pack(*pack)));
                sound(cut(self.get(&Object::Pack(*pack)), *offset), sums)
            }
            Origin::Image {
                shard,
                image,
                first,
            } => {
                let (shard, version, first) = (*shard, image.version, *first as usize);
                let object = Object::Image { shard, version };
                assert!(self.state.needs(&object));
                let bytes = self.get(&object);
                assert_eq!(bytes.len() as u64, image_bytes(SHARD_BYTES));
                let (_, trailer) = bytes.split_at(SHARD_BYTES as usize);
                let trailer = Trailer::decode(VOLUME, shard, SHARD_BYTES, image, trailer).unwrap();
                let units = cut(bytes, first as u64 * UNIT_BYTES);
                let sums = UnitSums::of(VOLUME);
                assert_eq!(trailer.first_damaged(sums, first, &units), None);
                units
            }
        }
    }

    /// The bytes of units, as a client would see them.
    fn units(&self, units: Range<u64>) -> Vec<u8> {
        let pieces = self.state.plan(units.clone());
        let mut at = units.start;
        for piece in &pieces {
            assert_eq!(piece.units.start, at, "in order and without a gap");
            assert!(!piece.units.is_empty());
            at = piece.units.end;
        }
        assert_eq!(at, units.end);
        pieces.iter().flat_map(|piece| self.read(piece)).collect()
    }

    pub(super) fn reads_like_the_model(&self) {
        let seen = self.units(0..UNITS);
        for (unit, (bytes, token)) in seen
            .chunks(UNIT_BYTES as usize)
            .zip(&self.model)
            .enumerate()
        {
            assert_eq!(bytes, fill(*token), "unit {unit}");
        }
        assert_eq!(self.state.ledger(), self.note);
        // Whatever says that it is zeros is.
        let mut at = 0;
        for (units, allocation) in self.state.allocation(0..UNITS + 9, usize::MAX) {
            assert_eq!(units.start, at);
            at = units.end;
            let tokens = &self.model[units.start as usize..units.end as usize];
            let zeros = tokens.iter().all(|token| *token == 0);
            assert!(allocation == Allocation::Data || zeros);
        }
        assert_eq!(at, UNITS);
    }

    /// Puts an image of these bytes.
    fn put_image(&mut self, shard: u32, mut data: Vec<u8>) -> Named {
        data.resize(SHARD_BYTES as usize, 0);
        let version = self.version();
        let sums = UnitSums::of(VOLUME).sums(u64::from(shard) * 16, [&data[..]]);
        let trailer = Trailer {
            shard,
            version,
            sums,
        };
        let (bytes, image) = trailer.encode(VOLUME);
        data.extend(bytes);
        self.put(Object::Image { shard, version }, data);
        image
    }

    pub(super) fn fold(&mut self, shard: u32) {
        let through = self.state.last().unwrap().seq;
        let data = self.units(GEOMETRY.units_of(u64::from(shard)));
        let image = self.put_image(shard, data);
        self.folds.push((shard, image, through));
    }

    pub(super) fn folded(&mut self, which: usize) {
        if self.folds.is_empty() {
            return;
        }
        let (shard, image, through) = self.folds.remove(which % self.folds.len());
        let late = self.state.is_late(shard, through);
        self.append(Record {
            parts: vec![Part::Image {
                shard,
                image,
                through: Some(through),
            }],
            data: Vec::new(),
        });
        let is_there = self.state.images().any(|it| it == (shard, image));
        assert_eq!(is_there, !late);
    }

    pub(super) fn flush_image(&mut self, shard: u32, units: Range<u64>) {
        let all = GEOMETRY.units_of(u64::from(shard));
        for unit in units {
            if all.start + unit < all.end {
                self.made += 1;
                self.model[(all.start + unit) as usize] = self.made;
            }
        }
        let tokens = self.model[all.start as usize..all.end as usize].to_vec();
        let data = tokens.into_iter().flat_map(fill).collect();
        let image = self.put_image(shard, data);
        self.append(Record {
            parts: vec![Part::Image {
                shard,
                image,
                through: None,
            }],
            data: Vec::new(),
        });
        assert_eq!(self.state.waiting_of(shard), Waiting::default());
    }

    pub(super) fn pack(&mut self, from: u64) {
        let pieces = self.state.unpacked(from);
        if pieces.is_empty() {
            return;
        }
        let table = pack_table(&pieces);
        assert!(table.sums().len() <= MAX_UNITS);
        let data: Vec<u8> = pieces.iter().flat_map(|piece| self.read(piece)).collect();
        let pack = self.version();
        self.put_pack(pack, &table, &data);
        self.packs.push((pieces, pack));
    }

    pub(super) fn packed(&mut self, which: usize) {
        if !self.packs.is_empty() {
            let (pieces, pack) = self.packs.remove(which % self.packs.len());
            self.state.packed(&pieces, pack);
        }
    }

    pub(super) fn page(&mut self) {
        for number in self.state.unstored_pages() {
            let snapshot = self.state.page(number);
            let version = self.version();
            let (bytes, named) = snapshot.page.encode(VOLUME, number, version);
            let page = number;
            self.put(Object::Map { page, version }, bytes);
            self.pages.push((snapshot, named));
        }
    }

    pub(super) fn page_stored(&mut self, which: usize) {
        if !self.pages.is_empty() {
            let (snapshot, named) = self.pages.remove(which % self.pages.len());
            self.state.page_stored(&snapshot, named);
        }
    }

    pub(super) fn checkpoint(&mut self) {
        while !self.state.unpacked(0).is_empty() {
            self.pack(0);
            self.packed(self.packs.len() - 1);
        }
        self.page();
        while !self.pages.is_empty() {
            self.page_stored(self.pages.len() - 1);
        }
        let version = self.version();
        let (bytes, named) = self.state.root(VOLUME, version).unwrap();
        self.put(Object::Root(version), bytes);
        self.append(Record {
            parts: vec![Part::Root(named)],
            data: Vec::new(),
        });
        assert_eq!(self.state.checkpoint(), Some(named));
        // The log in front of the checkpoint is collected, and what nobody needs.
        let last = self.state.last().unwrap().seq;
        self.log.retain(|seq, _| *seq >= last);
        for object in self.state.take_garbage() {
            let name = Names::of(VOLUME).name(&object);
            assert!(self.objects.remove(&name).is_some(), "{name} went before");
            assert!(!self.state.needs(&object));
        }
        self.own_checkpoints += 1;
        let root = self.load(named);
        if let Some(previous) = root.previous {
            self.load(previous);
        }
    }

    /// A checkpoint with everything that it names.
    fn load(&self, named: Named) -> Root {
        let root = Root::decode(VOLUME, &named, self.get(&Object::Root(named.version))).unwrap();
        for page in self.load_pages(&root) {
            for shard in 0..SHARDS {
                if let Base::Image(Named { version, .. }) = page.get(shard as usize) {
                    self.get(&Object::Image { shard, version });
                }
            }
        }
        for pack in &root.packs {
            let bytes = self.get(&Object::Pack(pack.version));
            let table = decode_whole_pack(VOLUME, pack.version, bytes).unwrap();
            assert_eq!(table.sums(), pack.sums);
        }
        for (at, pack) in root.packs.iter().enumerate() {
            let live = root.runs.iter().map(|run| match run.holds {
                Holds::Pack { pack, .. } if pack as usize == at => usize::from(run.units),
                _ => 0,
            });
            let live: usize = live.sum();
            assert!(live * 2 >= pack.sums.len(), "half is needed");
        }
        root
    }

    fn load_pages(&self, root: &Root) -> Vec<MapPage> {
        let load = |&(page, named): &(u32, Named)| {
            let version = named.version;
            let bytes = self.get(&Object::Map { page, version });
            MapPage::decode(VOLUME, page, &named, bytes).unwrap()
        };
        root.pages.iter().map(load).collect()
    }

    pub(super) fn restart(&mut self) {
        let mut state = State::new(GEOMETRY);
        let decode = |payload: &[u8]| Changes::decode(VOLUME, payload).unwrap();
        let first = self.log.values().next().map(|(_, payload)| decode(payload));
        if let [Part::Root(named)] = first.unwrap().parts[..] {
            let root = self.load(named);
            let pages = self.load_pages(&root);
            state = State::restore(GEOMETRY, &root, named, pages).unwrap();
        }
        for (position, payload) in self.log.values() {
            state.apply(*position, &decode(payload)).unwrap();
        }
        let all = |state: &State| state.allocation(0..UNITS, usize::MAX);
        assert_eq!(all(&state), all(&self.state));
        // Units that went into a pack while an image was made stay above it, with the same bytes. The
        // log does not say so, and whoever replays it does without.
        let (replayed, known) = (state.waiting(), self.state.waiting());
        assert!(replayed.data_bytes <= known.data_bytes);
        assert_eq!(state.tail(), self.state.tail());
        self.state = state;
        self.folds.clear();
        self.packs.clear();
        self.pages.clear();
        self.start();
    }

    /// Deletes what earlier owners left.
    pub(super) fn sweep(&mut self) {
        if self.own_checkpoints < 2 {
            return;
        }
        let names = Names::of(VOLUME);
        let (state, epoch) = (&self.state, self.epoch);
        self.objects.retain(|name, _| {
            let object = names.parse(name).unwrap();
            let earlier = object.version().is_some_and(|it| it.epoch < epoch);
            !earlier || state.needs(&object)
        });
    }

    /// The images of a shard that are there.
    pub(super) fn images_of(&self, of: u32) -> Vec<Object> {
        let names = Names::of(VOLUME);
        let all = self.objects.keys().filter_map(|name| names.parse(name));
        let images =
            all.filter(|object| matches!(object, Object::Image { shard, .. } if *shard == of));
        images.collect()
    }
}
