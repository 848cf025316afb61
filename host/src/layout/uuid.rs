//! Identities: of volumes and of owners.

use crate::error::{Error, Result};

/// 16 random bytes, shown as RFC 9562 does (version 4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// If the kernel has none.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        // Up to 256 bytes come at once or not at all (getrandom(2)).
        got.map_err(|errno| Error::os(&errno.into(), "random numbers"))?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// Reads what [`Display`](std::fmt::Display) writes, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|&c| c != '-').collect();
        if digits.len() != 32 || !digits.is_ascii() {
            return None;
        }
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).ok()?;
        }
        let uuid = Self(bytes);
        (uuid.to_string() == text).then_some(uuid)
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_as_it_is_written_and_in_no_other_way() {
        let uuid = Uuid::random().unwrap();
        let text = uuid.to_string();
        assert_eq!(text.len(), 36);
        assert_eq!(Uuid::parse(&text), Some(uuid));
        for wrong in [
            text.replace('-', ""),
            format!("{text}0"),
            format!("+{}", &text[1..]),
            "F0000000-0000-4000-8000-000000000000".to_owned(),
        ] {
            assert_eq!(Uuid::parse(&wrong), None, "{wrong}");
        }
        assert_ne!(uuid, Uuid::random().unwrap());
    }
}
