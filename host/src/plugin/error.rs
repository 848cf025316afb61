//! Each way in which a file can fail to become a plugin.

use std::fmt;

/// Why a file or directory was not used. One line each; the path stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// It could not be opened, read or listed.
    Unreadable(String),
    /// Somebody who is not trusted could have put it there.
    Insecure(String),
    /// It is not an ELF shared library.
    NotALibrary(&'static str),
    /// It ends before its contents do: an interrupted copy.
    Truncated,
    /// Its tables contradict each other.
    Damaged(&'static str),
    /// It was made for another kind of machine.
    OtherArchitecture(String),
    /// A library, but none that exports the plugin interface.
    NotAPlugin,
    /// It exports the interface of another project that uses `abi_stable`.
    OtherProject(String),
    /// It was built with an `abi_stable` that this host can't talk to.
    OtherAbiStable,
    /// It was built for another major version of the plugin interface.
    OtherMajor {
        /// What the plugin was built for.
        plugin: String,
        /// What this host speaks.
        host: String,
    },
    /// Its types differ from this host's although the version says otherwise.
    OtherLayout(String),
    /// A library that it needs is missing.
    MissingDependency(String),
    /// Something it needs is in none of its libraries.
    MissingSymbol(String),
    /// The dynamic loader refused it for another reason.
    LoaderRefused(String),
    /// Its first function panicked or gave an error.
    RootFailed(String),
    /// It could not say what it is.
    DescribeFailed(String),
    /// What it says of itself can't be used.
    BadDescription(String),
    /// Another file in the same directory serves the same schemes.
    Clash(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Self::Insecure(why) => write!(f, "{why}; --allow-insecure-plugins overrides"),
            Self::NotALibrary(what) => write!(f, "is not a shared library: {what}"),
            Self::Truncated => f.write_str("is cut short: copy or build it again"),
            Self::Damaged(what) => write!(f, "is damaged: {what}"),
            Self::OtherArchitecture(what) => write!(f, "is made for another machine: {what}"),
            Self::NotAPlugin => f.write_str("is a shared library, but not an nbd-rs plugin"),
            Self::OtherProject(name) => {
                write!(f, "is a plugin of something else ({name}), not of nbd-rs")
            }
            Self::OtherAbiStable => f.write_str(
                "was built with an incompatible abi_stable: rebuild it with nbd-rs-plugin's own",
            ),
            Self::OtherMajor { plugin, host } => write!(
                f,
                "was built for plugin interface {plugin}, this host speaks {host}: rebuild it"
            ),
            Self::OtherLayout(what) => {
                write!(f, "was built against a different interface: {what}")
            }
            Self::MissingDependency(what) => write!(f, "needs a library that is missing: {what}"),
            Self::MissingSymbol(what) => write!(f, "needs a symbol that is missing: {what}"),
            Self::LoaderRefused(what) => write!(f, "the system's loader refused it: {what}"),
            Self::RootFailed(what) => write!(f, "failed while it was loaded: {what}"),
            Self::DescribeFailed(what) => write!(f, "could not describe itself: {what}"),
            Self::BadDescription(what) => write!(f, "describes itself badly: {what}"),
            Self::Clash(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for LoadError {}
