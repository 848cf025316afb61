//! The host's table on the tokio that the test runs in.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nbd_rs_plugin::abi::{HostRef, HostTable, Job};
use nbd_rs_plugin::abi_stable::prefix_type::PrefixTypeTrait;
use nbd_rs_plugin::abi_stable::std_types::RStr;
use nbd_rs_plugin::async_ffi::{FfiFuture, FutureExt};
use nbd_rs_plugin::{Buf, Host};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A host whose timers, tasks and blocking threads are those of the runtime that polls.
pub fn host() -> Host {
    static TABLE: OnceLock<HostRef> = OnceLock::new();
    Host::attach(*TABLE.get_or_init(|| {
        HostTable {
            buf,
            log,
            log_enabled,
            sleep,
            spawn,
            blocking,
        }
        .leak_into_prefix()
    }))
}

/// The lines logged so far by all tests of this process that contain `word`.
pub fn logged(word: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let with_word = lines.iter().filter(|line| line.contains(word));
    with_word.cloned().collect()
}

extern "C" fn buf(len: usize) -> Buf {
    let mut memory = vec![0u8; len].into_boxed_slice();
    let ptr = memory.as_mut_ptr();
    // SAFETY: the box moves into the owner, which keeps its heap memory in place.
    unsafe { Buf::from_raw_parts(ptr, len, std::sync::Arc::new(memory)) }
}

extern "C" fn log(level: u32, _target: RStr<'_>, message: RStr<'_>) {
    let line = format!("{level} {message}");
    LINES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(line);
}

/// Debug and above.
extern "C" fn log_enabled(level: u32) -> bool {
    level <= 4
}

extern "C" fn sleep(millis: u64) -> FfiFuture<()> {
    async move { tokio::time::sleep(Duration::from_millis(millis)).await }.into_ffi()
}

extern "C" fn spawn(future: FfiFuture<()>) {
    drop(tokio::spawn(future));
}

extern "C" fn blocking(job: Job) {
    drop(tokio::task::spawn_blocking(|| job.run()));
}
