//! A whole stream through the decoder: whatever it asks is answered, whatever it gives is checked and kept.

use _native::batches::Change;
use _native::charset::Charset;
use _native::decoder::{Asked, Decoder, Mutant, Options};
use _native::error::Error;
use _native::plan::{ColumnPlan, Kind, Output};
use _native::tablemap::{Column, Definition};
use _native::transaction::Input;
use arrow_data::ArrayData;

use crate::{Variant, check};

/// Small, so that an input of some KiB has parts and drains.
const DRAIN_BYTES: u64 = 200;
const PART_BYTES: u64 = 100;
const MAX_EVENT: usize = 1 << 20;

/// How a stream is read.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    pub mariadb: bool,
    pub parts: bool,
    pub variant: Variant,
}

impl Mode {
    /// From the lowest four bits.
    pub fn of(bits: u8) -> Mode {
        Mode { mariadb: bits & 1 != 0, variant: Variant::of(bits >> 1), parts: bits & 8 != 0 }
    }
}

/// Presence masks and JSON diffs.
type Incomplete = (ArrayData, ArrayData);

/// What one drain gave.
#[derive(Debug, PartialEq)]
pub struct Given {
    txns: Vec<String>,
    whole: usize,
    rows: Vec<(String, ArrayData, Option<Incomplete>)>,
    place: (String, u64),
}

/// All that a stream gives, and how it ends.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub given: Vec<Given>,
    pub error: Option<Error>,
}

/// Feed pieces, one after the other, up to the first error.
pub fn read<'a>(mode: Mode, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new(Options {
        mariadb: mode.mariadb,
        drain_bytes: DRAIN_BYTES,
        part_bytes: if mode.parts { PART_BYTES } else { u64::MAX },
        max_event: MAX_EVENT,
        mutant: Mutant::None,
    });
    let captured = ["small", "every", "other", "kinds"].map(|table| ("seeds".to_owned(), table.to_owned()));
    decoder.capture(&captured).expect("it is idle");
    let mut given = Vec::new();
    let error = pieces.map(|piece| feed(&mut decoder, mode, piece, &mut given)).find_map(Result::err);
    if let Some(error) = &error {
        assert_eq!(decoder.feed(b"more").err().as_ref(), Some(error), "it goes on after an error");
    }
    // What was whole before an error is given all the same; nothing of what was open is.
    if let Ok(rest) = drain(&mut decoder) {
        assert!(error.is_none() || rest.whole == rest.txns.len(), "a part after an error");
        given.push(rest);
    }
    Outcome { given, error }
}

fn feed(decoder: &mut Decoder, mode: Mode, piece: &[u8], given: &mut Vec<Given>) -> Result<(), Error> {
    enum Answer {
        Drain,
        Table(Option<Vec<Option<ColumnPlan>>>),
        Statement(Input, String),
    }
    let mut data = piece;
    loop {
        let answer = match decoder.feed(data)? {
            None => return Ok(()),
            Some(Asked::Drain) => Answer::Drain,
            Some(Asked::Table(asked)) => Answer::Table(plans(&asked.found, mode.variant)),
            Some(Asked::Statement(query)) => {
                let (input, savepoint) = statement(&query.sql);
                Answer::Statement(input, savepoint)
            }
        };
        data = b"";
        match answer {
            Answer::Drain => given.push(drain(decoder)?),
            Answer::Table(plans) => decoder.answer_table(plans)?,
            Answer::Statement(input, savepoint) => decoder.answer_statement(input, &savepoint)?,
        }
    }
}

fn drain(decoder: &mut Decoder) -> Result<Given, Error> {
    let drained = decoder.drain()?;
    assert!(drained.whole <= drained.txns.len() && drained.txns.len() <= drained.whole + 1);
    Ok(Given {
        txns: drained.txns.iter().map(|txn| format!("{} {} {}", txn.gtid, txn.commit_us, txn.row_events)).collect(),
        whole: drained.whole,
        rows: drained.changes.into_iter().map(rows).collect(),
        place: (drained.file, drained.offset),
    })
}

fn rows(change: Change) -> (String, ArrayData, Option<Incomplete>) {
    check(&change.rows);
    if let Some((presence, diffs)) = &change.incomplete {
        check(presence);
        check(diffs);
    }
    (format!("{}.{}", change.name.schema, change.name.table), change.rows, change.incomplete)
}

/// A plan of each column as the table map describes it; None for a table with one that is not read.
fn plans(found: &Definition, variant: Variant) -> Option<Vec<Option<ColumnPlan>>> {
    let output = if variant.texts { Output::String } else { Output::Native };
    let plan = |(i, column): (usize, &Column)| {
        let kind = kind(column)?;
        let key = found.key.contains(&column.name);
        let kept = key || !variant.fewer || i.is_multiple_of(3);
        Some(kept.then(|| ColumnPlan { name: column.name.clone(), kind, output, key }))
    };
    found.columns.iter().enumerate().map(plan).collect()
}

fn kind(column: &Column) -> Option<Kind> {
    let Column { unsigned, precision, scale, .. } = *column;
    let int = |bytes| Kind::Int { bytes, unsigned };
    let charset = || Charset::by_name(&column.charset);
    let members = || column.members.as_slice().into();
    Some(match column.type_.as_str() {
        "tinyint" => int(1),
        "smallint" => int(2),
        "mediumint" => int(3),
        "int" => int(4),
        "bigint" => int(8),
        "float" => Kind::Float,
        "double" => Kind::Double,
        "decimal" if (1..=65).contains(&precision) && scale <= precision && scale <= 38 => {
            Kind::Decimal { precision, scale }
        }
        "bit" => Kind::Bit { bits: u8::try_from(column.length).ok().filter(|bits| (1..=64).contains(bits))? },
        "year" => Kind::Year,
        "date" => Kind::Date,
        "datetime" => Kind::Datetime { scale },
        "timestamp" => Kind::Timestamp { scale },
        "time" => Kind::Time { scale },
        "text" => Kind::Text { charset: charset()? },
        "binary" => Kind::Binary { length: column.length as usize },
        "varbinary" => Kind::Varbinary,
        "enum" => Kind::Enum { members: members(), charset: charset()? },
        "set" => Kind::Set { members: members(), charset: charset()? },
        "json" => Kind::Json,
        "geometry" => Kind::Geometry,
        "vector" => Kind::Vector,
        "uuid" => Kind::Uuid,
        "inet4" => Kind::Inet4,
        "inet6" => Kind::Inet6,
        _ => return None,
    })
}

/// What a statement does, as far as the seeds need it.
fn statement(sql: &[u8]) -> (Input, String) {
    let text = String::from_utf8_lossy(sql).to_ascii_uppercase();
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let last = words.last().copied().unwrap_or_default().to_owned();
    let input = match words.as_slice() {
        ["BEGIN", ..] => Input::Begin,
        ["COMMIT", ..] => Input::Commit,
        ["SAVEPOINT", ..] => Input::Savepoint,
        ["ROLLBACK", "TO", ..] => Input::RollbackTo,
        ["ROLLBACK", ..] => Input::Rollback,
        ["CREATE", "TABLE", .., "TRANSACTION"] => Input::CreateSelect,
        _ => Input::Statement,
    };
    (input, last)
}
