//! One error type from the plugin to the reply: a kind to decide on, an errno, a line to read.

pub use nbd_rs_plugin::{Error, Kind, Result};

/// Text from outside, made fit for a log line or an error: control characters escaped, at most
/// `most` characters.
pub fn printable(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    let mut left = most;
    for c in text.chars() {
        if left == 0 {
            out.push('…');
            break;
        }
        left -= 1;
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w75_text_from_outside_is_escaped_and_cut() {
        assert_eq!(printable("a\x1b[2Jb\n", 80), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(&"x".repeat(100), 3), "xxx…");
    }
}
