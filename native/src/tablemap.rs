//! TABLE_MAP: a table's name and the bytes of its definition; and what these say of its columns.
//!
//! Layout: MySQL's `libs/mysql/binlog/event/rows_event.h`. The optional metadata follow the server's rules of which columns have an
//! entry in which list; these rules differ between MySQL and MariaDB.

use crate::charset::{self, Charset};
use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};
use crate::image::{WireColumn, types as wire};

/// MySQL's and MariaDB's own limit.
pub const COLUMNS: usize = 4096;

/// Kinds of optional metadata.
mod optional {
    pub const SIGNEDNESS: u8 = 1;
    pub const DEFAULT_CHARSET: u8 = 2;
    pub const COLUMN_CHARSET: u8 = 3;
    pub const COLUMN_NAME: u8 = 4;
    pub const SET_VALUES: u8 = 5;
    pub const ENUM_VALUES: u8 = 6;
    pub const GEOMETRY_TYPE: u8 = 7;
    pub const PRIMARY_KEY: u8 = 8;
    pub const PRIMARY_KEY_WITH_PREFIX: u8 = 9;
    pub const ENUM_SET_DEFAULT_CHARSET: u8 = 10;
    pub const ENUM_SET_COLUMN_CHARSET: u8 = 11;
    pub const VISIBILITY: u8 = 12;
    pub const VECTOR_DIMENSIONALITY: u8 = 13;
}

/// The head of a TABLE_MAP event.
#[derive(Debug, Clone, Copy)]
pub struct TableMap<'a> {
    pub id: u64,
    /// All that tells one definition from another.
    pub definition: &'a [u8],
    /// Of `definition`, the table's name: as `raw_name` makes it.
    pub name: &'a [u8],
}

impl<'a> TableMap<'a> {
    /// Checks the list of columns too.
    #[inline]
    pub fn of(body: &'a [u8]) -> Result<TableMap<'a>> {
        let mut cursor = Cursor::new(body);
        let id = cursor.uint(6)?;
        cursor.u16()?;
        let definition = cursor.peek();
        let start = cursor.at();
        for _ in 0..2 {
            let size = usize::from(cursor.u8()?);
            cursor.take(size)?;
            cursor.u8()?;
        }
        let name = definition.get(..cursor.at() - start).unwrap_or_default();
        cursor.lenenc_bytes()?;
        Ok(TableMap { id, definition, name })
    }
}

/// A table's name as TABLE_MAP events have it. None for names that are too long for it.
pub fn raw_name(schema: &str, table: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(schema.len() + table.len() + 4);
    for part in [schema, table] {
        out.push(u8::try_from(part.len()).ok()?);
        out.extend_from_slice(part.as_bytes());
        out.push(0);
    }
    Some(out)
}

/// A column, in the words of `cdc.schema.Column`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_: String,
    pub unsigned: bool,
    /// BINARY: bytes; BIT: bits.
    pub length: u32,
    pub precision: u8,
    pub scale: u8,
    pub charset: String,
    pub members: Vec<String>,
}

/// What a TABLE_MAP event says of a table.
#[derive(Debug, Clone)]
pub struct Definition {
    pub schema: String,
    pub table: String,
    pub columns: Vec<Column>,
    /// Names of the primary key's columns, in its order.
    pub key: Vec<String>,
    /// Whether columns and key are named (binlog_row_metadata=FULL).
    pub named: bool,
    /// Without `plan` and `key`.
    pub wire: Vec<WireColumn>,
}

#[derive(Default)]
struct Optional<'a> {
    signedness: Option<&'a [u8]>,
    charset: Option<Charsets>,
    enum_charset: Option<Charsets>,
    names: Option<Vec<&'a [u8]>>,
    sets: Vec<Vec<&'a [u8]>>,
    enums: Vec<Vec<&'a [u8]>>,
    key: Vec<usize>,
}

