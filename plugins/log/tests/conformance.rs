//! What every backend must show, shown through this link; and what it writes down.

use nbd_rs_fake::{capability_sets, logged, Fake};
use nbd_rs_log::backend::Log;
use nbd_rs_log::config::Config;
use nbd_rs_plugin::conformance::host::block_on;
use nbd_rs_plugin::conformance::{run, Options};
use nbd_rs_plugin::{export_backend, GetFlags, Next, OptionValue, Range};

fn log(name: &str, fake: &Fake, options: &[(&str, &str)]) -> Next {
    let option = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).into(),
        value: (*value).into(),
    };
    let options: Vec<OptionValue> = options.iter().map(option).collect();
    let config = Config::new(&options).unwrap();
    export_backend(Log::new(name, config, fake.next())).into()
}

#[test]
fn a_store_conforms_through_log() {
    for at_once in [false, true] {
        let fake = Fake::new();
        fake.answer_at_once(at_once);
        let next = log("store", &fake, &[]);
        let report = block_on(run(next, &Options::named("conformance/", 1)));
        assert!(report.passed() && report.passes() > 20, "{report}");
    }
}

#[test]
fn c22_every_set_of_capabilities_passes_through_and_conforms() {
    for (name, fake) in capability_sets() {
        let next = log("store", &fake, &[("each", "off")]);
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
fn each_call_and_the_totals_are_logged() {
    nbd_rs_fake::host();
    let fake = Fake::new();
    fake.replace("k", vec![7; 100]);
    let next = log("told", &fake, &[("each", "info")]);
    let get = |key: &'static str| next.get(key, Range::new(10, 20), GetFlags::NONE);
    block_on(get("k")).unwrap();
    block_on(get("missing")).unwrap_err();
    block_on(next.close()).unwrap();
    let lines = logged("told: ");
    assert!(
        lines[0].starts_with("3 told: get \"k\" 20 bytes at 10: "),
        "{lines:?}"
    );
    assert!(lines[1].ends_with(", not_found: missing"), "{lines:?}");
    let totals = "3 told: get: 2 calls, 20 bytes, 1 failed; half below ";
    assert!(lines[2].starts_with(totals), "{lines:?}");
    assert_eq!(lines.len(), 3, "{lines:?}");
}

#[test]
fn what_is_slow_is_a_warning() {
    nbd_rs_fake::host();
    let fake = Fake::new();
    fake.replace("k", vec![7; 100]);
    let next = log("snail", &fake, &[("each", "off"), ("slow", "0ms")]);
    block_on(next.get("k", Range::ALL, GetFlags::NONE)).unwrap();
    let lines = logged("snail");
    assert!(
        lines[0].starts_with("2 slow: snail: get \"k\" 100 bytes at 0: "),
        "{lines:?}"
    );
}
