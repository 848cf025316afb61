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

/// A name from outside as [`printable`] has it, between quotation marks.
pub fn quoted(text: &str, most: usize) -> String {
    format!("\"{}\"", printable(text, most))
}

/// A text of any length as [`printable`] has it, its middle left out if it has more than `most`
/// characters: the reason stands at an error's end.
pub fn one_line(text: &str, most: usize) -> String {
    let chars = text.chars().count();
    if chars <= most {
        return printable(text, most);
    }
    let tail: String = text.chars().skip(chars - most / 2).collect();
    printable(text, most / 2) + &printable(&tail, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w75_text_from_outside_is_escaped_and_cut() {
        assert_eq!(printable("a\x1b[2Jb\n", 80), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(&"x".repeat(100), 3), "xxx…");
        assert_eq!(quoted("a\n", 80), "\"a\\n\"");
        assert_eq!(
            one_line(&("x".repeat(100) + ": why\n"), 12),
            "xxxxxx…: why\\n"
        );
    }
}
