//! Buffers lent to plugins.

use std::sync::Arc;

use nbd_rs_plugin::Buf;

/// A buffer of `len` bytes.
pub fn buf(len: usize) -> Buf {
    let mut memory = vec![0u8; len];
    let ptr = memory.as_mut_ptr();
    // SAFETY: the vector is never touched again but to free it, and its heap block does not move.
    unsafe { Buf::from_raw_parts(ptr, len, Arc::new(memory)) }
}
