//! The journal's decoders, and the scan of a ring, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| session_check::journal::run(bytes));
