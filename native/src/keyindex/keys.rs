//! Keys of any type as hashes and bytes, injectively: two keys have the same bytes only if they are the same.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{BinaryViewType, ByteViewType, StringViewType};
use arrow_array::{Array, ArrayRef, GenericByteViewArray, StructArray};
use arrow_buffer::{BooleanBuffer, Buffer, OffsetBuffer};
use arrow_schema::{DataType, TimeUnit};
use xxhash_rust::xxh3::xxh3_64;

use super::run::Held;
use super::{Error, Result};

/// The types of a key's columns, in order. Names do not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// The types in words, with commas between them: what is kept beside the index.
    pub text: String,
    /// A key that fits eight bytes has a bijection of itself as its hash, which says all there is to say.
    pub held: Held,
}

impl Form {
    pub fn of(keys: &StructArray) -> Result<Form> {
        let kinds = keys.columns().iter().map(|column| Kind::of(column.data_type())).collect::<Result<Vec<_>>>()?;
        Form::new(&kinds)
    }

    /// From `text`.
    pub fn parse(text: &str) -> Result<Form> {
        let kinds = text.split(',').map(Kind::parse).collect::<Result<Vec<_>>>()?;
        Form::new(&kinds)
    }

    fn new(kinds: &[Kind]) -> Result<Form> {
        if kinds.is_empty() {
            return Err(Error::value("a key has at least one column"));
        }
        let held = match kinds.iter().map(|kind| kind.width).sum::<Option<usize>>() {
            Some(..=8) => Held::Not,
            Some(width) => Held::Fixed(width),
            None => Held::Any,
        };
        let text = kinds.iter().map(|kind| kind.text.as_str()).collect::<Vec<_>>().join(",");
        Ok(Form { text, held })
    }
}

/// One column's type.
struct Kind {
    text: String,
    /// In bytes; None: any number of them.
    width: Option<usize>,
}

impl Kind {
    fn of(kind: &DataType) -> Result<Kind> {
        let text = match kind {
            DataType::Boolean => "bool".into(),
            DataType::Int8 => "int8".into(),
            DataType::Int16 => "int16".into(),
            DataType::Int32 => "int32".into(),
            DataType::Int64 => "int64".into(),
            DataType::UInt8 => "uint8".into(),
            DataType::UInt16 => "uint16".into(),
            DataType::UInt32 => "uint32".into(),
            DataType::UInt64 => "uint64".into(),
            DataType::Float32 => "float32".into(),
            DataType::Float64 => "float64".into(),
            DataType::Date32 => "date32".into(),
            DataType::Timestamp(unit, zone) => {
                let unit = match unit {
                    TimeUnit::Second => "s",
                    TimeUnit::Millisecond => "ms",
                    TimeUnit::Microsecond => "us",
                    TimeUnit::Nanosecond => "ns",
                };
                format!("timestamp[{unit}]{}", if zone.is_some() { " utc" } else { "" })
            }
            DataType::Decimal128(_, scale) => format!("decimal128[{scale}]"),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".into(),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".into(),
            other => return Err(Error::value(format!("no key can be of type {other}"))),
        };
        Kind::parse(&text)
    }

    fn parse(text: &str) -> Result<Kind> {
        let width = match text.split(['[', ' ']).next().unwrap_or_default() {
            "bool" | "int8" | "uint8" => Some(1),
            "int16" | "uint16" => Some(2),
            "int32" | "uint32" | "float32" | "date32" => Some(4),
            "int64" | "uint64" | "float64" | "timestamp" => Some(8),
            "decimal128" => Some(16),
            "string" | "binary" => None,
            _ => return Err(Error::value("a type of key that is not known")),
        };
        Ok(Kind { text: text.into(), width })
    }
}

/// The keys of a batch, as they came.
pub struct Keys {
    pub form: Form,
    columns: Vec<Column>,
    len: usize,
}

