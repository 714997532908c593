//! Which places count: those in live files, in rows that are not dead.

use std::hash::{BuildHasherDefault, Hasher};

use super::entry::Place;
use crate::bitmap::Bitmap;

/// Live files by number, with their dead rows.
#[derive(Default)]
pub struct Files {
    files: std::collections::HashMap<u32, Option<Bitmap>, BuildHasherDefault<ByNumber>>,
}

/// Numbers need no protection from those who choose them.
#[derive(Default)]
struct ByNumber(u64);

impl Hasher for ByNumber {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing: the golden ratio's fraction; tables look at the lowest and the highest bits.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

impl Files {
    pub fn set(&mut self, number: u32, dead: Option<Bitmap>) {
        self.files.insert(number, dead.filter(|dead| !dead.is_empty()));
    }

    pub fn drop(&mut self, number: u32) {
        self.files.remove(&number);
    }

    pub fn live(&self, place: Place) -> bool {
        match self.files.get(&place.file) {
            Some(Some(dead)) => !dead.contains(place.row),
            Some(None) => true,
            None => false,
        }
    }

    /// By number.
    pub fn all(&self) -> Vec<(u32, Option<&Bitmap>)> {
        let mut all: Vec<_> = self.files.iter().map(|(number, dead)| (*number, dead.as_ref())).collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }
}
