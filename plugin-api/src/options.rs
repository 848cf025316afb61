//! Values of options: sizes, durations, booleans; the same words in every plugin and on the
//! command line. Pure.

use std::time::Duration;

use crate::{Error, Kind, OptionKind, OptionSpec, OptionValue, Result};

/// Parses a size in bytes: plain bytes, or `K M G T P` with an optional `i` or `iB`, all powers of
/// 1024; fractions are allowed (`1.5T`).
///
/// # Errors
/// [`Kind::Invalid`], with a hint, for anything else (`10GB` is ambiguous and refused).
pub fn size(text: &str) -> Result<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = |why: &str| Error::new(Kind::Invalid, format!("size {text:?}: {why}"));
    if number.is_empty() {
        return Err(bad("must begin with a number, such as 100Mi"));
    }
    let shift = match unit {
        "" => 0,
        "K" | "Ki" | "KiB" => 10,
        "M" | "Mi" | "MiB" => 20,
        "G" | "Gi" | "GiB" => 30,
        "T" | "Ti" | "TiB" => 40,
        "P" | "Pi" | "PiB" => 50,
        "KB" | "MB" | "GB" | "TB" | "PB" => {
            let letter = &unit[..1];
            return Err(bad(&format!(
                "is {unit} a power of 1000 or of 1024? Write {letter}i for 1024"
            )));
        }
        _ => {
            return Err(bad(
                "the unit must be K, M, G, T or P, with an optional i or iB",
            ))
        }
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if number.contains('.') && (whole.is_empty() || fraction.is_empty() || fraction.len() > 15) {
        return Err(bad(
            "a fraction needs digits on both sides of the point, 15 at most",
        ));
    }
    if fraction.contains('.') {
        return Err(bad("only one point"));
    }
    let whole: u128 = whole.parse().map_err(|_| bad("too large"))?;
    let mut bytes = whole
        .checked_mul(1 << shift)
        .ok_or_else(|| bad("too large"))?;
    if !fraction.is_empty() {
        let scale = 10u128.pow(fraction.len() as u32);
        let part: u128 = fraction.parse().map_err(|_| bad("not a number"))?;
        let scaled = part << shift;
        if shift == 0 && !scaled.is_multiple_of(scale) {
            return Err(bad("a fraction of a byte"));
        }
        bytes += scaled / scale;
    }
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= i64::MAX as u64 => Ok(bytes),
        _ => Err(bad("too large; the most is 8 EiB - 1")),
    }
}

/// A size as people read it: `100 MiB`, `1.5 GiB`, `513 bytes`. Exact or not at all.
pub fn display_size(bytes: u64) -> String {
    for (shift, unit) in [
        (50, "PiB"),
        (40, "TiB"),
        (30, "GiB"),
        (20, "MiB"),
        (10, "KiB"),
    ] {
        let tenths = (bytes as u128 * 10) >> shift;
        if bytes >= 1 << shift && (tenths << shift) == bytes as u128 * 10 {
            return match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole} {unit}"),
                (whole, tenth) => format!("{whole}.{tenth} {unit}"),
            };
        }
    }
    format!("{bytes} bytes")
}

/// Parses a time: a whole number with `ms`, `s`, `m` or `h`.
///
/// # Errors
/// [`Kind::Invalid`] for anything else.
pub fn duration(text: &str) -> Result<Duration> {
    let bad = || {
        Error::new(
            Kind::Invalid,
            format!("time {text:?}: write a whole number with ms, s, m or h, such as 250ms"),
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(bad)
}

/// Parses `true` or `false` (also `yes`, `no`, `on`, `off`, `1`, `0`).
///
/// # Errors
/// [`Kind::Invalid`] for anything else.
pub fn boolean(text: &str) -> Result<bool> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(Error::new(
            Kind::Invalid,
            format!("{text:?} is neither true nor false"),
        )),
    }
}

/// Parses a whole number.
///
/// # Errors
/// [`Kind::Invalid`] for anything else.
pub fn count(text: &str) -> Result<u64> {
    text.parse()
        .map_err(|_| Error::new(Kind::Invalid, format!("{text:?} is not a whole number")))
}

