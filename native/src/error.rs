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
    /// The transaction is not the one that was expected.
    Identity(String),
    /// The server answered with an error.
    Server { code: u16, state: String, message: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Damaged(what) | Error::Unsupported(what) | Error::Table(what) | Error::Identity(what) => {
                f.write_str(what)
            }
            Error::Server { code, state, message } => write!(f, "error {code} ({state}): {message}"),
        }
    }
}

impl std::error::Error for Error {}

/// A `Damaged` error.
pub fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Damaged(what.into()))
}

/// The error in the payload of an ERR packet (its first byte is 0xFF).
pub fn of_packet(payload: &[u8]) -> Error {
    let code = match payload {
        [_, low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => return Error::Damaged("an ERR packet without a code".into()),
    };
    let said = payload.get(3..).unwrap_or_default();
    let (state, message) = match said.split_first() {
        Some((b'#', rest)) if rest.len() >= 5 => rest.split_at(5),
        _ => (&b"HY000"[..], said),
    };
    Error::Server {
        code,
        state: String::from_utf8_lossy(state).into_owned(),
        message: String::from_utf8_lossy(message).into_owned(),
    }
}
