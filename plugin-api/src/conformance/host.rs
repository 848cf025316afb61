//! A host of plain threads: what a backend needs to be tested in-process, without the server.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RStr;
use async_ffi::{FfiFuture, FutureExt};

use crate::abi::{HostRef, HostTable, Job};
use crate::{Buf, Host};

/// A host whose blocking work, timers and tasks are threads. Its log is the standard error, from
/// warnings up.
pub fn host() -> Host {
    Host::attach(table())
}

/// The table behind [`host`], for a plugin's exported `open`.
pub fn table() -> HostRef {
    static TABLE: OnceLock<HostRef> = OnceLock::new();
    *TABLE.get_or_init(|| {
        HostTable {
            buf,
            log,
            log_enabled,
            sleep,
            spawn,
            blocking,
        }
        .leak_into_prefix()
    })
}

/// Waits for a future on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut cx) {
            return answer;
        }
        std::thread::park();
    }
}

extern "C" fn buf(len: usize) -> Buf {
    // Not zeros: who reads a byte that was not filled in shall be seen.
    let mut memory = vec![0xa5_u8; len];
    let ptr = memory.as_mut_ptr();
    // SAFETY: the vector goes along as the owner, is never touched again, and its memory does not
    // move with it.
    unsafe { Buf::from_raw_parts(ptr, len, Arc::new(memory)) }
}

extern "C" fn log(level: u32, target: RStr<'_>, message: RStr<'_>) {
    if level <= 2 {
        eprintln!("{target}: {message}");
    }
}

extern "C" fn log_enabled(level: u32) -> bool {
    level <= 2
}

extern "C" fn blocking(job: Job) {
    std::thread::spawn(move || job.run());
}

extern "C" fn spawn(future: FfiFuture<()>) {
    std::thread::spawn(move || block_on(future));
}

extern "C" fn sleep(millis: u64) -> FfiFuture<()> {
    let state = Arc::new(Mutex::new((false, None::<Waker>)));
    let mut started = false;
    let timer = std::future::poll_fn(move |cx| {
        let mut timer = state.lock().unwrap_or_else(PoisonError::into_inner);
        if timer.0 {
            return Poll::Ready(());
        }
        timer.1 = Some(cx.waker().clone());
        if !std::mem::replace(&mut started, true) {
            let state = state.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(millis));
                let mut timer = state.lock().unwrap_or_else(PoisonError::into_inner);
                timer.0 = true;
                if let Some(waker) = timer.1.take() {
                    waker.wake();
                }
            });
        }
        Poll::Pending
    });
    timer.into_ffi()
}
