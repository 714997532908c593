//! Bytes, read from the front and never past the end.

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Cursor { data, at: 0 }
    }

    /// How many bytes were read.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn left(&self) -> usize {
        self.data.len() - self.at
    }

    pub fn is_empty(&self) -> bool {
        self.left() == 0
    }

    /// All that is left, still unread.
    pub fn peek(&self) -> &'a [u8] {
        &self.data[self.at..]
    }

    /// The next `size` bytes.
    #[inline]
    pub fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        match self.data[self.at..].get(..size) {
            Some(found) => {
                self.at += size;
                Ok(found)
            }
            None => Err(Error::Damaged("shorter than what it announces".into())),
        }
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let found = &self.data[self.at..];
        self.at = self.data.len();
        found
    }

    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.data[self.at..].first_chunk::<N>() {
            Some(found) => {
                self.at += N;
                Ok(*found)
            }
            None => Err(Error::Damaged("shorter than what it announces".into())),
        }
    }

    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    #[inline]
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
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

    /// A length-coded integer. 251, which stands for NULL in text rows, is an error here.
    #[inline]
    pub fn lenenc(&mut self) -> Result<u64> {
        match self.u8()? {
            small @ 0..=250 => Ok(u64::from(small)),
            252 => self.uint(2),
            253 => self.uint(3),
            254 => self.uint(8),
            _ => Err(Error::Damaged("a length that is none".into())),
        }
    }

    /// A length-coded number of bytes, and these.
    #[inline]
    pub fn lenenc_bytes(&mut self) -> Result<&'a [u8]> {
        let size = self.lenenc()?;
        self.take(usize::try_from(size).unwrap_or(usize::MAX))
    }
}
