//! What a plugin says of itself, checked and made fit to print before anybody believes it.

use std::collections::BTreeSet;

use abi_stable::std_types::{RString, RVec};
use nbd_rs_plugin::{options, Description, OptionKind, OptionSpec, Role, SchemeSpec};

use super::{text, LoadError};

const NAME_MAX: usize = 64;
const SCHEME_MAX: usize = 32;
const TEXT_MAX: usize = 200;
const SCHEMES_MAX: usize = 32;
const OPTIONS_MAX: usize = 256;
const CHOICES_MAX: usize = 64;

type Result<T> = std::result::Result<T, LoadError>;

/// The description with its texts bounded and escaped.
pub(super) fn check(said: Description) -> Result<Description> {
    let name = word("name", &said.name)?;
    let version = word("version", &said.version)?;
    if !matches!(said.role, Role::STORE | Role::LINK) {
        return bad(format!("role {} is neither store nor link", said.role.0));
    }
    if said.schemes.is_empty() {
        return bad("it serves no scheme");
    }
    if said.schemes.len() > SCHEMES_MAX || said.options.len() > OPTIONS_MAX {
        return bad("too many schemes or options");
    }
    let mut seen = BTreeSet::new();
    let schemes: Result<RVec<SchemeSpec>> = said
        .schemes
        .iter()
        .map(|spec| scheme(spec, &mut seen))
        .collect();
    let mut seen = BTreeSet::new();
    let options: Result<RVec<OptionSpec>> = said
        .options
        .iter()
        .map(|spec| option(spec, &mut seen))
        .collect();
    Ok(Description {
        name,
        version,
        license: clean(&said.license, NAME_MAX),
        role: said.role,
        schemes: schemes?,
        options: options?,
        reserved: said.reserved,
    })
}

fn bad<T>(why: impl Into<String>) -> Result<T> {
    Err(LoadError::BadDescription(why.into()))
}

/// A plugin may be written in a language that does not keep its texts UTF-8.
fn clean(text: &RString, most: usize) -> RString {
    text::line_of_bytes(text.as_rstr().as_rslice().as_slice(), most).into()
}

fn word(what: &str, text: &RString) -> Result<RString> {
    let text = clean(text, NAME_MAX);
    if text.trim().is_empty() {
        return bad(format!("it has no {what}"));
    }
    Ok(text)
}

/// A lower-case letter, then lower-case letters, digits and `extra`.
fn is_identifier(text: &str, extra: char, most: usize) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == extra;
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= most
        && text.chars().all(known)
}

fn scheme(spec: &SchemeSpec, seen: &mut BTreeSet<String>) -> Result<SchemeSpec> {
    let name = clean(&spec.name, SCHEME_MAX);
    if !is_identifier(&name, '-', SCHEME_MAX) {
        return bad(format!(
            "scheme {name:?}: a lower-case letter, then up to 31 of a-z, 0-9 and -"
        ));
    }
    if !seen.insert(name.to_string()) {
        return bad(format!("scheme {name} twice"));
    }
    Ok(SchemeSpec {
        name,
        help: clean(&spec.help, TEXT_MAX),
    })
}

fn option(spec: &OptionSpec, seen: &mut BTreeSet<String>) -> Result<OptionSpec> {
    let name = clean(&spec.name, NAME_MAX);
    if !is_identifier(&name, '_', NAME_MAX) {
        return bad(format!(
            "option {name:?}: a lower-case letter, then a-z, 0-9 and _"
        ));
    }
    if !seen.insert(name.to_string()) {
        return bad(format!("option {name} twice"));
    }
    if spec.choices.len() > CHOICES_MAX
        || (spec.kind == OptionKind::CHOICE && spec.choices.is_empty())
    {
        return bad(format!(
            "option {name}: no choices, or more than {CHOICES_MAX}"
        ));
    }
    let spec = OptionSpec {
        name,
        kind: spec.kind,
        default: spec.default.as_ref().map(|text| clean(text, TEXT_MAX)),
        help: clean(&spec.help, TEXT_MAX),
        secret: spec.secret,
        choices: spec
            .choices
            .iter()
            .map(|text| clean(text, NAME_MAX))
            .collect(),
        reserved: spec.reserved,
    };
    match spec
        .default
        .as_ref()
        .map(|default| options::check(&spec, default))
        .into_option()
    {
        Some(Err(error)) => bad(format!("default of {}", error.message)),
        _ => Ok(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Description {
        Description::store("mem", "1.2.3")
            .license("MIT")
            .scheme("mem", "memory")
            .option(OptionSpec::new("size", OptionKind::SIZE, "how much").default("1GiB"))
            .option(OptionSpec::choice("sync", &["data", "full"], "").default("full"))
    }

    fn reason(description: Description) -> String {
        check(description).unwrap_err().to_string()
    }

    #[test]
    fn a_good_description_stays_as_it_is() {
        let checked = check(good()).unwrap();
        assert_eq!(format!("{checked:?}"), format!("{:?}", good()));
    }

    #[test]
    fn names_and_versions_are_needed() {
        for (description, expected) in [
            (Description::store("", "1"), "no name"),
            (Description::store(" ", "1"), "no name"),
            (Description::store("x", ""), "no version"),
            (Description::store("x", "1"), "no scheme"),
        ] {
            let reason = reason(description);
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn schemes_are_words_that_fit_a_url() {
        for name in ["mem", "a", "s3", "a-1", &"x".repeat(32)] {
            let description = Description::store("x", "1").scheme(name, "");
            assert!(check(description).is_ok(), "{name}");
        }
        for name in [
            "",
            "1a",
            "-a",
            "Mem",
            "a_b",
            "a+b",
            "a:b",
            "a b",
            "ä",
            &"x".repeat(33),
        ] {
            let reason = reason(Description::store("x", "1").scheme(name, ""));
            assert!(reason.contains("scheme"), "{reason}");
        }
        assert!(reason(good().scheme("mem", "")).contains("twice"));
    }

    #[test]
    fn options_are_unique_words_with_defaults_that_hold() {
        let with = |option| reason(good().option(option));
        let text = |name: &str| OptionSpec::new(name, OptionKind::TEXT, "");
        assert!(with(text("size")).contains("size twice"));
        for name in ["", "A", "a-b", "a.b", "_a"] {
            assert!(with(text(name)).contains("option"), "{name}");
        }
        let wrong = OptionSpec::new("n", OptionKind::COUNT, "").default("many");
        assert!(with(wrong).contains("default of option n"));
        assert!(with(OptionSpec::choice("c", &[], "")).contains("no choices"));
        assert!(with(OptionSpec::choice("c", &["a"], "").default("b")).contains("default of"));
    }

    #[test]
    fn unknown_roles_are_refused_and_unknown_types_are_text() {
        let mut description = good();
        description.role = Role(7);
        assert!(reason(description).contains("role 7"));
        let newer = OptionSpec::new("x", OptionKind(99), "").default("anything");
        assert!(check(good().option(newer)).is_ok());
    }

    #[test]
    fn texts_are_bounded_and_harmless() {
        let help = format!("\x1b[31m{}", "x".repeat(100_000));
        let checked = check(good().scheme("loud", &help)).unwrap();
        let printed = &checked.schemes[1].help;
        assert!(
            printed.len() < 300 && !printed.contains('\x1b'),
            "{printed}"
        );
    }

    #[test]
    fn floods_are_refused() {
        let many = (0..300).fold(good(), |description, at| {
            description.option(OptionSpec::new(&format!("o{at}"), OptionKind::TEXT, ""))
        });
        assert!(reason(many).contains("too many"));
    }
}
