//! The options, understood. Pure.

use std::path::PathBuf;

use nbd_rs_plugin::options::Options;
use nbd_rs_plugin::{Error, Kind, OptionKind, OptionSpec, OptionValue, Result};

use crate::pattern::Window;

/// Room for names and versions, in bytes a block: each may be of another object, and others are known
/// of which no block is held.
const NAME_BYTES: u64 = 1200;
/// The first window of read-ahead, in bytes; each further step doubles it.
const FIRST_WINDOW: u64 = 128 << 10;

/// How much is kept, and what is fetched ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Memory for copies, bookkeeping included, in bytes.
    pub size: u64,
    /// What is fetched and kept as one, in bytes; a power of two.
    pub block: u64,
    /// How far ahead of a sequential reader to fetch, in bytes; 0: not at all.
    pub readahead: u64,
    /// Objects up to this size are fetched whole when they are missed again; 0: never.
    pub whole: u64,
    /// Whether to keep a copy of what is put.
    pub put: bool,
    /// Where copies survive a restart.
    pub dir: Option<PathBuf>,
    /// Room in that directory, in bytes.
    pub disk_size: u64,
}

/// What may be said in a location.
pub fn options() -> Vec<OptionSpec> {
    let option = |name, kind, default, help| OptionSpec::new(name, kind, help).default(default);
    vec![
        option(
            "size",
            OptionKind::SIZE,
            "256MiB",
            "memory for copies, bookkeeping included",
        ),
        option(
            "block",
            OptionKind::SIZE,
            "64KiB",
            "what is fetched and kept as one: a power of two from 4KiB to 4MiB",
        ),
        option(
            "readahead",
            OptionKind::SIZE,
            "1MiB",
            "how far ahead of a sequential reader to fetch; 0 never",
        ),
        option(
            "whole",
            OptionKind::SIZE,
            "8MiB",
            "objects up to this size are fetched whole when they are missed again; 0 never",
        ),
        option(
            "put",
            OptionKind::BOOL,
            "true",
            "keep a copy of what is written as a whole object",
        ),
        OptionSpec::new(
            "dir",
            OptionKind::PATH,
            "a directory of this cache's own, for copies that survive a restart",
        ),
        option(
            "disk_size",
            OptionKind::SIZE,
            "16GiB",
            "room in that directory",
        ),
    ]
}

impl Config {
    /// Reads the options of a request.
    ///
    /// # Errors
    /// What is wrong with which option.
    pub fn new(options: &[OptionValue]) -> Result<Self> {
        let options = Options(options);
        let config = Self {
            size: options.size("size", 256 << 20)?,
            block: options.size("block", 64 << 10)?,
            readahead: options.size("readahead", 1 << 20)?,
            whole: options.size("whole", 8 << 20)?,
            put: options.boolean("put", true)?,
            dir: options.text("dir").map(PathBuf::from),
            disk_size: options.size("disk_size", 16 << 30)?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if !self.block.is_power_of_two() || !(4 << 10..=4 << 20).contains(&self.block) {
            return Err(invalid("block must be a power of two from 4KiB to 4MiB"));
        }
        if self.size < self.block.saturating_mul(64) || self.size > 1 << 50 {
            return Err(invalid(format!(
                "size must hold at least 64 blocks ({} KiB here), and be at most 1PiB",
                (self.block * 64) >> 10
            )));
        }
        if self.dir.is_some() && self.disk_size < (16 << 20).max(self.block * 16) {
            return Err(invalid("disk_size must be at least 16MiB, and 16 blocks"));
        }
        Ok(())
    }

    /// The most that waits to be written to the directory, in bytes.
    pub fn waiting(&self) -> u64 {
        (self.size / 32).min(16 << 20)
    }

    /// The most that is kept of one answer, in bytes: one large read must not push out the rest.
    pub fn largest_fill(&self) -> u64 {
        self.size / 4
    }

    /// The most that is fetched ahead at one time for all readers, in bytes. It has to fit into the
    /// tenth of the room that is for new blocks: what is pushed out before its reader comes is
    /// fetched twice, and looks like something that is used.
    pub fn background(&self) -> u64 {
        (self.size / 16).min(32 << 20)
    }

    /// How far ahead of a sequential reader of an object of `size` bytes to fetch. A small one comes
    /// in one piece: its end is nearer than the start of the next request would be.
    pub fn window(&self, size: u64) -> Window {
        let most = self.size / 32;
        match size <= self.small() && self.readahead > 0 {
            true => Window { first: most, most },
            false => Window {
                first: FIRST_WINDOW,
                most: most.min(self.readahead),
            },
        }
    }

    /// The largest object that is fetched whole, in bytes.
    pub fn small(&self) -> u64 {
        self.whole.min(self.largest_fill())
    }

    /// Up to here copies are added without asking what they push out, in bytes: one part of the
    /// memory can be full before the others are.
    pub fn roomy(&self) -> u64 {
        (self.size - self.for_index()) / 16 * 15
    }

    /// What names and versions may have of `size`, in bytes.
    pub fn for_index(&self) -> u64 {
        let blocks = self.size / self.block;
        (blocks * NAME_BYTES).clamp(self.size / 64, self.size / 16)
    }
}

fn invalid(text: impl AsRef<str>) -> Error {
    Error::new(Kind::Invalid, text)
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
        let described: Vec<OptionValue> = options()
            .into_iter()
            .filter_map(|spec| {
                Some(OptionValue {
                    name: spec.name,
                    value: spec.default.into_option()?,
                })
            })
            .collect();
        assert_eq!(Config::new(&described).unwrap(), parse(&[]).unwrap());
    }

    #[test]
    fn names_have_room_for_an_object_a_block_and_leave_the_rest_to_blocks() {
        let for_index = |block| {
            let config = parse(&[("size", "256MiB"), ("block", block)]).unwrap();
            config.for_index()
        };
        // A name and what is known of its object take about 600 bytes.
        assert!((4096 * 600..8 << 20).contains(&for_index("64KiB")));
        assert_eq!(for_index("4KiB"), 16 << 20);
        assert_eq!(for_index("4MiB"), 4 << 20);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for options in [
            [("block", "2KiB"), ("size", "1GiB")],
            [("block", "65Ki"), ("size", "1GiB")],
            [("block", "8MiB"), ("size", "1GiB")],
            [("block", "64KiB"), ("size", "1MiB")],
            [("block", "64KiB"), ("size", "2P")],
            [("dir", "/x"), ("disk_size", "1MiB")],
        ] {
            assert!(parse(&options).is_err(), "{options:?}");
        }
        assert!(parse(&[("block", "4KiB"), ("size", "256KiB")]).is_ok());
    }
}
