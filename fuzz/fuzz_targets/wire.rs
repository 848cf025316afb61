//! Every decoder by itself, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| session_check::decoders::run(bytes));
