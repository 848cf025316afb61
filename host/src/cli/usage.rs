//! A command line that is not understood: one line that says what to do, and no secret in it.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::args::Cli;
use crate::error::printable;
use crate::location::redact;

/// What was typed, understood.
///
/// # Errors
/// The line to print. Help and version are printed here, and end the process.
pub(super) fn parse() -> Result<Cli, String> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        kind => {
            let words = std::env::args_os().skip(1);
            let words = words.map(|word| word.to_string_lossy().into_owned());
            one_line(&error.render().to_string(), kind, words)
        }
    })
}

/// The first part of clap's text, which may have several lines, and the command whose help helps.
fn one_line(rendered: &str, kind: ErrorKind, words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    let mut said = Vec::new();
    let mut command = command_among(&words);
    for paragraph in rendered.split("\n\n") {
        let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        match text.strip_prefix("Usage: ") {
            Some(usage) => command = command_of(usage),
            None if text.starts_with("For more information") => {}
            None => said.push(text),
        }
    }
    let said = said.join("; ");
    let mut said = said.strip_prefix("error: ").unwrap_or(&said).to_owned();
    for word in &words {
        said = without_secrets(&said, word);
    }
    if kind == ErrorKind::InvalidUtf8 {
        said += "; a path that is not UTF-8 can be served through a symbolic link to it";
    }
    printable(&format!("{said} (see {command} --help)"), 2000)
}

/// The command that was typed, for errors without a usage.
fn command_among(words: &[String]) -> String {
    let known = Cli::command();
    let typed = words
        .iter()
        .find(|word| known.find_subcommand(word).is_some());
    typed.map_or("nbd-rs".to_owned(), |word| format!("nbd-rs {word}"))
}

/// `nbd-rs init` of `nbd-rs init [OPTIONS] ...`.
fn command_of(usage: &str) -> String {
    let is_word = |word: &&str| !word.starts_with(['[', '<', '-']);
    let words = usage.split(' ').take_while(is_word);
    words.collect::<Vec<_>>().join(" ")
}

fn without_secrets(said: &str, word: &str) -> String {
    let value = match word.split_once('=') {
        Some((option, value)) if option.starts_with("--") => value,
        _ => word,
    };
    let fit = redact(value);
    if fit == value {
        return said.to_owned();
    }
    let quoted = |text: &str| format!("{text:?}").trim_matches('"').to_owned();
    let said = said.replace(value, &fit);
    said.replace(&quoted(value), &quoted(&fit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> String {
        let error = Cli::try_parse_from(words.split(' ')).unwrap_err();
        let words = words.split(' ').map(str::to_owned);
        one_line(&error.render().to_string(), error.kind(), words)
    }

    #[test]
    fn errors_are_one_line_and_name_the_help() {
        for (words, said) in [
            ("nbd-rs brew", "unrecognized subcommand 'brew' (see nbd-rs --help)"),
            (
                "nbd-rs init raw file:x",
                "the following required arguments were not provided: --size <SIZE> (see nbd-rs init --help)",
            ),
            (
                "nbd-rs serve --export a raw",
                "3 values required for '--export <NAME> <DRIVER> <DRIVER_CFG>' but 2 were provided (see nbd-rs serve --help)",
            ),
        ] {
            assert_eq!(line(words), said);
        }
    }

    #[test]
    fn u1_a_location_in_the_wrong_place_shows_no_secret() {
        for words in [
            "nbd-rs s3://key:CANARY@host/b",
            "nbd-rs init --size s3://key:CANARY@host/b raw",
            "nbd-rs init --size=s3://key:CANARY@host/b raw x",
            "nbd-rs info raw file:x s3://b?token=CANARY",
            "nbd-rs serve --listen s3://key:CA\"NARY@host/b --export a raw x",
        ] {
            let said = line(words);
            assert!(!said.contains("NARY") && said.contains("***"), "{said}");
        }
    }
}
