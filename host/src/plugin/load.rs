//! From a file to the table of functions that a plugin exports.
//!
//! Never `RootModule::load_from*`: they keep one module per type, so a second plugin would be the
//! first one again. Never `dlclose`: layouts, tables and threads of the library stay in use.

use std::fs::File;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

use abi_stable::abi_stability::abi_checking::{check_layout_compatibility, AbiInstabilityErrors};
use abi_stable::library::{
    AbiHeaderRef, LibHeader, RootModule, RootModuleError, ROOT_MODULE_LOADER_NAME_WITH_NUL,
};
use abi_stable::type_layout::TypeLayout;
use abi_stable::StableAbi;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nbd_rs_plugin::abi::PluginRef;
use object::read::ReadCache;

use super::{elf, text, LoadError};

/// Longest text that we take over from the loader or the layout check.
const TEXT_MAX: usize = 200;

/// A loaded table, and the version of the interface that it was built for.
#[derive(Clone, Copy)]
pub(super) struct Loaded {
    pub(super) table: PluginRef,
    pub(super) abi_version: &'static str,
}

/// Loads the library at `path`, which must be absolute: a bare name would be searched elsewhere.
///
/// Nothing of it runs before the file was found whole and exports the plugin interface; nothing of
/// it but constructors runs before its types were compared with ours.
pub(super) fn load(path: &Path) -> Result<Loaded, LoadError> {
    debug_assert!(path.is_absolute());
    check_file(path)?;
    let header = open(path)?;
    let theirs = header
        .layout()
        .ok_or_else(|| LoadError::OtherLayout("built without its layout".to_owned()))?;
    let versions = Versions {
        host: PluginRef::VERSION_STRINGS.version.as_str(),
        plugin: header.version_strings().version.as_str(),
    };
    agree(<PluginRef as StableAbi>::LAYOUT, theirs, versions)?;
    let table = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the layout that the library carries was just compared with `PluginRef`'s.
        unsafe { header.unchecked_layout::<PluginRef>() }
    }));
    match table {
        Ok(Ok(table)) => Ok(Loaded {
            table,
            abi_version: versions.plugin,
        }),
        Ok(Err(RootModuleError::Returned(error))) => Err(LoadError::RootFailed(text::line(
            &error.to_string(),
            TEXT_MAX,
        ))),
        Ok(Err(RootModuleError::Unwound)) | Err(_) => {
            Err(LoadError::RootFailed("it panicked".to_owned()))
        }
    }
}

/// Reads the file's tables, no more of it than needed.
fn check_file(path: &Path) -> Result<(), LoadError> {
    let unreadable = |error: std::io::Error| LoadError::Unreadable(error.to_string());
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(LoadError::Unreadable("not a regular file".to_owned()));
    }
    let file = ReadCache::new(File::open(path).map_err(unreadable)?);
    elf::check(&file)
}

/// Hands the file to the system's loader and gets the header.
fn open(path: &Path) -> Result<&'static LibHeader, LoadError> {
    // SAFETY: this runs the library's constructors. The file is whole, exports our interface and
    // lies where only trusted people can put files (or the user said that he trusts it).
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = std::mem::ManuallyDrop::new(library.map_err(|error| refusal(&error))?);
    // SAFETY: the symbol is a static that begins with the bytes of an `AbiHeader`, as `elf::check`
    // saw in the file; `AbiHeaderRef` is a pointer to one.
    let header =
        unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) };
    let header: AbiHeaderRef = *header.map_err(|_| LoadError::NotAPlugin)?;
    header.upgrade().map_err(|_| LoadError::OtherAbiStable)
}

/// Sorts the loader's reasons, which it gives as text.
fn refusal(error: &libloading::Error) -> LoadError {
    let source = std::error::Error::source(error).map(ToString::to_string);
    let text = text::line(&source.unwrap_or_else(|| error.to_string()), TEXT_MAX);
    if text.contains("undefined symbol") {
        LoadError::MissingSymbol(text)
    } else if text.contains("cannot open shared object file") {
        LoadError::MissingDependency(text)
    } else {
        LoadError::LoaderRefused(text)
    }
}

/// What both sides were built for.
#[derive(Clone, Copy)]
struct Versions {
    host: &'static str,
    plugin: &'static str,
}

/// One of the two must be a prefix of the other.
///
/// The check only knows "the first is a prefix of the second": a plugin of this version or a newer
/// minor one. Turned round it says that the plugin is older; what its tables lack is then answered
/// by defaults.
fn agree(
    ours: &'static TypeLayout,
    theirs: &'static TypeLayout,
    versions: Versions,
) -> Result<(), LoadError> {
    let compare = |a, b| {
        catch_unwind(|| check_layout_compatibility(a, b).map_err(|errors| first_error(&errors)))
            .unwrap_or_else(|_| Err("the layout can't be read".to_owned()))
    };
    let Err(why) = compare(ours, theirs) else {
        return Ok(());
    };
    if compare(theirs, ours).is_ok() {
        return Ok(());
    }
    if project(theirs) != project(ours) {
        return Err(LoadError::OtherProject(text::line(project(theirs), 64)));
    }
    if major(versions.plugin) != major(versions.host) {
        return Err(LoadError::OtherMajor {
            plugin: text::line(versions.plugin, 32),
            host: versions.host.to_owned(),
        });
    }
    Err(LoadError::OtherLayout(why))
}

/// The crate that a reference to a table of functions gets the table from.
fn project(layout: &'static TypeLayout) -> &'static str {
    let table = layout.shared_vars().type_layouts().first();
    table
        .map_or(layout.package(), |table| table().package())
        .as_str()
}

fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or_default()
}

/// The first difference. The whole report has a thousand lines, most of them types.
fn first_error(errors: &AbiInstabilityErrors) -> String {
    let report = errors.to_string();
    let from = report.find("Error:").unwrap_or_default();
    let words: Vec<&str> = report[from..]
        .lines()
        .take(5)
        .flat_map(str::split_whitespace)
        .collect();
    let line = words.join(" ");
    text::line(line.strip_prefix("Error:").unwrap_or(&line), TEXT_MAX)
}
