//! Small writes all over, several times what the journal holds: memory has a bound, and the store
//! gets its shards.

use crate::client::{Client, WRITE};
use crate::memory::{drive, peak, MIB, REST};
use crate::places::Place;
use crate::rng::Rng;

const CACHE: u64 = 16 * MIB;
const JOURNAL: u64 = 16 * MIB;
const UNIT: u64 = 4096;
const VOLUME: u64 = 128 * MIB;

/// Bytes of bodies that the store has read.
fn sent_to(place: &Place) -> u64 {
    let seen = place.s3().seen();
    seen.iter().map(|seen| seen.body_bytes as u64).sum()
}

#[test]
fn c24_small_writes_of_three_times_the_journal_take_bounded_memory() {
    let mut rng = Rng::for_test("journal memory");
    let place = Place::own("cache+retry+s3:", "?cache.size=16MiB");
    let place = place.journaled("--journal-size 16Mi");
    place.init(VOLUME as usize, "4Mi");
    let server = place.serve().start();
    let mut client = Client::structured(&server);
    client
        .line
        .receive_within(std::time::Duration::from_secs(120));
    // Every unit of the volume has what it was last written with.
    let mut volume = vec![0; (VOLUME / UNIT) as usize];
    let count = 3 * JOURNAL / UNIT;
    let units: Vec<u64> = (0..count).map(|_| rng.next() % (VOLUME / UNIT)).collect();
    let writes = units.iter().zip(0u64..).map(|(unit, n)| {
        let word = (n << 32 | unit) | 1;
        volume[*unit as usize] = word;
        (WRITE, unit * UNIT, word.to_le_bytes().repeat(512))
    });
    drive(&mut client, 64, writes);
    assert_eq!(client.flush(), 0);
    let most = peak(&server);
    let (sent, wrote) = (sent_to(&place), count * UNIT);
    println!(
        "journal memory: {} MiB resident; {:.1} bytes to the store for each byte of a client",
        most / MIB,
        sent as f64 / wrote as f64
    );
    let bound = CACHE + JOURNAL / 2 + REST;
    assert!(most < bound, "{} of {} MiB", most / MIB, bound / MIB);
    for (unit, word) in volume.iter().enumerate().step_by(7) {
        let found = client.read(unit as u64 * UNIT, 8).expect("a READ");
        assert_eq!(found, word.to_le_bytes(), "unit {unit}");
    }
    server.stop();
    place.is_clean();
}
