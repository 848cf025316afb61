//! Files that are no plugins, in every way we could think of.

use std::fs::File;
use std::path::Path;

use abi_stable::library::{AbiHeader, ROOT_MODULE_LOADER_NAME};
use nbd_rs::plugin::{LoadError, Registry};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

use crate::support::{childs_folder, fixture, in_a_child, load, reason, refusal, search, Folder};

#[test]
fn a_text_is_no_library() {
    let folder = Folder::new();
    for (name, text) in [
        ("a.so", ""),
        ("b.so", "hello\n"),
        ("c.so", "/* GNU ld script */ GROUP ( x.so )"),
    ] {
        let path = folder.write(name, text);
        let reason = refusal(&folder, &path);
        assert!(reason.contains("not a shared library"), "{reason}");
    }
}

#[test]
fn folders_pipes_and_dangling_links_are_no_libraries() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("folder.so")).unwrap();
    std::os::unix::fs::symlink("/none", path("link.so")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe.so"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let registry = load(&[&folder]);
    for (name, expected) in [
        ("folder.so", "not a regular file"),
        ("link.so", "No such file"),
        ("pipe.so", "not a regular file"),
    ] {
        let reason = reason(&registry, &path(name));
        assert!(reason.contains(expected), "{name}: {reason}");
    }
}

#[test]
fn a_bad_file_never_stops_a_good_one() {
    let folder = Folder::new();
    folder.write("a.so", "text");
    folder.copy(&fixture("panics"), "m.so");
    folder.write("z.so", "text");
    let registry = load(&[&folder]);
    assert_eq!(registry.refused().len(), 2);
    assert_eq!(
        registry.get("panic").unwrap().path,
        folder.path().join("m.so")
    );
}

/// C that exports the interface's symbol with this magic; its first function is never reached.
fn impostor(magic: &[u8], more: &str) -> String {
    let magic: Vec<String> = magic.iter().map(u8::to_string).collect();
    let AbiHeader {
        abi_major,
        abi_minor,
        ..
    } = AbiHeader::VALUE;
    format!(
        "struct {{ unsigned char magic[32]; unsigned major, minor; void *rest[64]; }}
         {ROOT_MODULE_LOADER_NAME} = {{ {{ {} }}, {abi_major}, {abi_minor}, {{ 0 }} }};\n{more}\n",
        magic.join(", ")
    )
}

fn good_magic() -> [u8; 32] {
    AbiHeader::VALUE.magic_string
}

#[test]
fn a_library_of_another_kind_is_refused_before_any_of_it_runs() {
    let folder = Folder::new();
    let source =
        "#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { abort(); }";
    let path = folder.compile("alien.so", source, &[]);
    assert!(refusal(&folder, &path).contains("not an nbd-rs plugin"));
}

#[test]
fn a_symbol_that_is_only_wanted_or_hidden_does_not_make_a_plugin() {
    let folder = Folder::new();
    let name = ROOT_MODULE_LOADER_NAME;
    let wanted = format!("extern int {name}; int *f(void) {{ return &{name}; }}");
    let path = folder.compile("wanted.so", &wanted, &[]);
    assert!(refusal(&folder, &path).contains("not an nbd-rs plugin"));
    let path = folder.compile(
        "hidden.so",
        &impostor(&good_magic(), ""),
        &["-fvisibility=hidden"],
    );
    assert!(refusal(&folder, &path).contains("not an nbd-rs plugin"));
}

#[test]
fn another_abi_stable_is_refused_before_any_of_it_runs() {
    let folder = Folder::new();
    let start =
        "#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { abort(); }";
    let mut magic = good_magic();
    magic[0] ^= 1;
    let path = folder.compile("old.so", &impostor(&magic, start), &[]);
    assert!(refusal(&folder, &path).contains("incompatible abi_stable"));
}

