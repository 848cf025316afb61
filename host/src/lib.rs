//! nbd-rs.

pub mod plugin;

pub mod pool;
