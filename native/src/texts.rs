//! Canonical texts of Arrow's values: what `cdc.source.canonical` documents, byte for byte what the server prints of its own.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use arrow_array::{
    Array, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, LargeBinaryArray, LargeListArray, LargeStringArray, ListArray, StringArray,
    TimestampMicrosecondArray,
};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, TimeUnit};

use crate::decimals::decimal_text;
use crate::values::{MICROS_PER_DAY, date_of, double_text, hex, time_text};

const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut n = 0;
    while n < 100 {
        pairs[n] = [b'0' + (n / 10) as u8, b'0' + (n % 10) as u8];
        n += 1;
    }
    pairs
};
/// Days since 1970 of 0000-01-01 and of 10000-01-01.
const DAYS: std::ops::Range<i64> = -719_528..2_932_897;

/// One column, read as its canonical text.
pub enum Column<'a> {
    Bool(&'a BooleanArray),
    Int8(&'a Int8Array),
    Int16(&'a Int16Array),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    /// A TIME, in microseconds.
    Time(&'a Int64Array),
    Decimal(&'a Decimal128Array, usize),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Date(&'a Date32Array),
    Micros(&'a TimestampMicrosecondArray),
    Text(&'a StringArray),
    LargeText(&'a LargeStringArray),
    Binary(&'a BinaryArray),
    LargeBinary(&'a LargeBinaryArray),
    /// A vector: lists of float32.
    Floats(&'a ListArray),
    LargeFloats(&'a LargeListArray),
}

impl<'a> Column<'a> {
    /// `time`: integers of 64 bits are a TIME. None: no column of a lake has this type.
    pub fn of(array: &'a dyn Array, time: bool) -> Option<Column<'a>> {
        Some(match array.data_type() {
            DataType::Boolean => Column::Bool(array.as_boolean()),
            DataType::Int8 => Column::Int8(array.as_primitive::<Int8Type>()),
            DataType::Int16 => Column::Int16(array.as_primitive::<Int16Type>()),
            DataType::Int32 => Column::Int32(array.as_primitive::<Int32Type>()),
            DataType::Int64 if time => Column::Time(array.as_primitive::<Int64Type>()),
            DataType::Int64 => Column::Int64(array.as_primitive::<Int64Type>()),
            DataType::Decimal128(_, scale) => {
                let scale = usize::try_from(*scale).ok().filter(|scale| *scale <= 38)?;
                Column::Decimal(array.as_primitive::<Decimal128Type>(), scale)
            }
            DataType::Float32 => Column::Float32(array.as_primitive::<Float32Type>()),
            DataType::Float64 => Column::Float64(array.as_primitive::<Float64Type>()),
            DataType::Date32 => Column::Date(array.as_primitive::<Date32Type>()),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Column::Micros(array.as_primitive::<TimestampMicrosecondType>())
            }
            DataType::Utf8 => Column::Text(array.as_string()),
            DataType::LargeUtf8 => Column::LargeText(array.as_string()),
            DataType::Binary => Column::Binary(array.as_binary()),
            DataType::LargeBinary => Column::LargeBinary(array.as_binary()),
            DataType::List(item) if *item.data_type() == DataType::Float32 => Column::Floats(array.as_list()),
            DataType::LargeList(item) if *item.data_type() == DataType::Float32 => Column::LargeFloats(array.as_list()),
            _ => return None,
        })
    }

    pub fn array(&self) -> &'a dyn Array {
        match self {
            Column::Bool(array) => *array,
            Column::Int8(array) => *array,
            Column::Int16(array) => *array,
            Column::Int32(array) => *array,
            Column::Int64(array) | Column::Time(array) => *array,
            Column::Decimal(array, _) => *array,
            Column::Float32(array) => *array,
            Column::Float64(array) => *array,
            Column::Date(array) => *array,
            Column::Micros(array) => *array,
            Column::Text(array) => *array,
            Column::LargeText(array) => *array,
            Column::Binary(array) => *array,
            Column::LargeBinary(array) => *array,
            Column::Floats(array) => *array,
            Column::LargeFloats(array) => *array,
        }
    }

    /// The bytes of a text, as they are; None for other types.
    #[inline]
    pub fn string(&self, row: usize) -> Option<&'a [u8]> {
        match self {
            Column::Text(array) => Some(array.value(row).as_bytes()),
            Column::LargeText(array) => Some(array.value(row).as_bytes()),
            _ => None,
        }
    }

    /// The bytes of a binary value; None for other types.
    #[inline]
    pub fn binary(&self, row: usize) -> Option<&'a [u8]> {
        match self {
            Column::Binary(array) => Some(array.value(row)),
            Column::LargeBinary(array) => Some(array.value(row)),
            _ => None,
        }
    }

    /// Append the text of a row that is not null.
    #[inline]
    pub fn text(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Column::Bool(array) => out.push(b'0' + u8::from(array.value(row))),
            Column::Int8(array) => integer(i64::from(array.value(row)), out),
            Column::Int16(array) => integer(i64::from(array.value(row)), out),
            Column::Int32(array) => integer(i64::from(array.value(row)), out),
            Column::Int64(array) => integer(array.value(row), out),
            Column::Time(array) => time(array.value(row), out),
            Column::Decimal(array, scale) => decimal(array.value(row), *scale, out),
            Column::Float32(array) => double(f64::from(array.value(row)), out),
            Column::Float64(array) => double(array.value(row), out),
            Column::Date(array) => date(i64::from(array.value(row)), out),
            Column::Micros(array) => moment(array.value(row), out),
            Column::Text(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Column::LargeText(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Column::Binary(array) => hex(array.value(row), out),
            Column::LargeBinary(array) => hex(array.value(row), out),
            Column::Floats(array) => floats(&array.value(row), out),
            Column::LargeFloats(array) => floats(&array.value(row), out),
        }
    }
}

/// The texts of a whole column; None where they take more than 2 GiB.
pub fn texts(column: &Column<'_>) -> Option<StringArray> {
    let array = column.array();
    let mut out = Vec::with_capacity(array.len() * 16);
    let mut ends: Vec<i32> = Vec::with_capacity(array.len() + 1);
    ends.push(0);
    for row in 0..array.len() {
        if array.is_valid(row) {
            column.text(row, &mut out);
        }
        ends.push(i32::try_from(out.len()).ok()?);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
    StringArray::try_new(offsets, Buffer::from_vec(out), array.nulls().cloned()).ok()
}

fn floats(values: &dyn Array, out: &mut Vec<u8>) {
    for value in values.as_primitive::<Float32Type>().values() {
        hex(&value.to_le_bytes(), out);
    }
}

fn unsigned(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = 20;
    let mut left = value;
    while left >= 100 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[(left % 100) as usize]);
        left /= 100;
    }
    if left >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[left as usize]);
    } else {
        at -= 1;
        digits[at] = b'0' + left as u8;
    }
    out.extend_from_slice(&digits[at..]);
}

fn integer(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    unsigned(value.unsigned_abs(), out);
}

fn decimal(value: i128, scale: usize, out: &mut Vec<u8>) {
    let Ok(small) = u64::try_from(value.unsigned_abs()) else { return decimal_text(value, scale, out) };
    let Some(unit) = 10_u64.checked_pow(scale as u32) else { return decimal_text(value, scale, out) };
    if value < 0 {
        out.push(b'-');
    }
    unsigned(small / unit, out);
    if scale > 0 {
        out.push(b'.');
        let start = out.len();
        let fraction = small % unit;
        let digits = fraction.checked_ilog10().map_or(1, |log| log as usize + 1);
        out.resize(start + scale - digits, b'0');
        unsigned(fraction, out);
    }
}

/// As `values::double_text`; most doubles are printed as they are by everyone.
fn double(value: f64, out: &mut Vec<u8>) {
    let size = value.abs();
    if (1e-4..1e15).contains(&size) {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        double_text(value, out);
    }
}

fn two(value: u32) -> [u8; 2] {
    PAIRS.get(value as usize).copied().unwrap_or(*b"??")
}

fn date(days: i64, out: &mut Vec<u8>) {
    if !DAYS.contains(&days) {
        // No source has one: the text is unlike every date's.
        out.extend_from_slice(b"day ");
        return integer(days, out);
    }
    let (year, month, day) = date_of(days);
    let ([a, b], [c, d], [e, f], [g, h]) = (two(year / 100), two(year % 100), two(month), two(day));
    out.extend_from_slice(&[a, b, c, d, b'-', e, f, b'-', g, h]);
}

fn clock(micros: u64, out: &mut Vec<u8>) {
    let (seconds, fraction) = (micros / 1_000_000, (micros % 1_000_000) as u32);
    let ([a, b], [c, d]) = (two((seconds / 60 % 60) as u32), two((seconds % 60) as u32));
    let ([e, f], [g, h], [i, j]) = (two(fraction / 10_000), two(fraction / 100 % 100), two(fraction % 100));
    out.extend_from_slice(&[b':', a, b, b':', c, d, b'.', e, f, g, h, i, j]);
}

fn moment(micros: i64, out: &mut Vec<u8>) {
    date(micros.div_euclid(MICROS_PER_DAY), out);
    let of_day = micros.rem_euclid(MICROS_PER_DAY) as u64;
    let [a, b] = two((of_day / 3_600_000_000) as u32);
    out.extend_from_slice(&[b' ', a, b]);
    clock(of_day, out);
}

fn time(micros: i64, out: &mut Vec<u8>) {
    let all = micros.unsigned_abs();
    let hours = all / 3_600_000_000;
    if hours > 99 {
        return time_text(micros, out);
    }
    if micros < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&two(hours as u32));
    clock(all, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn dice(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed ^ *seed >> 29
    }

    #[test]
    fn the_quick_ways_lead_where_the_slow_ones_do() {
        let mut seed = 7;
        for _ in 0..200_000 {
            let wide = dice(&mut seed) >> (dice(&mut seed) % 64);
            let signed = if wide & 1 == 0 { wide as i64 } else { (wide as i64).wrapping_neg() };
            assert_eq!(text(|out| integer(signed, out)), signed.to_string());
            let scale = (dice(&mut seed) % 39) as usize;
            for value in [i128::from(signed), i128::from(signed) * i128::from(wide)] {
                assert_eq!(text(|out| decimal(value, scale, out)), text(|out| decimal_text(value, scale, out)));
            }
            for value in
                [f64::from_bits(dice(&mut seed)), signed as f64 / 997.0, signed as f64, (wide % 2000) as f64 / 8e6]
            {
                if value.is_finite() {
                    assert_eq!(text(|out| double(value, out)), text(|out| double_text(value, out)));
                }
            }
            let micros = signed % 4_000_000_000_000_000;
            assert_eq!(text(|out| time(micros, out)), text(|out| time_text(micros, out)));
            let seconds = (wide % (1 << 32)) as u32;
            let fraction = (dice(&mut seed) % 1_000_000) as u32;
            let expected = crate::values::Moment::of_seconds(seconds, fraction);
            let all = i64::from(seconds) * 1_000_000 + i64::from(fraction);
            assert_eq!(text(|out| moment(all, out)), text(|out| expected.text(out)));
        }
    }

    #[test]
    fn dates_at_the_edges() {
        assert_eq!(text(|out| date(DAYS.start, out)), "0000-01-01");
        assert_eq!(text(|out| date(DAYS.end - 1, out)), "9999-12-31");
        assert_eq!(text(|out| date(DAYS.end, out)), "day 2932897");
        assert_eq!(text(|out| moment(i64::MIN, out)), "day -106751992 19:59:05.224192");
    }
}
