//! Secrets that were typed, so that no line shows them whatever a plugin prints.
//!
//! Locations mask what is secret where they are printed. This is the second net: texts that come
//! back from plugins (errors, log lines) are searched for the secrets that went in.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock};

/// Shorter ones are part of too many words to be masked everywhere, in bytes.
const MIN_BYTES: usize = 6;

static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Remembers a secret until the process ends.
pub fn remember(secret: &str) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    if secret.len() >= MIN_BYTES && !known.iter().any(|one| one == secret) {
        known.push(secret.to_owned());
        // The longest first: a secret may contain another one.
        known.sort_by_key(|one| std::cmp::Reverse(one.len()));
    }
}

/// The text with every known secret replaced by `***`.
pub fn masked(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let mut out = Cow::Borrowed(text);
    for secret in known.iter().filter(|secret| text.contains(*secret)) {
        out = Cow::Owned(out.replace(secret.as_str(), "***"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u1_known_secrets_are_masked_in_any_text() {
        for secret in ["hunter2 canary", "hunter2 canary and more", "tiny"] {
            remember(secret);
        }
        let text = "a tiny key: hunter2 canary and more, hunter2 canary";
        assert_eq!(masked(text), "a tiny key: ***, ***");
        assert!(matches!(masked("nothing"), Cow::Borrowed("nothing")));
    }
}
