//! `BinlogDecoder`: the decoder as Python sees it.

use std::collections::HashSet;

use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_data::ArrayData;
use arrow_schema::DataType;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::decoder::{self, Asked, Decoder, Mutant, Options};
use crate::export::Batch;
use crate::plan::ColumnPlan;
use crate::tablemap::Column;
use crate::transaction::Input;

/// Below this size releasing the GIL costs more than decoding.
const RELEASE_GIL_FROM_BYTES: usize = 16 * 1024;
/// A larger copy is given back.
const KEPT_CAPACITY: usize = 4 << 20;

/// Decodes what answers COM_BINLOG_DUMP: packets, each a status byte and an event, cut anywhere.
#[pyclass(module = "cdc._native")]
pub struct BinlogDecoder {
    decoder: Decoder,
    /// What is fed from buffers that may change: `bytes` need no copy.
    copied: Vec<u8>,
}

#[pymethods]
impl BinlogDecoder {
    #[new]
    #[pyo3(signature = (*, mariadb = false, drain_bytes, part_bytes, max_event = 1 << 30, mutant = ""))]
    fn new(mariadb: bool, drain_bytes: u64, part_bytes: u64, max_event: usize, mutant: &str) -> PyResult<Self> {
        let mutant = match mutant {
            "" => Mutant::None,
            "position_at_gtid" => Mutant::PositionAtGtid,
            "create_select_position" => Mutant::CreateSelectPosition,
            _ => return Err(PyValueError::new_err("a mutant that there is not")),
        };
        let options = Options { mariadb, drain_bytes, part_bytes, max_event, mutant };
        Ok(BinlogDecoder { decoder: Decoder::new(options), copied: Vec::new() })
    }

    /// Take `data`; None when more is needed, else what the decoder waits for: `("drain",)`, `("table", …)` or `("statement", …)`.
    fn feed<'py>(&mut self, py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            take(py, &mut self.decoder, bytes.as_bytes())?;
        } else {
            let buffer = PyBuffer::<u8>::get(data)?;
            self.copied.shrink_to(KEPT_CAPACITY);
            self.copied.resize(buffer.item_count(), 0);
            buffer.copy_to_slice(py, &mut self.copied)?;
            take(py, &mut self.decoder, &self.copied)?;
        }
        self.decoder.asked().map(|asked| question(py, asked)).transpose()
    }

    /// The answer to `("table", …)`: a plan a column of the definition (None: not wanted), or None: its rows are skipped.
    fn table(&mut self, plan: Option<Vec<Option<ColumnPlan>>>) -> PyResult<()> {
        let Some(Asked::Table(asked)) = self.decoder.asked() else {
            return Err(PyValueError::new_err("no table was asked for"));
        };
        if let Some(plan) = &plan
            && plan.len() != asked.found.columns.len()
        {
            return Err(PyValueError::new_err("a plan has an entry for each column of the definition"));
        }
        Ok(self.decoder.answer_table(plan)?)
    }

    /// The answer to `("statement", …)`: what the statement does.
    #[pyo3(signature = (kind, savepoint = ""))]
    fn statement(&mut self, kind: &str, savepoint: &str) -> PyResult<()> {
        if !matches!(self.decoder.asked(), Some(Asked::Statement(_))) {
            return Err(PyValueError::new_err("no statement was asked for"));
        }
        let input = match kind {
            "statement" => Input::Statement,
            "create-select" => Input::CreateSelect,
            "savepoint" => Input::Savepoint,
            "rollback-to" => Input::RollbackTo,
            "begin" => Input::Begin,
            "commit" => Input::Commit,
            "rollback" => Input::Rollback,
            _ => return Err(PyValueError::new_err("a kind of statement that there is not")),
        };
        Ok(self.decoder.answer_statement(input, savepoint)?)
    }

    /// From here on decode exactly these tables, (schema, name) each. Raises `ValueError` unless idle.
    fn capture(&mut self, tables: Vec<(String, String)>) -> PyResult<()> {
        if !self.decoder.idle() {
            return Err(PyValueError::new_err("tables change only between transactions"));
        }
        Ok(self.decoder.capture(&tables)?)
    }

    /// Give no more rows of a table, from the open transaction on.
    fn stop_table(&mut self, schema: &str, name: &str) {
        self.decoder.stop_table(schema, name);
    }

    /// Of transactions that begin from here on, pass over exactly these.
    fn pass_over(&mut self, gtids: Vec<String>) {
        self.decoder.pass_over(gtids.into_iter().collect::<HashSet<_>>());
    }

    /// Of this transaction, if it is passed over, so many row events were counted before.
    fn counted(&mut self, gtid: String, row_events: u32) {
        self.decoder.counted(gtid, row_events);
    }

    /// The first transaction that is not passed over must be this one, of which `row_events` row events were given before.
    fn resume(&mut self, gtid: String, commit_us: i64, row_events: u32) {
        self.decoder.resume(gtid, commit_us, row_events);
    }

    /// Give and forget all whole transactions, and the open one's rows if they are many.
    fn drain(&mut self, py: Python<'_>) -> PyResult<Drained> {
        let decoder = &mut self.decoder;
        Ok(Drained {
            drained: py.detach(|| decoder.drain())?,
            gtids: PyOnceLock::new(),
            commit_us: PyOnceLock::new(),
            row_events: PyOnceLock::new(),
        })
    }

    /// Whether no transaction is open.
    #[getter]
    fn idle(&self) -> bool {
        self.decoder.idle()
    }

    /// Bytes of events that a drain would give.
    #[getter]
    fn pending_bytes(&self) -> u64 {
        self.decoder.pending_bytes()
    }

    /// The transaction at hand.
    #[getter]
    fn open_gtid(&self) -> Option<String> {
        self.decoder.open_gtid()
    }

    /// Of the open transaction: how many changes of captured tables are in the row events that were given before (`resume`).
    #[getter]
    fn resumed_changes(&self) -> u64 {
        self.decoder.resumed_changes()
    }

    /// `file:offset` of the event at hand.
    #[getter(r#where)]
    fn place(&self) -> String {
        let (file, offset) = self.decoder.place();
        format!("{file}:{offset}")
    }
}