/// Collations of the columns that have one.
enum Charsets {
    Default(u64, Vec<(u64, u64)>),
    Each(Vec<u64>),
}

impl Charsets {
    fn of(&self, place: usize) -> Option<u64> {
        match self {
            Charsets::Default(default, others) => {
                let other = others.iter().find(|(at, _)| *at == place as u64);
                Some(other.map_or(*default, |(_, collation)| *collation))
            }
            Charsets::Each(each) => each.get(place).copied(),
        }
    }
}

impl Definition {
    /// `definition`: as in `TableMap`. `Error::Table` for column types that are not known.
    pub fn read(definition: &[u8], mariadb: bool) -> Result<Definition> {
        let mut cursor = Cursor::new(definition);
        let mut name = || -> Result<String> {
            let size = usize::from(cursor.u8()?);
            let name = String::from_utf8_lossy(cursor.take(size)?).into_owned();
            cursor.u8()?;
            Ok(name)
        };
        let (schema, table) = (name()?, name()?);
        let types = cursor.lenenc_bytes()?;
        if types.len() > COLUMNS {
            return damaged(format!("a table of {} columns", types.len()));
        }
        let metadata = cursor.lenenc_bytes()?;
        let wire = wire_columns(types, metadata)?;
        cursor.take(types.len().div_ceil(8))?;
        let optional = Optional::read(&mut cursor)?;
        let mut found = Definition { schema, table, columns: Vec::new(), key: Vec::new(), named: false, wire };
        found.describe(&optional, mariadb)?;
        Ok(found)
    }

    fn describe(&mut self, optional: &Optional<'_>, mariadb: bool) -> Result<()> {
        let (mut numbers, mut texts, mut listed, mut sets, mut enums) = (0, 0, 0, 0, 0);
        if let Some(names) = &optional.names {
            if names.len() != self.wire.len() {
                return damaged(format!("a table of {} columns with {} names", self.wire.len(), names.len()));
            }
            self.named = true;
        }
        for (i, column) in self.wire.iter_mut().enumerate() {
            let real = real_type(column);
            if is_numeric(real) {
                column.unsigned = bit(optional.signedness, numbers);
                numbers += 1;
            }
            let mut found = describe(column, real);
            if is_text(real, mariadb) {
                let charset = optional.charset.as_ref().and_then(|c| c.of(texts)).map(charset_name);
                texts += 1;
                if found.type_ == TEXT {
                    match charset {
                        Some(charset) if charset != BINARY => found.charset = charset,
                        Some(_) if real == wire::STRING => found = binary(column),
                        Some(_) => found.type_ = "varbinary".into(),
                        None => {}
                    }
                }
            }
            if matches!(real, wire::ENUM | wire::SET) {
                let charset = optional.enum_charset.as_ref().and_then(|c| c.of(listed)).map(charset_name);
                found.charset = charset.unwrap_or_default();
                listed += 1;
                let (values, at) =
                    if real == wire::ENUM { (&optional.enums, &mut enums) } else { (&optional.sets, &mut sets) };
                let values = values.get(*at).map(Vec::as_slice).unwrap_or_default();
                *at += 1;
                found.members = values.iter().map(|value| member(value, &found.charset)).collect();
            }
            if let Some(name) = optional.names.as_ref().and_then(|names| names.get(i)) {
                found.name = String::from_utf8_lossy(name).into_owned();
            }
            self.columns.push(found);
        }
        for place in &optional.key {
            match self.columns.get(*place) {
                Some(column) => self.key.push(column.name.clone()),
                None => return damaged("a primary key of columns that do not exist"),
            }
        }
        Ok(())
    }
}

const TEXT: &str = "text";
const BINARY: &str = "binary";

