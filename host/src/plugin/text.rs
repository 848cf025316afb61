//! Words of strangers, made fit for one line of a terminal or a log.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// As long as the kernel takes them.
const PATH_MAX: usize = 4096;

/// `text` on one line: control characters and those that turn the writing direction are spelt out,
/// and what is longer than `most` characters is cut.
pub(super) fn line(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    for (at, char) in text.chars().enumerate() {
        if at == most {
            out.push('…');
            break;
        }
        if is_hostile(char) {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    out
}

/// The same for bytes that claim to be UTF-8.
pub(super) fn line_of_bytes(bytes: &[u8], most: usize) -> String {
    // Four bytes a character at most: what lies behind is never looked at.
    let head = &bytes[..bytes.len().min(most.saturating_add(1).saturating_mul(4))];
    line(&String::from_utf8_lossy(head), most)
}

/// A path, which may hold anything but NUL.
pub(super) fn path(path: &Path) -> String {
    line_of_bytes(path.as_os_str().as_bytes(), PATH_MAX)
}

/// Whether a character could move the cursor, end the line or reorder what is read.
fn is_hostile(char: char) -> bool {
    let turns = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}');
    let isolates = matches!(char, '\u{2066}'..='\u{2069}');
    let breaks = matches!(char, '\u{2028}' | '\u{2029}');
    char.is_control() || turns || isolates || breaks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_plugin_says_can_drive_the_terminal() {
        assert_eq!(
            line("a\x1b[2Jb\nc\u{202e}d", 99),
            "a\\u{1b}[2Jb\\nc\\u{202e}d"
        );
        assert_eq!(line("größe 容量", 99), "größe 容量");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(line("äöüß", 2), "äö…");
        assert_eq!(line("äö", 2), "äö");
        assert_eq!(line_of_bytes(&[b'x'; 5000], 3), "xxx…");
        assert_eq!(line_of_bytes(b"a\xffb", 9), "a\u{fffd}b");
    }
}
