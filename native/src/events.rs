//! Binary log events apart from rows: headers, checksums, GTIDs, statements, heartbeats.
//!
//! Layouts are those of MySQL's `libs/mysql/binlog/event` and `libs/mysql/serialization`.

use std::fmt;

use crate::charset;
use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};

/// Bytes of a header.
pub const HEADER: usize = 19;
/// Bytes of a checksum.
pub const CHECKSUM: usize = 4;
/// Header flag: the server made the event for this stream; it is not in the file.
pub const ARTIFICIAL: u16 = 0x20;
/// Header flag: who does not know the event may pass it.
pub const IGNORABLE_FLAG: u16 = 0x80;
/// The table of a row event without rows, that only ends a statement.
pub const DUMMY_TABLE: u64 = 0xFF_FFFF;

/// Types of events that are known here.
pub mod kind {
    pub const QUERY: u8 = 2;
    pub const STOP: u8 = 3;
    pub const ROTATE: u8 = 4;
    pub const INTVAR: u8 = 5;
    pub const APPEND_BLOCK: u8 = 9;
    pub const DELETE_FILE: u8 = 11;
    pub const RAND: u8 = 13;
    pub const USER_VAR: u8 = 14;
    pub const FORMAT_DESCRIPTION: u8 = 15;
    pub const XID: u8 = 16;
    pub const BEGIN_LOAD_QUERY: u8 = 17;
    pub const EXECUTE_LOAD_QUERY: u8 = 18;
    pub const TABLE_MAP: u8 = 19;
    pub const WRITE_ROWS_V1: u8 = 23;
    pub const UPDATE_ROWS_V1: u8 = 24;
    pub const DELETE_ROWS_V1: u8 = 25;
    pub const INCIDENT: u8 = 26;
    pub const HEARTBEAT: u8 = 27;
    pub const IGNORABLE: u8 = 28;
    pub const ROWS_QUERY: u8 = 29;
    pub const WRITE_ROWS: u8 = 30;
    pub const UPDATE_ROWS: u8 = 31;
    pub const DELETE_ROWS: u8 = 32;
    pub const GTID: u8 = 33;
    pub const ANONYMOUS_GTID: u8 = 34;
    pub const PREVIOUS_GTIDS: u8 = 35;
    pub const TRANSACTION_CONTEXT: u8 = 36;
    pub const VIEW_CHANGE: u8 = 37;
    pub const XA_PREPARE: u8 = 38;
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    pub const HEARTBEAT_V2: u8 = 41;
    pub const TAGGED_GTID: u8 = 42;
}

/// The type, for errors.
pub fn name(type_: u8) -> String {
    use kind::*;
    let known = match type_ {
        QUERY => "QUERY",
        STOP => "STOP",
        ROTATE => "ROTATE",
        INTVAR => "INTVAR",
        APPEND_BLOCK => "APPEND_BLOCK",
        DELETE_FILE => "DELETE_FILE",
        RAND => "RAND",
        USER_VAR => "USER_VAR",
        FORMAT_DESCRIPTION => "FORMAT_DESCRIPTION",
        XID => "XID",
        BEGIN_LOAD_QUERY => "BEGIN_LOAD_QUERY",
        EXECUTE_LOAD_QUERY => "EXECUTE_LOAD_QUERY",
        TABLE_MAP => "TABLE_MAP",
        WRITE_ROWS_V1 => "WRITE_ROWS_V1",
        UPDATE_ROWS_V1 => "UPDATE_ROWS_V1",
        DELETE_ROWS_V1 => "DELETE_ROWS_V1",
        INCIDENT => "INCIDENT",
        HEARTBEAT => "HEARTBEAT",
        IGNORABLE => "IGNORABLE",
        ROWS_QUERY => "ROWS_QUERY",
        WRITE_ROWS => "WRITE_ROWS",
        UPDATE_ROWS => "UPDATE_ROWS",
        DELETE_ROWS => "DELETE_ROWS",
        GTID => "GTID",
        ANONYMOUS_GTID => "ANONYMOUS_GTID",
        PREVIOUS_GTIDS => "PREVIOUS_GTIDS",
        VIEW_CHANGE => "VIEW_CHANGE",
        XA_PREPARE => "XA_PREPARE",
        PARTIAL_UPDATE_ROWS => "PARTIAL_UPDATE_ROWS",
        TRANSACTION_PAYLOAD => "TRANSACTION_PAYLOAD",
        HEARTBEAT_V2 => "HEARTBEAT_V2",
        TAGGED_GTID => "TAGGED_GTID",
        _ => return crate::mariadb::name(type_).map_or_else(|| format!("type {type_}"), str::to_owned),
    };
    known.to_owned()
}

