//! Texts, digests and chunks as Python sees them.

use arrow_array::cast::AsArray;
use arrow_array::{Array, MapArray};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::export::Batch;
use crate::texts::Column;
use crate::{bounds, digests, import, texts as canonical};

/// The canonical texts of an array; null stays null.
#[pyfunction]
#[pyo3(signature = (array, time = false))]
pub fn texts(py: Python<'_>, array: &Bound<'_, PyAny>, time: bool) -> PyResult<Batch> {
    let array = import::array_ref(array)?;
    let found = py.detach(|| Column::of(array.as_ref(), time).map(|column| canonical::texts(&column)));
    match found {
        Some(Some(texts)) => Ok(Batch::new(texts.into_data())),
        Some(None) => Err(PyValueError::new_err("texts of more than 2 GiB in one array")),
        None => Err(PyTypeError::new_err(format!("no text is known of {}", array.data_type()))),
    }
}

fn unfit_of(unfit: Option<&Bound<'_, PyAny>>) -> PyResult<Option<MapArray>> {
    let Some(unfit) = unfit else { return Ok(None) };
    let array = import::array_ref(unfit)?;
    let wrong = || PyTypeError::new_err("what did not fit is a map of texts");
    Ok(Some(array.as_map_opt().ok_or_else(wrong)?.clone()))
}

/// Of each row the first 16 bytes of the SHA-256 over its fields.
#[pyfunction]
#[pyo3(signature = (batch, kinds, unfit = None))]
pub fn row_digests(
    py: Python<'_>,
    batch: &Bound<'_, PyAny>,
    kinds: Vec<String>,
    unfit: Option<&Bound<'_, PyAny>>,
) -> PyResult<Batch> {
    let (batch, unfit) = (import::batch(batch)?, unfit_of(unfit)?);
    let found = py.detach(|| digests::Layout::new(&batch, &kinds, unfit.as_ref())?.digests());
    Ok(Batch::new(found.map_err(PyValueError::new_err)?.into_data()))
}

/// Of each row the lowest bits of the CRC-32 over its fields.
#[pyfunction]
#[pyo3(signature = (batch, kinds, bits, unfit = None))]
pub fn row_buckets(
    py: Python<'_>,
    batch: &Bound<'_, PyAny>,
    kinds: Vec<String>,
    bits: u32,
    unfit: Option<&Bound<'_, PyAny>>,
) -> PyResult<Batch> {
    let (batch, unfit) = (import::batch(batch)?, unfit_of(unfit)?);
    let found = py.detach(|| Ok(digests::Layout::new(&batch, &kinds, unfit.as_ref())?.buckets(bits)));
    Ok(Batch::new(found.map_err(PyValueError::new_err::<String>)?.into_data()))
}

/// How many of the bounds are not after each key.
#[pyfunction]
pub fn chunk_of(py: Python<'_>, keys: &Bound<'_, PyAny>, bounds: &Bound<'_, PyAny>) -> PyResult<Batch> {
    let (keys, bounds) = (import::batch(keys)?, import::batch(bounds)?);
    let found = py.detach(|| bounds::chunk_of(&keys, &bounds));
    Ok(Batch::new(found.map_err(PyValueError::new_err)?.into_data()))
}

/// Rows and sums of `n` chunks.
#[pyfunction]
pub fn sums(py: Python<'_>, digests: &Bound<'_, PyAny>, chunks: &Bound<'_, PyAny>, n: usize) -> PyResult<Batch> {
    let (found, chunks) = (import::array_ref(digests)?, import::rows(chunks)?);
    let wrong = || PyTypeError::new_err("digests are fixed_size_binary(16)");
    let found = found.as_fixed_size_binary_opt().ok_or_else(wrong)?;
    let sums = py.detach(|| digests::sums(found, chunks.values(), n));
    Ok(Batch::new(sums.map_err(PyValueError::new_err)?.into_data()))
}
