//! The random script of the other layouts.

use crate::cluster::Cluster;
use crate::script::{play, Terms};

fn run(
    name: &str,
    cluster: &Cluster,
    (size, requests, shard): (usize, usize, &str),
    reopened: u64,
) {
    cluster.init(size, shard);
    let terms = Terms {
        cache: false,
        whole_shards: true,
        reopened,
        ..Terms::exact(size, requests)
    };
    play(name, terms, &|| cluster.serve().start());
    cluster.run(&format!(
        "destroy --journal {}",
        cluster.journal().display()
    ));
    assert_eq!(cluster.names(), [""; 0], "destroy leaves something");
}

const SMALL: (usize, usize, &str) = ((1 << 20) + 12_800, 500, "64Ki");
const LARGE: (usize, usize, &str) = ((9 << 20) + 12_800, 120, "4Mi");

#[test]
fn c12_a_random_script_on_distributed_volumes() {
    run("three s3", &Cluster::new(3, "cache:s3:", 0), SMALL, 64);
    run("mixed", &Cluster::new(2, "cache+retry+s3:", 1), LARGE, 64);
    let one = Cluster::new(1, "s3:", 0).with("replicas=1;");
    run("one backend", &one, SMALL, 64);
}

#[test]
fn c12_a_random_script_through_a_journal_on_distributed_volumes() {
    let cluster = || Cluster::new(2, "cache:s3:", 2).with("replicas=2;");
    run(
        "journal",
        &cluster().journaled("--journal-size 8Mi"),
        SMALL,
        8,
    );
    run(
        "journal, large",
        &cluster().journaled("--journal-size 8Mi"),
        LARGE,
        8,
    );
    let least = "--journal-size 1Mi --flush local";
    run(
        "journal, flushed there",
        &cluster().journaled(least),
        SMALL,
        8,
    );
}
