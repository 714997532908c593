//! Row events: post-headers, bitmaps, before and after images.

use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};
use crate::image::{Cell, Wire, bit};
use crate::json;
use crate::jsondiff;
use crate::rows::{Op, Rows};

/// `RowEvent::flags`: the last row event of its statement; table maps end with it.
pub const STATEMENT_END: u16 = 1;
/// An event may make this many bytes of rows, more than the largest event's; NULLs and padding take more in columns than on the wire.
const EVENT_LIMIT: usize = 4 << 30;
/// A PARTIAL_UPDATE_ROWS after-image's `value_options`: it has differences of JSON values.
const PARTIAL_JSON: u64 = 1;

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

/// Version 1 has types 23 to 25, version 2 30 to 32, partial updates 39. `body`: the event without its common header and checksum. MariaDB's compressed events: decompressed, as 23 to 25.
pub fn parse(body: &[u8], event_type: u8) -> Result<RowEvent<'_>> {
    let kind = match event_type {
        23 | 30 => Kind::Insert,
        24 | 31 => Kind::Update,
        25 | 32 => Kind::Delete,
        39 => Kind::PartialUpdate,
        other => return Err(Error::Unsupported(format!("row events of type {other}"))),
    };
    let mut body = Cursor::new(body);
    let table_id = body.uint(6)?;
    let flags = body.u16()?;
    if event_type >= 30 {
        // Partitions, and what NDB has to say; the length counts itself.
        match usize::from(body.u16()?).checked_sub(2) {
            Some(extra) => body.take(extra)?,
            None => return damaged("a row event's extra data is shorter than its length"),
        };
    }
    let columns = body.lenenc()?;
    let columns = usize::try_from(columns).unwrap_or(usize::MAX);
    let bitmap = columns.div_ceil(8);
    let has_before = kind != Kind::Insert;
    let has_after = kind != Kind::Delete;
    let present_before = if has_before { Some(body.take(bitmap)?) } else { None };
    let present_after = if has_after { Some(body.take(bitmap)?) } else { None };
    Ok(RowEvent { kind, table_id, flags, columns, present_before, present_after, body })
}

/// Append the event's rows to `rows`; how many changes it has. `_seq` counts on from `first_seq`, one a change (a MOVE_OUT and its UPDATE are one).
/// After an error `rows` is as before. `Error::Table`: the table stops; `Error::Damaged`: bytes that are not as the table map says.
pub fn read(event: &RowEvent<'_>, wire: &Wire, txn: i32, ordinal: i32, first_seq: i64, rows: &mut Rows) -> Result<u32> {
    if event.columns != wire.cells.len() {
        let known = wire.cells.len();
        return damaged(format!("a row event has {} columns, its table map {known}", event.columns));
    }
    if wire.kept != rows.table.columns.len() {
        return Err(Error::Table("rows of another plan than the table map's".into()));
    }
    if event.columns == 0 {
        return damaged("a row event without columns");
    }
    let start = rows.len();
    let place = Place { txn, ordinal, first_seq };
    let all = [event.present_before, event.present_after].into_iter().flatten().all(|p| is_full(p, event.columns));
    let result = if all && event.kind != Kind::PartialUpdate {
        full(event, wire, place, rows)
    } else {
        parts(event, wire, place, rows)
    };
    if result.is_err() {
        rows.truncate(start);
    }
    result
}

/// Where an event stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    txn: i32,
    ordinal: i32,
    first_seq: i64,
}

impl Place {
    #[inline]
    fn describe(self, op: Op, number: u32, rows: &mut Rows) -> Result<()> {
        let Ok(row) = i32::try_from(number) else { return damaged("more rows than an event can have") };
        rows.describe(op, self.txn, self.ordinal, row, self.first_seq.wrapping_add(i64::from(row)));
        Ok(())
    }
}

fn is_full(present: &[u8], columns: usize) -> bool {
    (0..columns).all(|i| bit(present, i))
}

