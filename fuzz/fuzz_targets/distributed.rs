//! The decoders of a distributed volume's objects, and its state, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    session_check::distributed::run(bytes);
});
