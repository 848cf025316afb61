//! nbd-rs.
