//! Row images of the binary log: cells by wire type and metadata.

mod read;

use self::read::Read;
use crate::columns::Table;
use crate::cursor::Cursor;
use crate::decimals::Packed;
use crate::error::{Error, Result, damaged};
use crate::plan::{ColumnPlan, Kind};

/// Column types, as TABLE_MAP events and column definitions have them.
pub mod types {
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const NEWDATE: u8 = 14;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const TIMESTAMP2: u8 = 17;
    pub const DATETIME2: u8 = 18;
    pub const TIME2: u8 = 19;
    pub const TYPED_ARRAY: u8 = 20;
    pub const MARIADB_BLOB_COMPRESSED: u8 = 140;
    pub const MARIADB_VARCHAR_COMPRESSED: u8 = 141;
    pub const VECTOR: u8 = 242;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const TINY_BLOB: u8 = 249;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}

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

/// The type that a STRING's metadata hides (ENUM, SET or STRING), and its length: bytes of an ENUM's or SET's number, else the most
/// bytes of a text.
pub fn string_type(meta: u16) -> (u8, u16) {
    let (high, low) = ((meta >> 8) as u8, meta & 0xFF);
    if high & 0x30 == 0x30 {
        return (high, low);
    }
    // CHARs of more than 255 bytes have the length's bits 8 and 9 in the type, inverted.
    (high | 0x30, low | (u16::from(high & 0x30) ^ 0x30) << 4)
}

/// How many bytes a cell takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Fixed(usize),
    /// So many bytes of length first.
    Prefixed(u8),
}