/// The first 19 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub timestamp: u32,
    pub type_: u8,
    /// The server's id.
    pub server: u32,
    pub size: u32,
    /// Where the event ends in its file, modulo 2**32; 0 for an event that is in no file.
    pub log_pos: u32,
    pub flags: u16,
}

impl Header {
    /// Of a whole event, which must have the length that it says.
    #[inline]
    pub fn of(event: &[u8]) -> Result<Header> {
        let mut cursor = Cursor::new(event);
        let Ok(head) = Header::read(&mut cursor) else {
            return damaged(format!("an event of {} bytes, which is less than a header", event.len()));
        };
        if head.size as usize != event.len() {
            return damaged(format!(
                "a {} event of {} bytes says that it has {}",
                name(head.type_),
                event.len(),
                head.size
            ));
        }
        Ok(head)
    }

    #[inline]
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Header> {
        let mut bytes = Cursor::new(cursor.take(HEADER)?);
        let (timestamp, type_, server) = (bytes.u32()?, bytes.u8()?, bytes.u32()?);
        Ok(Header { timestamp, type_, server, size: bytes.u32()?, log_pos: bytes.u32()?, flags: bytes.u16()? })
    }
}

/// Whether the last four bytes are the CRC-32 of the others.
#[inline]
pub fn checksum_matches(event: &[u8]) -> bool {
    match event.split_last_chunk::<CHECKSUM>() {
        Some((data, sum)) if data.len() >= HEADER => crc32fast::hash(data) == u32::from_le_bytes(*sum),
        _ => false,
    }
}

/// The event without header, and without the checksum if it has one.
#[inline]
pub fn body(event: &[u8], checksum: bool) -> Result<&[u8]> {
    let end = event.len().saturating_sub(if checksum { CHECKSUM } else { 0 });
    event.get(HEADER..end).ok_or_else(|| Error::Damaged("an event without room for its checksum".into()))
}

/// What a FORMAT_DESCRIPTION event says of the events after it. It has room for a checksum itself in any case.
pub fn has_checksums(event: &[u8]) -> Result<bool> {
    let mut cursor = Cursor::new(body(event, true)?);
    let (version, _, _) = (cursor.u16()?, cursor.take(50)?, cursor.u32()?);
    let header_size = cursor.u8()?;
    let algorithm = cursor.rest().last().copied();
    let Some(algorithm @ (0 | 1)) = algorithm.filter(|_| version == 4 && usize::from(header_size) == HEADER) else {
        return damaged(format!("a binary log of format {version}, with headers of {header_size} bytes, is not known"));
    };
    if algorithm == 0 {
        // Its own checksum is right only until the server changes the event for the stream. So what can be seen is that it was
        // not "none" before the event was damaged.
        let mut was = event.to_vec();
        if let Some(byte) = was.len().checked_sub(CHECKSUM + 1).and_then(|at| was.get_mut(at)) {
            *byte = 1;
        }
        if checksum_matches(&was) {
            return damaged("a FORMAT_DESCRIPTION event whose checksum is wrong");
        }
    }
    Ok(algorithm == 1)
}