enum Column {
    Bool(BooleanBuffer),
    Fixed(Buffer, usize),
    Bytes(OffsetBuffer<i32>, Buffer),
    LargeBytes(OffsetBuffer<i64>, Buffer),
    StringView(GenericByteViewArray<StringViewType>),
    BinaryView(GenericByteViewArray<BinaryViewType>),
}

/// Some keys, encoded: all buffers are used again.
#[derive(Default)]
pub struct Encoded {
    pub hashes: Vec<u64>,
    /// Where the key ends in `bytes`; empty, as `bytes` are, for slim keys.
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Encoded {
    /// The bytes of a key; none for a slim one.
    pub fn bytes(&self, i: usize) -> &[u8] {
        let start = if i == 0 { Some(0) } else { self.ends.get(i - 1).copied() };
        start.and_then(|start| self.bytes.get(start..*self.ends.get(i)?)).unwrap_or_default()
    }
}

/// An arena grows by at most so many bytes at a time, or one key.
const GROWTH: usize = 4 << 20;

/// Bytes of keys, one after the other.
pub struct Arena {
    held: Held,
    bytes: Vec<u8>,
}

impl Arena {
    pub fn new(held: Held) -> Arena {
        Arena { held, bytes: Vec::new() }
    }

    /// Where the key begins here.
    pub fn put(&mut self, key: &[u8]) -> u64 {
        let at = self.bytes.len();
        if self.bytes.capacity() - at < 8 + key.len() {
            self.bytes.reserve_exact((at / 2).clamp(1024, GROWTH).max(8 + key.len()));
        }
        if self.held == Held::Any {
            self.bytes.extend_from_slice(&(key.len() as u64).to_le_bytes());
        }
        self.bytes.extend_from_slice(key);
        at as u64
    }

    pub fn get(&self, at: u64) -> &[u8] {
        let rest = self.bytes.get(at as usize..).unwrap_or_default();
        let key = match (self.held, rest.split_first_chunk::<8>()) {
            (Held::Not, _) => Some(&[][..]),
            (Held::Fixed(width), _) => rest.get(..width),
            (Held::Any, length) => length.and_then(|(length, rest)| rest.get(..u64::from_le_bytes(*length) as usize)),
        };
        key.unwrap_or_default()
    }

    /// Move the key at `at` to `to`, which is not behind it; where the next can go.
    pub fn shift(&mut self, at: u64, to: u64) -> u64 {
        let prefix = if self.held == Held::Any { 8 } else { 0 };
        let length = prefix + self.get(at).len();
        let at = at as usize;
        self.bytes.copy_within(at..at + length, to as usize);
        to + length as u64
    }

