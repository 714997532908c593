//! One digest for one row, the same as `cdc.source.canonical.digest_expression` has the server compute.
//!
//! The row is laid out as fields, each of which says where it ends, so that two rows are laid out alike only if they are alike. Then it is
//! hashed: SHA-256, cut to 16 bytes.
//!
//! | form | NULL | else |
//! | --- | --- | --- |
//! | plain (numbers, dates, times, …) | `-,` | the canonical text, `,` |
//! | bytes (texts in UTF-8, binaries) | `-` | length in bytes, `:`, the bytes, or their SHA-256 in hexadecimal digits if there are more than 1024 |
//! | hashed (texts of other character sets, JSON, vectors) | `-` | the SHA-256 of the canonical text, in hexadecimal digits |
//!
//! What no source has (a comma in a number's text, digits that are not hexadecimal) is laid out as `!`, length, `:` and the text.

use arrow_array::cast::AsArray;
use arrow_array::{Array, Decimal128Array, FixedSizeBinaryArray, Int64Array, MapArray, StructArray, UInt32Array};
use arrow_buffer::Buffer;
use sha2::{Digest, Sha256};

use crate::texts::Column;
use crate::values::unsigned_text;

/// Longer values enter by their digest, so that no server's packet is too small for a row.
pub const LONG: usize = 1024;
/// Of a digest, in bytes.
pub const SIZE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Bytes,
    /// Bytes, which a text says in hexadecimal digits.
    Hexed,
    Hashed,
}

struct Cell<'a> {
    column: Column<'a>,
    form: Form,
    name: &'a str,
}

/// How rows of a batch are laid out.
pub struct Layout<'a> {
    cells: Vec<Cell<'a>>,
    /// `_cdc_unfit` of the same rows.
    unfit: Option<&'a MapArray>,
    rows: usize,
}

impl<'a> Layout<'a> {
    /// `kinds`: for each column `plain`, `time` (plain, of integers), `bytes`, `hexed` or `hashed`.
    pub fn new(batch: &'a StructArray, kinds: &[String], unfit: Option<&'a MapArray>) -> Result<Layout<'a>, String> {
        if kinds.len() != batch.num_columns() {
            return Err(format!("{} kinds of {} columns", kinds.len(), batch.num_columns()));
        }
        if unfit.is_some_and(|unfit| unfit.len() != batch.len()) {
            return Err("what did not fit is of other rows".into());
        }
        let mut cells = Vec::with_capacity(kinds.len());
        for ((kind, array), field) in kinds.iter().zip(batch.columns()).zip(batch.fields()) {
            let form = match kind.as_str() {
                "plain" | "time" => Form::Plain,
                "bytes" => Form::Bytes,
                "hexed" => Form::Hexed,
                "hashed" => Form::Hashed,
                _ => return Err(format!("no such kind: {kind}")),
            };
            let column = Column::of(array.as_ref(), kind == "time")
                .ok_or_else(|| format!("column {}: no text is known of {}", field.name(), array.data_type()))?;
            if matches!(form, Form::Bytes | Form::Hexed)
                && !matches!(
                    column,
                    Column::Text(_) | Column::LargeText(_) | Column::Binary(_) | Column::LargeBinary(_)
                )
            {
                return Err(format!("column {}: {} has no bytes", field.name(), array.data_type()));
            }
            cells.push(Cell { column, form, name: field.name() });
        }
        // A map of a row without one is no reason to look.
        let unfit = unfit.filter(|unfit| unfit.null_count() < unfit.len());
        Ok(Layout { cells, unfit, rows: batch.len() })
    }

    fn row(&self, row: usize, out: &mut Vec<u8>) {
        for cell in &self.cells {
            if cell.column.array().is_valid(row) {
                cell.field(row, out);
            } else if let Some(text) = self.unfit.and_then(|unfit| kept(unfit, row, cell.name)) {
                match cell.form {
                    Form::Plain => plain_text(text.as_bytes(), out),
                    Form::Bytes => bytes(text.as_bytes(), out),
                    Form::Hexed => hexed(text.as_bytes(), out),
                    Form::Hashed => hashed(text.as_bytes(), out),
                }
            } else if cell.form == Form::Plain {
                out.extend_from_slice(b"-,");
            } else {
                out.push(b'-');
            }
        }
    }

    /// A digest of each row.
    pub fn digests(&self) -> Result<FixedSizeBinaryArray, String> {
        let mut found = Vec::with_capacity(self.rows * SIZE);
        let mut out = Vec::with_capacity(1024);
        for row in 0..self.rows {
            out.clear();
            self.row(row, &mut out);
            found.extend_from_slice(Sha256::digest(&out).get(..SIZE).unwrap_or_default());
        }
        FixedSizeBinaryArray::try_new(SIZE as i32, Buffer::from_vec(found), None).map_err(|error| error.to_string())
    }

    /// The CRC-32 of each row as it is laid out, its lowest `bits` bits.
    pub fn buckets(&self, bits: u32) -> UInt32Array {
        let mask = u32::MAX.checked_shr(32_u32.saturating_sub(bits)).unwrap_or(0);
        let mut out = Vec::with_capacity(1024);
        (0..self.rows)
            .map(|row| {
                out.clear();
                self.row(row, &mut out);
                crc32fast::hash(&out) & mask
            })
            .collect::<Vec<_>>()
            .into()
    }
}

