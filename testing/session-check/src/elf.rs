//! The smallest library that passes for a plugin before it is loaded: one segment, a table of
//! symbols, and the header that `abi_stable` looks for. Nothing in it can run.

use abi_stable::library::{AbiHeader, ROOT_MODULE_LOADER_NAME};

const FILE_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const ABI_HEADER_BYTES: usize = 40;
const DYNAMIC_BYTES: usize = 16;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_DYNSYM: u32 = 11;
/// Global, an object, in the first section.
const SYMBOL_INFO: u8 = 1 << 4 | 1;

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u8s(&mut self, values: &[u8]) {
        self.0.extend(values);
    }

    fn u16s(&mut self, values: &[u16]) {
        self.0
            .extend(values.iter().flat_map(|value| value.to_ne_bytes()));
    }

    fn u32s(&mut self, values: &[u32]) {
        self.0
            .extend(values.iter().flat_map(|value| value.to_ne_bytes()));
    }

    fn u64s(&mut self, values: &[usize]) {
        let wide = values
            .iter()
            .flat_map(|value| (*value as u64).to_ne_bytes());
        self.0.extend(wide);
    }
}

/// The library, for 64-bit machines of the byte order and kind that `machine` (`EM_*`) says.
pub fn library(machine: u16) -> Vec<u8> {
    let names = [b"\0", ROOT_MODULE_LOADER_NAME.as_bytes(), b"\0"].concat();
    // One behind the other.
    let programs = FILE_HEADER_BYTES;
    let abi = programs + 2 * PROGRAM_HEADER_BYTES;
    let dynamic = abi + ABI_HEADER_BYTES;
    let symbols = dynamic + DYNAMIC_BYTES;
    let strings = symbols + 2 * SYMBOL_BYTES;
    let sections = (strings + names.len()).next_multiple_of(8);
    let len = sections + 3 * SECTION_HEADER_BYTES;

    let mut file = Bytes::default();
    let order = if cfg!(target_endian = "big") { 2 } else { 1 };
    file.u8s(&[0x7f, b'E', b'L', b'F', 2, order, 1, 0]);
    file.u64s(&[0]);
    // A library, of this machine, of version 1, without an entry.
    file.u16s(&[3, machine]);
    file.u32s(&[1]);
    file.u64s(&[0, programs, sections]);
    file.u32s(&[0]);
    let sizes = [FILE_HEADER_BYTES, PROGRAM_HEADER_BYTES].map(|size| size as u16);
    file.u16s(&[sizes[0], sizes[1], 2, SECTION_HEADER_BYTES as u16, 3, 2]);

    for (kind, offset, size) in [(PT_LOAD, 0, len), (PT_DYNAMIC, dynamic, DYNAMIC_BYTES)] {
        file.u32s(&[kind, 4]);
        file.u64s(&[offset, offset, offset, size, size, 8]);
    }
    file.u8s(&AbiHeader::VALUE.magic_string);
    file.u32s(&[AbiHeader::VALUE.abi_major, AbiHeader::VALUE.abi_minor]);
    file.u64s(&[0, 0]);

    file.u8s(&[0; SYMBOL_BYTES]);
    file.u32s(&[1]);
    file.u8s(&[SYMBOL_INFO, 0]);
    file.u16s(&[1]);
    file.u64s(&[abi, ABI_HEADER_BYTES]);
    file.u8s(&names);
    file.0.resize(sections, 0);

    file.u8s(&[0; SECTION_HEADER_BYTES]);
    section(
        &mut file,
        SHT_DYNSYM,
        symbols,
        2 * SYMBOL_BYTES,
        (2, 1),
        SYMBOL_BYTES,
    );
    section(&mut file, SHT_STRTAB, strings, names.len(), (0, 0), 0);
    file.0
}

fn section(
    file: &mut Bytes,
    kind: u32,
    offset: usize,
    size: usize,
    (link, info): (u32, u32),
    entry_size: usize,
) {
    file.u32s(&[0, kind]);
    file.u64s(&[0, offset, offset, size]);
    file.u32s(&[link, info]);
    file.u64s(&[8, entry_size]);
}
