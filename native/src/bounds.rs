//! Which of a table's chunks a key belongs to.

use std::cmp::Ordering;

use arrow_array::{Array, StructArray, UInt32Array};
use arrow_schema::DataType;

use crate::texts::Column;

/// For each key how many of the bounds, which ascend, are not after it. Both have the key's columns, of the same types, and no nulls. Texts and
/// binaries are ordered by their bytes, all else by its value.
pub fn chunk_of(keys: &StructArray, bounds: &StructArray) -> Result<UInt32Array, String> {
    let (keys, bounds, rows, count) = (columns(keys)?, columns(bounds)?, keys.len(), bounds.len());
    let alike = |(one, other): (&Column<'_>, &Column<'_>)| {
        let (one, other) = (one.array().data_type(), other.array().data_type());
        one == other || matches!((one, other), (DataType::Timestamp(a, _), DataType::Timestamp(b, _)) if a == b)
    };
    if keys.len() != bounds.len() || !keys.iter().zip(&bounds).all(alike) {
        return Err("bounds of other types than the keys".into());
    }
    let after = |bound: usize, key: usize| {
        let unlike = bounds.iter().zip(&keys).map(|(bound_of, key_of)| compare(bound_of, bound, key_of, key));
        unlike.into_iter().find(|found| found.is_ne()).is_some_and(Ordering::is_gt)
    };
    let mut last = 0_usize;
    let found = (0..rows).map(|key| {
        // Most rows are in the same chunk as the one before.
        let here = (last == 0 || !after(last - 1, key)) && (last == count || after(last, key));
        if !here {
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = low.midpoint(high);
                if after(middle, key) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            last = low;
        }
        last as u32
    });
    Ok(found.collect::<Vec<_>>().into())
}

fn columns(rows: &StructArray) -> Result<Vec<Column<'_>>, String> {
    let fields = rows.fields().iter().zip(rows.columns());
    fields
        .map(|(field, array)| match Column::of(array.as_ref(), false) {
            Some(Column::Floats(_) | Column::LargeFloats(_)) | None => {
                Err(format!("column {}: {} is no key's", field.name(), array.data_type()))
            }
            Some(_) if array.null_count() > 0 => Err(format!("column {}: a key that is null", field.name())),
            Some(column) => Ok(column),
        })
        .collect()
}

#[inline]
fn compare(one: &Column<'_>, i: usize, other: &Column<'_>, j: usize) -> Ordering {
    match (one, other) {
        (Column::Bool(a), Column::Bool(b)) => a.value(i).cmp(&b.value(j)),
        (Column::Int8(a), Column::Int8(b)) => a.value(i).cmp(&b.value(j)),
        (Column::Int16(a), Column::Int16(b)) => a.value(i).cmp(&b.value(j)),
        (Column::Int32(a), Column::Int32(b)) => a.value(i).cmp(&b.value(j)),
        (Column::Int64(a), Column::Int64(b)) => a.value(i).cmp(&b.value(j)),
        (Column::Decimal(a, _), Column::Decimal(b, _)) => a.value(i).cmp(&b.value(j)),
        (Column::Float32(a), Column::Float32(b)) => a.value(i).partial_cmp(&b.value(j)).unwrap_or(Ordering::Equal),
        (Column::Float64(a), Column::Float64(b)) => a.value(i).partial_cmp(&b.value(j)).unwrap_or(Ordering::Equal),
        (Column::Date(a), Column::Date(b)) => a.value(i).cmp(&b.value(j)),
        (Column::Micros(a), Column::Micros(b)) => a.value(i).cmp(&b.value(j)),
        _ => bytes(one, i).cmp(&bytes(other, j)),
    }
}

fn bytes<'a>(column: &Column<'a>, row: usize) -> Option<&'a [u8]> {
    column.string(row).or_else(|| column.binary(row))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn bounds_are_counted_as_whole_keys() {
        let rows = |numbers: Vec<i64>, texts: Vec<&str>| {
            let columns: Vec<(&str, ArrayRef)> =
                vec![("n", Arc::new(Int64Array::from(numbers))), ("t", Arc::new(StringArray::from(texts)))];
            StructArray::try_from(columns).unwrap()
        };
        let bounds = rows(vec![1, 1, 5], vec!["a", "c", ""]);
        let keys = rows(vec![9, 0, 1, 1, 1, 1, 4, 5, -1], vec!["", "z", "Z", "a", "b", "c", "d", "", ""]);
        assert_eq!(chunk_of(&keys, &bounds).unwrap().values(), &[3, 0, 0, 1, 1, 2, 2, 3, 0]);
        assert_eq!(chunk_of(&keys, &rows(vec![], vec![])).unwrap().values(), &[0; 9]);
        let other: Vec<(&str, ArrayRef)> = vec![("n", Arc::new(StringArray::from(vec!["a"])))];
        assert!(chunk_of(&keys, &StructArray::try_from(other).unwrap()).is_err());
    }
}
