//! The options, understood. Pure.

use std::time::Duration;

use nbd_rs_plugin::options::Options;
use nbd_rs_plugin::{Error, Kind, OptionValue, Result};

use crate::plan::{Fault, Op, Plan, MILLION};

/// Calls that fail if nothing is said: all that may be asked for again.
pub const DEFAULT_OPS: &str = "get,head,list,put,delete,size,read,write,zero,extents,resize";
/// What happens if nothing is said: honest errors.
pub const DEFAULT_KINDS: &str = "before,after,unsure";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The seed, if one was given.
    pub seed: Option<u64>,
    /// What happens to which call; its seed is to be filled in.
    pub plan: Plan,
    /// The error of a call that fails before anything was done.
    pub error: Kind,
    /// The longest delay.
    pub delay: Duration,
    /// No more faults than this.
    pub most: u64,
}

impl Config {
    /// Reads the options of a request.
    ///
    /// # Errors
    /// What is wrong with which option.
    pub fn new(options: &[OptionValue]) -> Result<Self> {
        let options = Options(options);
        let seed = match options.text("seed") {
            Some(_) => Some(options.count("seed", 0)?),
            None => None,
        };
        let ops = options.text("ops").unwrap_or(DEFAULT_OPS);
        let kinds = options.text("kind").unwrap_or(DEFAULT_KINDS);
        let plan = Plan {
            seed: seed.unwrap_or(0),
            per_million: per_million(options.text("rate").unwrap_or("5"))?,
            ops: match ops {
                "all" => Op::ALL.to_vec(),
                ops => list("ops", ops, Op::ALL, Op::name)?,
            },
            faults: list("kind", kinds, Fault::ALL, Fault::name)?,
            skip: options.count("skip", 0)?,
        };
        let suits = |fault: &Fault| plan.ops.iter().any(|op| fault.suits(*op));
        if let Some(none) = plan.faults.iter().find(|fault| !suits(fault)) {
            let text = format!("none of the calls in ops can be {}", none.name());
            return Err(Error::new(Kind::Invalid, text));
        }
        let error = match options.text("error") {
            Some("timeout") => Kind::Timeout,
            Some("io") => Kind::Io,
            Some("denied") => Kind::Denied,
            Some("corrupt") => Kind::Corrupt,
            _ => Kind::Transient,
        };
        Ok(Self {
            seed,
            plan,
            error,
            delay: options.duration("delay", Duration::from_millis(100))?,
            most: options.count("most", u64::MAX)?,
        })
    }
}

/// Names with commas between, each one of those known.
fn list<T: Copy + 'static>(
    option: &str,
    text: &str,
    known: &'static [T],
    name: fn(T) -> &'static str,
) -> Result<Vec<T>> {
    let one = |word: &str| {
        let found = known
            .iter()
            .copied()
            .find(|item| name(*item) == word.trim());
        found.ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|item| name(*item)).collect();
            let text = format!("option {option}: {word:?} is none of {}", names.join(", "));
            Error::new(Kind::Invalid, text)
        })
    };
    text.split(',').map(one).collect()
}

/// `5` and `0.1` are so many in a hundred.
fn per_million(text: &str) -> Result<u64> {
    let percent: Option<f64> = text
        .parse()
        .ok()
        .filter(|rate| (0.0..=100.0).contains(rate));
    let percent = percent.ok_or_else(|| {
        let text = format!("option rate: {text:?} is no number from 0 to 100");
        Error::new(Kind::Invalid, text)
    })?;
    Ok((percent / 100.0 * MILLION as f64).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Config> {
        let value = |(name, value): &(&str, &str)| OptionValue {
            name: (*name).into(),
            value: (*value).into(),
        };
        Config::new(&options.iter().map(value).collect::<Vec<_>>())
    }

    #[test]
    fn defaults_are_those_that_are_described() {
        let described = crate::describe().options;
        let with_default = described.iter().filter_map(|spec| {
            let value = spec.default.clone().into_option()?;
            let name = spec.name.clone();
            Some(OptionValue { name, value })
        });
        let described: Vec<OptionValue> = with_default.collect();
        assert_eq!(Config::new(&described).unwrap(), parse(&[]).unwrap());
    }

    #[test]
    fn rates_lists_and_names_are_checked() {
        let config = parse(&[("rate", "0.1"), ("ops", "put, get"), ("kind", "lost")]).unwrap();
        assert_eq!(config.plan.per_million, 1000);
        assert_eq!(config.plan.ops, [Op::Put, Op::Get]);
        assert_eq!(config.plan.faults, [Fault::Lost]);
        assert_eq!(
            parse(&[("ops", "all")]).unwrap().plan.ops.len(),
            Op::ALL.len()
        );
        for (name, value, said) in [
            ("rate", "101", "from 0 to 100"),
            ("rate", "NaN", "from 0 to 100"),
            ("rate", "-1", "from 0 to 100"),
            ("ops", "put,eat", "\"eat\" is none of get, put"),
            ("kind", "", "is none of before, after"),
            ("delay", "5", "ms, s, m or h"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            assert!(error.message.contains(said), "{error}");
        }
        let error = parse(&[("ops", "get"), ("kind", "before,lost")]).unwrap_err();
        assert!(error.message.contains("can be lost"), "{error}");
    }
}
