//! Reads a library as a file, before the system's loader may see it.
//!
//! The loader maps segments without asking whether the file holds them: one that was cut short
//! kills the process with SIGBUS. It also runs the constructors of whatever it is given. So a file
//! gets that far only if all of its tables lie inside it, it was made for this machine, and it
//! exports the symbol of the plugin interface with a header that we understand.
//!
//! The table of sections counts too, though the loader does without: it stands at the end of the
//! file, so its presence says that nothing was cut off.

use abi_stable::library::{AbiHeader, ROOT_MODULE_LOADER_NAME};
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{Endianness, ReadRef};

use super::LoadError;

#[cfg(target_pointer_width = "64")]
type Header = elf::FileHeader64<Endianness>;
#[cfg(target_pointer_width = "32")]
type Header = elf::FileHeader32<Endianness>;

type Segment = <Header as FileHeader>::ProgramHeader;
type Section = <Header as FileHeader>::SectionHeader;

/// Machines by number, and what Rust calls them.
const MACHINES: &[(u16, &str)] = &[
    (elf::EM_386, "x86"),
    (elf::EM_X86_64, "x86_64"),
    (elf::EM_ARM, "arm"),
    (elf::EM_AARCH64, "aarch64"),
    (elf::EM_RISCV, "riscv64"),
    (elf::EM_PPC64, "powerpc64"),
    (elf::EM_S390, "s390x"),
    (elf::EM_LOONGARCH, "loongarch64"),
    (elf::EM_MIPS, "mips64"),
];

/// Checks that `file` is a whole library for this machine that exports the plugin interface.
pub(super) fn check<'a, R: ReadRef<'a>>(file: R) -> Result<(), LoadError> {
    check_identity(file)?;
    let header = Header::parse(file).map_err(|_| LoadError::Truncated)?;
    let endian = header.endian().map_err(|_| LoadError::Truncated)?;
    let segments = header
        .program_headers(endian, file)
        .map_err(|_| LoadError::Truncated)?;
    let sections = header
        .section_headers(endian, file)
        .map_err(|_| LoadError::Truncated)?;
    check_extent(endian, file, segments, sections)?;
    check_dynamic(endian, file, segments)?;
    let symbol = find_root(header, endian, file)?;
    check_abi_header(endian, file, segments, symbol)
}

/// The first bytes: an ELF library, of this machine's kind.
fn check_identity<'a, R: ReadRef<'a>>(file: R) -> Result<(), LoadError> {
    let not = LoadError::NotALibrary;
    let magic = file.read_bytes_at(0, 4).unwrap_or_default();
    if magic != elf::ELFMAG {
        return Err(not("not an ELF file"));
    }
    let head: &[u8; 20] = file
        .read_bytes_at(0, 20)
        .ok()
        .and_then(|head| head.try_into().ok())
        .ok_or(LoadError::Truncated)?;
    let big_endian = head[5] == elf::ELFDATA2MSB;
    let word = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        if big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    };
    let class = if cfg!(target_pointer_width = "64") {
        elf::ELFCLASS64
    } else {
        elf::ELFCLASS32
    };
    let machine = name_of_machine(word(18));
    let known = MACHINES
        .iter()
        .any(|(_, name)| *name == std::env::consts::ARCH);
    let same_machine = !known || machine == std::env::consts::ARCH;
    if head[4] != class || big_endian != cfg!(target_endian = "big") || !same_machine {
        let bits = if head[4] == elf::ELFCLASS64 { 64 } else { 32 };
        let order = if big_endian { "big" } else { "little" };
        return Err(LoadError::OtherArchitecture(format!(
            "{machine}, {bits} bit, {order} endian; this host is {}",
            std::env::consts::ARCH
        )));
    }
    if word(16) != elf::ET_DYN {
        return Err(not("an ELF file of another type"));
    }
    Ok(())
}

