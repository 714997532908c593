//! Sets of row numbers, as Delta's deletion vectors hold them: 64-bit portable roaring bitmaps.

use std::sync::Arc;

use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, bit_util};
use roaring::{RoaringBitmap, RoaringTreemap};

/// Never changed once made, and cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bitmap {
    rows: Arc<RoaringTreemap>,
}

impl Bitmap {
    pub fn of(rows: impl IntoIterator<Item = u64>) -> Bitmap {
        Bitmap { rows: Arc::new(rows.into_iter().collect()) }
    }

    /// What `serialize` gives, and nothing after it; else what is wrong.
    pub fn parse(mut data: &[u8]) -> Result<Bitmap, String> {
        // Each of the bitmaps inside takes at least its number and an empty bitmap's header.
        let declared = data.first_chunk().map(|count| u64::from_le_bytes(*count));
        if declared.is_none_or(|count| count > (data.len() as u64 - 8) / 12) {
            return Err("a bitmap whose count of parts does not fit its length".into());
        }
        let rows = RoaringTreemap::deserialize_from(&mut data).map_err(|error| format!("a damaged bitmap: {error}"))?;
        if !data.is_empty() {
            return Err(format!("{} bytes after the end of a bitmap", data.len()));
        }
        Ok(Bitmap { rows: Arc::new(rows) })
    }

    pub fn serialize(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.rows.serialized_size());
        self.rows.serialize_into(&mut data).expect("writing into memory does not fail");
        data
    }

    pub fn len(&self) -> u64 {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn contains(&self, row: u32) -> bool {
        self.rows.contains(row.into())
    }

    /// These rows as well, in any order.
    pub fn add(&self, rows: &[u32]) -> Bitmap {
        let added: RoaringBitmap = if rows.is_sorted() {
            rows.iter().copied().collect()
        } else {
            let mut sorted = rows.to_vec();
            sorted.sort_unstable();
            sorted.into_iter().collect()
        };
        let mut union = RoaringTreemap::clone(&self.rows);
        if !added.is_empty() {
            union |= RoaringTreemap::from_bitmaps([(0, added)]);
        }
        Bitmap { rows: Arc::new(union) }
    }

    pub fn union(&self, other: &Bitmap) -> Bitmap {
        Bitmap { rows: Arc::new(&*self.rows | &*other.rows) }
    }

    /// How many of `other`'s rows are not in this one.
    pub fn lacks(&self, other: &Bitmap) -> u64 {
        other.rows.difference_len(&self.rows)
    }

    /// For each of `count` rows from `first` on, whether it is not in this one.
    pub fn kept(&self, first: u64, count: usize) -> BooleanBuffer {
        let mut kept = BooleanBufferBuilder::new(count);
        kept.append_n(count, true);
        let bits = kept.as_slice_mut();
        let mut rows = self.rows.iter();
        rows.advance_to(first);
        for row in rows.map_while(|row| usize::try_from(row - first).ok().filter(|row| *row < count)) {
            bit_util::unset_bit(bits, row);
        }
        kept.finish()
    }

    /// All of its rows, ascending.
    pub fn rows(&self) -> Vec<u64> {
        self.rows.iter().collect()
    }

    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.rows.serialized_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_serialized_is_parsed() {
        for rows in [vec![], vec![0], vec![3, 1, 2], (0..200_000).collect(), (0..1_000_000).step_by(7).collect()] {
            let bitmap = Bitmap::default().add(&rows);
            let data = bitmap.serialize();
            assert_eq!(Bitmap::parse(&data).as_ref(), Ok(&bitmap));
            assert_eq!(bitmap.len(), rows.len() as u64);
        }
        let beyond = Bitmap::of([1, u64::from(u32::MAX) + 7]);
        assert_eq!(Bitmap::parse(&beyond.serialize()).as_ref(), Ok(&beyond));
    }

    #[test]
    fn what_is_cut_or_longer_is_refused() {
        let data = Bitmap::of((0..100_000).step_by(3)).serialize();
        for length in (0..data.len()).step_by(101) {
            assert!(Bitmap::parse(&data[..length]).is_err(), "{length}");
        }
        assert!(Bitmap::parse(&[&data[..], b"x"].concat()).is_err());
        assert!(Bitmap::parse(&[255; 8]).is_err());
    }

    #[test]
    fn rows_are_kept_that_are_not_in_it() {
        let bitmap = Bitmap::of([0, 3, 64, 65, 1 << 33]);
        let kept = bitmap.kept(2, 64);
        let gone: Vec<usize> = (0..64).filter(|i| !kept.value(*i)).collect();
        assert_eq!(gone, [1, 62, 63]);
        assert_eq!(bitmap.kept(4, 0).len(), 0);
        assert_eq!(bitmap.kept(1 << 33, 2).iter().collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn lacking_counts_the_others_rows() {
        let (few, many) = (Bitmap::of([1, 5]), Bitmap::of([1, 2, 5, 9]));
        assert_eq!((many.lacks(&few), few.lacks(&many)), (0, 2));
        assert_eq!(few.union(&Bitmap::of([2, 9])), many);
        assert_eq!(few.add(&[9, 2, 9]), many);
    }
}
