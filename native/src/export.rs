//! Arrow's C data interface, and errors as Python's exceptions.

use arrow_data::ArrayData;
use arrow_data::ffi::FFI_ArrowArray;
use arrow_schema::ffi::FFI_ArrowSchema;
use pyo3::buffer::PyBuffer;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::error::Error;
use crate::plan::ColumnPlan;
use crate::resultset;

create_exception!(
    _native,
    DecodeError,
    PyException,
    "Bytes that cannot be decoded: `args` are the kind (`damaged`, `unsupported`, `table` or `identity`) and what, in words without row values."
);
create_exception!(
    _native,
    ServerError,
    PyException,
    "The server answered with an error: `args` are its code, SQLSTATE and message."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match error {
            Error::Damaged(what) => DecodeError::new_err(("damaged", what)),
            Error::Unsupported(what) => DecodeError::new_err(("unsupported", what)),
            Error::Table(what) => DecodeError::new_err(("table", what)),
            Error::Identity(what) => DecodeError::new_err(("identity", what)),
            Error::Server { code, state, message } => ServerError::new_err((code, state, message)),
        }
    }
}

/// An Arrow array, of structs for a batch of rows: `pyarrow.record_batch(it)`, `pyarrow.array(it)`.
#[pyclass(frozen, module = "cdc._native")]
pub struct Batch {
    data: ArrayData,
}

impl Batch {
    pub fn new(data: ArrayData) -> Batch {
        Batch { data }
    }
}

#[pymethods]
impl Batch {
    fn __len__(&self) -> usize {
        self.data.len()
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
        let _ = requested_schema; // best effort, says the interface; there is one form of each type here
        let schema = FFI_ArrowSchema::try_from(self.data.data_type())
            .map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        let array = FFI_ArrowArray::new(&self.data);
        Ok((
            PyCapsule::new_with_value(py, schema, c"arrow_schema")?,
            PyCapsule::new_with_value(py, array, c"arrow_array")?,
        ))
    }
}

/// Below this size releasing the GIL costs more than reading the bytes.
const RELEASE_GIL_FROM_BYTES: usize = 16 * 1024;

/// Reads one result set into columns: what a query (`binary=False`) or COM_STMT_EXECUTE answers.
#[pyclass(module = "cdc._native")]
pub struct ResultSet {
    reader: resultset::ResultSet,
}

#[pymethods]
impl ResultSet {
    #[new]
    #[pyo3(signature = (columns, binary = true))]
    fn new(columns: Vec<ColumnPlan>, binary: bool) -> ResultSet {
        ResultSet { reader: resultset::ResultSet::new(columns.into(), binary) }
    }

    /// The next bytes from the socket, cut anywhere. True once the result set has ended.
    fn feed(&mut self, py: Python<'_>, data: PyBuffer<u8>) -> PyResult<bool> {
        let size = data.item_count();
        data.copy_to_slice(py, self.reader.room(size))?;
        let reader = &mut self.reader;
        Ok(if size < RELEASE_GIL_FROM_BYTES { reader.read()? } else { py.detach(|| reader.read())? })
    }

    /// Rows that can be taken.
    #[getter]
    fn rows(&self) -> usize {
        self.reader.rows()
    }

    /// Bytes that these take in memory, and what waits for the rest of its packet.
    #[getter]
    fn bytes(&self) -> usize {
        self.reader.bytes()
    }

    /// The pending rows: the columns, then `_cdc_unfit` if a row has one; none are left here.
    fn take(&mut self, py: Python<'_>) -> PyResult<Batch> {
        let reader = &mut self.reader;
        Ok(Batch::new(py.detach(|| reader.take())?))
    }
}
