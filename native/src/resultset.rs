//! Result sets into columns: the packets that answer a query (text rows) or COM_STMT_EXECUTE (binary rows).
//!
//! The classic protocol: column count, definitions, EOF, rows, EOF. Packets may be cut anywhere and go on over 16 MiB.

mod read;

use std::sync::Arc;

use arrow_data::ArrayData;

use self::read::Read;
use crate::charset::{self, Charset};
use crate::columns::{Table, structure};
use crate::cursor::Cursor;
use crate::error::{self, Error, Result, damaged};
use crate::plan::{ColumnPlan, Kind};

/// A packet of this size goes on in the next one.
const LONGEST: usize = 0xFF_FFFF;
/// No packet of a server is longer: `max_allowed_packet` is 1 GiB at most.
const LIMIT: usize = (1 << 30) + LONGEST;
const UNSIGNED: u16 = 32;
const MORE_RESULTS: u16 = 8;
/// Texts in no character set.
const BINARY: u16 = 63;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Count,
    Definition(usize),
    DefinitionsEnd,
    Row,
    Nothing,
}

/// Reads one result set.
#[derive(Debug)]
pub struct ResultSet {
    table: Table,
    binary: bool,
    expects: Expects,
    reads: Vec<Read>,
    sequence: u8,
    /// What was fed and not yet read; read up to `at`.
    pending: Vec<u8>,
    at: usize,
}

impl ResultSet {
    pub fn new(plan: Arc<[ColumnPlan]>, binary: bool) -> ResultSet {
        ResultSet {
            table: Table::new(plan),
            binary,
            expects: Expects::Count,
            reads: Vec::new(),
            sequence: 1,
            pending: Vec::new(),
            at: 0,
        }
    }

    /// Rows that were read and not taken.
    pub fn rows(&self) -> usize {
        self.table.rows
    }

