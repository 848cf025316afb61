//! Which image each shard is, and which of the pages that say so are on the backends. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::super::format::map::{Base, MapPage, PAGE_SHARDS};
use super::super::format::names::Object;
use super::super::format::Named;

const PAGE: u64 = PAGE_SHARDS as u64;

/// A page, and what is stored of it.
#[derive(Debug, Default)]
struct Page {
    shards: MapPage,
    /// How often it was changed.
    changes: u64,
    stored: Option<Stored>,
}

#[derive(Debug, Clone, Copy)]
struct Stored {
    named: Named,
    /// The changes that it has.
    changes: u64,
}

impl Page {
    fn is_stored(&self) -> bool {
        self.stored.is_some_and(|it| it.changes == self.changes)
    }
}

/// Shards that are in no page are never.
#[derive(Debug, Default)]
pub(super) struct Map {
    pages: BTreeMap<u32, Page>,
}

fn place(shard: u64) -> (u32, usize) {
    ((shard / PAGE) as u32, (shard % PAGE) as usize)
}

impl Map {
    pub(super) fn get(&self, shard: u64) -> Base {
        let (page, at) = place(shard);
        let page = self.pages.get(&page);
        page.map_or(Base::Never, |page| page.shards.get(at))
    }

    /// Makes shards something else. The images that they were are added to `gone`.
    pub(super) fn set(&mut self, shards: Range<u64>, base: Base, gone: &mut BTreeSet<Object>) {
        if base != Base::Never {
            for page in shards.start / PAGE..shards.end.div_ceil(PAGE) {
                self.pages.entry(page as u32).or_default();
            }
        }
        let first = (shards.start / PAGE) as u32;
        let last = (shards.end.saturating_sub(1) / PAGE) as u32;
        for (&number, page) in self.pages.range_mut(first..=last) {
            let start = u64::from(number) * PAGE;
            for shard in shards.start.max(start)..shards.end.min(start + PAGE) {
                let at = (shard - start) as usize;
                let old = page.shards.get(at);
                if old == base {
                    continue;
                }
                if let Base::Image(Named { version, .. }) = old {
                    let shard = shard as u32;
                    gone.insert(Object::Image { shard, version });
                }
                page.shards.set(at, base);
                page.changes += 1;
            }
        }
    }

