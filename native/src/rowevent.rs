//! Row events: post-headers, bitmaps, before and after images.

use crate::columns::Rows;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::image::Wire;

/// `RowEvent::flags`: the last row event of its statement; table maps end with it.
pub const STATEMENT_END: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Insert,
    Update,
    Delete,
    PartialUpdate,
}

/// A row event whose post-header and bitmaps are read.
#[derive(Debug, Clone, Copy)]
pub struct RowEvent<'a> {
    pub kind: Kind,
    pub table_id: u64,
    pub flags: u16,
    pub columns: usize,
    /// Bitmaps, least significant bit first; None: no such image.
    pub present_before: Option<&'a [u8]>,
    pub present_after: Option<&'a [u8]>,
    pub body: Cursor<'a>,
}

/// Whether this type of event is one of rows that `parse` knows (version 1: 23 to 25, version 2: 30 to 32, partial updates: 39).
pub fn is_row_event(event_type: u8) -> bool {
    matches!(event_type, 23..=25 | 30..=32 | 39)
}

/// `body`: the event without its common header and checksum. MariaDB's compressed events: decompressed, as 23 to 25.
pub fn parse(_body: &[u8], _event_type: u8) -> Result<RowEvent<'_>> {
    Err(Error::Unsupported("row events".into()))
}

/// Append the event's rows to `rows`; how many changes it has. `_seq` counts on from `first_seq`, one a change (a MOVE_OUT and its UPDATE are one).
/// After an error `rows` is as before. `Error::Table`: the table stops; `Error::Damaged`: bytes that are not as the table map says.
pub fn read(
    _event: &RowEvent<'_>,
    _wire: &Wire,
    _txn: i32,
    _ordinal: i32,
    _first_seq: i64,
    _rows: &mut Rows,
) -> Result<u32> {
    Err(Error::Unsupported("row events".into()))
}
