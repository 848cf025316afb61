//! The AWS tools' `credentials` and `config` files. Pure.
//!
//! Values are taken as they stand, up to the end of the line: secrets hold `#`, `;` and `\`.
//! Format: AWS SDKs and Tools Reference Guide, "Shared config and credentials files".

use std::collections::BTreeMap;

use nbd_rs_plugin::{Error, Kind, Result};

use crate::credentials::Keys;

/// What a profile says, of what is used here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Whether there is a section of that name at all.
    pub exists: bool,
    pub keys: Option<Keys>,
    pub region: Option<String>,
    pub endpoint: Option<String>,
}

/// Ways to log in that a profile may ask for and that are not spoken here.
const FOREIGN: [&str; 4] = [
    "credential_process",
    "sso_session",
    "sso_start_url",
    "role_arn",
];

impl Profile {
    /// The profile `name` out of the texts of both files; the credentials file goes first.
    ///
    /// # Errors
    /// If it holds half a pair of keys, or wants a login that is not spoken here.
    pub(crate) fn read(credentials: &str, config: &str, name: &str) -> Result<Self> {
        let in_config = match name {
            "default" => vec!["default".to_owned(), "profile default".to_owned()],
            _ => vec![format!("profile {name}")],
        };
        let (mut values, mut exists) = (BTreeMap::new(), false);
        exists |= collect(config, &in_config, &mut values);
        exists |= collect(credentials, &[name.to_owned()], &mut values);
        let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
        let pair = (take("aws_access_key_id"), take("aws_secret_access_key"));
        let token = take("aws_session_token");
        let keys = match pair {
            (Some(access), Some(secret)) => Some(Keys::new(&access, &secret, token.as_deref())?),
            (None, None) => None,
            _ => {
                return Err(bad(
                    name,
                    "has a key without its secret, or the other way round",
                ))
            }
        };
        let foreign = FOREIGN.into_iter().find(|key| take(key).is_some());
        if let (None, Some(key)) = (&keys, foreign) {
            let text = format!(
                "asks for {key}, which is not spoken here; let `aws configure export-credentials \
                 --format env` put the keys into the environment"
            );
            return Err(bad(name, &text));
        }
        Ok(Self {
            exists,
            keys,
            region: take("region"),
            endpoint: take("endpoint_url"),
        })
    }
}

fn bad(name: &str, text: &str) -> Error {
    Error::new(Kind::Denied, format!("profile {name:?} {text}"))
}

/// Adds the settings of the named sections; later ones win. Whether there was such a section.
fn collect(text: &str, names: &[String], values: &mut BTreeMap<String, String>) -> bool {
    let (mut inside, mut found) = (false, false);
    for line in text.lines() {
        // Indented lines belong to the setting above them.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            let section = section.split(']').next().unwrap_or_default();
            let words: Vec<&str> = section.split_whitespace().collect();
            inside = names.contains(&words.join(" "));
            found |= inside;
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            values.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CREDENTIALS: &str = "\
# comment
[default]
aws_access_key_id = AKIDEFAULT
aws_secret_access_key=se;cr#et\\n=x

[ work ]
aws_access_key_id=AKIWORK
aws_secret_access_key=w
aws_session_token=tok
";
    const CONFIG: &str = "\
[default]
region = eu-west-1
s3 =
  region = nowhere
[profile work]
region=us-west-2
endpoint_url = https://s3.example.com
[profile sso]
sso_session = corp
[profile half]
aws_access_key_id = AKI
";

    #[test]
    fn settings_come_from_both_files_and_values_are_verbatim() {
        let default = Profile::read(CREDENTIALS, CONFIG, "default").unwrap();
        let keys = Keys::new("AKIDEFAULT", "se;cr#et\\n=x", None).unwrap();
        assert_eq!(default.keys, Some(keys));
        assert_eq!(default.region.as_deref(), Some("eu-west-1"));
        let work = Profile::read(CREDENTIALS, CONFIG, "work").unwrap();
        assert_eq!(
            work.keys,
            Some(Keys::new("AKIWORK", "w", Some("tok")).unwrap())
        );
        assert_eq!(work.endpoint.as_deref(), Some("https://s3.example.com"));
        assert!(!Profile::read(CREDENTIALS, CONFIG, "none").unwrap().exists);
    }

    #[test]
    fn what_is_not_spoken_here_is_named() {
        let error = Profile::read(CREDENTIALS, CONFIG, "sso").unwrap_err();
        assert!(error.message.contains("sso_session"), "{error}");
        assert!(Profile::read(CREDENTIALS, CONFIG, "half").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[\\[\\]a-z= \n#]{0,200}") {
            let _ = Profile::read(&text, &text, "a");
        }
    }
}
