//! What fuzzing and its tests share: programs of a client, the real server that they are played
//! against, and a checker of all that it answers, written from the specification alone.
//!
//! ```text
//! bytes -> program -> script -> play -> check
//! of the   what the   what the  a real  every byte of
//! fuzzer   client     client    socket  the server
//!          means      sends
//! ```
//!
//! [`decoders`] is the other half: each decoder by itself, on any bytes; [`journal`] has those of
//! the journal, [`distributed`] those of a distributed volume. [`seeds`] makes what the fuzzer starts
//! from. A finding is replayed by [`session`], or the `run` of [`decoders`], [`journal`] or
//! [`distributed`], on its bytes.

pub mod check;
pub mod decoders;
pub mod distributed;
pub mod elf;
pub mod journal;
pub mod play;
pub mod program;
pub mod script;
pub mod seeds;

/// Plays a program, given as bytes, and checks what the server makes of it.
///
/// # Errors
/// What the server did wrong.
pub fn session(bytes: &[u8]) -> Result<(), String> {
    let program = program::Program::decode(bytes);
    let played = play::play(&program)?;
    check::check(&played)
}