/// Who numbers transactions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sid {
    Mysql { uuid: [u8; 16], tag: Box<str> },
    Mariadb { domain: u32, server: u32 },
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sid::Mysql { uuid, tag } => {
                let mut text = [0u8; 36];
                let mut at = 0;
                for (i, byte) in uuid.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        text[at] = b'-';
                        at += 1;
                    }
                    text[at] = HEX[usize::from(byte >> 4)];
                    text[at + 1] = HEX[usize::from(byte & 15)];
                    at += 2;
                }
                f.write_str(str::from_utf8(&text).unwrap_or_default())?;
                if !tag.is_empty() {
                    write!(f, ":{tag}")?;
                }
                Ok(())
            }
            Sid::Mariadb { domain, server } => write!(f, "{domain}-{server}"),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A transaction's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gtid {
    pub sid: Sid,
    pub number: u64,
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if matches!(self.sid, Sid::Mysql { .. }) { ':' } else { '-' };
        write!(f, "{}{sign}{}", self.sid, self.number)
    }
}

/// What a GTID event says of its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GtidEvent {
    pub gtid: Gtid,
    /// Original commit time, µs since 1970; the event's own time, in whole seconds, where the server gave none.
    pub commit_us: i64,
    /// Bytes of the transaction's events, this one included.
    pub length: Option<u64>,
    /// Whether BEGIN follows, or one statement. MariaDB's says: Some(true) for a group without BEGIN.
    pub group: Option<bool>,
    /// Whether it is one of XA, where that cannot be read.
    pub xa: bool,
}

fn micros(given: u64, timestamp: u32) -> i64 {
    match i64::try_from(given) {
        Ok(given) if given > 0 => given,
        _ => i64::from(timestamp) * 1_000_000,
    }
}

fn number(number: u64) -> Result<u64> {
    if number == 0 || number > i64::MAX as u64 {
        return damaged("a GTID event with a number that is none");
    }
    Ok(number)
}

pub fn gtid(body: &[u8], timestamp: u32) -> Result<GtidEvent> {
    let mut cursor = Cursor::new(body);
    cursor.u8()?;
    let sid = Sid::Mysql { uuid: cursor.array()?, tag: "".into() };
    let gtid = Gtid { sid, number: number(cursor.u64()?)? };
    let mut found = GtidEvent { gtid, commit_us: micros(0, timestamp), length: None, group: None, xa: false };
    if cursor.left() < 17 || cursor.u8()? != 2 {
        return Ok(found);
    }
    cursor.take(16)?;
    if cursor.left() < 7 {
        return Ok(found);
    }
    let mut commit = cursor.uint(7)?;
    if commit >> 55 != 0 {
        // The transaction was first committed elsewhere, and then.
        let original = cursor.uint(7)?;
        commit = if original == 0 { commit & !(1 << 55) } else { original };
    }
    found.commit_us = micros(commit, timestamp);
    if !cursor.is_empty() {
        found.length = Some(cursor.lenenc()?);
    }
    Ok(found)
}

/// An integer of MySQL's serialization: as many more bytes as the first has one-bits at its low end.
fn varlen(cursor: &mut Cursor<'_>) -> Result<u64> {
    let first = cursor.u8()?;
    let more = first.trailing_ones();
    let tail = cursor.uint(more.min(8) as usize)?;
    // Of the first byte 7 - more bits are left, none from 7 on.
    let bits = 7u32.saturating_sub(more);
    let low = if bits == 0 { 0 } else { u64::from(first >> (more + 1)) };
    match tail.checked_shl(bits) {
        Some(high) if high >> bits == tail => Ok(high | low),
        _ => damaged("an integer that is too large"),
    }
}

/// The same with the sign in the lowest bit.
fn varlen_signed(cursor: &mut Cursor<'_>) -> Result<i64> {
    let found = varlen(cursor)?;
    Ok((found >> 1) as i64 ^ -((found & 1) as i64))
}

