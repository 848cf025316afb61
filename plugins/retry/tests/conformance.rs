//! What every backend must show, shown through this link: on a store that works, and on one that
//! fails now and then.

use nbd_rs_fake::{capability_sets, Fake, Rng};
use nbd_rs_plugin::conformance::host::{block_on, host};
use nbd_rs_plugin::conformance::{run, Options, Report};
use nbd_rs_plugin::{export_backend, Next, OptionValue};
use nbd_rs_retry::backend::Retry;
use nbd_rs_retry::config;
use nbd_rs_retry::link::Link;

fn retry(fake: &Fake) -> Next {
    let option = |(name, value): (&str, &str)| OptionValue {
        name: name.into(),
        value: value.into(),
    };
    let options = [("base", "1ms"), ("max", "2ms"), ("attempts", "50")].map(option);
    let link = Link::new(host(), config::policy(&options).unwrap());
    export_backend(Retry::new(link, fake.next())).into()
}

fn report(fake: &Fake) -> Report {
    block_on(run(retry(fake), &Options::named("conformance/", 1)))
}

#[test]
fn c22_every_set_of_capabilities_passes_through_and_conforms() {
    for (name, fake) in capability_sets() {
        let next = retry(&fake);
        assert_eq!(next.capabilities(), fake.next().capabilities(), "{name}");
        let options = Options {
            many_objects: 50,
            script_steps: 60,
            ..Options::named("conformance/", 1)
        };
        let report = block_on(run(next, &options));
        assert!(report.passed() && report.passes() >= 14, "{name}: {report}");
    }
}

#[test]
fn a_store_conforms_through_retry() {
    for at_once in [false, true] {
        let fake = Fake::new();
        fake.answer_at_once(at_once);
        let report = report(&fake);
        assert!(report.passed() && report.passes() > 10, "{report}");
    }
}

#[test]
fn f72_a_store_that_fails_now_and_then_conforms_through_retry() {
    let fake = Fake::new();
    fake.faults().random(Rng::of_test(), 5);
    // What is not repeated; an open that locks is not, nor a delete in doubt.
    for operation in ["flush", "sync", "open", "delete", "delete key"] {
        fake.faults().never(operation);
    }
    let report = report(&fake);
    assert!(report.passed() && report.passes() > 10, "{report}");
}
