//! Bytes, read from the front and never past the end.

use crate::error::{Error, Result, damaged};

#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    size: usize,
}

#[cold]
fn short() -> Error {
    Error::Damaged("shorter than what it announces".into())
}

impl<'a> Cursor<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Cursor { rest: data, size: data.len() }
    }

    /// How many bytes were read.
    pub fn at(&self) -> usize {
        self.size - self.rest.len()
    }

    pub fn left(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left, still unread.
    #[inline]
    pub fn peek(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `size` bytes.
    #[inline(always)]
    pub fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(size) {
            Some((found, rest)) => {
                self.rest = rest;
                Ok(found)
            }
            None => Err(short()),
        }
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    #[inline(always)]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((found, rest)) => {
                self.rest = rest;
                Ok(*found)
            }
            None => Err(short()),
        }
    }

    #[inline(always)]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    #[inline(always)]
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Three bytes.
    #[inline(always)]
    pub fn u24(&mut self) -> Result<u32> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    #[inline(always)]
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline(always)]
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// An unsigned integer of `size` bytes (8 at most), little-endian.
    #[inline]
    pub fn uint(&mut self, size: usize) -> Result<u64> {
        Ok(self.take(size)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// An unsigned integer of `size` bytes (8 at most), big-endian.
    #[inline]
    pub fn uint_be(&mut self, size: usize) -> Result<u64> {
        Ok(self.take(size)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Bytes after their number, which is in `prefix` bytes (1 to 4), little-endian.
    #[inline(always)]
    pub fn prefixed(&mut self, prefix: u8) -> Result<&'a [u8]> {
        let size = match prefix {
            1 => u32::from(self.u8()?),
            2 => u32::from(self.u16()?),
            3 => self.u24()?,
            _ => self.u32()?,
        };
        self.take(size as usize)
    }

    /// A length-coded integer. 251, which stands for NULL in text rows, is an error here.
    #[inline]
    pub fn lenenc(&mut self) -> Result<u64> {
        match self.u8()? {
            small @ 0..=250 => Ok(u64::from(small)),
            252 => Ok(u64::from(self.u16()?)),
            253 => Ok(u64::from(self.u24()?)),
            254 => self.u64(),
            _ => damaged("a length that is none"),
        }
    }

    /// A length-coded number of bytes, and these.
    #[inline]
    pub fn lenenc_bytes(&mut self) -> Result<&'a [u8]> {
        let size = self.lenenc()?;
        self.take(usize::try_from(size).unwrap_or(usize::MAX))
    }
}
