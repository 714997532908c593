//! What can be wrong with bytes: the one error of the crate. Its words never hold a row's values.

use std::fmt;

/// Why decoding cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The bytes are damaged, truncated, or do not follow the ones before.
    Damaged(String),
    /// The bytes are well formed and not understood: a feature, in words that name it.
    Unsupported(String),
    /// One table cannot be read as it is described; the others can.
    Table(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Error::Damaged(what) | Error::Unsupported(what) | Error::Table(what)) = self;
        f.write_str(what)
    }
}

impl std::error::Error for Error {}

/// A `Damaged` error.
pub fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Damaged(what.into()))
}
