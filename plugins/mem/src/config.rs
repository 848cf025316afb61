//! The target and the options, understood. Pure.

use nbd_rs_plugin::options::{decode, Options};
use nbd_rs_plugin::{OptionValue, Result};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Stores of one name are one store, as long as the process lives; the one without a name is
    /// everybody's own.
    pub name: String,
    /// The size of the volume that is there from the start, in bytes.
    pub size_bytes: Option<u64>,
    /// What all contents together may take, in bytes.
    pub limit_bytes: u64,
}

impl Config {
    /// Reads a request's target and options.
    ///
    /// # Errors
    /// What is wrong with which.
    pub fn new(target: &str, options: &[OptionValue]) -> Result<Self> {
        let options = Options(options);
        let size_bytes = match options.text("size") {
            Some(_) => Some(options.size("size", 0)?),
            None => None,
        };
        Ok(Self {
            name: decode(target)?,
            size_bytes,
            limit_bytes: options.size("limit", 1 << 30)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_one_that_is_described() {
        let described = crate::describe().options;
        let limit = described.iter().find(|spec| spec.name == "limit").unwrap();
        let given = OptionValue {
            name: "limit".into(),
            value: limit.default.clone().unwrap(),
        };
        let config = Config::new("", &[given]).unwrap();
        assert_eq!(config, Config::new("", &[]).unwrap());
        assert_eq!(config.size_bytes, None);
    }

    #[test]
    fn names_are_decoded_and_sizes_checked() {
        assert_eq!(Config::new("a%20b", &[]).unwrap().name, "a b");
        let wrong = OptionValue {
            name: "size".into(),
            value: "10GB".into(),
        };
        assert!(Config::new("", &[wrong]).is_err());
    }
}
