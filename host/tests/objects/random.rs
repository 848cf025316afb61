//! The random script of the `raw` layout, on sharded volumes over every chain.

use crate::places::Place;
use crate::script::{play, Terms};

/// How much is played on one chain: an odd size in bytes, requests, and the shards' size.
type Amount = (usize, usize, &'static str);

const SMALL: Amount = ((1 << 20) + 12_800, 1500, "64Ki");
const LARGE: Amount = ((9 << 20) + 12_800, 250, "4Mi");

fn run(name: &str, place: &Place, amount: Amount) {
    run_with(name, place, amount, 64);
}

/// The same with a journal before it, and ended more often: that is what it is for.
fn run_journaled(name: &str, place: Place, words: &str, amount: Amount) {
    run_with(name, &place.journaled(words), amount, 8);
}

fn run_with(name: &str, place: &Place, (size, requests, shard): Amount, reopened: u64) {
    place.init(size, shard);
    let info = place.info();
    let flags = info["flags"].as_array().expect("a list");
    let terms = Terms {
        cache: flags.iter().any(|flag| flag == "SEND_CACHE"),
        whole_shards: info["way"]
            .as_str()
            .is_some_and(|way| way.contains("whole")),
        reopened,
        ..Terms::exact(size, requests)
    };
    play(name, terms, &|| place.serve().start());
    place.is_clean();
    place.destroy();
}

#[test]
fn c12_a_random_script_on_directories() {
    run("file", &Place::directory("file:", ""), SMALL);
    run("cache+file", &Place::directory("cache+file:", ""), SMALL);
    run("file, large", &Place::directory("file:", ""), LARGE);
    let whole = Place::directory("retry:file:", "?way=whole");
    run("retry:file, whole shards", &whole, SMALL);
}

#[test]
fn c12_a_random_script_on_s3() {
    run("retry:s3", &Place::own("retry:s3:", ""), SMALL);
    let chain = Place::own("cache+retry+s3:", "");
    run("cache+retry+s3", &chain, SMALL);
    let chain = Place::own("cache+retry+s3:", "");
    run("cache+retry+s3, large", &chain, LARGE);
}

#[test]
fn c12_a_random_script_on_seaweedfs() {
    let Some(small) = Place::seaweedfs("cache+retry+s3:", "script1") else {
        return;
    };
    run("SeaweedFS", &small, (SMALL.0, 600, SMALL.2));
    if let Some(large) = Place::seaweedfs("retry:cache:s3:", "script2") {
        run("SeaweedFS, large", &large, (LARGE.0, 120, LARGE.2));
    }
}

/// So small that it is full now and then.
const JOURNAL: &str = "--journal-size 8Mi";

#[test]
fn c12_a_random_script_through_a_journal_on_directories() {
    let place = Place::directory("retry:file:", "?way=whole");
    run_journaled("journal, file", place, JOURNAL, SMALL);
    let place = Place::directory("file:", "?way=whole");
    run_journaled("journal, file, large", place, JOURNAL, LARGE);
}

#[test]
fn c12_a_random_script_through_a_journal_on_s3() {
    let place = || Place::own("cache+retry+s3:", "");
    run_journaled("journal, s3", place(), JOURNAL, SMALL);
    run_journaled("journal, s3, large", place(), JOURNAL, LARGE);
    let least = "--journal-size 1Mi --flush local";
    run_journaled("journal, s3, flushed there", place(), least, SMALL);
}

#[test]
fn c12_a_random_script_through_a_journal_on_seaweedfs() {
    if let Some(place) = Place::seaweedfs("cache+retry+s3:", "script3") {
        let some = (SMALL.0, 600, SMALL.2);
        run_journaled("journal, SeaweedFS", place, JOURNAL, some);
    }
}