impl Size {
    #[inline]
    fn skip(self, data: &mut Cursor<'_>) -> Result<()> {
        match self {
            Size::Fixed(size) => data.take(size).map(drop),
            Size::Prefixed(prefix) => data.prefixed(prefix).map(drop),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Cell {
    size: Size,
    pub(crate) json: bool,
    pub(crate) key: bool,
    pub(crate) kept: Option<(usize, Read)>,
}

/// How the rows of one table are read: make it once for a TABLE_MAP's definition.
#[derive(Debug)]
pub struct Wire {
    pub(crate) cells: Vec<Cell>,
    /// A row without NULLs as bytes to pass over and then a text to pass over, again and again.
    strides: Vec<(usize, u8)>,
    /// Cells from the first to the last of the key.
    pub(crate) key_end: usize,
    /// How many columns are kept.
    pub(crate) kept: usize,
    pub(crate) json_columns: usize,
    /// Whether an update's image after may be a REPLACE's or an INSERT's that met the row: of those MariaDB leaves out columns that it sets.
    pub(crate) replaces: bool,
}

impl Wire {
    /// `Error::Table` for a type that cannot be read, or that is not what the plan says.
    pub fn new(columns: &[WireColumn], plan: &[ColumnPlan]) -> Result<Wire> {
        let mut cells = Vec::with_capacity(columns.len());
        let mut used = vec![false; plan.len()];
        for (i, wire) in columns.iter().enumerate() {
            let named = wire.plan.and_then(|place| plan.get(place));
            let name = || named.map_or_else(|| format!("column {}", i + 1), |p| format!("column {}", p.name));
            let size = size(*wire).map_err(|what| Error::Table(format!("{}: {what}", name())))?;
            let kept = match wire.plan {
                // Their size depends on digits that the table map does not have.
                None if matches!(wire.type_, types::TIMESTAMP | types::DATETIME | types::TIME) => {
                    let why = "a date or time of mysql56_temporal_format=OFF cannot be left out; keep it, or exclude the table";
                    return Err(Error::Table(format!("{}: {why}", name())));
                }
                None => None,
                Some(_) if matches!(wire.type_, types::MARIADB_BLOB_COMPRESSED | types::MARIADB_VARCHAR_COMPRESSED) => {
                    let what = "COMPRESSED columns are not read; ALTER the column without COMPRESSED";
                    return Err(Error::Table(format!("{}: {what}", name())));
                }
                Some(place) => {
                    let (Some(plan), Some(used)) = (plan.get(place), used.get_mut(place)) else {
                        return Err(Error::Table(format!("column {} is kept in a place that there is not", i + 1)));
                    };
                    if std::mem::replace(used, true) {
                        return Err(Error::Table(format!("{} is kept twice", name())));
                    }
                    let read = Read::of(*wire, size, plan).ok_or_else(|| {
                        let why = match (&plan.kind, wire.type_) {
                            (
                                Kind::Timestamp { .. } | Kind::Datetime { .. } | Kind::Time { .. },
                                types::TIMESTAMP | types::DATETIME | types::TIME,
                            ) => "fractions of a second of mysql56_temporal_format=OFF are not read; \
                                  set it ON and ALTER TABLE … FORCE"
                                .into(),
                            _ => format!("wire type {} is not what its plan says", wire.type_),
                        };
                        Error::Table(format!("{}: {why}", name()))
                    })?;
                    Some((place, read))
                }
            };
            cells.push(Cell { size, json: wire.type_ == types::JSON, key: wire.key, kept });
        }
        if used.contains(&false) {
            return Err(Error::Table("a kept column that the table map does not have".into()));
        }
        let mut strides = Vec::new();
        let mut fixed = 0;
        for cell in &cells {
            match cell.size {
                Size::Fixed(size) => fixed += size,
                Size::Prefixed(prefix) => strides.push((std::mem::take(&mut fixed), prefix)),
            }
        }
        strides.push((fixed, 0));
        Ok(Wire {
            key_end: cells.iter().rposition(|c| c.key).map_or(0, |last| last + 1),
            json_columns: cells.iter().filter(|c| c.json).count(),
            kept: plan.len(),
            cells,
            strides,
            replaces: false,
        })
    }

    /// As MariaDB writes: with zeros for negative zeros, which it has in its binary log, and shows to no reader; and with updates that
    /// leave out what they set.
    pub fn of_mariadb(mut self) -> Wire {
        for cell in &mut self.cells {
            if let Some((_, read)) = &mut cell.kept {
                match read {
                    Read::Float => *read = Read::PositiveFloat,
                    Read::Double => *read = Read::PositiveDouble,
                    _ => {}
                }
            }
        }
        self.replaces = true;
        self
    }

    /// Pass over an image of all columns.
    #[inline]
    pub(crate) fn skip(&self, data: &mut Cursor<'_>) -> Result<()> {
        let nulls = data.take(self.cells.len().div_ceil(8))?;
        if nulls.iter().any(|bits| *bits != 0) {
            for (i, cell) in self.cells.iter().enumerate() {
                if !bit(nulls, i) {
                    cell.size.skip(data)?;
                }
            }
            return Ok(());
        }
        for (fixed, prefix) in &self.strides {
            data.take(*fixed)?;
            if *prefix != 0 {
                data.prefixed(*prefix)?;
            }
        }
        Ok(())
    }

    /// Read an image of all columns into `table`, as the row after its last.
    #[inline]
    pub(crate) fn row(&self, data: &mut Cursor<'_>, table: &mut Table) -> Result<()> {
        let nulls = data.take(self.cells.len().div_ceil(8))?;
        let row = table.begin();
        let mut at = *data;
        if nulls.iter().all(|bits| *bits == 0) {
            for cell in &self.cells {
                match &cell.kept {
                    Some((place, read)) => match table.columns.get_mut(*place) {
                        Some(column) => read.cell(&mut at, column, row)?,
                        None => return damaged("a column beyond the table's"),
                    },
                    None => cell.size.skip(&mut at)?,
                }
            }
        } else {
            for (i, cell) in self.cells.iter().enumerate() {
                let null = bit(nulls, i);
                match &cell.kept {
                    Some((place, read)) => match table.columns.get_mut(*place) {
                        Some(column) if null => column.null(row),
                        Some(column) => read.cell(&mut at, column, row)?,
                        None => return damaged("a column beyond the table's"),
                    },
                    None if null => {}
                    None => cell.size.skip(&mut at)?,
                }
            }
        }
        *data = at;
        table.rows += 1;
        Ok(())
    }

    /// Whether two images of all columns, from their NULL bits on, have other key cells.
    #[inline]
    pub(crate) fn moves(&self, before: Cursor<'_>, after: Cursor<'_>) -> Result<bool> {
        if self.key_end == 0 {
            return Ok(false);
        }
        let (mut before, mut after) = (before, after);
        let size = self.cells.len().div_ceil(8);
        let (nulls_before, nulls_after) = (before.take(size)?, after.take(size)?);
        for (i, cell) in self.cells.iter().enumerate().take(self.key_end) {
            let old = if bit(nulls_before, i) { None } else { Some(cell.span(&mut before)?) };
            let new = if bit(nulls_after, i) { None } else { Some(cell.span(&mut after)?) };
            if cell.key && old != new {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Cell {
    /// The cell's bytes, with its length's.
    #[inline]
    pub(crate) fn span<'a>(&self, data: &mut Cursor<'a>) -> Result<&'a [u8]> {
        let start = *data;
        self.size.skip(data)?;
        let mut found = start;
        found.take(start.left() - data.left())
    }
}

#[inline(always)]
pub(crate) fn bit(bits: &[u8], i: usize) -> bool {
    bits.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1)
}

/// The size of a cell; an error says why there is none.
fn size(wire: WireColumn) -> std::result::Result<Size, String> {
    use types::*;
    let fraction = || match wire.meta {
        0..=6 => Ok(usize::from(wire.meta).div_ceil(2)),
        _ => Err("more digits of a second's fraction than there are".to_string()),
    };
    Ok(match wire.type_ {
        TINY | YEAR => Size::Fixed(1),
        SHORT => Size::Fixed(2),
        INT24 | DATE | NEWDATE | TIME => Size::Fixed(3),
        LONG | FLOAT | TIMESTAMP => Size::Fixed(4),
        LONGLONG | DOUBLE | DATETIME => Size::Fixed(8),
        TIMESTAMP2 => Size::Fixed(4 + fraction()?),
        DATETIME2 => Size::Fixed(5 + fraction()?),
        TIME2 => Size::Fixed(3 + fraction()?),
        NEWDECIMAL => match Packed::new((wire.meta >> 8) as u8, (wire.meta & 0xFF) as u8) {
            Some(packed) => Size::Fixed(packed.size),
            None => return Err("a decimal of more digits than there are".into()),
        },
        BIT => Size::Fixed(usize::from(wire.meta >> 8) + usize::from(wire.meta & 0xFF > 0)),
        VARCHAR | VAR_STRING | MARIADB_VARCHAR_COMPRESSED => Size::Prefixed(if wire.meta > 255 { 2 } else { 1 }),
        TINY_BLOB..=BLOB | JSON | GEOMETRY | VECTOR | MARIADB_BLOB_COMPRESSED => match wire.meta {
            1..=4 => Size::Prefixed(wire.meta as u8),
            _ => return Err("a length of more bytes than there are".into()),
        },
        STRING | ENUM | SET => match string_type(wire.meta) {
            (ENUM, bytes @ 1..=2) | (SET, bytes @ 1..=8) => Size::Fixed(usize::from(bytes)),
            (ENUM | SET, _) => return Err("an ENUM or SET of more bytes than there are".into()),
            (_, most) => Size::Prefixed(if most > 255 { 2 } else { 1 }),
        },
        TYPED_ARRAY => return Err("typed arrays are not read".into()),
        other => return Err(format!("wire type {other} is not read")),
    })
}
