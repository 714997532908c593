//! The native module of lakesync, imported as `cdc._native`.
//!
//! Everything here takes bytes and returns values; sockets, files and threads belong to Python. Only the key index has files
//! and threads of its own: it is a store.

pub mod batches;
#[cfg(feature = "python")]
mod binlog;
pub mod bitmap;
pub mod bounds;
pub mod cells;
pub mod charset;
pub mod columns;
#[cfg(feature = "python")]
mod comparing;
pub mod cursor;
pub mod decimals;
pub mod decoder;
pub mod digests;
pub mod error;
pub mod events;
#[cfg(feature = "python")]
mod export;
pub mod image;
#[cfg(feature = "python")]
mod import;
pub mod json;
pub mod jsondiff;
pub mod keyindex;
pub mod mariadb;
pub mod packets;
pub mod payload;
#[cfg(feature = "python")]
mod places;
pub mod plan;
pub mod pool;
#[cfg(feature = "python")]
mod probe;
#[cfg(feature = "python")]
mod python;
pub mod resultset;
pub mod rowevent;
pub mod rows;
pub mod tablemap;
pub mod texts;
pub mod transaction;
pub mod values;
