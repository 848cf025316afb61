//! `nbd-rs plugins`: the registry for people, and for scripts.

use std::fmt::Write as _;

use nbd_rs_plugin::{OptionSpec, Role};
use serde_json::{json, Value};

use super::text::path;
use super::{Plugin, PluginDir, Refused, Registry, Shadowed};

impl Registry {
    /// The list for people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for plugin in self.plugins() {
            plugin_text(&mut out, plugin);
        }
        if self.plugins().is_empty() {
            out.push_str("no plugins found\n");
            for dir in self.dirs() {
                let _ = writeln!(out, "  searched {} ({})", path(&dir.path), dir.origin);
            }
        }
        let shadowed = self.shadowed().iter().map(|shadowed| {
            let (by, file) = (path(&shadowed.by), path(&shadowed.path));
            format!("{}: {file} is not used, {by} comes first", shadowed.scheme)
        });
        section(&mut out, "shadowed", shadowed);
        let refused = self.refused().iter();
        let refused = refused.map(|refused| format!("{}: {}", path(&refused.path), refused.reason));
        section(&mut out, "refused", refused);
        section(&mut out, "warnings", self.warnings().iter().cloned());
        out
    }

    /// The same for scripts: one JSON object.
    pub fn to_json(&self) -> String {
        let value = json!({
            "plugins": list(self.plugins(), plugin_json),
            "shadowed": list(self.shadowed(), shadowed_json),
            "refused": list(self.refused(), refused_json),
            "warnings": self.warnings(),
            "searched": list(self.dirs(), dir_json),
        });
        format!("{value:#}\n")
    }
}

fn role(role: Role) -> &'static str {
    if role == Role::LINK {
        "link"
    } else {
        "store"
    }
}

fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        let _ = writeln!(out, "{title}:");
    }
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
}

/// The schemes of a plugin that are its own to answer, with their help.
fn served(plugin: &Plugin) -> impl Iterator<Item = (&str, &str)> {
    let specs = plugin.description.schemes.iter();
    specs
        .map(|spec| (spec.name.as_str(), spec.help.as_str()))
        .filter(|(name, _)| plugin.schemes.iter().any(|served| served == name))
}

fn plugin_text(out: &mut String, plugin: &Plugin) {
    let said = &plugin.description;
    let license = if said.license.is_empty() {
        "licence not said"
    } else {
        said.license.as_str()
    };
    let _ = writeln!(
        out,
        "{} {}  ({}, {license}, interface {})",
        said.name,
        said.version,
        role(said.role),
        plugin.abi_version
    );
    let _ = writeln!(out, "  {}", path(&plugin.path));
    let schemes: Vec<_> = served(plugin).collect();
    let width = schemes
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    for (name, help) in schemes {
        let _ = writeln!(out, "  {}", format!("{name:width$}:  {help}").trim_end());
    }
    if !said.options.is_empty() {
        out.push_str("  options:\n");
    }
    let heads: Vec<String> = said.options.iter().map(option_head).collect();
    let width = heads
        .iter()
        .map(|head| head.chars().count())
        .max()
        .unwrap_or_default();
    for (head, option) in heads.iter().zip(&said.options) {
        let _ = writeln!(
            out,
            "    {}",
            format!("{head:width$}  {}", option.help).trim_end()
        );
    }
    out.push('\n');
}

/// `size=<size> [1GiB]`, `sync=data|full [full]`, `key=<text> (secret)`.
fn option_head(option: &OptionSpec) -> String {
    let choices: Vec<&str> = option
        .choices
        .iter()
        .map(|choice| choice.as_str())
        .collect();
    let kind = if choices.is_empty() {
        format!("<{}>", option.kind.name())
    } else {
        choices.join("|")
    };
    let mut head = format!("{}={kind}", option.name);
    if let Some(default) = default_of(option) {
        let _ = write!(head, " [{default}]");
    }
    if option.secret {
        head.push_str(" (secret)");
    }
    head
}

/// The default, unless it ought not to be seen.
fn default_of(option: &OptionSpec) -> Option<&str> {
    let default = option.default.as_ref().into_option()?;
    (!option.secret).then_some(default.as_str())
}