/// Percent-decodes a target, once.
///
/// # Errors
/// [`Kind::Invalid`] if a `%` has no two hex digits behind it, or if it decodes to NUL or to
/// something that is not UTF-8.
pub fn decode(text: &str) -> Result<String> {
    let escapes = text.split('%').skip(1);
    let is_escape = |rest: &str| {
        let digits = rest.bytes().take(2).filter(u8::is_ascii_hexdigit);
        digits.count() == 2
    };
    if !escapes.into_iter().all(is_escape) {
        return Err(Error::new(
            Kind::Invalid,
            format!("{text:?}: a % must be followed by two hex digits; write %25 for the % itself"),
        ));
    }
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
    let decoded = String::from_utf8(bytes).map_err(|_| {
        Error::new(
            Kind::Invalid,
            format!("{text:?} does not percent-decode to UTF-8"),
        )
    })?;
    if decoded.contains('\0') {
        return Err(Error::new(
            Kind::Invalid,
            format!("{text:?} contains a NUL"),
        ));
    }
    Ok(decoded)
}

/// Checks a value against its description.
///
/// # Errors
/// [`Kind::Invalid`], naming the option.
pub fn check(spec: &OptionSpec, value: &str) -> Result<()> {
    let checked = match spec.kind {
        OptionKind::BOOL => boolean(value).map(drop),
        OptionKind::COUNT => count(value).map(drop),
        OptionKind::SIZE => size(value).map(drop),
        OptionKind::DURATION => duration(value).map(drop),
        OptionKind::CHOICE if !spec.choices.iter().any(|choice| choice == value) => {
            let choices: Vec<&str> = spec.choices.iter().map(|c| c.as_str()).collect();
            Err(Error::new(
                Kind::Invalid,
                format!("must be one of {}", choices.join(", ")),
            ))
        }
        _ => Ok(()),
    };
    checked.map_err(|error| error.context(format_args!("option {}", spec.name)))
}

/// The options of an [`OpenRequest`](crate::OpenRequest), by name and type.
#[derive(Clone, Copy)]
pub struct Options<'a>(pub &'a [OptionValue]);

impl<'a> Options<'a> {
    /// The text of an option, if it was given.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        let option = self.0.iter().rev().find(|option| option.name == name)?;
        Some(option.value.as_str())
    }

    fn parsed<T>(&self, name: &str, default: T, parse: fn(&str) -> Result<T>) -> Result<T> {
        match self.text(name) {
            Some(text) => parse(text).map_err(|e| e.context(format_args!("option {name}"))),
            None => Ok(default),
        }
    }

    /// A size in bytes, or `default`.
    ///
    /// # Errors
    /// As [`size`].
    pub fn size(&self, name: &str, default: u64) -> Result<u64> {
        self.parsed(name, default, size)
    }

    /// A whole number, or `default`.
    ///
    /// # Errors
    /// As [`count`].
    pub fn count(&self, name: &str, default: u64) -> Result<u64> {
        self.parsed(name, default, count)
    }

    /// A time, or `default`.
    ///
    /// # Errors
    /// As [`duration`].
    pub fn duration(&self, name: &str, default: Duration) -> Result<Duration> {
        self.parsed(name, default, duration)
    }

    /// True or false, or `default`.
    ///
    /// # Errors
    /// As [`boolean`].
    pub fn boolean(&self, name: &str, default: bool) -> Result<bool> {
        self.parsed(name, default, boolean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("513", 513),
            ("4K", 4096),
            ("100Mi", 100 << 20),
            ("2GiB", 2 << 30),
            ("1.5T", 3 << 39),
            ("0.5Ki", 512),
            ("8P", 8 << 50),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "-1",
            "1e3",
            "10GB",
            "GiB",
            "1.",
            ".5K",
            "1.2.3K",
            "1.5",
            "9223372036854775808",
            "8192P",
            "1 G",
            "1k",
            "0x10",
            "99999999999999999999999999999999999999999",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("10GB").unwrap_err().message.contains("Gi"));
    }

    #[test]
    fn displayed_sizes_are_exact() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (513, "513 bytes"),
            (1536, "1.5 KiB"),
            (100 << 20, "100 MiB"),
            ((1 << 30) + 1, "1073741825 bytes"),
        ] {
            assert_eq!(display_size(bytes), text);
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for text in ["", "5", "s", "1.5s", "-1s", "1d", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn targets_are_decoded_once() {
        assert_eq!(decode("/a%2520b").unwrap(), "/a%20b");
        assert_eq!(decode("/a+b").unwrap(), "/a+b");
        assert!(decode("/a%00b").is_err());
        assert!(decode("/a%ff").is_err());
        for text in ["100%", "%4", "%zz", "a%%20", "%é"] {
            assert!(decode(text).unwrap_err().message.contains("%25"), "{text}");
        }
    }

    #[test]
    fn values_are_checked_against_their_description() {
        let spec = OptionSpec::choice("sync", &["data", "full"], "");
        assert!(check(&spec, "full").is_ok());
        let error = check(&spec, "none").unwrap_err();
        assert_eq!(error.message, "option sync: must be one of data, full");
    }
}