/// A GTID_TAGGED event.
pub fn tagged_gtid(body: &[u8], timestamp: u32) -> Result<GtidEvent> {
    let mut cursor = Cursor::new(body);
    let (version, size, last) = (varlen(&mut cursor)?, varlen(&mut cursor)?, varlen(&mut cursor)?);
    if version != 0 && version != 1 {
        return Err(Error::Unsupported(format!("a GTID event of serialization format {version}")));
    }
    if size != body.len() as u64 {
        return damaged("a GTID event that is not as long as it says");
    }
    let (mut uuid, mut tag, mut seen) = ([0u8; 16], String::new(), 0u32);
    let (mut gno, mut immediate, mut original, mut length) = (0, 0, 0, None);
    while !cursor.is_empty() {
        let field = varlen(&mut cursor)?;
        if field < 32 {
            seen |= 1 << field;
        }
        match field {
            0 => {
                varlen(&mut cursor)?;
            }
            1 => {
                for byte in &mut uuid {
                    *byte = u8::try_from(varlen(&mut cursor)?)
                        .map_err(|_| Error::Damaged("a GTID event whose UUID is none".into()))?;
                }
            }
            2 => gno = varlen_signed(&mut cursor)?,
            3 => {
                let size = varlen(&mut cursor)?;
                let bytes = cursor.take(usize::try_from(size).unwrap_or(usize::MAX))?;
                tag = match str::from_utf8(bytes) {
                    Ok(text) if size <= 32 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                        text.into()
                    }
                    _ => return damaged("a GTID event whose tag is none"),
                };
            }
            4 | 5 => {
                varlen_signed(&mut cursor)?;
            }
            6 => immediate = varlen(&mut cursor)?,
            7 => original = varlen(&mut cursor)?,
            8 => length = Some(varlen(&mut cursor)?),
            9..=11 => {
                varlen(&mut cursor)?;
            }
            // Fields that later servers add come last, and may be passed unless the message says otherwise.
            _ if field < last => return Err(Error::Unsupported("a GTID event with fields that are not known".into())),
            _ => break,
        }
    }
    if seen & 0b1111 != 0b1111 {
        return damaged("a GTID event that names no transaction");
    }
    let gtid = Gtid { sid: Sid::Mysql { uuid, tag: tag.into() }, number: number(u64::try_from(gno).unwrap_or(0))? };
    let commit = if original == 0 { immediate } else { original };
    Ok(GtidEvent { gtid, commit_us: micros(commit, timestamp), length, group: None, xa: false })
}

/// A place in a binary log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub file: String,
    pub offset: u64,
}

fn file(name: &[u8]) -> Result<String> {
    match str::from_utf8(name) {
        Ok(text) if numbered(text) => Ok(text.to_owned()),
        _ => damaged("an event names a binary log file that has no number"),
    }
}

fn numbered(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

/// Where the stream goes on.
pub fn rotate(body: &[u8]) -> Result<End> {
    let mut cursor = Cursor::new(body);
    let offset = cursor.u64()?;
    if offset > i64::MAX as u64 {
        return damaged("a rotation to an offset that is none");
    }
    Ok(End { offset, file: file(cursor.rest())? })
}

/// How far the server is: the file; the offset, modulo 2**32, is the header's.
pub fn heartbeat(body: &[u8]) -> Result<String> {
    file(body)
}

/// The same with a whole offset.
pub fn heartbeat_v2(body: &[u8]) -> Result<End> {
    let (mut cursor, mut name, mut offset) = (Cursor::new(body), None, None);
    while !cursor.is_empty() {
        let field = cursor.lenenc()?;
        if field == 0 {
            break;
        }
        let value = cursor.lenenc_bytes()?;
        match field {
            1 => name = Some(file(value)?),
            2 => offset = Some(Cursor::new(value).lenenc()?),
            _ => {}
        }
    }
    match (name, offset) {
        (Some(file), Some(offset)) if offset <= i64::MAX as u64 => Ok(End { file, offset }),
        _ => damaged("a heartbeat does not say where the server is"),
    }
}

/// A statement as text, and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub database: String,
    pub sql: Vec<u8>,
    /// The server's name of the client's character set; empty if it is not known.
    pub charset: String,
    pub ansi_quotes: bool,
    pub no_backslash_escapes: bool,
}

