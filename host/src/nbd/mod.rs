//! The NBD protocol. What of it is spoken stands in `docs/nbd-support.md`.

pub mod errno;
pub mod handshake;
pub mod options;
pub mod reply_queue;
pub mod session;
pub mod validate;
pub mod wire;