impl Cell<'_> {
    #[inline]
    fn field(&self, row: usize, out: &mut Vec<u8>) {
        match self.form {
            Form::Plain => match self.column.string(row) {
                Some(text) => plain_text(text, out),
                None => {
                    self.column.text(row, out);
                    out.push(b',');
                }
            },
            Form::Bytes | Form::Hexed => match (self.column.binary(row), self.column.string(row)) {
                (Some(value), _) => bytes(value, out),
                (None, Some(text)) if self.form == Form::Hexed => hexed(text, out),
                (None, Some(text)) => bytes(text, out),
                (None, None) => {} // `Layout::new` lets no other column be of this form
            },
            Form::Hashed => match self.column.string(row) {
                Some(text) => hashed(text, out),
                None => {
                    let mut text = Vec::new();
                    self.column.text(row, &mut text);
                    hashed(&text, out);
                }
            },
        }
    }
}

/// What `_cdc_unfit` keeps of a row's column.
#[cold]
fn kept<'a>(unfit: &'a MapArray, row: usize, name: &str) -> Option<&'a str> {
    if unfit.is_null(row) {
        return None;
    }
    let offsets = unfit.value_offsets();
    let (start, end) = (*offsets.get(row)?, *offsets.get(row + 1)?);
    let (keys, values) = (unfit.keys().as_string_opt::<i32>()?, unfit.values().as_string_opt::<i32>()?);
    let place = (start as usize..end as usize).find(|place| keys.value(*place) == name)?;
    values.is_valid(place).then(|| values.value(place))
}

/// A plain field whose text is not of our making.
fn plain_text(text: &[u8], out: &mut Vec<u8>) {
    if text == b"-" || text.starts_with(b"!") || text.contains(&b',') {
        strange(text, out);
    } else {
        out.extend_from_slice(text);
        out.push(b',');
    }
}

fn strange(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'!');
    unsigned_text(text.len() as u64, out);
    out.push(b':');
    out.extend_from_slice(text);
}

#[inline]
fn bytes(value: &[u8], out: &mut Vec<u8>) {
    length(value.len(), out);
    if value.len() > LONG {
        hashed(value, out);
    } else {
        out.extend_from_slice(value);
    }
}

#[inline]
fn length(size: usize, out: &mut Vec<u8>) {
    match u8::try_from(size) {
        Ok(one @ 0..10) => out.extend_from_slice(&[b'0' + one, b':']),
        Ok(two @ 10..100) => out.extend_from_slice(&[b'0' + two / 10, b'0' + two % 10, b':']),
        _ => {
            unsigned_text(size as u64, out);
            out.push(b':');
        }
    }
}

fn hexed(text: &[u8], out: &mut Vec<u8>) {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let value: Option<Vec<u8>> = text
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect();
    match value {
        Some(value) => bytes(&value, out),
        None => strange(text, out),
    }
}

fn hashed(value: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in Sha256::digest(value) {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// How many rows each chunk has, and the sums of both halves of their digests, as unsigned big-endian numbers.
pub fn sums(digests: &FixedSizeBinaryArray, chunks: &[u32], n: usize) -> Result<StructArray, String> {
    if digests.value_length() != SIZE as i32 || digests.null_count() > 0 || digests.len() != chunks.len() {
        return Err("digests are 16 bytes, one for each row's chunk".into());
    }
    let mut rows = vec![0_i64; n];
    let mut halves = [vec![0_i128; n], vec![0_i128; n]];
    for (digest, chunk) in digests.iter().flatten().zip(chunks) {
        let chunk = *chunk as usize;
        let Some(count) = rows.get_mut(chunk) else { return Err(format!("chunk {chunk} of {n}")) };
        *count += 1;
        for (half, part) in halves.iter_mut().zip(digest.chunks_exact(8)) {
            let part = part.first_chunk::<8>().copied().unwrap_or_default();
            if let Some(sum) = half.get_mut(chunk) {
                *sum += i128::from(u64::from_be_bytes(part));
            }
        }
    }
    let [high, low] = halves.map(|half| Decimal128Array::from(half).with_precision_and_scale(38, 0));
    let columns: Vec<(&str, std::sync::Arc<dyn Array>)> = vec![
        ("rows", std::sync::Arc::new(Int64Array::from(rows))),
        ("high", std::sync::Arc::new(high.map_err(|error| error.to_string())?)),
        ("low", std::sync::Arc::new(low.map_err(|error| error.to_string())?)),
    ];
    StructArray::try_from(columns).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_say_where_they_end() {
        for (value, expected) in [("", "0:"), ("a,b", "3:a,b"), ("0123456789", "10:0123456789")] {
            assert_eq!(laid(|out| bytes(value.as_bytes(), out)), expected);
        }
        assert_eq!(laid(|out| bytes(&[b'x'; 99], out)), format!("99:{}", "x".repeat(99)));
        assert_eq!(laid(|out| bytes(&[b'x'; LONG], out)), format!("1024:{}", "x".repeat(LONG)));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(laid(|out| hashed(b"", out)), empty);
        assert!(laid(|out| bytes(&[b'x'; LONG + 1], out)).starts_with("1025:"));
        assert_eq!(laid(|out| bytes(&[b'x'; LONG + 1], out)).len(), 5 + 64);
        assert_eq!(laid(|out| plain_text(b"1.5", out)), "1.5,");
        assert_eq!(laid(|out| plain_text(b"-", out)), "!1:-");
        assert_eq!(laid(|out| plain_text(b"!1:-", out)), "!4:!1:-");
        assert_eq!(laid(|out| plain_text(b"1,2", out)), "!3:1,2");
        assert_eq!(laid(|out| hexed(b"6162", out)), "2:ab");
        for wrong in ["616", "6g", "0a"] {
            assert_eq!(laid(|out| hexed(wrong.as_bytes(), out)), format!("!{}:{wrong}", wrong.len()));
        }
    }
}
