//! Where the layout gets time, tasks and chance from. A simulation has its own, and the same seed
//! gives the same run.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::layout::sharded::{process, Uuid};
use crate::runtime;

/// Something that goes on by itself.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a layout may not take by itself.
pub trait Environment: Send + Sync {
    /// The time since some moment. It runs on while the machine sleeps, since leases do.
    fn now(&self) -> Duration;
    /// Waits, on any thread.
    fn sleep(&self, time: Duration) -> Task;
    /// Lets a task go on by itself.
    fn spawn(&self, task: Task);
    /// A number by chance.
    fn random(&self) -> u64;
}

/// That of a server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Environment for Host {
    fn now(&self) -> Duration {
        process::since_boot()
    }

    fn sleep(&self, time: Duration) -> Task {
        // Timers belong to the runtime, and whoever waits may be a thread of a client.
        let _entered = runtime::handle().enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn spawn(&self, task: Task) {
        drop(runtime::handle().spawn(task));
    }

    fn random(&self) -> u64 {
        // Only spreads retries: without the kernel's random numbers all wait alike.
        let random = Uuid::random().unwrap_or(Uuid([0; 16]));
        u64::from_le_bytes(random.0[8..].try_into().unwrap_or_default())
    }
}

/// Waits for a future, so long at the most.
pub async fn within<T>(
    environment: &dyn Environment,
    most: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    // In this order: with chance in it the same seed would not give the same run.
    tokio::select! {
        biased;
        value = future => Some(value),
        () = environment.sleep(most) => None,
    }
}