/// Now and then: that an event does not make more rows than memory holds.
#[inline]
fn check_size(number: u32, before: usize, rows: &Rows) -> Result<()> {
    if number % 4096 == 4095 && rows.bytes().saturating_sub(before) > EVENT_LIMIT {
        return Err(Error::Table("one row event makes more than 4 GiB of rows".into()));
    }
    Ok(())
}

/// Images of all columns.
fn full(event: &RowEvent<'_>, wire: &Wire, place: Place, rows: &mut Rows) -> Result<u32> {
    let mut data = event.body;
    let mut number = 0_u32;
    let before = rows.bytes();
    let op = match event.kind {
        Kind::Insert => Op::Insert,
        Kind::Delete => Op::Delete,
        Kind::Update | Kind::PartialUpdate => Op::Update,
    };
    while !data.is_empty() {
        if op == Op::Update {
            let old = data;
            wire.skip(&mut data)?;
            if wire.moves(old, data)? {
                place.describe(Op::MoveOut, number, rows)?;
                wire.row(&mut old.clone(), &mut rows.table)?;
            }
        }
        place.describe(op, number, rows)?;
        wire.row(&mut data, &mut rows.table)?;
        check_size(number, before, rows)?;
        number += 1;
    }
    Ok(number)
}

/// What an image has of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot<'a> {
    Absent,
    Null,
    /// With the bytes of its length.
    Value(&'a [u8]),
    /// Diffs of a JSON value, with the bytes of their length.
    Diffs(&'a [u8]),
}

/// Images of some of the columns, or with JSON diffs.
fn parts(event: &RowEvent<'_>, wire: &Wire, place: Place, rows: &mut Rows) -> Result<u32> {
    let mut data = event.body;
    let mut number = 0_u32;
    let bytes = rows.bytes();
    let (mut old, mut new) = (Vec::new(), Vec::new());
    // An INSERT of defaults alone has an image without columns: one row of no bytes.
    let is_empty =
        event.kind == Kind::Insert && data.is_empty() && event.present_after.is_some_and(|p| !any(p, event.columns));
    while !data.is_empty() || (is_empty && number == 0) {
        let left = data.left();
        old.clear();
        new.clear();
        if let Some(present) = event.present_before {
            slots(wire, present, false, &mut data, &mut old)?;
        }
        if let Some(present) = event.present_after {
            slots(wire, present, event.kind == Kind::PartialUpdate, &mut data, &mut new)?;
        }
        if data.left() == left && !is_empty {
            return damaged("a row of no bytes");
        }
        let op = match event.kind {
            Kind::Insert => Op::Insert,
            Kind::Delete => Op::Delete,
            Kind::Update | Kind::PartialUpdate => Op::Update,
        };
        if op == Op::Update && moves(wire, &old, &new) {
            place.describe(Op::MoveOut, number, rows)?;
            append(wire, &old, &[], rows)?;
        }
        place.describe(op, number, rows)?;
        if op == Op::Delete {
            append(wire, &old, &[], rows)?
        } else {
            append(wire, &new, &old, rows)?
        }
        check_size(number, bytes, rows)?;
        number += 1;
    }
    Ok(number)
}

fn any(present: &[u8], columns: usize) -> bool {
    (0..columns).any(|i| bit(present, i))
}

fn slots<'a>(
    wire: &Wire,
    present: &[u8],
    may_differ: bool,
    data: &mut Cursor<'a>,
    out: &mut Vec<Slot<'a>>,
) -> Result<()> {
    let mut partial: &[u8] = &[];
    if may_differ {
        let options = data.lenenc()?;
        if options & !PARTIAL_JSON != 0 {
            return Err(Error::Unsupported(format!("row value options {options}")));
        }
        if options & PARTIAL_JSON != 0 {
            // A bit for each JSON column of the table, present or not.
            partial = data.take(wire.json_columns.div_ceil(8))?;
        }
    }
    let count = (0..wire.cells.len()).filter(|i| bit(present, *i)).count();
    let nulls = data.take(count.div_ceil(8))?;
    let (mut seen, mut json) = (0, 0);
    for (i, cell) in wire.cells.iter().enumerate() {
        let differs = cell.json && bit(partial, json);
        json += usize::from(cell.json);
        if !bit(present, i) {
            out.push(Slot::Absent);
            continue;
        }
        let null = bit(nulls, seen);
        seen += 1;
        out.push(if null {
            Slot::Null
        } else if differs {
            Slot::Diffs(cell.span(data)?)
        } else {
            Slot::Value(cell.span(data)?)
        });
    }
    Ok(())
}