fn wire_columns(types: &[u8], metadata: &[u8]) -> Result<Vec<WireColumn>> {
    let (mut cursor, mut columns) = (Cursor::new(metadata), Vec::with_capacity(types.len()));
    for type_ in types {
        let meta = match *type_ {
            wire::FLOAT | wire::DOUBLE | wire::TIMESTAMP2 | wire::DATETIME2 | wire::TIME2 => u16::from(cursor.u8()?),
            wire::BLOB | wire::GEOMETRY | wire::JSON | wire::VECTOR | wire::MARIADB_BLOB_COMPRESSED => {
                u16::from(cursor.u8()?)
            }
            wire::VARCHAR | wire::VAR_STRING | wire::BIT | wire::MARIADB_VARCHAR_COMPRESSED => cursor.u16()?,
            wire::STRING | wire::ENUM | wire::SET | wire::NEWDECIMAL => u16::from_be_bytes(cursor.array()?),
            wire::TINY | wire::SHORT | wire::INT24 | wire::LONG | wire::LONGLONG | wire::YEAR => 0,
            wire::DATE | wire::NEWDATE | wire::TIME | wire::DATETIME | wire::TIMESTAMP => 0,
            // How many bytes of metadata it has is not known, so what follows cannot be read either.
            other => return Err(Error::Table(format!("columns of a type that is not known (wire type {other})"))),
        };
        columns.push(WireColumn { type_: *type_, meta, unsigned: false, plan: None, key: false });
    }
    if !cursor.is_empty() {
        return damaged("a table's metadata are longer than its columns need");
    }
    Ok(columns)
}

/// ENUM and SET stand as STRING, whose metadata say what they are.
fn real_type(column: &WireColumn) -> u8 {
    let [first, _] = column.meta.to_be_bytes();
    match (column.type_, first) {
        (wire::STRING, wire::ENUM | wire::SET) => first,
        (type_, _) => type_,
    }
}

/// Whether the column has a bit in SIGNEDNESS.
fn is_numeric(real: u8) -> bool {
    matches!(
        real,
        wire::TINY
            | wire::SHORT
            | wire::INT24
            | wire::LONG
            | wire::LONGLONG
            | wire::FLOAT
            | wire::DOUBLE
            | wire::NEWDECIMAL
            | wire::YEAR
    )
}

/// Whether the column has a place among those with a collation.
fn is_text(real: u8, mariadb: bool) -> bool {
    match real {
        wire::STRING | wire::VAR_STRING | wire::VARCHAR | wire::BLOB => true,
        wire::VECTOR => !mariadb,
        wire::GEOMETRY | wire::MARIADB_BLOB_COMPRESSED | wire::MARIADB_VARCHAR_COMPRESSED => mariadb,
        _ => false,
    }
}

fn describe(column: &WireColumn, real: u8) -> Column {
    let [first, second] = column.meta.to_be_bytes();
    let scale = column.meta.to_le_bytes()[0];
    let named = |type_: &str| Column { type_: type_.into(), unsigned: column.unsigned, ..Column::default() };
    match real {
        wire::TINY => named("tinyint"),
        wire::SHORT => named("smallint"),
        wire::INT24 => named("mediumint"),
        wire::LONG => named("int"),
        wire::LONGLONG => named("bigint"),
        wire::FLOAT => named("float"),
        wire::DOUBLE => named("double"),
        wire::NEWDECIMAL => Column { precision: first, scale: second, ..named("decimal") },
        wire::YEAR => Column { unsigned: false, ..named("year") },
        wire::DATE | wire::NEWDATE => named("date"),
        wire::TIME => named("time"),
        wire::DATETIME => named("datetime"),
        wire::TIMESTAMP => named("timestamp"),
        wire::TIME2 => Column { scale, ..named("time") },
        wire::DATETIME2 => Column { scale, ..named("datetime") },
        wire::TIMESTAMP2 => Column { scale, ..named("timestamp") },
        // Bytes, and bits beyond them.
        wire::BIT => Column { length: u32::from(first) * 8 + u32::from(second), ..named("bit") },
        wire::JSON => named("json"),
        wire::GEOMETRY => named("geometry"),
        wire::VECTOR => named("vector"),
        wire::ENUM => named("enum"),
        wire::SET => named("set"),
        wire::MARIADB_BLOB_COMPRESSED => named("compressed blob"),
        wire::MARIADB_VARCHAR_COMPRESSED => named("compressed varchar"),
        _ => named(TEXT),
    }
}

