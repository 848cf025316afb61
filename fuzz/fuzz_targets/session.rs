//! A whole session over a socket, from the greeting to the end of the server's thread.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = session_check::session(bytes) {
        panic!("{wrong}");
    }
});