    /// What shards are, in order: those that are in no page are one range up to the next page.
    pub(super) fn bases(
        &self,
        shards: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, Base)> + '_ {
        let mut at = shards.start;
        std::iter::from_fn(move || {
            if at >= shards.end {
                return None;
            }
            let (number, start) = place(at);
            let first = at;
            let base = match self.pages.get(&number) {
                Some(page) => {
                    at += 1;
                    page.shards.get(start)
                }
                None => {
                    let next = self.pages.range(number..).next();
                    let next = next.map_or(u64::MAX, |(&page, _)| u64::from(page) * PAGE);
                    at = shards.end.min(next);
                    Base::Never
                }
            };
            Some((first..at, base))
        })
    }

    /// All images.
    pub(super) fn images(&self) -> impl Iterator<Item = (u32, Named)> + '_ {
        self.pages.iter().flat_map(|(&number, page)| {
            (0..PAGE_SHARDS).filter_map(move |at| match page.shards.get(at) {
                Base::Image(named) => Some((number * PAGE_SHARDS as u32 + at as u32, named)),
                Base::Never | Base::Zero => None,
            })
        })
    }

    /// The pages that a checkpoint has to have put before.
    pub(super) fn unstored(&self) -> Vec<u32> {
        let pages = self.pages.iter();
        let pages = pages.filter(|(_, page)| !page.is_stored() && !page.shards.is_empty());
        pages.map(|(&number, _)| number).collect()
    }

    /// A page, and how often it was changed until now.
    pub(super) fn page(&self, number: u32) -> (MapPage, u64) {
        let page = self.pages.get(&number);
        page.map_or_else(Default::default, |page| (page.shards.clone(), page.changes))
    }

    /// The page as it was after so many changes is on the backends. What was there before, or is not
    /// needed after all, is added to `gone`.
    pub(super) fn stored(
        &mut self,
        number: u32,
        changes: u64,
        named: Named,
        gone: &mut BTreeSet<Object>,
    ) {
        let object = |named: Named| Object::Map {
            page: number,
            version: named.version,
        };
        let Some(page) = self.pages.get_mut(&number) else {
            gone.insert(object(named));
            return;
        };
        // Puts beside each other may end in any order: the newest contents count.
        let late = page.stored.is_some_and(|old| old.changes > changes);
        let needless = match late {
            true => Some(named),
            false => {
                let new = Stored { named, changes };
                page.stored.replace(new).map(|old| old.named)
            }
        };
        gone.extend(needless.map(object));
    }

    /// The names of all pages that are not empty, as a checkpoint has them. None if one was not put
    /// since it was changed.
    pub(super) fn names(&self) -> Option<Vec<(u32, Named)>> {
        let pages = self.pages.iter();
        let pages = pages.filter(|(_, page)| !page.shards.is_empty());
        let named = pages.map(|(&number, page)| match page.stored {
            Some(stored) if page.is_stored() => Some((number, stored.named)),
            _ => None,
        });
        named.collect()
    }

    /// The name under which a page was put last.
    pub(super) fn stored_name(&self, number: u32) -> Option<Named> {
        Some(self.pages.get(&number)?.stored?.named)
    }

    /// Takes in a page as it was read.
    pub(super) fn restore(&mut self, number: u32, named: Named, shards: MapPage) {
        let stored = Some(Stored { named, changes: 0 });
        let page = Page {
            shards,
            changes: 0,
            stored,
        };
        self.pages.insert(number, page);
    }

    /// Gives up pages in which every shard is never.
    pub(super) fn drop_empty(&mut self, gone: &mut BTreeSet<Object>) {
        self.pages.retain(|&number, page| {
            let keep = !page.shards.is_empty();
            if let Some(Stored { named, .. }) = page.stored.filter(|_| !keep) {
                gone.insert(Object::Map {
                    page: number,
                    version: named.version,
                });
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::format::Version;
    use super::*;

    fn image(seq: u64) -> Base {
        Base::Image(Named {
            version: Version {
                seq,
                ..Version::default()
            },
            ..Named::default()
        })
    }

    #[test]
    fn a_trim_of_everything_touches_what_is_there_alone() {
        let (mut map, mut gone) = (Map::default(), BTreeSet::new());
        map.set(5000..5001, image(1), &mut gone);
        map.set(9..10, Base::Zero, &mut gone);
        assert_eq!(map.images().count(), 1);
        map.set(0..1 << 32, Base::Never, &mut gone);
        assert_eq!(map.pages.len(), 2);
        assert_eq!(gone.len(), 1);
        assert!(map.bases(0..20_000).all(|(_, base)| base == Base::Never));
        map.drop_empty(&mut gone);
        assert_eq!((map.pages.len(), gone.len()), (0, 1));
        let all = 0..1 << 32;
        assert_eq!(
            map.bases(all.clone()).collect::<Vec<_>>(),
            [(all, Base::Never)]
        );
    }

    #[test]
    fn shards_without_a_page_are_one_range() {
        let (mut map, mut gone) = (Map::default(), BTreeSet::new());
        map.set(4095..4097, Base::Zero, &mut gone);
        map.set(12_288..12_289, image(1), &mut gone);
        let bases: Vec<_> = map.bases(4094..12_289).collect();
        assert_eq!(bases.len(), 2 + 4096 + 2);
        assert_eq!(
            bases[..2],
            [(4094..4095, Base::Never), (4095..4096, Base::Zero)]
        );
        assert_eq!(
            bases[4098..],
            [(8192..12_288, Base::Never), (12_288..12_289, image(1))]
        );
    }

    #[test]
    fn a_page_that_changed_while_it_was_put_is_put_again() {
        let (mut map, mut gone) = (Map::default(), BTreeSet::new());
        let named = |seq| Named {
            version: Version {
                seq,
                ..Version::default()
            },
            ..Named::default()
        };
        map.set(0..1, Base::Zero, &mut gone);
        let (_, changes) = map.page(0);
        assert_eq!(map.names(), None);
        map.set(1..2, Base::Zero, &mut gone);
        map.stored(0, changes, named(1), &mut gone);
        assert_eq!((map.unstored(), map.names()), (vec![0], None));
        let (_, changes) = map.page(0);
        map.stored(0, changes, named(2), &mut gone);
        assert_eq!(map.names(), Some(vec![(0, named(2))]));
        // One that comes late is not taken for the page.
        map.stored(0, changes - 1, named(3), &mut gone);
        assert_eq!(map.stored_name(0), Some(named(2)));
        let versions: Vec<_> = gone.iter().filter_map(Object::version).collect();
        assert_eq!(versions, [named(1).version, named(3).version]);
        map.set(0..2, Base::Never, &mut gone);
        assert_eq!((map.unstored(), map.names()), (vec![], Some(vec![])));
        map.drop_empty(&mut gone);
        assert_eq!(gone.len(), 3);
    }
}
