//! Events that only MariaDB writes, and its compression of single events.

use std::io::Read;

use flate2::read::ZlibDecoder;

use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};
use crate::events::{Gtid, GtidEvent, Sid, kind as mysql};

/// Types of events.
pub mod kind {
    pub const ANNOTATE_ROWS: u8 = 160;
    pub const BINLOG_CHECKPOINT: u8 = 161;
    pub const GTID: u8 = 162;
    pub const GTID_LIST: u8 = 163;
    pub const START_ENCRYPTION: u8 = 164;
    pub const QUERY_COMPRESSED: u8 = 165;
    pub const WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub const UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub const DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub const WRITE_ROWS_COMPRESSED: u8 = 169;
    pub const UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub const DELETE_ROWS_COMPRESSED: u8 = 171;
}

/// The type, for errors.
pub fn name(type_: u8) -> Option<&'static str> {
    Some(match type_ {
        kind::ANNOTATE_ROWS => "ANNOTATE_ROWS",
        kind::BINLOG_CHECKPOINT => "BINLOG_CHECKPOINT",
        kind::GTID => "MARIADB_GTID",
        kind::GTID_LIST => "GTID_LIST",
        kind::START_ENCRYPTION => "START_ENCRYPTION",
        kind::QUERY_COMPRESSED => "QUERY_COMPRESSED",
        kind::WRITE_ROWS_COMPRESSED_V1 => "WRITE_ROWS_COMPRESSED_V1",
        kind::UPDATE_ROWS_COMPRESSED_V1 => "UPDATE_ROWS_COMPRESSED_V1",
        kind::DELETE_ROWS_COMPRESSED_V1 => "DELETE_ROWS_COMPRESSED_V1",
        kind::WRITE_ROWS_COMPRESSED => "WRITE_ROWS_COMPRESSED",
        kind::UPDATE_ROWS_COMPRESSED => "UPDATE_ROWS_COMPRESSED",
        kind::DELETE_ROWS_COMPRESSED => "DELETE_ROWS_COMPRESSED",
        _ => return None,
    })
}

/// What is refused by name.
pub const XA: &str = "an XA transaction of MariaDB, which is not captured yet";
const STANDALONE: u8 = 1;
const PREPARED_XA: u8 = 64;
const COMPLETED_XA: u8 = 128;

/// A GTID event. `server`: the header's server id, which is half of the name.
pub fn gtid(body: &[u8], server: u32, timestamp: u32) -> Result<GtidEvent> {
    let mut cursor = Cursor::new(body);
    let (number, domain, flags) = (cursor.u64()?, cursor.u32()?, cursor.u8()?);
    if number == 0 || number > i64::MAX as u64 {
        return damaged("a GTID event with a number that is none");
    }
    Ok(GtidEvent {
        gtid: Gtid { sid: Sid::Mariadb { domain, server }, number },
        commit_us: i64::from(timestamp) * 1_000_000,
        length: None,
        group: Some(flags & STANDALONE == 0),
        xa: flags & (PREPARED_XA | COMPLETED_XA) != 0,
    })
}

/// The type of the event that a compressed one is once it is decompressed.
pub fn plain(type_: u8) -> Option<u8> {
    Some(match type_ {
        kind::QUERY_COMPRESSED => mysql::QUERY,
        kind::WRITE_ROWS_COMPRESSED_V1 => mysql::WRITE_ROWS_V1,
        kind::UPDATE_ROWS_COMPRESSED_V1 => mysql::UPDATE_ROWS_V1,
        kind::DELETE_ROWS_COMPRESSED_V1 => mysql::DELETE_ROWS_V1,
        kind::WRITE_ROWS_COMPRESSED => mysql::WRITE_ROWS,
        kind::UPDATE_ROWS_COMPRESSED => mysql::UPDATE_ROWS,
        kind::DELETE_ROWS_COMPRESSED => mysql::DELETE_ROWS,
        _ => return None,
    })
}

