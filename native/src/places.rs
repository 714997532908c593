//! `KeyIndex` and `Bitmap` as Python sees them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arrow_array::{Array, ArrayRef, BooleanArray, StructArray, UInt32Array, UInt64Array};
use arrow_buffer::NullBuffer;
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field};
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::export::Batch;
use crate::{bitmap, import, keyindex};

impl From<keyindex::Error> for PyErr {
    fn from(error: keyindex::Error) -> PyErr {
        match error {
            keyindex::Error::Value(what) => PyValueError::new_err(what),
            keyindex::Error::Io(error) => error.into(),
        }
    }
}

/// A set of row numbers, never changed once made.
#[pyclass(frozen, module = "cdc._native")]
pub struct Bitmap {
    rows: bitmap::Bitmap,
}

#[pymethods]
impl Bitmap {
    #[new]
    fn new() -> Bitmap {
        Bitmap { rows: bitmap::Bitmap::default() }
    }

    /// What `serialize` gives: Delta's payload without its magic number.
    #[staticmethod]
    fn parse(py: Python<'_>, data: &[u8]) -> PyResult<Bitmap> {
        let rows = py.detach(|| bitmap::Bitmap::parse(data)).map_err(PyValueError::new_err)?;
        Ok(Bitmap { rows })
    }

    fn serialize<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.rows.serialize()))
    }

    fn __len__(&self) -> PyResult<usize> {
        usize::try_from(self.rows.len()).map_err(|error| PyOverflowError::new_err(error.to_string()))
    }

    fn __eq__(&self, other: &Bitmap) -> bool {
        self.rows == other.rows
    }

    fn add(&self, py: Python<'_>, rows: &Bound<'_, PyAny>) -> PyResult<Bitmap> {
        let added = import::rows(rows)?;
        Ok(Bitmap { rows: py.detach(|| self.rows.add(added.values())) })
    }

    fn union(&self, py: Python<'_>, other: &Bitmap) -> Bitmap {
        Bitmap { rows: py.detach(|| self.rows.union(&other.rows)) }
    }

    fn lacks(&self, py: Python<'_>, other: &Bitmap) -> u64 {
        py.detach(|| self.rows.lacks(&other.rows))
    }

    fn kept(&self, py: Python<'_>, first: u64, count: usize) -> Batch {
        Batch::new(py.detach(|| BooleanArray::from(self.rows.kept(first, count)).into_data()))
    }

    fn rows(&self, py: Python<'_>) -> Batch {
        Batch::new(py.detach(|| UInt64Array::from(self.rows.rows()).into_data()))
    }
}

/// The newest place of every key of a table.
#[pyclass(frozen, module = "cdc._native")]
pub struct KeyIndex {
    index: Mutex<keyindex::KeyIndex>,
}

impl KeyIndex {
    fn of(index: keyindex::KeyIndex) -> KeyIndex {
        KeyIndex { index: Mutex::new(index) }
    }

    /// One call at a time, without the GIL: it may take long, and so may another thread's that is waited for.
    fn with<T: Send>(&self, py: Python<'_>, of: impl FnOnce(&mut keyindex::KeyIndex) -> T + Send) -> PyResult<T> {
        py.detach(|| self.index.lock().ok().map(|mut index| of(&mut index)))
            .ok_or_else(|| PyRuntimeError::new_err("the index failed before in a way that nobody thought of"))
    }
}

#[pymethods]
impl KeyIndex {
    #[new]
    fn new(py: Python<'_>, folder: Option<PathBuf>, memory: usize) -> PyResult<KeyIndex> {
        Ok(KeyIndex::of(py.detach(|| keyindex::KeyIndex::new(folder, memory))?))
    }

    #[staticmethod]
    fn open(py: Python<'_>, folder: PathBuf, memory: usize) -> PyResult<KeyIndex> {
        Ok(KeyIndex::of(py.detach(|| keyindex::KeyIndex::open(folder, memory))?))
    }

    #[getter]
    fn stamp<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let stamp = self.with(py, |index| index.stamp().to_vec())?;
        Ok(PyBytes::new(py, &stamp))
    }

    #[pyo3(signature = (number, dead = None))]
    fn set_file(&self, py: Python<'_>, number: u32, dead: Option<&Bitmap>) -> PyResult<()> {
        let dead = dead.map(|dead| dead.rows.clone());
        self.with(py, |index| index.set_file(number, dead))
    }

    fn drop_file(&self, py: Python<'_>, number: u32) -> PyResult<()> {
        self.with(py, |index| index.drop_file(number))
    }

    #[pyo3(signature = (number, first_row, keys, dead = None))]
    fn add(
        &self,
        py: Python<'_>,
        number: u32,
        first_row: u32,
        keys: &Bound<'_, PyAny>,
        dead: Option<&Bitmap>,
    ) -> PyResult<()> {
        let keys = import::batch(keys)?;
        let dead = dead.map(|dead| &dead.rows);
        Ok(self.with(py, |index| index.add(number, first_row, &keys, dead))??)
    }

    fn locate(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Batch> {
        let keys = import::batch(keys)?;
        Ok(Batch::new(self.with(py, |index| index.locate(&keys).map(places))??))
    }

    fn compact(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.with(py, |index| index.compact())??)
    }

    fn write_run(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.with(py, |index| index.write_run())??)
    }

    fn save(&self, py: Python<'_>, stamp: &[u8]) -> PyResult<()> {
        Ok(self.with(py, |index| index.save(stamp))??)
    }

    #[getter]
    fn memory(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |index| index.memory())
    }

    #[getter]
    fn entries(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |index| index.entries())
    }

    #[getter]
    fn runs(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |index| index.runs())
    }
}

/// Structs of file and row; where there is none, these are null as well.
fn places(found: Vec<Option<keyindex::Place>>) -> ArrayData {
    let known: NullBuffer = found.iter().map(Option::is_some).collect();
    let column = |of: fn(keyindex::Place) -> u32| -> ArrayRef {
        let values: Vec<u32> = found.iter().map(|place| place.map_or(0, of)).collect();
        Arc::new(UInt32Array::new(values.into(), Some(known.clone())))
    };
    let fields = ["file", "row"].map(|name| Field::new(name, DataType::UInt32, true));
    let columns = vec![column(|place| place.file), column(|place| place.row)];
    StructArray::new(fields.to_vec().into(), columns, Some(known)).into_data()
}
