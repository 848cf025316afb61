//! The options, understood. Pure.

use std::time::Duration;

use nbd_rs_plugin::options::Options;
use nbd_rs_plugin::{Error, Kind, OptionValue, Result};

use crate::policy::Policy;

/// More attempts than this are a typing error.
const ATTEMPTS_MAX: u64 = 1000;

/// Reads the options of a request.
///
/// # Errors
/// What is wrong with which option.
pub fn policy(options: &[OptionValue]) -> Result<Policy> {
    let options = Options(options);
    let attempts = options.count("attempts", 8)?;
    if !(1..=ATTEMPTS_MAX).contains(&attempts) {
        return Err(invalid(format!("attempts must be 1 to {ATTEMPTS_MAX}")));
    }
    let base = options.duration("base", Duration::from_millis(100))?;
    // A base above the default maximum raises it: only two that were both given can disagree.
    let max = options.duration("max", base.max(Duration::from_secs(5)))?;
    if base.is_zero() || base > max {
        return Err(invalid("base must be above zero and not above max"));
    }
    Ok(Policy {
        attempts: attempts as u32,
        time: options.duration("time", Duration::from_secs(30))?,
        base,
        max,
    })
}

fn invalid(text: impl AsRef<str>) -> Error {
    Error::new(Kind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Policy> {
        let value = |(name, value): &(&str, &str)| OptionValue {
            name: (*name).into(),
            value: (*value).into(),
        };
        policy(&options.iter().map(value).collect::<Vec<_>>())
    }

    #[test]
    fn defaults_are_those_that_are_described() {
        let described: Vec<OptionValue> = crate::describe()
            .options
            .iter()
            .map(|spec| OptionValue {
                name: spec.name.clone(),
                value: spec.default.clone().unwrap(),
            })
            .collect();
        assert_eq!(policy(&described).unwrap(), parse(&[]).unwrap());
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for options in [
            [("attempts", "0"), ("time", "1s")],
            [("attempts", "1001"), ("time", "1s")],
            [("base", "0ms"), ("max", "1s")],
            [("base", "2s"), ("max", "1s")],
            [("time", "5"), ("max", "1s")],
        ] {
            assert!(parse(&options).is_err(), "{options:?}");
        }
        let slow = parse(&[("base", "10s")]).unwrap();
        assert_eq!(slow.max, Duration::from_secs(10));
    }
}