fn take(py: Python<'_>, decoder: &mut Decoder, data: &[u8]) -> PyResult<()> {
    let small = data.len() + decoder.waiting() < RELEASE_GIL_FROM_BYTES;
    let mut take = || decoder.feed(data).map(|_| ());
    if small {
        take()?
    } else {
        py.detach(take)?
    }
    Ok(())
}

fn question<'py>(py: Python<'py>, asked: &Asked) -> PyResult<Bound<'py, PyTuple>> {
    match asked {
        Asked::Drain => ("drain",).into_pyobject(py),
        Asked::Table(asked) => {
            let found = &asked.found;
            let columns = found.columns.iter().map(|c| column(py, c)).collect::<PyResult<Vec<_>>>()?;
            ("table", &found.schema, &found.table, columns, &found.key, found.named).into_pyobject(py)
        }
        Asked::Statement(query) => {
            let sql = PyBytes::new(py, &query.sql);
            let quotes = (query.ansi_quotes, query.no_backslash_escapes);
            ("statement", &query.database, sql, &query.charset, quotes.0, quotes.1).into_pyobject(py)
        }
    }
}

/// As `cdc.schema.Column.to_dict()`: without what is at its default.
fn column<'py>(py: Python<'py>, column: &Column) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &column.name)?;
    dict.set_item("type", &column.type_)?;
    if column.unsigned {
        dict.set_item("unsigned", true)?;
    }
    for (name, value) in
        [("length", column.length), ("precision", column.precision.into()), ("scale", column.scale.into())]
    {
        if value != 0 {
            dict.set_item(name, value)?;
        }
    }
    if !column.charset.is_empty() {
        dict.set_item("charset", &column.charset)?;
    }
    if !column.members.is_empty() {
        dict.set_item("members", &column.members)?;
    }
    Ok(dict)
}

/// What `BinlogDecoder.drain` gives.
#[pyclass(frozen, module = "cdc._native")]
pub struct Drained {
    drained: decoder::Drained,
    // Made once.
    gtids: PyOnceLock<Py<PyList>>,
    commit_us: PyOnceLock<Py<PyList>>,
    row_events: PyOnceLock<Py<PyList>>,
}