/// BINARY(n). Two bits of lengths from 256 on are in the first byte, inverted.
fn binary(column: &WireColumn) -> Column {
    let [first, second] = column.meta.to_be_bytes();
    let length = u32::from((first & 0x30) ^ 0x30) << 4 | u32::from(second);
    Column { type_: BINARY.into(), length, ..Column::default() }
}

fn charset_name(collation: u64) -> String {
    match u32::try_from(collation).ok().and_then(charset::of_collation) {
        Some(name) => name.to_owned(),
        None => format!("of collation {collation}"),
    }
}

/// A member's name, which is in the column's character set.
fn member(bytes: &[u8], charset: &str) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    match Charset::by_name(charset) {
        Some(charset) if charset.decode(bytes, &mut out) => String::from_utf8_lossy(&out).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn bit(bits: Option<&[u8]>, place: usize) -> bool {
    bits.and_then(|bits| bits.get(place / 8)).is_some_and(|byte| byte & (0x80 >> (place % 8)) != 0)
}

impl<'a> Optional<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Optional<'a>> {
        let mut found = Optional::default();
        while !cursor.is_empty() {
            let field = cursor.u8()?;
            let value = cursor.lenenc_bytes()?;
            let mut value = Cursor::new(value);
            match field {
                optional::SIGNEDNESS => found.signedness = Some(value.rest()),
                optional::DEFAULT_CHARSET => found.charset = Some(default_charset(&mut value)?),
                optional::COLUMN_CHARSET => found.charset = Some(Charsets::Each(numbers(&mut value)?)),
                optional::ENUM_SET_DEFAULT_CHARSET => found.enum_charset = Some(default_charset(&mut value)?),
                optional::ENUM_SET_COLUMN_CHARSET => found.enum_charset = Some(Charsets::Each(numbers(&mut value)?)),
                optional::COLUMN_NAME => {
                    let mut names = Vec::new();
                    while !value.is_empty() {
                        names.push(value.lenenc_bytes()?);
                    }
                    found.names = Some(names);
                }
                optional::SET_VALUES => found.sets = lists(&mut value)?,
                optional::ENUM_VALUES => found.enums = lists(&mut value)?,
                optional::PRIMARY_KEY => found.key = places(numbers(&mut value)?),
                optional::PRIMARY_KEY_WITH_PREFIX => {
                    found.key = places(numbers(&mut value)?.into_iter().step_by(2).collect());
                }
                // Each row's value says it itself; visibility changes nothing.
                optional::GEOMETRY_TYPE | optional::VISIBILITY | optional::VECTOR_DIMENSIONALITY => {}
                _ => {}
            }
        }
        Ok(found)
    }
}

fn numbers(cursor: &mut Cursor<'_>) -> Result<Vec<u64>> {
    let mut out = Vec::new();
    while !cursor.is_empty() {
        out.push(cursor.lenenc()?);
    }
    Ok(out)
}

fn places(numbers: Vec<u64>) -> Vec<usize> {
    numbers.into_iter().map(|n| usize::try_from(n).unwrap_or(usize::MAX)).collect()
}

fn default_charset(cursor: &mut Cursor<'_>) -> Result<Charsets> {
    let (default, mut others) = (cursor.lenenc()?, Vec::new());
    while !cursor.is_empty() {
        others.push((cursor.lenenc()?, cursor.lenenc()?));
    }
    Ok(Charsets::Default(default, others))
}

