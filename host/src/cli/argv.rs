//! Secrets leave the command line that other users see with `ps`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// The field of `/proc/PID/stat` that says where the command line lies, counted from 1 (proc(5)).
const ARG_START_FIELD: usize = 48;

/// Overwrites each argument that is `word` with `shown`, padded with spaces.
///
/// The memory is written by the kernel, through `/proc/self/mem`: the arguments stay strings of
/// their old length, and no `unsafe` is needed. Nothing else here reads them at that time.
///
/// # Errors
/// Where `/proc` is not there, or not to be written.
pub(super) fn hide(word: &str, shown: &str) -> io::Result<()> {
    let start = arguments_start(&std::fs::read_to_string("/proc/self/stat")?);
    let start = start.ok_or(io::ErrorKind::InvalidData)?;
    let line = std::fs::read("/proc/self/cmdline")?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    let mut at = start;
    for argument in line.split(|byte| *byte == 0) {
        if argument == word.as_bytes() {
            overwrite(&memory, at, argument.len(), shown)?;
        }
        at += argument.len() as u64 + 1;
    }
    Ok(())
}

fn overwrite(memory: &File, at: u64, len: usize, shown: &str) -> io::Result<()> {
    let mut fresh = shown.as_bytes().to_vec();
    fresh.resize(len, b' ');
    memory.write_all_at(&fresh, at)
}

/// The name of the program may hold spaces and parentheses, so fields are counted behind its last.
fn arguments_start(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let field = behind_name.split_whitespace().nth(ARG_START_FIELD - 3)?;
    field.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_found_whatever_the_program_is_called() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) (b c) {}\n", fields.join(" "));
        assert_eq!(arguments_start(&stat), Some(48));
        assert_eq!(arguments_start("17 (a) R 1"), None);
    }
}
