//! Whole files, cut ones, damaged ones and those of other machines.

use super::*;

#[test]
fn texts_and_empty_files_are_no_libraries() {
    for bytes in [&b""[..], b"\x7fEL", b"#!/bin/sh\nexit 0\n", b"!<arch>\n"] {
        assert!(matches!(check(bytes), Err(LoadError::NotALibrary(_))));
    }
    assert_eq!(check(&b"\x7fELF"[..]), Err(LoadError::Truncated));
}

/// The test's own executable: a whole ELF file that exports nothing of ours.
fn own_executable() -> Vec<u8> {
    std::fs::read(std::env::current_exe().unwrap()).unwrap()
}

#[test]
fn an_executable_is_no_plugin() {
    assert_eq!(check(&own_executable()[..]), Err(LoadError::NotAPlugin));
}

#[test]
fn other_machines_are_named() {
    let mut file = own_executable();
    file[18..20].copy_from_slice(&elf::EM_S390.to_ne_bytes());
    let text = check(&file[..]).unwrap_err().to_string();
    assert!(text.contains("s390x, 64 bit"), "{text}");
    file[4] = elf::ELFCLASS32;
    let text = check(&file[..]).unwrap_err().to_string();
    assert!(text.contains("32 bit"), "{text}");
}

#[test]
fn executables_of_fixed_address_and_object_files_are_no_libraries() {
    let mut file = own_executable();
    for kind in [elf::ET_EXEC, elf::ET_REL, elf::ET_CORE] {
        file[16..18].copy_from_slice(&kind.to_ne_bytes());
        assert!(matches!(check(&file[..]), Err(LoadError::NotALibrary(_))));
    }
}

/// Every length with this answer is a hole.
fn first_hole(file: &[u8], step: usize) -> Option<usize> {
    assert_eq!(check(file), Err(LoadError::NotAPlugin), "whole");
    let refused = |answer| {
        matches!(
            answer,
            Err(LoadError::Truncated | LoadError::NotALibrary(_))
        )
    };
    let mut lengths = (0..file.len()).rev().step_by(step);
    lengths.find(|len| !refused(check(&file[..*len])))
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    assert_eq!(first_hole(&own_executable(), 1), None);
}

/// The table of sections usually stands at the end and shows every cut by its absence. A tool
/// may have moved it; then the segments and sections must show the cut.
#[test]
fn a_table_of_sections_elsewhere_hides_no_cut() {
    let mut file = own_executable();
    let header = Header::parse(&file[..]).unwrap();
    let endian = header.endian().unwrap();
    let table = header.e_shoff(endian) as usize..file.len();
    let sections = header.section_headers(endian, &file[..]).unwrap();
    let ends = sections
        .iter()
        .filter_map(|section| section.file_range(endian));
    let end = ends.map(|(offset, len)| offset + len).max().unwrap();
    let text = sections.iter().max_by_key(|section| {
        let runs = section.sh_flags(endian) & u64::from(elf::SHF_EXECINSTR) != 0;
        (runs, section.sh_size(endian))
    });
    let elsewhere = text.unwrap().sh_offset(endian) as usize;
    file.copy_within(table.clone(), elsewhere);
    file.truncate(end as usize);
    file[40..48].copy_from_slice(&elsewhere.to_ne_bytes());
    assert_eq!(first_hole(&file, 61), None);
}

#[test]
fn without_a_table_of_sections_nobody_can_tell() {
    let mut file = own_executable();
    file[40..48].fill(0);
    let text = check(&file[..]).unwrap_err().to_string();
    assert!(text.contains("stripped"), "{text}");
}

proptest::proptest! {
    #[test]
    fn damaged_headers_never_panic(
        changes in proptest::collection::vec((0usize..1024, proptest::num::u8::ANY), 1..8),
    ) {
        thread_local!(static FILE: Vec<u8> = own_executable());
        FILE.with(|file| {
            let mut head = file[..1024].to_vec();
            for (at, byte) in changes {
                head[at] = byte;
            }
            // The tables at the end stay reachable through a sparse look at the file.
            let mut whole = head;
            whole.extend_from_slice(&file[1024..]);
            let _ = check(&whole[..]);
        });
    }
}
