//! TRANSACTION_PAYLOAD: a transaction's events, compressed as one; decompressed as they are asked for.

use std::io::{Cursor as Bytes, Read};

use zstd::stream::read::Decoder;

use crate::cursor::Cursor;
use crate::error::{Error, Result, damaged};
use crate::events::HEADER;

const ZSTD: u64 = 0;
const NONE: u64 = 255;
/// Bytes that are decompressed at a time.
const STEP: usize = 256 << 10;

enum Source {
    Zstd(Decoder<'static, Bytes<Vec<u8>>>),
    Plain(Bytes<Vec<u8>>),
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Source::Zstd(decoder) => decoder.read(into),
            Source::Plain(bytes) => bytes.read(into),
        }
    }
}

/// The events of a payload. Memory is bounded by the largest of them.
pub struct Payload {
    source: Source,
    /// Decompressed bytes: those from `head` to `filled` were not given.
    buffer: Vec<u8>,
    head: usize,
    filled: usize,
    /// Bytes that are still to be decompressed.
    left: u64,
    limit: usize,
}

impl Payload {
    /// `body` of a TRANSACTION_PAYLOAD event. `limit`: bytes of an event.
    pub fn new(body: &[u8], limit: usize) -> Result<Payload> {
        let mut cursor = Cursor::new(body);
        let (mut size, mut compression, mut uncompressed) = (None, None, None);
        loop {
            let field = cursor.lenenc()?;
            if field == 0 {
                break;
            }
            let mut value = Cursor::new(cursor.lenenc_bytes()?);
            match field {
                1 => size = Some(value.lenenc()?),
                2 => compression = Some(value.lenenc()?),
                3 => uncompressed = Some(value.lenenc()?),
                _ => {}
            }
        }
        let payload = cursor.rest();
        let (Some(size), Some(compression)) = (size, compression) else {
            return damaged("a compressed transaction that does not say its size and compression");
        };
        if size != payload.len() as u64 {
            return damaged("a compressed transaction that is not as long as it says");
        }
        let source = match compression {
            ZSTD => Source::Zstd(
                Decoder::with_buffer(Bytes::new(payload.to_vec()))
                    .map_err(|_| Error::Unsupported("a transaction that cannot be decompressed".into()))?,
            ),
            NONE => Source::Plain(Bytes::new(payload.to_vec())),
            other => {
                return Err(Error::Unsupported(format!(
                    "a transaction compressed by a method that is not known ({other})"
                )));
            }
        };
        let left = match uncompressed {
            Some(uncompressed) => uncompressed,
            None if compression == NONE => size,
            None => return damaged("a compressed transaction that does not say its uncompressed size"),
        };
        Ok(Payload { source, buffer: Vec::new(), head: 0, filled: 0, left, limit })
    }

    /// The next event; None after the last one.
    pub fn event(&mut self) -> Result<Option<&[u8]>> {
        if !self.fill(HEADER)? {
            if self.head != self.filled {
                return damaged("a compressed transaction that ends inside an event");
            }
            self.end()?;
            return Ok(None);
        }
        let size = self.buffer.get(self.head + 9..self.head + 13).and_then(|b| b.first_chunk().copied());
        let size = size.map_or(0, u32::from_le_bytes) as usize;
        if size < HEADER || size > self.limit {
            return damaged(format!("an event of {size} bytes in a compressed transaction"));
        }
        if !self.fill(size)? {
            return damaged("a compressed transaction that ends inside an event");
        }
        let start = self.head;
        self.head += size;
        Ok(self.buffer.get(start..self.head))
    }

    /// Decompress until `size` bytes wait; whether there are so many.
    fn fill(&mut self, size: usize) -> Result<bool> {
        while self.filled - self.head < size {
            if self.left == 0 {
                return Ok(false);
            }
            if self.head > 0 {
                self.buffer.copy_within(self.head..self.filled, 0);
                self.filled -= self.head;
                self.head = 0;
            }
            // What is there is doubled at most, so that a size that only is announced costs nothing.
            let room = self.filled.clamp(STEP, size.max(STEP));
            let room = room.min(usize::try_from(self.left).unwrap_or(usize::MAX));
            if self.buffer.len() < self.filled + room {
                self.buffer.resize(self.filled + room, 0);
            }
            let Some(into) = self.buffer.get_mut(self.filled..self.filled + room) else { return Ok(false) };
            let read = self.source.read(into).map_err(broken)?;
            if read == 0 {
                return damaged("a compressed transaction that is shorter than it says");
            }
            self.filled += read;
            self.left = self.left.saturating_sub(read as u64);
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<()> {
        if self.source.read(&mut [0]).map_err(broken)? != 0 {
            return damaged("a compressed transaction that is longer than it says");
        }
        Ok(())
    }
}

fn broken(_: std::io::Error) -> Error {
    Error::Damaged("a compressed transaction that cannot be decompressed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(size: usize, fill: u8) -> Vec<u8> {
        let mut event = vec![fill; size];
        event[9..13].copy_from_slice(&(size as u32).to_le_bytes());
        event
    }

    fn lenenc(value: u64) -> Vec<u8> {
        [&[254][..], &value.to_le_bytes()].concat()
    }

    fn body(compressed: &[u8], compression: u64, uncompressed: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for (field, value) in [(2, compression), (3, uncompressed), (1, compressed.len() as u64)] {
            out.extend([field, 9]);
            out.extend(lenenc(value));
        }
        out.push(0);
        out.extend_from_slice(compressed);
        out
    }

    fn read(body: &[u8], limit: usize) -> Result<Vec<Vec<u8>>> {
        let (mut payload, mut out) = (Payload::new(body, limit)?, Vec::new());
        while let Some(event) = payload.event()? {
            out.push(event.to_vec());
        }
        Ok(out)
    }

    fn sample() -> (Vec<Vec<u8>>, Vec<u8>) {
        let events: Vec<Vec<u8>> = [19, 20, 300_000, 50, 700_001, 19].iter().map(|n| event(*n, *n as u8)).collect();
        let all = events.concat();
        (events, all)
    }

    #[test]
    fn events_come_out_as_they_went_in() {
        let (events, all) = sample();
        let compressed = zstd::encode_all(&all[..], 3).unwrap();
        assert_eq!(read(&body(&compressed, ZSTD, all.len() as u64), 1 << 30).unwrap(), events);
        assert_eq!(read(&body(&all, NONE, all.len() as u64), 1 << 30).unwrap(), events);
    }

    #[test]
    fn what_is_not_as_it_says_is_refused() {
        let (_, all) = sample();
        let compressed = zstd::encode_all(&all[..], 3).unwrap();
        let size = all.len() as u64;
        for (bytes, compression, uncompressed) in [
            (&compressed[..], ZSTD, size + 1),
            (&compressed, ZSTD, size - 1),
            (&compressed, ZSTD, size - 19),
            (&compressed, ZSTD, u64::MAX),
            (&compressed[..compressed.len() - 5], ZSTD, size),
            (&all, ZSTD, size),
            (&compressed, 7, size),
        ] {
            assert!(read(&body(bytes, compression, uncompressed), 1 << 30).is_err());
        }
        assert!(read(&body(&compressed, ZSTD, size), 700_000).is_err());
        let mut short = body(&compressed, ZSTD, size);
        short.pop();
        assert!(read(&short, 1 << 30).is_err());
    }
}
