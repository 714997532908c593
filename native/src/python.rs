//! What Python sees. Everything that names pyo3 is here, or behind the feature `python`.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Below this size releasing the GIL costs more than the checksum itself.
const RELEASE_GIL_FROM_BYTES: usize = 64 * 1024;

/// CRC-32 (IEEE 802.3) of `data`, as MySQL appends it to binlog events.
#[pyfunction]
fn crc32(py: Python<'_>, data: &Bound<'_, PyBytes>) -> u32 {
    let bytes = data.as_bytes();
    if bytes.len() < RELEASE_GIL_FROM_BYTES { crc32fast::hash(bytes) } else { py.detach(|| crc32fast::hash(bytes)) }
}

/// The version of the crate that this module was built from.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{crc32, version};

    #[pymodule_export]
    use crate::probe::{charset_of_collation, decode_text, inet6_text, json_diffs, json_patch, json_text};

    #[pymodule_export]
    use crate::binlog::{BinlogDecoder, Drained};

    #[pymodule_export]
    use crate::places::{Bitmap, KeyIndex};

    #[pymodule_export]
    use crate::comparing::{chunk_of, row_buckets, row_digests, sums, texts};

    #[pymodule_export]
    use crate::export::{Batch, DecodeError, ResultSet, ServerError};
}
