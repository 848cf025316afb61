//! Write storage backends for [nbd-rs](https://github.com/nbd-rs/nbd-rs).
//!
//! A **plugin** is a shared library. It offers one or more URL schemes, and for each of them it
//! opens **backends**: a *store* keeps objects somewhere (`file`, `s3`), a *link* stands before
//! another backend and answers for it (`cache`, `retry`).
//!
//! ```text
//!   dlopen ── describe() ── open(host, request) ── capabilities() ──┬─ get / put / head / delete / list / flush
//!                              may wait               asked once    └─ open_object() ── read / write / zero / ... / close
//!                                                                                                     close() ── never unloaded
//! ```
//!
//! What an author writes is plain Rust: a type that implements [`Backend`], one for its opened
//! objects that implements [`Object`] (or [`NoObject`]), a [`Description`], and one
//! [`export_plugin!`]. The macro catches panics and turns them into errors, and answers what is
//! ready at once without making a future. Options that the description alone can't judge are judged by
//! a `check` in it, before anything of a chain is opened.
//!
//! Rules that hold for every call:
//!
//! - **Nothing starts before the first poll.** The caller may drop a future that it has not polled.
//! - **A call that changes data is driven to its end** once polled. Reads may be dropped at any await.
//! - **A link answers for every operation.** Nothing is passed around it; what it does not know it
//!   refuses, and it drops the capability.
//! - **Never block** in a `try_` form or between awaits: ask [`Host::blocking`].
//!
//! The smallest store, complete:
//!
//! ```
//! use nbd_rs_plugin::*;
//!
//! /// One object, named `hello`, that only reads.
//! struct Hello;
//!
//! impl Backend for Hello {
//!     type Object = NoObject;
//!     fn capabilities(&self) -> Capabilities {
//!         Capabilities::new(CapabilityFlags::RANGED_GET)
//!     }
//!     async fn get(&self, key: &str, range: Range, _: GetFlags) -> Result<Got> {
//!         if key != "hello" {
//!             return Err(Error::new(Kind::NotFound, key));
//!         }
//!         let text = b"hello, world";
//!         let range = range.within(text.len() as u64)?;
//!         Ok(Got::new(Bytes::from(text[range].to_vec()).into()))
//!     }
//!     async fn put(&self, _: &str, _: Body, _: Condition) -> Result<Put> {
//!         Err(Error::read_only("put"))
//!     }
//!     async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
//!         Ok(Meta::new(key, 12))
//!     }
//!     async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
//!         Ok(keys.iter().map(|_| Err(Error::read_only("delete"))).collect())
//!     }
//!     async fn list(&self, _prefix: &str, _after: Option<&str>) -> Result<Page> {
//!         Ok(Page::last(vec![Meta::new("hello", 12)]))
//!     }
//!     async fn flush(&self) -> Result<()> {
//!         Ok(())
//!     }
//!     async fn open_object(&self, _key: &str, _mode: ObjectMode) -> Result<NoObject> {
//!         Err(Error::unsupported("open_object"))
//!     }
//! }
//!
//! export_plugin! {
//!     describe: || Description::store("hello", env!("CARGO_PKG_VERSION")).scheme("hello", "one greeting"),
//!     open: |_host: Host, _request: OpenRequest| async move { Ok(Hello) },
//! }
//! # fn main() {}
//! ```

// abi_stable_derive 0.11.3 expands to impls inside constants, which newer compilers point out.
#![allow(non_local_definitions)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod abi;
mod backend;
mod bytes;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod export;
mod host;
#[cfg(all(test, target_pointer_width = "64"))]
mod layout;
mod link;
mod log_forward;
mod next;
pub mod options;
#[cfg(feature = "tokio")]
pub mod runtime;
mod types;

pub use abi_stable;
pub use async_ffi;
pub use backend::{Backend, NoObject, Object};
pub use bytes::{Buf, Bytes, Mapped};
pub use error::{Error, Kind, Result};
#[doc(hidden)]
pub use export::{check_guarded, describe_guarded, open_guarded};
pub use export::{export_backend, export_object};
pub use host::Host;
pub use link::known_flags;
pub use next::{Next, NextObject};
pub use types::{
    Body, Capabilities, CapabilityFlags, Condition, Data, Description, Extent, ExtentFlags,
    GetFlags, Got, Meta, ObjectFlags, ObjectMode, OpenFlags, OpenRequest, OptionKind, OptionSpec,
    OptionValue, Page, Piece, Put, Range, ReadFlags, Role, SchemeSpec, Started, WriteFlags,
    ZeroFlags,
};
