//! The options, understood. Pure.

use std::time::Duration;

use nbd_rs_plugin::options::Options;
use nbd_rs_plugin::{OptionValue, Result};

/// The level at which each call is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// For who looks for a mistake.
    Debug,
    /// For everybody.
    Info,
    /// Not at all: totals only.
    Off,
}

/// What to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Each call.
    pub each: Each,
    /// Calls that took so long, or longer.
    pub slow: Option<Duration>,
}

impl Config {
    /// Reads the options of a request.
    ///
    /// # Errors
    /// What is wrong with which option.
    pub fn new(options: &[OptionValue]) -> Result<Self> {
        let options = Options(options);
        let each = match options.text("each") {
            Some("info") => Each::Info,
            Some("off") => Each::Off,
            _ => Each::Debug,
        };
        let slow = match options.text("slow") {
            Some(_) => Some(options.duration("slow", Duration::ZERO)?),
            None => None,
        };
        Ok(Self { each, slow })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_one_that_is_described() {
        let described = crate::describe().options;
        let each = &described[0];
        let given = OptionValue {
            name: each.name.clone(),
            value: each.default.clone().unwrap(),
        };
        assert_eq!(Config::new(&[given]).unwrap(), Config::new(&[]).unwrap());
    }

    #[test]
    fn every_choice_is_understood() {
        let of = |value: &str| {
            let given = OptionValue {
                name: "each".into(),
                value: value.into(),
            };
            Config::new(&[given]).unwrap().each
        };
        assert_eq!(
            [of("debug"), of("info"), of("off")],
            [Each::Debug, Each::Info, Each::Off]
        );
    }
}
