//! What every backend must show, shown through this link: before stores that offer more or less, with
//! a directory and without.

use std::path::Path;

use nbd_rs_cache::backend::Cache;
use nbd_rs_cache::config::Config;
use nbd_rs_fake::{capability_sets, Fake};
use nbd_rs_plugin::conformance::host::{block_on, host};
use nbd_rs_plugin::conformance::{run, Options, Report};
use nbd_rs_plugin::{export_backend, CapabilityFlags, Next, OptionValue};

const SMALL: [(&str, &str); 3] = [
    ("block", "4KiB"),
    ("size", "256KiB"),
    ("readahead", "16KiB"),
];

fn cache(fake: &Fake, options: &[(&str, &str)], dir: Option<&Path>) -> Next {
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    let mut options: Vec<OptionValue> = options.iter().map(option).collect();
    options.extend(dir.map(|dir| option(&("dir", dir.to_str().unwrap()))));
    let config = Config::new(&options).unwrap();
    let cache = block_on(Cache::new(host(), config, fake.next(), "fake://store"));
    export_backend(cache.unwrap()).into()
}

fn report(next: &Next, options: &Options) -> Report {
    block_on(run(next.clone(), options))
}

#[test]
fn a_store_conforms_through_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    for options in [&SMALL[..], &[]] {
        for dir in [None, Some(dir.path())] {
            let next = cache(&Fake::new(), options, dir);
            let report = report(&next, &Options::named("conformance/", 1));
            assert!(report.passed() && report.passes() > 20, "{report}");
            block_on(next.close()).unwrap();
        }
    }
}

#[test]
fn c22_every_set_of_capabilities_passes_through_and_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let few = Options {
        many_objects: 50,
        script_steps: 60,
        ..Options::named("conformance/", 1)
    };
    for (name, fake) in capability_sets() {
        for dir in [None, Some(dir.path())] {
            let next = cache(&fake, &SMALL, dir);
            assert_eq!(next.capabilities(), fake.next().capabilities(), "{name}");
            let report = report(&next, &few);
            assert!(report.passed(), "{name}: {report}");
            let in_place = next.capabilities().has(CapabilityFlags::IN_PLACE);
            let least = if in_place { 20 } else { 14 };
            assert!(report.passes() >= least, "{name}: {report}");
            block_on(next.close()).unwrap();
        }
    }
}