/// What is compressed: one byte `0x80 | algorithm << 4 | n`, n bytes of the uncompressed length (big-endian), zlib.
pub fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>> {
    decompress_after(&[], bytes, limit)
}

fn decompress_after(before: &[u8], bytes: &[u8], limit: usize) -> Result<Vec<u8>> {
    let mut cursor = Cursor::new(bytes);
    let first = cursor.u8()?;
    let (algorithm, width) = (first >> 4 & 7, usize::from(first & 15));
    if first & 0x80 == 0 || width == 0 || width > 4 {
        return damaged("a compressed event that does not say its size");
    }
    if algorithm != 0 {
        return Err(Error::Unsupported(format!("an event compressed by a method that is not known ({algorithm})")));
    }
    let size = usize::try_from(cursor.uint_be(width)?).unwrap_or(usize::MAX);
    if size > limit {
        return damaged(format!("a compressed event of {size} bytes"));
    }
    let compressed = cursor.rest();
    let mut out = Vec::with_capacity(before.len() + size.min(compressed.len().saturating_mul(4)));
    out.extend_from_slice(before);
    let mut decoder = ZlibDecoder::new(compressed);
    let read = decoder.by_ref().take(size as u64 + 1).read_to_end(&mut out);
    match read {
        Ok(read) if read == size && decoder.total_in() == compressed.len() as u64 => Ok(out),
        Ok(_) => damaged("a compressed event that is not as long as it says"),
        Err(_) => damaged("a compressed event that cannot be decompressed"),
    }
}

/// The body of a row event whose rows are compressed, as it would be without: `type_` is `plain`'s.
pub fn rows(body: &[u8], type_: u8, limit: usize) -> Result<Vec<u8>> {
    let mut cursor = Cursor::new(body);
    cursor.take(8)?;
    if matches!(type_, mysql::WRITE_ROWS | mysql::UPDATE_ROWS | mysql::DELETE_ROWS) {
        let size = usize::from(cursor.u16()?);
        cursor.take(
            size.checked_sub(2).ok_or_else(|| Error::Damaged("a row event with a header that is none".into()))?,
        )?;
    }
    let columns = usize::try_from(cursor.lenenc()?).unwrap_or(usize::MAX);
    let bitmap = columns.div_ceil(8);
    let images = if matches!(type_, mysql::UPDATE_ROWS | mysql::UPDATE_ROWS_V1) { 2 } else { 1 };
    cursor.take(bitmap.saturating_mul(images))?;
    let (before, compressed) = body.split_at(cursor.at());
    decompress_after(before, compressed, limit)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compressed(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        [&[0x84][..], &(data.len() as u32).to_be_bytes(), &encoder.finish().unwrap()].concat()
    }

    #[test]
    fn compression_is_undone_and_bounded() {
        let data = vec![7u8; 100_000];
        let bytes = compressed(&data);
        assert_eq!(decompress(&bytes, 100_000).unwrap(), data);
        assert!(decompress(&bytes, 99_999).is_err());
        for size in [99_999u32, 100_001] {
            let mut wrong = bytes.clone();
            wrong[1..5].copy_from_slice(&size.to_be_bytes());
            assert!(decompress(&wrong, 1 << 20).is_err());
        }
        assert!(decompress(&bytes[..bytes.len() - 1], 1 << 20).is_err());
        assert!(decompress(&[bytes, vec![0]].concat(), 1 << 20).is_err());
        assert!(decompress(&[0x94, 0, 0, 0, 1, 0], 10).is_err());
        assert!(decompress(&[], 10).is_err());
    }

    #[test]
    fn rows_keep_their_head() {
        let head = [&[1, 0, 0, 0, 0, 0, 1, 0][..], &[9], &[0xFF, 1]].concat();
        let body = [head.clone(), compressed(b"rows")].concat();
        assert_eq!(rows(&body, mysql::WRITE_ROWS_V1, 100).unwrap(), [&head[..], b"rows"].concat());
        assert!(rows(&body[..9], mysql::WRITE_ROWS_V1, 100).is_err());
    }
}
