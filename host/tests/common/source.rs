//! Rust source as text: which files there are, and what is left of one without comments, strings
//! and tests.

use std::path::{Path, PathBuf};

/// The root of this repository.
pub(crate) fn repository() -> &'static Path {
    let host = Path::new(env!("CARGO_MANIFEST_DIR"));
    host.parent().expect("host lies in the repository")
}

/// All files below the repository whose names end so, relative to it, sorted.
pub(crate) fn files(ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(repository(), &mut |path| {
        let path = path.strip_prefix(repository()).unwrap_or(path);
        let path = path.display().to_string();
        if path.ends_with(ending) {
            found.push(path);
        }
    });
    found.sort();
    assert!(!found.is_empty(), "no {ending} here");
    found
}

fn walk(dir: &Path, found: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).expect("a directory of the repository") {
        let path: PathBuf = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == "target" || name == ".git" || name == "corpus" || path.is_symlink() {
            continue;
        }
        match path.is_dir() {
            true => walk(&path, found),
            false => found(&path),
        }
    }
}

/// The text of a file of the repository.
pub(crate) fn read(path: &str) -> String {
    let text = std::fs::read(repository().join(path)).expect("a file of the repository");
    String::from_utf8_lossy(&text).into_owned()
}

/// The source with comments and the contents of strings blanked; lines stay where they are.
pub(crate) fn code(source: &str) -> String {
    let mut left = source;
    let mut out = String::with_capacity(source.len());
    while let Some(first) = left.chars().next() {
        let (skipped, kept) = match first {
            '/' if left.starts_with("//") => (left.find('\n').unwrap_or(left.len()), false),
            '/' if left.starts_with("/*") => {
                (left.find("*/").map_or(left.len(), |at| at + 2), false)
            }
            '"' => (string_end(left), false),
            'r' | 'b' | 'c' => match raw_string(left) {
                Some(end) => (end, false),
                None => (word_end(left), true),
            },
            '\'' => (char_end(left), false),
            c if c.is_alphanumeric() || c == '_' => (word_end(left), true),
            c => (c.len_utf8(), true),
        };
        let (token, rest) = left.split_at(skipped);
        match kept {
            true => out.push_str(token),
            false => out.extend(token.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
        }
        left = rest;
    }
    out
}

fn word_end(text: &str) -> usize {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.find(|c| !part_of_word(c)).unwrap_or(text.len())
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The end of `r"..."`, `br#"..."#` and their like; `None` if it is a word.
fn raw_string(text: &str) -> Option<usize> {
    let opening = text.find('r').filter(|&at| at < 2)?;
    let behind = &text[opening + 1..];
    let hashes = behind.find(|c| c != '#')?;
    let body = behind[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&closing)? + closing.len();
    Some(opening + 1 + hashes + 1 + end)
}

/// The end of a character literal; of a lifetime, the end of its tick.
fn char_end(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => text[2..].find('\'').map_or(1, |at| at + 3).max(4),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// What stands before the tests of a file.
pub(crate) fn without_tests(code: &str) -> &str {
    let tests = code.find("#[cfg(test)]\nmod ");
    tests.map_or(code, |at| &code[..at])
}

/// Every function with a body: its name, and the lines from `fn` to the closing brace.
pub(crate) fn functions(code: &str) -> Vec<(String, usize)> {
    let starts = code.match_indices("fn ").filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    });
    let bodies = starts.filter_map(|(at, _)| {
        let rest = &code[at..];
        let name = rest[3..].split(|c: char| !c.is_alphanumeric() && c != '_');
        let name = name.into_iter().next()?.to_owned();
        let lines = rest[..body_end(rest)?].lines().count();
        (!name.is_empty()).then_some((name, lines))
    });
    bodies.collect()
}

/// Behind the closing brace of a function; `None` if it has no body.
fn body_end(text: &str) -> Option<usize> {
    let (mut round, mut curly) = (0i32, 0i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round -= 1,
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' if curly == 0 => return None,
            '}' => {
                curly -= 1;
                if curly == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        // A function type ends with its parentheses, inside somebody else's.
        if round < 0 {
            return None;
        }
    }
    None
}