fn lists<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<Vec<&'a [u8]>>> {
    let mut out = Vec::new();
    while !cursor.is_empty() {
        let (count, mut list) = (cursor.lenenc()?, Vec::new());
        for _ in 0..count {
            list.push(cursor.lenenc_bytes()?);
        }
        out.push(list);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of MySQL 9.7: id INT PRIMARY KEY, y YEAR, b TINYINT UNSIGNED, v VARCHAR(20) latin1, g POINT, g2 GEOMETRY, t TEXT ascii,
    /// j JSON, vec VECTOR(3), t2 TEXT utf8mb3, e ENUM('ä','b') latin1, s SET('ä','ö') utf16, bi BIT(13), bl BLOB, bb BINARY(9),
    /// c CHAR(255) utf8mb4, f FLOAT UNSIGNED, ti TIME(3)
    const SAMPLE: &[u8] = b"\x01p\x00\x01a\x00\x12\x03\r\x01\x0f\xff\xff\xfc\xf5\xf2\xfc\xfe\xfe\x10\xfc\xfe\xfe\x04\x13\
        \x15\x14\x00\x04\x04\x02\x04\x04\x02\xf7\x01\xf8\x01\x05\x01\x02\xfe\t\xce\xfc\x04\x03\xfe\xff\x03\x01\x01p\x03\t\
        \x08\x0b?!??\xfc\xff\x00\x07\x02\x01\x00\r\x01\x03\x04-\x02id\x01y\x01b\x01v\x01g\x02g2\x01t\x01j\x03vec\x02t2\
        \x01e\x01s\x02bi\x02bl\x02bb\x01c\x01f\x02ti\x0b\x02\x086\x05\x07\x02\x02\x00\xe4\x02\x00\xf6\x06\x05\x02\x01\xe4\
        \x01b\x08\x01\x00\x0c\x03\xff\xff\xc0";

    #[test]
    fn a_servers_definition_is_read() {
        let found = Definition::read(SAMPLE, false).unwrap();
        assert_eq!((found.schema.as_str(), found.table.as_str(), found.named), ("p", "a", true));
        assert_eq!(found.key, ["id"]);
        let told: Vec<String> = found
            .columns
            .iter()
            .map(|c| {
                let sign = if c.unsigned { " unsigned" } else { "" };
                format!("{} {}{sign} {} {} {} {:?}", c.name, c.type_, c.length, c.scale, c.charset, c.members)
            })
            .collect();
        let expected = [
            "id int 0 0  []",
            "y year 0 0  []",
            "b tinyint unsigned 0 0  []",
            "v text 0 0 latin1 []",
            "g geometry 0 0  []",
            "g2 geometry 0 0  []",
            "t text 0 0 ascii []",
            "j json 0 0  []",
            "vec vector 0 0  []",
            "t2 text 0 0 utf8mb3 []",
            "e enum 0 0 latin1 [\"ä\", \"b\"]",
            "s set 0 0 utf16 [\"ä\", \"ö\"]",
            "bi bit 13 0  []",
            "bl varbinary 0 0  []",
            "bb binary 9 0  []",
            "c text 0 0 utf8mb4 []",
            "f float unsigned 0 0  []",
            "ti time 0 3  []",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_cut_definition_is_refused_or_says_less() {
        for size in 0..SAMPLE.len() {
            if let Ok(found) = Definition::read(&SAMPLE[..size], false) {
                assert_eq!(found.wire.len(), 18);
            }
        }
    }

    #[test]
    fn the_head_names_the_table() {
        let body = [&[5, 0, 0, 0, 0, 0, 1, 0][..], SAMPLE].concat();
        let found = TableMap::of(&body).unwrap();
        assert_eq!((found.id, found.definition), (5, SAMPLE));
        assert_eq!(found.name, raw_name("p", "a").unwrap());
        assert!(raw_name(&"x".repeat(256), "a").is_none());
    }

    #[test]
    fn types_that_are_not_known_stop_the_table() {
        let mut unknown = SAMPLE.to_vec();
        unknown[8] = 99;
        assert!(matches!(Definition::read(&unknown, false), Err(Error::Table(_))));
    }
}
