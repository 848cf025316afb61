//! nbd-rs.
fn main() {}