    pub fn truncate(&mut self, length: u64) {
        self.bytes.truncate(length as usize);
    }

    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}

impl Keys {
    /// Of a batch whose columns are the key's. An error if a key is NULL, or of a type that no key can have.
    pub fn new(keys: &StructArray) -> Result<Keys> {
        let form = Form::of(keys)?;
        if keys.null_count() > 0 {
            return Err(Error::value("a key that is NULL"));
        }
        let columns = keys.columns().iter().map(Column::new).collect::<Result<Vec<_>>>()?;
        Ok(Keys { form, columns, len: keys.len() })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Put these keys into `encoded`, in place of what it held.
    pub fn encode(&self, rows: Range<usize>, encoded: &mut Encoded) {
        encoded.hashes.clear();
        encoded.ends.clear();
        encoded.bytes.clear();
        if self.form.held == Held::Not {
            self.encode_slim(rows, &mut encoded.hashes);
        } else {
            self.encode_wide(rows, encoded);
        }
    }

    fn encode_slim(&self, rows: Range<usize>, hashes: &mut Vec<u64>) {
        if let [Column::Fixed(data, 8)] = &self.columns[..] {
            let words = data[rows.start * 8..rows.end * 8].as_chunks::<8>().0;
            hashes.extend(words.iter().map(|word| mixed(u64::from_le_bytes(*word))));
            return;
        }
        hashes.resize(rows.len(), 0);
        for column in &self.columns {
            for (i, packed) in rows.clone().zip(hashes.iter_mut()) {
                match column {
                    Column::Bool(bits) => *packed = *packed << 8 | u64::from(bits.value(i)),
                    Column::Fixed(data, width) => {
                        let value = &data[i * width..(i + 1) * width];
                        let bits = value.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
                        *packed = packed.checked_shl(8 * *width as u32).unwrap_or(0) | bits;
                    }
                    _ => {} // not slim
                }
            }
        }
        hashes.iter_mut().for_each(|packed| *packed = mixed(*packed));
    }

    /// Column after column; lengths before what may be of any, unless nothing follows.
    fn encode_wide(&self, rows: Range<usize>, encoded: &mut Encoded) {
        let Encoded { hashes, ends, bytes } = encoded;
        for i in rows {
            let start = bytes.len();
            for (at, column) in self.columns.iter().enumerate() {
                let last = at + 1 == self.columns.len();
                match column {
                    Column::Bool(bits) => bytes.push(bits.value(i).into()),
                    Column::Fixed(data, width) => bytes.extend_from_slice(&data[i * width..(i + 1) * width]),
                    Column::Bytes(offsets, data) => {
                        put(bytes, &data[offsets[i] as usize..offsets[i + 1] as usize], last)
                    }
                    Column::LargeBytes(offsets, data) => {
                        put(bytes, &data[offsets[i] as usize..offsets[i + 1] as usize], last);
                    }
                    Column::StringView(values) => put(bytes, values.value(i).as_bytes(), last),
                    Column::BinaryView(values) => put(bytes, values.value(i), last),
                }
            }
            hashes.push(hashed(&bytes[start..]));
            ends.push(bytes.len());
        }
    }
}

fn put(bytes: &mut Vec<u8>, value: &[u8], last: bool) {
    if !last {
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    }
    bytes.extend_from_slice(value);
}

/// Two keys may have the same one: whoever looks for a key compares its bytes too. In tests many do.
fn hashed(key: &[u8]) -> u64 {
    let hash = xxh3_64(key);
    if cfg!(test) { hash & 0xf000_0001_0000_0001 } else { hash }
}

/// A bijection that spreads neighbours far apart: the finalizer of MurmurHash3 (Austin Appleby, public domain).
fn mixed(mut key: u64) -> u64 {
    key = (key ^ key >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    key = (key ^ key >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    key ^ key >> 33
}

impl Column {
    fn new(column: &ArrayRef) -> Result<Column> {
        if column.null_count() > 0 {
            return Err(Error::value("a key that is NULL"));
        }
        let kind = Kind::of(column.data_type())?;
        Ok(match column.data_type() {
            DataType::Boolean => Column::Bool(column.as_boolean().values().clone()),
            DataType::Utf8 => bytes(column.as_string::<i32>()),
            DataType::Binary => bytes(column.as_binary::<i32>()),
            DataType::LargeUtf8 => large_bytes(column.as_string::<i64>()),
            DataType::LargeBinary => large_bytes(column.as_binary::<i64>()),
            DataType::Utf8View => Column::StringView(view(column)),
            DataType::BinaryView => Column::BinaryView(view(column)),
            _ => {
                let (data, width) = (column.to_data(), kind.width.unwrap_or(8));
                let values = data.buffers()[0].slice_with_length(data.offset() * width, data.len() * width);
                Column::Fixed(values, width)
            }
        })
    }
}

fn bytes<T: arrow_array::types::ByteArrayType<Offset = i32>>(values: &arrow_array::GenericByteArray<T>) -> Column {
    Column::Bytes(values.offsets().clone(), values.values().clone())
}

fn large_bytes<T: arrow_array::types::ByteArrayType<Offset = i64>>(
    values: &arrow_array::GenericByteArray<T>,
) -> Column {
    Column::LargeBytes(values.offsets().clone(), values.values().clone())
}

fn view<T: ByteViewType>(column: &ArrayRef) -> GenericByteViewArray<T> {
    column.as_byte_view::<T>().clone()
}
