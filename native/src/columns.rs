//! Growing columns of one table, and what Arrow makes of them.

use std::sync::Arc;

use arrow_data::ArrayData;

use crate::error::{Error, Result};
use crate::plan::ColumnPlan;

/// Rows of one table that were read and not yet given.
#[derive(Debug)]
pub struct Rows {
    plan: Arc<[ColumnPlan]>,
}

/// What `Rows::finish` gives.
#[derive(Debug)]
pub struct Finished {
    /// A struct: the metadata columns, the kept columns, and `_cdc_unfit` if a row has one.
    pub rows: ArrayData,
    /// `presence` and `diffs`, if a row is incomplete.
    pub incomplete: Option<(ArrayData, ArrayData)>,
}

impl Rows {
    pub fn new(plan: Arc<[ColumnPlan]>) -> Rows {
        Rows { plan }
    }

    /// Rows, a MOVE_OUT being one.
    pub fn len(&self) -> usize {
        0
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory, about.
    pub fn bytes(&self) -> usize {
        0
    }

    /// How many values are kept as text in `_cdc_unfit`.
    pub fn unfit(&self) -> usize {
        0
    }

    /// Forget all rows but the first `rows`.
    pub fn truncate(&mut self, _rows: usize) {}

    /// All rows; none are left.
    pub fn finish(&mut self) -> Result<Finished> {
        Err(Error::Unsupported("rows".into()))
    }
}
