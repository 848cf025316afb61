//! What every link does the same way: it passes on what it knows, and refuses the rest.

use abi_stable::std_types::RNone;

use crate::{Capabilities, CapabilityFlags, Error, Kind, Next, OpenRequest, Result};

impl Capabilities {
    /// What a link that passes every call through may say of itself: that of the one behind it,
    /// less what this version of the interface does not know.
    #[must_use]
    pub fn passed_on(self) -> Self {
        Self {
            flags: CapabilityFlags(self.flags.0 & CapabilityFlags::KNOWN.0),
            reserved: [0; 9],
            ..self
        }
    }
}

impl OpenRequest {
    /// The backend behind this link, taken out of the request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if nothing stands behind it.
    pub fn take_inner(&mut self) -> Result<Next> {
        match std::mem::replace(&mut self.inner, RNone).into_option() {
            Some(inner) => Ok(inner.into()),
            None => Err(Error::new(
                Kind::Invalid,
                format!("{} is a link", self.scheme),
            )),
        }
    }
}

/// Refuses the flags of later versions (`flags.unknown().0`): what they ask for can't be promised.
///
/// # Errors
/// [`Kind::Unsupported`], with nothing changed, if there is one.
pub fn known_flags(unknown_bits: u64) -> Result<()> {
    match unknown_bits {
        0 => Ok(()),
        bits => Err(Error::unsupported(&format!("flag {bits:#x}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c22_what_a_later_version_may_promise_is_not_passed_on() {
        let later = CapabilityFlags(1 << 50);
        let behind = Capabilities {
            max_object_bytes: 7,
            reserved: [9; 9],
            ..Capabilities::new(CapabilityFlags::IN_PLACE | later)
        };
        let said = behind.passed_on();
        assert_eq!(said.flags, CapabilityFlags::IN_PLACE);
        assert_eq!((said.max_object_bytes, said.reserved), (7, [0; 9]));
    }

    #[test]
    fn flags_of_later_versions_are_refused() {
        assert!(known_flags(0).is_ok());
        let refused = known_flags(1 << 40).unwrap_err();
        assert_eq!(refused.message, "flag 0x10000000000 is not supported");
    }
}
