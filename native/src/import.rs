//! Arrow arrays from Python, by Arrow's C data interface.

use arrow_array::{ArrayRef, StructArray, UInt32Array, ffi, make_array};
use arrow_data::ArrayData;
use arrow_data::ffi::FFI_ArrowArray;
use arrow_schema::DataType;
use arrow_schema::ffi::FFI_ArrowSchema;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

/// The array of anything with `__arrow_c_array__`. Raises `TypeError` for anything else.
fn array(it: &Bound<'_, PyAny>) -> PyResult<ArrayData> {
    let wrong = || PyTypeError::new_err("an Arrow array or record batch is wanted");
    let pair = it.getattr("__arrow_c_array__").map_err(|_| wrong())?.call0()?;
    let pair = pair.cast::<PyTuple>().map_err(|_| wrong())?;
    let (schema, array) = (pair.get_item(0)?, pair.get_item(1)?);
    let schema = schema.cast::<PyCapsule>()?.pointer_checked(Some(c"arrow_schema"))?;
    let array = array.cast::<PyCapsule>()?.pointer_checked(Some(c"arrow_array"))?;
    // SAFETY: capsules of these names hold such structures (the interface says so). They are moved out: what is left behind
    // is marked as released, so the capsules' destructors leave it alone.
    let imported = unsafe {
        let schema = FFI_ArrowSchema::from_raw(schema.as_ptr().cast());
        let array = FFI_ArrowArray::from_raw(array.as_ptr().cast());
        ffi::from_ffi(array, &schema)
    };
    imported.map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Any array.
pub fn array_ref(it: &Bound<'_, PyAny>) -> PyResult<ArrayRef> {
    Ok(make_array(array(it)?))
}

/// A record batch.
pub fn batch(it: &Bound<'_, PyAny>) -> PyResult<StructArray> {
    let data = array(it)?;
    match data.data_type() {
        DataType::Struct(_) => Ok(StructArray::from(data)),
        _ => Err(PyTypeError::new_err("an Arrow record batch is wanted")),
    }
}

/// Row numbers: uint32, none of them null.
pub fn rows(it: &Bound<'_, PyAny>) -> PyResult<UInt32Array> {
    let data = array(it)?;
    match data.data_type() {
        DataType::UInt32 if data.null_count() == 0 => Ok(UInt32Array::from(data)),
        DataType::UInt32 => Err(PyValueError::new_err("a row number that is null")),
        _ => Err(PyTypeError::new_err("an Arrow array of uint32 is wanted")),
    }
}