/// A QUERY event, its parts not yet read.
#[derive(Debug, Clone, Copy)]
pub struct RawQuery<'a> {
    status: &'a [u8],
    database: &'a [u8],
    pub sql: &'a [u8],
}

/// The parts of a QUERY event, or (`load`) of an EXECUTE_LOAD_QUERY event.
#[inline]
pub fn query(body: &[u8], load: bool) -> Result<RawQuery<'_>> {
    let mut cursor = Cursor::new(body);
    cursor.take(8)?;
    let database = usize::from(cursor.u8()?);
    cursor.u16()?;
    let status = usize::from(cursor.u16()?);
    if load {
        cursor.take(13)?;
    }
    let (status, database) = (cursor.take(status)?, cursor.take(database)?);
    cursor.u8()?;
    Ok(RawQuery { status, database, sql: cursor.rest() })
}

const ANSI_QUOTES: u64 = 1 << 2;
const NO_BACKSLASH_ESCAPES: u64 = 1 << 20;

impl RawQuery<'_> {
    /// `sql`: the statement, if it is not `self.sql`.
    pub fn read(&self, sql: Option<Vec<u8>>) -> Result<Query> {
        let (mode, charset) = status(self.status)?;
        Ok(Query {
            database: String::from_utf8_lossy(self.database).into_owned(),
            sql: sql.unwrap_or_else(|| self.sql.to_vec()),
            charset,
            ansi_quotes: mode & ANSI_QUOTES != 0,
            no_backslash_escapes: mode & NO_BACKSLASH_ESCAPES != 0,
        })
    }
}

/// sql_mode and the client's character set, which the server writes among the first.
fn status(bytes: &[u8]) -> Result<(u64, String)> {
    const FLAGS2: u8 = 0;
    const SQL_MODE: u8 = 1;
    const AUTO_INCREMENT: u8 = 3;
    const CHARSET: u8 = 4;
    const CATALOG: u8 = 6;
    let (mut cursor, mut mode) = (Cursor::new(bytes), 0);
    while !cursor.is_empty() {
        match cursor.u8()? {
            SQL_MODE => mode = cursor.u64()?,
            CHARSET => {
                let client = cursor.uint(6)? & 0xFFFF;
                let found = u32::try_from(client).ok().and_then(charset::of_collation);
                return Ok((mode, found.unwrap_or_default().to_owned()));
            }
            CATALOG => {
                let size = usize::from(cursor.u8()?);
                cursor.take(size)?;
            }
            FLAGS2 | AUTO_INCREMENT => {
                cursor.take(4)?;
            }
            _ => break,
        }
    }
    Ok((mode, "utf8mb4".to_owned()))
}

/// An XA transaction's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Xid {
    pub format: i64,
    pub gtrid: Vec<u8>,
    pub bqual: Vec<u8>,
}

/// An XA_PREPARE event: whether it commits in one phase, and the name.
pub fn xa_prepare(body: &[u8]) -> Result<(bool, Xid)> {
    let mut cursor = Cursor::new(body);
    let one_phase = cursor.u8()? != 0;
    let format = cursor.u32()?.cast_signed();
    let (gtrid, bqual) = (cursor.u32()?, cursor.u32()?);
    let mut part = |size: u32| cursor.take(size as usize).map(<[u8]>::to_vec);
    let xid = Xid { format: i64::from(format), gtrid: part(gtrid)?, bqual: part(bqual)? };
    Ok((one_phase, xid))
}

/// A statement on an XA transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XaVerb {
    Start,
    End,
    Commit,
    Rollback,
}