#[pymethods]
impl Drained {
    /// One a transaction, as `_txn` indexes them: whole ones, then the open one if rows of it are given.
    #[getter]
    fn gtids(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        self.list(py, &self.gtids, |txn| txn.gtid.to_string())
    }

    /// The same as an Arrow array of strings.
    fn gtid_array(&self) -> PyResult<Batch> {
        let mut text = String::new();
        let mut ends = vec![0_i32];
        for txn in &self.drained.txns {
            use std::fmt::Write;
            let _ = write!(text, "{}", txn.gtid);
            ends.push(i32::try_from(text.len()).map_err(too_many)?);
        }
        let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
        let data = ArrayData::builder(DataType::Utf8)
            .len(self.drained.txns.len())
            .add_buffer(offsets.into_inner().into_inner())
            .add_buffer(text.into_bytes().into());
        Ok(Batch::new(data.build().map_err(too_many)?))
    }

    /// Original commit times, µs since 1970.
    #[getter]
    fn commit_us(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        self.list(py, &self.commit_us, |txn| txn.commit_us)
    }

    /// The same as the bytes of an array of int64.
    fn commit_us_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes: Vec<u8> = self.drained.txns.iter().flat_map(|txn| txn.commit_us.to_ne_bytes()).collect();
        PyBytes::new(py, &bytes)
    }

    /// Of every table; of an open transaction those so far.
    #[getter]
    fn row_events(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        self.list(py, &self.row_events, |txn| txn.row_events)
    }

    /// How many of `gtids` are whole.
    #[getter]
    fn whole(&self) -> usize {
        self.drained.whole
    }

    /// Runs of whole transactions: source, first, last.
    #[getter]
    fn executed(&self) -> Vec<(String, u64, u64)> {
        self.drained.executed.iter().map(|run| (run.sid.to_string(), run.first, run.last)).collect()
    }

    /// Schema, name, number of the answer to `("table", …)` that the rows were read under, rows, presence, diffs.
    #[getter]
    fn changes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for change in &self.drained.changes {
            let (presence, diffs) = match change.incomplete.clone() {
                Some((presence, diffs)) => (Some(Batch::new(presence)), Some(Batch::new(diffs))),
                None => (None, None),
            };
            let rows = Batch::new(change.rows.clone());
            list.append((&change.name.schema, &change.name.table, change.answer, rows, presence, diffs))?;
        }
        Ok(list)
    }

    /// Transaction, schema, name, why: no rows of the table from there on.
    #[getter]
    fn stops(&self) -> Vec<(usize, &str, &str, &str)> {
        self.drained.stops.iter().map(|s| (s.txn, s.schema.as_str(), s.table.as_str(), s.what.as_str())).collect()
    }

    #[getter]
    fn framing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let framing = &self.drained.framing;
        let dict = PyDict::new(py);
        dict.set_item("events", framing.events)?;
        dict.set_item("bytes", framing.bytes)?;
        dict.set_item("transactions", framing.transactions)?;
        dict.set_item("row_events", framing.row_events)?;
        dict.set_item("statements", framing.statements)?;
        dict.set_item("rows_skipped", framing.rows_skipped)?;
        dict.set_item("unfit", framing.unfit)?;
        Ok(dict)
    }

    /// Of the binary log's bytes before `offset`, those of transactions that are prepared and no more.
    #[getter]
    fn prepared_bytes(&self) -> u64 {
        self.drained.prepared_bytes
    }

    /// GTIDs that were passed over.
    #[getter]
    fn skipped(&self) -> Vec<String> {
        self.drained.skipped.clone()
    }

    /// With `offset`: the place after everything that belongs to no open transaction.
    #[getter]
    fn file(&self) -> &str {
        &self.drained.file
    }

    #[getter]
    fn offset(&self) -> u64 {
        self.drained.offset
    }
}

impl Drained {
    fn list<'py, T: IntoPyObject<'py>>(
        &self,
        py: Python<'py>,
        made: &PyOnceLock<Py<PyList>>,
        of: impl Fn(&decoder::Txn) -> T,
    ) -> PyResult<Py<PyList>> {
        let list = made.get_or_try_init(py, || PyList::new(py, self.drained.txns.iter().map(of)).map(Bound::unbind))?;
        Ok(list.clone_ref(py))
    }
}

fn too_many(error: impl std::error::Error) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}