fn moves(wire: &Wire, old: &[Slot<'_>], new: &[Slot<'_>]) -> bool {
    wire.cells
        .iter()
        .zip(old.iter().zip(new))
        .take(wire.key_end)
        .any(|(cell, (old, new))| cell.key && *old != Slot::Absent && *new != Slot::Absent && old != new)
}

/// One row: each column's value from `first`, else from `second`.
fn append(wire: &Wire, first: &[Slot<'_>], second: &[Slot<'_>], rows: &mut Rows) -> Result<()> {
    let row = rows.table.begin();
    let mut present = vec![0_u8; rows.presence_width()];
    let mut diffs = Vec::new();
    let mut complete = true;
    // An UPDATE leaves the key out, unless it sets it; REPLACE has it, and leaves out what it gives its default.
    let of_key = |(cell, slot): (&Cell, &Slot<'_>)| cell.key && *slot != Slot::Absent;
    let doubtful = wire.replaces && !second.is_empty() && wire.cells.iter().zip(first).any(of_key);
    for (i, cell) in wire.cells.iter().enumerate() {
        let Some((place, read)) = &cell.kept else { continue };
        let place = *place;
        let mut slot = first.get(i).copied().unwrap_or(Slot::Absent);
        let mut known = None;
        if let Slot::Diffs(span) = slot {
            // After the four bytes of their length. None at all: the value is as it was.
            let found = json::diffs(span.get(4..).unwrap_or_default())?;
            if found.is_empty() {
                slot = Slot::Absent;
            } else {
                known = second.get(i).and_then(|before| after(*before, &found));
                if known.is_none() {
                    diffs.extend(found.into_iter().map(|diff| (place, diff)));
                }
            }
        }
        if slot == Slot::Absent {
            slot = second.get(i).copied().unwrap_or(Slot::Absent);
        }
        let Some(column) = rows.table.columns.get_mut(place) else {
            return damaged("a column beyond the table's");
        };
        let has_value = match slot {
            Slot::Diffs(_) if known.is_some() => {
                column.printed(&known.unwrap_or_default())?;
                true
            }
            Slot::Value(span) => {
                read.whole(span, column, row)?;
                true
            }
            Slot::Null => {
                column.null(row);
                true
            }
            Slot::Absent | Slot::Diffs(_) => {
                column.null(row);
                false
            }
        };
        complete &= has_value;
        if has_value && let Some(bits) = present.get_mut(place / 8) {
            *bits |= 1 << (place % 8);
        } else if doubtful && slot == Slot::Absent {
            diffs.push((place, json::Diff { op: json::UNKNOWN, path: String::new(), value: None }));
        }
    }
    if !complete {
        diffs.sort_by_key(|(place, _)| *place);
        rows.mark(&present, diffs);
    }
    rows.table.rows += 1;
    Ok(())
}

/// A JSON value after these differences, as text; None where the image before does not say what it was, or they do not fit it.
fn after(before: Slot<'_>, diffs: &[json::Diff]) -> Option<Vec<u8>> {
    let Slot::Value(span) = before else { return None };
    let mut text = Vec::new();
    json::text(span.get(4..)?, &mut text).ok()?;
    for diff in diffs {
        jsondiff::apply(&mut text, diff.op, &diff.path, diff.value.as_deref()).ok()?;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