    /// Memory, about: of these rows, and of what waits for its packet's end.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.pending.len() - self.at
    }

    /// Room for the next `size` bytes from the socket; `read` is next.
    pub fn room(&mut self, size: usize) -> &mut [u8] {
        self.pending.drain(..self.at);
        self.at = 0;
        let before = self.pending.len();
        self.pending.resize(before + size, 0);
        self.pending.get_mut(before..).unwrap_or_default()
    }

    /// The next bytes from the socket, cut anywhere. True once the result set has ended. After an error nothing more can be read.
    pub fn feed(&mut self, data: &[u8]) -> Result<bool> {
        self.room(data.len()).copy_from_slice(data);
        self.read()
    }

    /// Read all packets that are whole.
    pub fn read(&mut self) -> Result<bool> {
        let pending = std::mem::take(&mut self.pending);
        let result = self.read_packets(&pending);
        self.pending = pending;
        if result.is_err() {
            self.table.truncate(self.table.rows);
        }
        result?;
        Ok(self.expects == Expects::Nothing)
    }

    /// The pending rows as a struct, none are left: the columns, then `_cdc_unfit` if a row has one.
    pub fn take(&mut self) -> Result<ArrayData> {
        let rows = self.table.rows;
        let (fields, columns) = self.table.finish()?;
        structure(fields, columns, rows)
    }

    fn read_packets(&mut self, pending: &[u8]) -> Result<()> {
        loop {
            let mut data = Cursor::new(pending.get(self.at..).unwrap_or_default());
            if data.left() < 4 {
                return Ok(());
            }
            let size = data.u24()? as usize;
            let sequence = data.u8()?;
            if size == LONGEST {
                let Some((payload, packets)) = joined(pending.get(self.at..).unwrap_or_default(), self.sequence)?
                else {
                    return Ok(());
                };
                self.sequence = self.sequence.wrapping_add(packets as u8);
                self.at += payload.len() + 4 * packets;
                self.packet(&payload)?;
                continue;
            }
            if data.left() < size {
                return Ok(());
            }
            if sequence != self.sequence {
                return damaged("packets out of order");
            }
            self.sequence = sequence.wrapping_add(1);
            self.at += 4 + size;
            let payload = data.take(size)?;
            self.packet(payload)?;
        }
    }

    #[inline]
    fn packet(&mut self, payload: &[u8]) -> Result<()> {
        let first = payload.first().copied();
        if self.expects == Expects::Row {
            return match first {
                Some(0xFF) => Err(error::of_packet(payload)),
                Some(0xFE) if payload.len() < 9 => self.end(payload),
                Some(0) if self.binary => self.binary_row(payload),
                Some(_) if !self.binary => self.text_row(payload),
                _ => damaged("a packet that is no row"),
            };
        }
        let mut data = Cursor::new(payload);
        match (self.expects, first) {
            (_, Some(0xFF)) => return Err(error::of_packet(payload)),
            (Expects::Count, _) => {
                let count = data.lenenc()?;
                let known = self.table.columns.len();
                if count == 0 || !data.is_empty() {
                    return damaged("an answer that is no result set");
                }
                if usize::try_from(count) != Ok(known) {
                    return Err(Error::Table(format!("the result set has {count} columns, {known} were asked for")));
                }
                self.expects = Expects::Definition(0);
            }
            (Expects::Definition(i), _) => {
                let read = self.define(i, &mut data)?;
                self.reads.push(read);
                let next = i + 1;
                let all = next == self.table.columns.len();
                self.expects = if all { Expects::DefinitionsEnd } else { Expects::Definition(next) };
            }
            (Expects::DefinitionsEnd, Some(0xFE)) if payload.len() < 9 => self.expects = Expects::Row,
            (Expects::Nothing, _) => return damaged("packets after the result set's end"),
            _ => return damaged("no end of the column definitions"),
        }
        Ok(())
    }

    fn end(&mut self, payload: &[u8]) -> Result<()> {
        let mut data = Cursor::new(payload);
        data.take(3)?; // 0xFE, warnings
        if data.u16()? & MORE_RESULTS != 0 {
            return Err(Error::Unsupported("more than one result set".into()));
        }
        self.expects = Expects::Nothing;
        Ok(())
    }

    fn define(&self, i: usize, data: &mut Cursor<'_>) -> Result<Read> {
        for _ in 0..6 {
            data.lenenc_bytes()?; // catalog, schema, table, original table, name, original name
        }
        data.lenenc()?;
        let charset = data.u16()?;
        data.u32()?;
        let (type_, flags) = (data.u8()?, data.u16()?);
        let (Some(plan), Some(column)) = (self.table.plan().get(i), self.table.columns.get(i)) else {
            return damaged("more column definitions than columns");
        };
        if let Kind::Text { charset: known } | Kind::Enum { charset: known, .. } | Kind::Set { charset: known, .. } =
            &plan.kind
        {
            let found = if charset == BINARY { Some("binary") } else { charset::of_collation(u32::from(charset)) };
            if found.and_then(Charset::by_name) != Some(*known) {
                let found = found.unwrap_or("an unknown one");
                return Err(column.stop(&format!("its texts arrive in another character set than its own: {found}")));
            }
        }
        if !self.binary {
            return Ok(Read::text(&plan.kind));
        }
        Read::binary(plan, type_, flags & UNSIGNED != 0)
            .ok_or_else(|| column.stop(&format!("has wire type {type_} in the result set, which is not its type")))
    }

    #[inline]
    fn binary_row(&mut self, payload: &[u8]) -> Result<()> {
        let mut data = Cursor::new(payload);
        data.u8()?;
        let row = self.table.begin();
        let nulls = data.take((self.reads.len() + 9) / 8)?;
        if nulls.iter().all(|bits| *bits == 0) {
            for (read, column) in self.reads.iter().zip(self.table.columns.iter_mut()) {
                read.cell(&mut data, column, row)?;
            }
        } else {
            for (i, (read, column)) in self.reads.iter().zip(self.table.columns.iter_mut()).enumerate() {
                // The first two bits are of no column.
                if crate::image::bit(nulls, i + 2) {
                    column.null(row);
                } else {
                    read.cell(&mut data, column, row)?;
                }
            }
        }
        self.row_end(&data)
    }

    fn text_row(&mut self, payload: &[u8]) -> Result<()> {
        let mut data = Cursor::new(payload);
        let row = self.table.begin();
        for (read, column) in self.reads.iter().zip(self.table.columns.iter_mut()) {
            if data.peek().first() == Some(&0xFB) {
                data.u8()?;
                column.null(row);
            } else {
                read.cell(&mut data, column, row)?;
            }
        }
        self.row_end(&data)
    }

    #[inline]
    fn row_end(&mut self, data: &Cursor<'_>) -> Result<()> {
        if !data.is_empty() {
            return damaged("a row that does not end where its last column does");
        }
        self.table.rows += 1;
        Ok(())
    }
}

/// The payload of a packet that goes on over 16 MiB, and in how many packets it is; None: not all is there.
fn joined(pending: &[u8], first: u8) -> Result<Option<(Vec<u8>, usize)>> {
    // Look before copying: this comes again with every feed until all is there.
    let mut data = Cursor::new(pending);
    let (mut total, mut packets) = (0, 0_usize);
    loop {
        if data.left() < 4 {
            return Ok(None);
        }
        let size = data.u24()? as usize;
        if data.u8()? != first.wrapping_add(packets as u8) {
            return damaged("packets out of order");
        }
        total += size;
        packets += 1;
        if total > LIMIT {
            return damaged("a packet of more than 1 GiB");
        }
        if data.left() < size {
            return Ok(None);
        }
        data.take(size)?;
        if size < LONGEST {
            break;
        }
    }
    let mut payload = Vec::with_capacity(total);
    let mut data = Cursor::new(pending);
    for _ in 0..packets {
        let size = data.u24()? as usize;
        data.u8()?;
        payload.extend_from_slice(data.take(size)?);
    }
    Ok(Some((payload, packets)))
}

#[cfg(test)]
mod tests;
