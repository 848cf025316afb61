//! What the tests of links need around them: a host that runs on the test's own tokio (so that
//! paused time works), and a store in memory whose every call is written down and may be told to
//! fail.

mod capability_sets;
mod faults;
mod host;
mod object;
mod rng;
mod store;

pub use capability_sets::capability_sets;
pub use faults::{Fault, Faults};
pub use host::{host, logged};
pub use object::FakeObject;
pub use rng::Rng;
pub use store::{body, bytes_of, Fake, STORE};