fn list<T>(items: &[T], each: impl Fn(&T) -> Value) -> Vec<Value> {
    items.iter().map(each).collect()
}

fn plugin_json(plugin: &Plugin) -> Value {
    let said = &plugin.description;
    let schemes: Vec<Value> = served(plugin)
        .map(|(name, help)| json!({ "name": name, "help": help }))
        .collect();
    json!({
        "name": said.name.as_str(),
        "version": said.version.as_str(),
        "license": said.license.as_str(),
        "role": role(said.role),
        "interface": plugin.abi_version,
        "path": path(&plugin.path),
        "schemes": schemes,
        "options": list(&said.options, option_json),
    })
}

fn shadowed_json(shadowed: &Shadowed) -> Value {
    json!({
        "path": path(&shadowed.path),
        "scheme": shadowed.scheme,
        "by": path(&shadowed.by),
    })
}

fn refused_json(refused: &Refused) -> Value {
    json!({ "path": path(&refused.path), "reason": refused.reason.to_string() })
}

fn dir_json(dir: &PluginDir) -> Value {
    json!({ "path": path(&dir.path), "origin": dir.origin.to_string() })
}

fn option_json(option: &OptionSpec) -> Value {
    let choices: Vec<&str> = option
        .choices
        .iter()
        .map(|choice| choice.as_str())
        .collect();
    json!({
        "name": option.name.as_str(),
        "type": option.kind.name(),
        "default": default_of(option),
        "choices": choices,
        "secret": option.secret,
        "help": option.help.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::{Description, OptionKind};

    use super::*;
    use crate::plugin::registry::tests::plugin;
    use crate::plugin::LoadError;

    fn registry() -> Registry {
        let said = Description::store("s3", "0.1.0")
            .license("MIT")
            .scheme("s3", "buckets")
            .option(OptionSpec::new("region", OptionKind::TEXT, "which"))
            .option(OptionSpec::new("timeout", OptionKind::DURATION, "a try").default("10s"))
            .option(OptionSpec::choice("sign", &["no", "yes"], "how"))
            .option(
                OptionSpec::new("key", OptionKind::TEXT, "who")
                    .default("x")
                    .secret(),
            );
        let refused = Refused {
            path: "/p/\x1b[2J.so".into(),
            reason: LoadError::Truncated,
        };
        let shadowed = Shadowed {
            path: "/q/s3.so".into(),
            scheme: "s3".to_owned(),
            by: "/p/s3.so".into(),
        };
        let warnings = vec!["/p may be written by its group".to_owned()];
        Registry::of_parts(
            vec![plugin("/p/s3.so", said)],
            vec![refused],
            vec![shadowed],
            warnings,
        )
    }

    #[test]
    fn people_see_everything_on_aligned_lines() {
        let expected = "\
s3 0.1.0  (store, MIT, interface 1.0.0)
  /p/s3.so
  s3:  buckets
  options:
    region=<text>             which
    timeout=<duration> [10s]  a try
    sign=no|yes               how
    key=<text> (secret)       who

shadowed:
  s3: /q/s3.so is not used, /p/s3.so comes first
refused:
  /p/\\u{1b}[2J.so: is cut short: copy or build it again
warnings:
  /p may be written by its group
";
        assert_eq!(registry().to_text(), expected);
    }

    #[test]
    fn scripts_see_the_same_and_no_secret_default() {
        let value: Value = serde_json::from_str(&registry().to_json()).unwrap();
        let plugin = &value["plugins"][0];
        assert_eq!(
            plugin["schemes"][0],
            json!({ "name": "s3", "help": "buckets" })
        );
        assert_eq!(plugin["options"][1]["default"], "10s");
        assert_eq!(plugin["options"][2]["choices"], json!(["no", "yes"]));
        assert_eq!(plugin["options"][3]["default"], Value::Null);
        assert_eq!(value["shadowed"][0]["by"], "/p/s3.so");
        assert_eq!(value["refused"][0]["path"], "/p/\\u{1b}[2J.so");
    }

    #[test]
    fn an_empty_registry_says_where_it_looked() {
        assert_eq!(Registry::default().to_text(), "no plugins found\n");
    }
}