fn name_of_machine(number: u16) -> String {
    let known = MACHINES.iter().find(|(known, _)| *known == number);
    known.map_or_else(
        || format!("machine {number}"),
        |(_, name)| (*name).to_owned(),
    )
}

/// Every segment and every section lies inside the file.
fn check_extent<'a, R: ReadRef<'a>>(
    endian: Endianness,
    file: R,
    segments: &[Segment],
    sections: &[Section],
) -> Result<(), LoadError> {
    if segments.is_empty() || sections.is_empty() {
        return Err(LoadError::Damaged(
            "no table of segments or sections (stripped of too much?)",
        ));
    }
    let len = file.len().map_err(|()| LoadError::Truncated)?;
    let segments = segments.iter().map(|segment| segment.file_range(endian));
    let sections = sections
        .iter()
        .filter_map(|section| section.file_range(endian));
    for (offset, size) in segments.chain(sections) {
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(LoadError::Truncated);
        }
    }
    Ok(())
}

/// There is something to load, and a table that says how.
fn check_dynamic<'a, R: ReadRef<'a>>(
    endian: Endianness,
    file: R,
    segments: &[Segment],
) -> Result<(), LoadError> {
    let loads = |segment: &&Segment| segment.p_type(endian) == elf::PT_LOAD;
    let mut loaded = segments.iter().filter(loads).peekable();
    if loaded.peek().is_none() {
        return Err(LoadError::Damaged("nothing to load"));
    }
    if loaded.any(|segment| segment.p_filesz(endian) > segment.p_memsz(endian)) {
        return Err(LoadError::Damaged(
            "a segment is larger in the file than in memory",
        ));
    }
    let mut tables = segments.iter().map(|segment| segment.dynamic(endian, file));
    match tables.find(|table| !matches!(table, Ok(None))) {
        Some(Ok(Some(entries))) if !entries.is_empty() => Ok(()),
        _ => Err(LoadError::Damaged("no readable dynamic table")),
    }
}

/// The address of the symbol that the plugin interface exports.
fn find_root<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(
    header: &'a H,
    endian: Endianness,
    file: R,
) -> Result<u64, LoadError> {
    let damaged = |_| LoadError::Damaged("no readable table of symbols");
    let sections = header.sections(endian, file).map_err(damaged)?;
    let symbols = sections
        .symbols(endian, file, elf::SHT_DYNSYM)
        .map_err(damaged)?;
    let exported = symbols.iter().filter(|symbol| {
        !symbol.is_undefined(endian)
            && matches!(symbol.st_bind(), elf::STB_GLOBAL | elf::STB_WEAK)
            && matches!(
                symbol.st_visibility(),
                elf::STV_DEFAULT | elf::STV_PROTECTED
            )
    });
    for symbol in exported {
        let name = symbol.name(endian, symbols.strings()).map_err(damaged)?;
        if name == ROOT_MODULE_LOADER_NAME.as_bytes() {
            return Ok(symbol.st_value(endian).into());
        }
    }
    Err(LoadError::NotAPlugin)
}

/// What the symbol stands for begins as every `abi_stable` library of our kind does.
fn check_abi_header<'a, R: ReadRef<'a>>(
    endian: Endianness,
    file: R,
    segments: &[Segment],
    address: u64,
) -> Result<(), LoadError> {
    const LEN: u64 = 40;
    let bytes = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .find_map(|segment| segment.data_range(endian, file, address, LEN).ok()?);
    let bytes: &[u8; LEN as usize] = bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(LoadError::Damaged("its symbol points outside"))?;
    let word = |at: usize| {
        let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        u32::from_ne_bytes(bytes)
    };
    let ours = AbiHeader::VALUE;
    let same_magic = bytes[..32] == ours.magic_string;
    let same_major = word(32) == ours.abi_major;
    if !same_magic || !same_major || (ours.abi_major == 0 && word(36) != ours.abi_minor) {
        return Err(LoadError::OtherAbiStable);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
