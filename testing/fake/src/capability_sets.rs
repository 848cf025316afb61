//! Stores that differ in what they offer.

use nbd_rs_plugin::CapabilityFlags;

use crate::Fake;

/// What a store may do without.
const OPTIONAL: [CapabilityFlags; 5] = [
    CapabilityFlags::IN_PLACE,
    CapabilityFlags::IF_ABSENT,
    CapabilityFlags::IF_MATCH,
    CapabilityFlags::RANGED_GET,
    CapabilityFlags::EXTENTS.with(CapabilityFlags::PUNCH_HOLE),
];

/// An empty store for every combination of what it lacks, and one without ETags.
pub fn capability_sets() -> impl Iterator<Item = (String, Fake)> {
    let combinations = (0..1_u32 << OPTIONAL.len()).map(|set| {
        let lacking = OPTIONAL.iter().enumerate();
        let lacking = lacking.filter(|(at, _)| set >> at & 1 == 1);
        let lacking = lacking.fold(CapabilityFlags::NONE, |all, (_, flags)| all.with(*flags));
        let fake = Fake::new();
        fake.lacks(lacking);
        (format!("without {lacking:?}"), fake)
    });
    let versionless = Fake::new();
    versionless.without_etags();
    versionless.lacks(CapabilityFlags::IF_MATCH);
    combinations.chain([("without ETags".to_owned(), versionless)])
}