#[test]
fn a_missing_dependency_is_named() {
    let folder = Folder::new();
    let dependency = folder.compile("libgone.so.1", "int gone(void) { return 1; }", &[]);
    let needs = impostor(
        &good_magic(),
        "extern int gone(void); int f(void) { return gone(); }",
    );
    let path = folder.compile("needs.so", &needs, &[dependency.to_str().unwrap()]);
    std::fs::remove_file(&dependency).unwrap();
    let reason = refusal(&folder, &path);
    assert!(
        reason.contains("a library that is missing: ") && reason.contains("libgone.so.1"),
        "{reason}"
    );
}

#[test]
fn an_unresolved_symbol_is_named_when_loading_not_when_called() {
    let folder = Folder::new();
    let needs = impostor(
        &good_magic(),
        "extern int nowhere(void); int f(void) { return nowhere(); }",
    );
    let path = folder.compile("lazy.so", &needs, &["-Wl,-z,lazy"]);
    let reason = refusal(&folder, &path);
    assert!(
        reason.contains("symbol that is missing") && reason.contains("nowhere"),
        "{reason}"
    );
}

#[test]
fn another_architecture_is_named() {
    let folder = Folder::new();
    let mut bytes = std::fs::read(fixture("panics")).unwrap();
    let other = if cfg!(target_arch = "aarch64") {
        object::elf::EM_X86_64
    } else {
        object::elf::EM_AARCH64
    };
    bytes[18..20].copy_from_slice(&other.to_ne_bytes());
    let path = folder.write("other.so", bytes);
    let reason = refusal(&folder, &path);
    assert!(reason.contains("another machine"), "{reason}");
}

/// Where a table or a stretch of the file begins or ends.
fn boundaries(bytes: &[u8]) -> Vec<u64> {
    type Header = object::elf::FileHeader64<object::Endianness>;
    let header = Header::parse(bytes).unwrap();
    let endian = header.endian().unwrap();
    let segments = header.program_headers(endian, bytes).unwrap().iter();
    let sections = header.section_headers(endian, bytes).unwrap().iter();
    let stretches = segments.map(|segment| segment.file_range(endian));
    let stretches = stretches.chain(sections.filter_map(|section| section.file_range(endian)));
    let mut ends: Vec<u64> = stretches
        .flat_map(|(offset, len)| [offset, offset + len])
        .collect();
    ends.push(header.e_shoff(endian));
    ends
}

/// Every length near a boundary, in the first and the last 4 KiB, and every 64th one besides.
fn lengths(bytes: &[u8]) -> Vec<u64> {
    let len = bytes.len() as u64;
    let near = boundaries(bytes)
        .into_iter()
        .flat_map(|at| at.saturating_sub(9)..at + 10);
    let ends = (0..4096).chain(len.saturating_sub(4096)..len);
    let mut lengths: Vec<u64> = near.chain(ends).chain((0..len).step_by(64)).collect();
    lengths.retain(|at| *at < len);
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    lengths
}

#[test]
fn a_library_cut_at_any_byte_is_refused_and_kills_nobody() {
    let folder = Folder::new();
    folder.copy(&fixture("panics"), "cut.so");
    let output = in_a_child("broken::in_a_child_every_cut_is_refused", &folder);
    assert!(
        output.status.success(),
        "{:?}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "a part of a_library_cut_at_any_byte_is_refused_and_kills_nobody"]
fn in_a_child_every_cut_is_refused() {
    let path = childs_folder().join("cut.so");
    let bytes = std::fs::read(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let nowhere = search(&[]);
    let try_it = |path: &Path| Registry::load_with(path, &nowhere, false);
    for len in lengths(&bytes) {
        file.set_len(len).unwrap();
        match try_it(&path) {
            Err(LoadError::Truncated | LoadError::NotALibrary(_)) => {}
            other => panic!("cut at {len} of {}: {other:?}", bytes.len()),
        }
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(try_it(&path).is_ok());
}