/// `XA START X'…',X'…',1` and the like, as servers write them. None: it is no XA statement.
pub fn xa_statement(sql: &[u8]) -> Option<Result<(XaVerb, Xid)>> {
    let word = sql.first_chunk::<3>()?;
    if !word.eq_ignore_ascii_case(b"XA ") {
        return None;
    }
    Some(xa_words(sql).ok_or_else(|| Error::Unsupported("an XA statement that is not understood".into())))
}

fn xa_words(sql: &[u8]) -> Option<(XaVerb, Xid)> {
    let text = str::from_utf8(sql).ok()?;
    let mut words = text.splitn(3, ' ').skip(1);
    let verb = match words.next()?.to_ascii_uppercase().as_str() {
        "START" | "BEGIN" => XaVerb::Start,
        "END" => XaVerb::End,
        "COMMIT" => XaVerb::Commit,
        "ROLLBACK" => XaVerb::Rollback,
        _ => return None,
    };
    let mut parts = words.next()?.split(',');
    let gtrid = hex(parts.next()?)?;
    let bqual = hex(parts.next()?)?;
    let format = parts.next()?.trim().parse().ok()?;
    parts.next().is_none().then_some((verb, Xid { format, gtrid, bqual }))
}

fn hex(literal: &str) -> Option<Vec<u8>> {
    let digits = literal.trim().strip_prefix(['X', 'x'])?.strip_prefix('\'')?.strip_suffix('\'')?.as_bytes();
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if digits.len() % 2 != 0 {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.last()?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varlen_of(value: u64) -> Vec<u8> {
        let bits = 64 - value.leading_zeros();
        let more = (0..=8).find(|more| *more == 8 || bits <= 7 * more + 7).unwrap();
        if more == 8 {
            return [&[0xFF][..], &value.to_le_bytes()].concat();
        }
        let whole = (u128::from(value) << (more + 1)) | ((1 << more) - 1);
        whole.to_le_bytes()[..=more as usize].to_vec()
    }

    #[test]
    fn integers_of_variable_length() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let bytes = varlen_of(value);
                let mut cursor = Cursor::new(&bytes);
                assert_eq!(varlen(&mut cursor).unwrap(), value);
                assert!(cursor.is_empty());
                assert!(varlen(&mut Cursor::new(&bytes[..bytes.len() - 1])).is_err());
            }
        }
    }

    #[test]
    fn xa_statements() {
        let (verb, xid) = xa_statement(b"XA START X'616263',X'',1").unwrap().unwrap();
        assert_eq!((verb, xid.gtrid.as_slice(), xid.bqual.len(), xid.format), (XaVerb::Start, &b"abc"[..], 0, 1));
        assert!(xa_statement(b"XA RECOVER").unwrap().is_err());
        assert!(xa_statement(b"XA START X'6',X'',1").unwrap().is_err());
        assert!(xa_statement(b"INSERT").is_none());
    }

    #[test]
    fn names_of_transactions() {
        let uuid = core::array::from_fn(|i| i as u8 * 17);
        let gtid = Gtid { sid: Sid::Mysql { uuid, tag: "".into() }, number: 7 };
        assert_eq!(gtid.to_string(), "00112233-4455-6677-8899-aabbccddeeff:7");
        let gtid = Gtid { sid: Sid::Mysql { uuid, tag: "t_1".into() }, number: 7 };
        assert_eq!(gtid.to_string(), "00112233-4455-6677-8899-aabbccddeeff:t_1:7");
        assert_eq!(Gtid { sid: Sid::Mariadb { domain: 1, server: 2 }, number: 3 }.to_string(), "1-2-3");
    }

    #[test]
    fn places() {
        assert!(file(b"binlog.000001").is_ok());
        for bad in [&b"binlog"[..], b"binlog.", b"", b"\xff.1"] {
            assert!(file(bad).is_err());
        }
    }
}
