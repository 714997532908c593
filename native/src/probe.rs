//! Single conversions: tests compare them with a server's, and keys that people write become canonical by them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::charset::{self, Charset};
use crate::json;
use crate::jsondiff;
use crate::values;

/// Bytes of a character set as text; None if they are none. ValueError for a name that is not known.
#[pyfunction]
pub fn decode_text(charset: &str, data: &[u8]) -> PyResult<Option<String>> {
    let charset = Charset::by_name(charset).ok_or_else(|| PyValueError::new_err("no such character set"))?;
    let mut out = Vec::new();
    Ok(charset.decode(data, &mut out).then(|| String::from_utf8(out)).transpose()?)
}

/// The character set of a collation, by its number.
#[pyfunction]
pub fn charset_of_collation(collation: u32) -> Option<&'static str> {
    charset::of_collation(collation)
}

/// Binary JSON as the server prints it. ValueError if it is damaged.
#[pyfunction]
pub fn json_text(data: &[u8]) -> PyResult<String> {
    let mut out = Vec::new();
    json::text(data, &mut out).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(String::from_utf8(out)?)
}

/// An IPv6 address as MariaDB prints it.
#[pyfunction]
pub fn inet6_text(data: [u8; 16]) -> PyResult<String> {
    let mut out = Vec::new();
    values::inet6_text(data, &mut out);
    Ok(String::from_utf8(out)?)
}

/// The differences of a partial update, without their length: operation, path, value. ValueError if they are damaged.
#[pyfunction]
pub fn json_diffs(data: &[u8]) -> PyResult<Vec<(u8, String, Option<String>)>> {
    let found = json::diffs(data).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(found.into_iter().map(|diff| (diff.op, diff.path, diff.value)).collect())
}

/// The text of a JSON value after these differences (operation, path, value); None where they do not fit it.
#[pyfunction]
pub fn json_patch(text: &str, diffs: Vec<(u8, String, Option<String>)>) -> PyResult<Option<String>> {
    let mut out = text.as_bytes().to_vec();
    for (op, path, value) in &diffs {
        if jsondiff::apply(&mut out, *op, path, value.as_deref()).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8(out)?))
}
