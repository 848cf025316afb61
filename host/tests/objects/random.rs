//! The random script of the `raw` layout, on sharded volumes over every chain.

use crate::places::Place;
use crate::script::{play, Terms};

/// How much is played on one chain: an odd size in bytes, requests, and the shards' size.
type Amount = (usize, usize, &'static str);

const SMALL: Amount = ((1 << 20) + 12_800, 1500, "64Ki");
const LARGE: Amount = ((9 << 20) + 12_800, 250, "4Mi");

fn run(name: &str, place: &Place, (size, requests, shard): Amount) {
    place.init(size, shard);
    let info = place.info();
    let flags = info["flags"].as_array().expect("a list");
    let terms = Terms {
        cache: flags.iter().any(|flag| flag == "SEND_CACHE"),
        whole_shards: info["way"]
            .as_str()
            .is_some_and(|way| way.contains("whole")),
        ..Terms::exact(size, requests)
    };
    play(name, terms, &|| place.serve().start());
    place.is_clean();
    place.run("destroy");
    assert_eq!(place.names(), [""; 0], "destroy leaves something");
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
