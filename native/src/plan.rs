//! What becomes of each column: made in Python from the table's schema, the same for the binary log and for result sets.

use std::sync::Arc;

use crate::charset::Charset;

/// A column's MySQL type, with what its values need.
#[derive(Debug, Clone)]
pub enum Kind {
    /// TINYINT to BIGINT; `bytes` is 1, 2, 3, 4 or 8.
    Int { bytes: u8, unsigned: bool },
    Float,
    Double,
    Decimal { precision: u8, scale: u8 },
    /// BIT(n): 1 to 64 bits.
    Bit { bits: u8 },
    Year,
    Date,
    /// Digits of the fraction of a second.
    Datetime { scale: u8 },
    Timestamp { scale: u8 },
    Time { scale: u8 },
    /// CHAR, VARCHAR, TEXTs.
    Text { charset: Charset },
    /// BINARY(n), padded with zero bytes to `length`.
    Binary { length: usize },
    /// VARBINARY and BLOBs.
    Varbinary,
    /// Members in UTF-8, in order of their index; `charset` is that of result sets.
    Enum { members: Arc<[String]>, charset: Charset },
    Set { members: Arc<[String]>, charset: Charset },
    Json,
    Geometry,
    Vector,
    /// MariaDB's, 16, 4 and 16 bytes in the binary log, text in result sets; text in the lake.
    Uuid,
    Inet4,
    Inet6,
}

/// What the lake has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// As the type contract says.
    Native,
    /// Its canonical text.
    String,
    /// TINYINT, 0 or 1.
    Boolean,
}

#[derive(Debug, Clone)]
pub struct ColumnPlan {
    pub name: String,
    pub kind: Kind,
    pub output: Output,
    /// Whether it belongs to the primary key.
    pub key: bool,
}
