//! What the host lends its plugins: buffers, log lines, timers, tasks, threads that may block.
//!
//! These functions are called from any thread, also from ones that tokio does not know, and by
//! code that can't catch a panic of ours: each catches its own and answers something harmless.

use std::cell::Cell;
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::OnceLock;
use std::time::Duration;

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RStr;
use async_ffi::{FfiFuture, FutureExt};
use nbd_rs_plugin::abi::{HostRef, HostTable, Job};
use nbd_rs_plugin::{Buf, Error, Kind, Result};
use tokio::runtime::Handle;

use super::text;

/// More in one buffer is a plugin's mistake, and could end the process for lack of memory.
const BUF_MAX: usize = 1 << 30;
/// The longest log line that is kept.
const LINE_MAX: usize = 2000;
/// Some 30 years: what a timer is given when it was asked for more.
const SLEEP_MAX: Duration = Duration::from_secs(1_000_000_000);

static RUNTIME: OnceLock<Handle> = OnceLock::new();
static TABLE: OnceLock<HostRef> = OnceLock::new();

/// Says which runtime plugins' timers, tasks and blocking work go to. The first call decides; it
/// must come before the first plugin is opened.
pub fn start(runtime: Handle) {
    let _ = RUNTIME.set(runtime);
}

/// The table to hand to a plugin.
///
/// # Errors
/// If [`start`] was not called.
pub(super) fn lend() -> Result<HostRef> {
    if RUNTIME.get().is_none() {
        return Err(Error::new(
            Kind::Io,
            "plugins are opened before the runtime runs",
        ));
    }
    Ok(*TABLE.get_or_init(|| {
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

/// Runs what must not unwind into a plugin.
fn contained<T>(what: &str, fallback: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        // A payload whose drop panics would unwind after all.
        std::mem::forget(payload);
        let _ = catch_unwind(|| tracing::error!("{what} for a plugin panicked"));
        fallback
    })
}

fn runtime() -> &'static Handle {
    RUNTIME
        .get()
        .expect("no plugin gets the table before the runtime")
}

extern "C" fn buf(len: usize) -> Buf {
    let lent = contained("a buffer", None, || {
        if len > BUF_MAX {
            tracing::error!(
                len,
                "a plugin asked for an absurd buffer and got an empty one"
            );
            return None;
        }
        Some(crate::pool::buf(len))
    });
    lent.unwrap_or_else(|| crate::pool::buf(0))
}

/// A plugin that is linked into this process sends our own events back to us.
struct Once;

thread_local!(static LOGGING: Cell<bool> = const { Cell::new(false) });

impl Once {
    fn enter() -> Option<Self> {
        (!LOGGING.replace(true)).then_some(Self)
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        LOGGING.set(false);
    }
}

extern "C" fn log(level: u32, target: RStr<'_>, message: RStr<'_>) {
    contained("a log line", (), || {
        let Some(_once) = Once::enter() else { return };
        let from = text::line_of_bytes(target.as_rslice().as_slice(), 100);
        let message = text::line_of_bytes(message.as_rslice().as_slice(), LINE_MAX);
        let message = crate::secrets::masked(&message);
        match level {
            0 | 1 => tracing::error!(target: "plugin", from, "{message}"),
            2 => tracing::warn!(target: "plugin", from, "{message}"),
            3 => tracing::info!(target: "plugin", from, "{message}"),
            4 => tracing::debug!(target: "plugin", from, "{message}"),
            _ => tracing::trace!(target: "plugin", from, "{message}"),
        }
    });
}

/// Whether anybody listens to anything at that level. Not `tracing::enabled!`: it may take the lock
/// of tracing's registry, which a plugin that is linked into this process holds when it asks.
extern "C" fn log_enabled(level: u32) -> bool {
    contained("a log level", false, || {
        let level = match level {
            0 | 1 => tracing::Level::ERROR,
            2 => tracing::Level::WARN,
            3 => tracing::Level::INFO,
            4 => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        };
        level <= tracing::level_filters::LevelFilter::current()
    })
}

extern "C" fn sleep(millis: u64) -> FfiFuture<()> {
    let time = Duration::from_millis(millis).min(SLEEP_MAX);
    // The clock runs from the first poll, on whatever thread that is.
    async move { timer(time).await }.into_ffi()
}

/// A timer of the host's runtime; making it is all that needs the runtime entered.
fn timer(time: Duration) -> impl Future<Output = ()> {
    let _entered = runtime().enter();
    tokio::time::sleep(time)
}

extern "C" fn spawn(future: FfiFuture<()>) {
    contained("a task", (), || drop(runtime().spawn(future)));
}

extern "C" fn blocking(job: Job) {
    contained("blocking work", (), || {
        drop(runtime().spawn_blocking(|| job.run()))
    });
}

#[cfg(test)]
mod tests {
    use std::sync::{mpsc, Mutex};
    use std::time::Instant;

    use nbd_rs_plugin::Host;

    use super::*;

    /// The table, with a runtime behind it that lives as long as the process.
    fn host() -> HostRef {
        static TESTING: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        let runtime = TESTING.get_or_init(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_time().build().unwrap()
        });
        start(runtime.handle().clone());
        lend().unwrap()
    }

    struct Unpark(std::thread::Thread);

    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Polls on a thread that tokio does not know.
    fn wait<F: Future>(future: F) -> F::Output {
        let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
        let mut future = std::pin::pin!(future);
        loop {
            let mut context = std::task::Context::from_waker(&waker);
            if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            std::thread::park();
        }
    }

    #[test]
    fn timers_run_on_threads_that_tokio_does_not_know() {
        let sleep = (host().sleep())(20);
        let started = Instant::now();
        wait(sleep);
        assert!(started.elapsed() >= Duration::from_millis(20));
        drop((host().sleep())(u64::MAX));
    }

    #[test]
    fn tasks_run_to_their_end() {
        let (sender, receiver) = mpsc::channel();
        let send = async move { sender.send(7).unwrap() };
        (host().spawn())(send.into_ffi());
        assert_eq!(receiver.recv().unwrap(), 7);
    }

    #[test]
    fn a_task_that_panics_hurts_nobody() {
        (host().spawn())(async { panic!("expected by this test") }.into_ffi());
        wait((host().sleep())(1));
    }

    #[test]
    fn blocking_work_runs_elsewhere_and_answers() {
        let table = host();
        let here = std::thread::current().id();
        let host = Host::attach(table);
        let there = wait(host.blocking(|| Ok(std::thread::current().id())));
        assert_ne!(there.unwrap(), here);
        let panicked = wait(host.blocking::<()>(|| panic!("expected by this test")));
        assert_eq!(panicked.unwrap_err().kind, Kind::Panic);
    }

    #[test]
    fn an_absurd_buffer_is_an_empty_one() {
        assert_eq!((host().buf())(4096).len(), 4096);
        assert_eq!((host().buf())(usize::MAX).len(), 0);
    }

    /// What `log` makes of a line, as the terminal would show it.
    fn logged(level: u32, from: &str, message: &str) -> String {
        static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        struct Sink;
        impl std::io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                LINES.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time();
        let subscriber = subscriber.with_writer(|| Sink).finish();
        tracing::subscriber::with_default(subscriber, || {
            (host().log())(level, from.into(), message.into());
        });
        String::from_utf8(std::mem::take(&mut LINES.lock().unwrap())).unwrap()
    }

    #[test]
    fn log_lines_say_who_speaks_and_stay_lines() {
        let line = logged(2, "cache::disk", "full\n\x1b[2J");
        assert_eq!(
            line,
            " WARN plugin: full\\n\\u{1b}[2J from=\"cache::disk\"\n"
        );
        let line = logged(1, "x", &"y".repeat(1 << 20));
        assert!(line.len() < LINE_MAX + 100, "{}", line.len());
        assert_eq!(logged(5, "x", "nobody listens"), "");
    }

    #[test]
    fn our_own_events_do_not_come_back_to_us() {
        // In this process the plugin's side sets its forwarder as tracing's global subscriber, so
        // each line logged here is offered to `log` once more.
        let table = host();
        let _ = Host::attach(table);
        (table.log())(3, "here".into(), "a line\x1b".into());
        assert!(!LOGGING.get());
        let _ = (table.log_enabled())(5);
    }
}
