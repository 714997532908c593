//! MySQL's binary JSON as the text that the server prints.

use crate::error::{Error, Result};

/// Append the text of a whole JSON value to `out`.
pub fn text(_binary: &[u8], _out: &mut Vec<u8>) -> Result<()> {
    Err(Error::Unsupported("JSON".into()))
}
